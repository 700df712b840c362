package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder"
)

// registerRecordings registers what is read of recordings.
func (s *server) registerRecordings(a huma.API) {
	reg(a, http.MethodGet, "/v1/sessions/{id}/recording", "session-recording", "Where a session's recording is", 0, s.sessionRecording)
	reg(a, http.MethodGet, "/v1/recordings", "list-recordings", "List recordings, newest first", 0, s.listRecordings)
	reg(a, http.MethodGet, "/v1/recordings/{id}", "get-recording", "Get a recording: its state, and where each copy of it is", 0, s.getRecording)
	reg(a, http.MethodGet, "/v1/recordings/{id}/url", "recording-url", "Get a presigned URL of one copy of a recording", 0, s.recordingURL)
}

// ExpiresIn is exported because huma does not look into embedded fields that are not.
type ExpiresIn struct {
	Seconds int `query:"expires_in" minimum:"1" maximum:"3600" default:"3600" doc:"For how many seconds a URL is valid."`
}

func (e ExpiresIn) duration() time.Duration { return time.Duration(e.Seconds) * time.Second }

// OfAccount likewise.
type OfAccount struct {
	Account string `query:"account" maxLength:"128" doc:"Whose it has to be; another account's is not found."`
}

func (s *server) sessionRecording(ctx context.Context, in *struct {
	ByID
	ExpiresIn
}) (*body[api.Recording], error) {
	v, key, err := s.Store.Recording(ctx, in.ID)
	if err != nil {
		return nil, s.problem(err)
	}
	for i := range v.Copies {
		c := &v.Copies[i]
		if c.State != string(recorder.CopyVerified) {
			continue
		}
		expires := s.Now().Add(in.duration())
		if c.URL, err = s.Recordings.URL(ctx, place.Region(c.Region), key, in.duration()); err != nil {
			s.Log.Warn("no URL of a copy", zap.String("region", c.Region), zap.Error(err)) // the other one may have one
			continue
		}
		c.ExpiresAt = &expires
	}
	return &body[api.Recording]{v}, nil
}

func (s *server) listRecordings(ctx context.Context, in *struct {
	Account string    `query:"account" maxLength:"128"`
	Session string    `query:"session" maxLength:"128"`
	State   string    `query:"state" enum:"recording,sealed,uploading,available,replicated,empty,lost,quarantined"`
	Since   time.Time `query:"since" doc:"Only those that began then or later, RFC 3339."`
	Before  time.Time `query:"before" doc:"Only those that began before then, RFC 3339."`
	Limit   int       `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor  string    `query:"cursor" maxLength:"256" doc:"next of the page before"`
}) (*body[api.RecordingList], error) {
	v, err := s.Store.Recordings(ctx, pgstore.RecordingFilter{Account: in.Account, Session: in.Session, State: in.State,
		Since: in.Since, Before: in.Before, Limit: in.Limit, Cursor: in.Cursor})
	return &body[api.RecordingList]{v}, s.problem(err)
}

func (s *server) getRecording(ctx context.Context, in *struct {
	ByID
	OfAccount
}) (*body[api.Recording], error) {
	v, _, err := s.Store.RecordingByID(ctx, in.ID, in.Account)
	return &body[api.Recording]{v}, s.problem(err)
}

func (s *server) recordingURL(ctx context.Context, in *struct {
	ByID
	OfAccount
	ExpiresIn
	Region string `query:"region" enum:"eu,us" default:"eu" doc:"Of which copy."`
}) (*body[api.RecordingURL], error) {
	v, key, err := s.Store.RecordingByID(ctx, in.ID, in.Account)
	if err != nil {
		return nil, s.problem(err)
	}
	if err := noCopy(v, in.Region); err != nil {
		return nil, err
	}
	u := api.RecordingURL{Region: in.Region, ExpiresAt: s.Now().Add(in.duration()), Bytes: v.Bytes, SHA256: v.SHA256}
	if u.URL, err = s.Recordings.URL(ctx, place.Region(in.Region), key, in.duration()); err != nil {
		s.Log.Warn("no URL of a copy", zap.String("region", in.Region), zap.Error(err))
		return nil, &huma.ErrorModel{Type: typeUnavailable, Status: http.StatusServiceUnavailable, Title: "Unavailable",
			Detail: "this orchestrator has no storage in " + in.Region + "; ask another one, or for the other region"}
	}
	return &body[api.RecordingURL]{u}, nil
}

// stateProblem is a recording that cannot be read as asked, with its state as RFC 9457 has such members.
type stateProblem struct {
	huma.ErrorModel
	State string `json:"state"`
	Cause string `json:"cause,omitempty"`
}

// storedSoon is when to ask again for a recording whose upload goes on.
const storedSoon = 5 * time.Second

// noCopy says why there is no copy of a recording to be read in a region; nil: there is one.
func noCopy(v api.Recording, region string) error {
	i := slices.IndexFunc(v.Copies, func(c api.RecordingCopy) bool { return c.Region == region })
	state, verified := "", false
	if i >= 0 {
		state = v.Copies[i].State
		verified = state == string(recorder.CopyVerified)
	}
	refuse := func(kind string, status int, title, detail string) error {
		return &stateProblem{huma.ErrorModel{Type: kind, Status: status, Title: title, Detail: detail}, v.State, v.Cause}
	}
	switch {
	case verified:
		return nil
	case state == "removing" || state == "removed":
		return refuse(typeRemoved, http.StatusGone, "Copy removed", "the copy in "+region+" was removed, or is about to be: its account keeps recordings in the EU only; ask with region=eu")
	case v.State == string(recorder.StateEmpty):
		return refuse(typeEmpty, http.StatusNotFound, "Recording empty", fmt.Sprintf("there is nothing to play: not one frame was recorded (%s)", cmp.Or(v.Cause, "the session had no screen")))
	case v.State == string(recorder.StateLost):
		return refuse(typeLost, http.StatusGone, "Recording lost", fmt.Sprintf("there is nothing to play: what held it is gone, and nothing of it had been uploaded (%s)", v.Cause))
	case i < 0 && v.State != string(recorder.StateQuarantined):
		return refuse(typeNotFound, http.StatusNotFound, "No such copy", "its placement is "+v.Placement+": there is no copy in "+region+"; ask with region=eu")
	case v.State == string(recorder.StateQuarantined):
		return refuse(typeQuarantined, http.StatusConflict, "Recording quarantined", fmt.Sprintf("it cannot be trusted (%s), and waits for a person to look at it", v.Cause))
	}
	return huma.ErrorWithHeaders(refuse(typeNotStored, http.StatusConflict, "Recording not stored yet",
		fmt.Sprintf("it is %s, and its copy in %s is %s: try again, or ask for another region", v.State, region, cmp.Or(state, "pending"))),
		http.Header{"Retry-After": {seconds(storedSoon)}})
}
