package api

// ProfileReport says what became of a profile's items in the browser of a session. It names cookies and origins, which are the
// customer's: it is for the account that the session is of, and in no event or log.
type ProfileReport struct {
	Session     string        `json:"session"`
	Profile     string        `json:"profile,omitempty"`
	Restored    int           `json:"restored"`
	Altered     int           `json:"altered"`
	Dropped     int           `json:"dropped"`
	Unsupported int           `json:"unsupported"`
	Items       []ProfileItem `json:"items" doc:"At most as many as limit says, those first that are not restored. Values are not told."`
	More        int           `json:"more,omitempty" doc:"How many items are not listed."`
}

// ProfileItem is a cookie or an item of localStorage.
type ProfileItem struct {
	Kind   string `json:"kind" enum:"cookie,local_storage"`
	Domain string `json:"domain,omitempty" doc:"Of a cookie; a leading dot: its subdomains have it too."`
	Path   string `json:"path,omitempty"`
	Origin string `json:"origin,omitempty" doc:"Of an item of localStorage."`
	Name   string `json:"name"`
	Status string `json:"status" enum:"restored,altered,dropped,unsupported" doc:"restored: read back equal. altered: the browser has it otherwise. dropped: it has it not, or no page could show it. unsupported: drivers cannot set it."`
	Reason string `json:"reason,omitempty"`
}
