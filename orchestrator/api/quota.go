package api

// Quota is what an account may have. What is absent is the orchestrators' default.
type Quota struct {
	Concurrent       *int `json:"concurrent,omitempty" minimum:"0" maximum:"1000000" doc:"Sessions that have a device at once; more wait in the queue. 0: none gets one."`
	Queued           *int `json:"queued,omitempty" minimum:"0" maximum:"1000000" doc:"Sessions that wait at once; a further one is refused with 429."`
	CreatesPerMinute *int `json:"creates_per_minute,omitempty" minimum:"0" maximum:"1000000" doc:"Sessions that are created within 60 s; a further one is refused with 429."`
	Weight           int  `json:"weight,omitempty" minimum:"1" maximum:"1000" default:"1" doc:"How many sessions it is given devices for each one of an account with weight 1, while both wait."`
}

// PutQuota is the body of PUT /v1/accounts/{id}/quota. It replaces the whole quota.
type PutQuota struct {
	Quota
	Reason string `json:"reason,omitempty" maxLength:"256" doc:"Why; it goes into the audit log. Nothing of a customer belongs here."`
}

// AccountQuota is an account's quota beside what it has.
type AccountQuota struct {
	Account string `json:"account"`
	Quota
	Active        int `json:"active" doc:"Sessions that have a device now: starting, running or finishing."`
	QueuedNow     int `json:"queued_now" doc:"Sessions that wait now."`
	CreatedLately int `json:"created_lately" doc:"Sessions that were created within about the last 60 s."`
}
