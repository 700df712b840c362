package api

import "time"

// Recording is the recording of a session.
type Recording struct {
	ID         string          `json:"id"`
	Session    string          `json:"session"`
	Account    string          `json:"account"`
	Placement  string          `json:"placement" enum:"eu,replicated" doc:"Where copies of it are to be; eu as well once its account was changed to that."`
	State      string          `json:"state" enum:"recording,sealed,uploading,available,replicated,empty,lost,quarantined"`
	Partial    bool            `json:"partial" doc:"Part of the session is missing from it."`
	Cause      string          `json:"cause,omitempty" doc:"Why it is partial, empty, lost or quarantined."`
	Bytes      int64           `json:"bytes"`
	DurationMS int64           `json:"duration_ms"`
	SHA256     string          `json:"sha256,omitempty" doc:"Of the whole, in lower-case hex."`
	StartedAt  time.Time       `json:"started_at"`
	UpdatedAt  time.Time       `json:"updated_at" doc:"When its state changed last."`
	Copies     []RecordingCopy `json:"copies"`
}

// RecordingCopy is one stored copy.
type RecordingCopy struct {
	Region     string     `json:"region" enum:"eu,us"`
	Bucket     string     `json:"bucket"`
	State      string     `json:"state" enum:"pending,uploading,verified,repairing,removing,removed"`
	Bytes      int64      `json:"bytes,omitempty" doc:"Its size, once verified."`
	ETag       string     `json:"etag,omitempty" doc:"Its checksum as the storage has it, once verified."`
	VerifiedAt *time.Time `json:"verified_at,omitempty" doc:"When its size and checksum were read back."`
	RemovedAt  *time.Time `json:"removed_at,omitempty" doc:"When it was deleted, and seen to be gone."`
	CheckedAt  *time.Time `json:"checked_at,omitempty" doc:"When it was last compared with what it should be."`
	Damage     string     `json:"damage,omitempty" enum:"missing,altered" doc:"What was last found wrong with it; it is so still while its state is repairing."`
	DamagedAt  *time.Time `json:"damaged_at,omitempty" doc:"When that was found."`
	Repairs    int        `json:"repairs,omitempty" doc:"How often it was put back."`
	URL        string     `json:"url,omitempty" doc:"Presigned GET; only for a verified copy, and not in lists."`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"`
}

// RecordingList is one page of recordings, newest first.
type RecordingList struct {
	Recordings []Recording `json:"recordings"`
	Next       string      `json:"next,omitempty" doc:"Pass as cursor for the next page; absent on the last."`
}

// RecordingURL is a presigned GET of one copy. It takes Range requests.
type RecordingURL struct {
	URL       string    `json:"url"`
	Region    string    `json:"region" enum:"eu,us"`
	ExpiresAt time.Time `json:"expires_at"`
	Bytes     int64     `json:"bytes"`
	SHA256    string    `json:"sha256"`
}
