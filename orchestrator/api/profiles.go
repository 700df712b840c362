package api

import "time"

// ProfileMode says how a session uses its profile.
type ProfileMode string

// Profile modes.
const (
	ProfileExclusive ProfileMode = "exclusive" // the one writer; saved at the end
	ProfileReadonly  ProfileMode = "readonly"  // many at once; never saved
	ProfileFork      ProfileMode = "fork"      // begins with the profile and is saved as another
)

// ProfileModes are all of them.
func ProfileModes() []ProfileMode {
	return []ProfileMode{ProfileExclusive, ProfileReadonly, ProfileFork}
}

// Profile is the metadata of a profile; its state is a sealed file.
type Profile struct {
	ID          string    `json:"id"`
	Account     string    `json:"account"`
	Name        string    `json:"name"`
	Archetype   string    `json:"archetype,omitempty"`
	Description string    `json:"description,omitempty"`
	Generation  int64     `json:"generation" doc:"The current one; 0 until state was saved or imported."`
	Bytes       int64     `json:"bytes" doc:"Size of its sealed file."`
	Damaged     bool      `json:"damaged,omitempty" doc:"The current generation is quarantined: no session can use the profile until another is promoted."`
	Candidates  int       `json:"candidates,omitempty" doc:"Generations that wait to be promoted, or not."`
	HeldBy      string    `json:"held_by,omitempty" doc:"Session that is its writer now."`
	CreatedAt   time.Time `json:"created_at"`
}

// CreateProfile asks for a new, empty profile.
type CreateProfile struct {
	Account     string `json:"account" minLength:"1" maxLength:"128"`
	Name        string `json:"name" minLength:"1" maxLength:"256"`
	Archetype   string `json:"archetype,omitempty" maxLength:"256"`
	Description string `json:"description,omitempty" maxLength:"4096"`
}

// ChangeProfile changes the metadata that it names.
type ChangeProfile struct {
	Name        *string `json:"name,omitempty" minLength:"1" maxLength:"256"`
	Archetype   *string `json:"archetype,omitempty" maxLength:"256"`
	Description *string `json:"description,omitempty" maxLength:"4096"`
}

// CloneProfile asks for a new profile of the same account that begins with the state of another.
type CloneProfile struct {
	Name        string `json:"name" minLength:"1" maxLength:"256"`
	Archetype   string `json:"archetype,omitempty" maxLength:"256"`
	Description string `json:"description,omitempty" maxLength:"4096"`
	Generation  int64  `json:"generation,omitempty" minimum:"0" doc:"Which one; default: the current one."`
}

// ProfileList lists profiles.
type ProfileList struct {
	Profiles []Profile `json:"profiles"`
}

// Generation is one saved state of a profile.
type Generation struct {
	Number    int64     `json:"number"`
	Current   bool      `json:"current"`
	State     string    `json:"state" enum:"good,candidate,quarantined" doc:"candidate: never current unless promoted. quarantined: its file is damaged, and nothing opens it."`
	Reason    string    `json:"reason,omitempty" doc:"Why it is quarantined, or only a candidate."`
	Source    string    `json:"source" enum:"session,import,clone"`
	Session   string    `json:"session,omitempty" doc:"That saved it."`
	Previous  int64     `json:"previous,omitempty" doc:"The generation it came after."`
	Bytes     int64     `json:"bytes" doc:"Size of its sealed file."`
	CreatedAt time.Time `json:"created_at"`
}

// GenerationList lists generations, newest first.
type GenerationList struct {
	Generations []Generation `json:"generations"`
}

// KeyStatus is how many keys there are, and which epoch of the root key wraps them.
type KeyStatus struct {
	Roots     []RootEpoch `json:"root_epochs" doc:"The newest last."`
	Profiles  int         `json:"profile_keys"`
	Destroyed int         `json:"destroyed" doc:"Lines of the ledger of destroyed keys."`
}

// RootEpoch is an epoch of the root key.
type RootEpoch struct {
	Epoch    string `json:"epoch"`
	Current  bool   `json:"current" doc:"It wraps new keys."`
	Missing  bool   `json:"missing,omitempty" doc:"Keys need it and the orchestrator does not have it: what they seal cannot be opened."`
	Accounts int    `json:"account_keys" doc:"Account keys that it wraps."`
}

// RotateKeys is the body of POST /v1/keys/rotate.
type RotateKeys struct {
	Account string `json:"account,omitempty" maxLength:"128" doc:"Give this account a new key and its profiles new data keys for generations to come. Absent: begin a new epoch of the root key and wrap every account's key with it."`
}

// KeysRotated says what a rotation did.
type KeysRotated struct {
	RootEpoch string `json:"root_epoch,omitempty" doc:"It wraps every account's key now."`
	NewRoot   bool   `json:"new_root_epoch" doc:"It was made for this; false where the root key comes from the environment or a key management service, whose owner adds one."`
	Accounts  int    `json:"account_keys" doc:"Wrapped anew."`
	Profiles  int    `json:"profile_keys" doc:"Wrapped anew."`
}

// KeysRestored says how many keys a backup brought back.
type KeysRestored struct {
	Keys int `json:"keys"`
}
