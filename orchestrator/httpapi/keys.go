package httpapi

import (
	"bytes"
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// backupBody is how long a key backup may be: some 400,000 profiles.
const backupBody = 256 << 20

func (s *server) registerKeys(a huma.API) {
	reg(a, http.MethodGet, "/v1/keys", "key-status", "Count keys by the root key that wraps them", 0, s.keyStatus)
	reg(a, http.MethodPost, "/v1/keys/rotate", "rotate-keys", "Wrap keys anew; no sealed file is touched", 0, s.rotateKeys)
	reg(a, http.MethodDelete, "/v1/keys/roots/{epoch}", "retire-root", "Remove an epoch of the root key that wraps no account's key", http.StatusNoContent, s.retireRoot)
	reg(a, http.MethodDelete, "/v1/accounts/{id}/key", "destroy-account-key", "Make every copy of every profile of an account unreadable, for ever", http.StatusNoContent, s.destroyKey)
	reg(a, http.MethodGet, "/v1/keys/backup", "backup-keys", "Wrapped keys and the ledger of destroyed ones, sealed, with an expiry", 0, s.backupKeys)
	huma.Register(a, huma.Operation{
		OperationID: "restore-keys", Method: http.MethodPost, Path: "/v1/keys/restore", Summary: "Add the keys of a backup that are missing and not destroyed",
		MaxBodyBytes: backupBody, BodyReadTimeout: bodyLimit, SkipValidateBody: true,
	}, s.restoreKeys)
}

func (s *server) keyStatus(ctx context.Context, _ *struct{}) (*body[api.KeyStatus], error) {
	v, err := s.Keys.Status(ctx)
	out := api.KeyStatus{Roots: []api.RootEpoch{}, Profiles: v.Profiles, Destroyed: v.Destroyed}
	for _, r := range v.Roots {
		out.Roots = append(out.Roots, api.RootEpoch{Epoch: r.Epoch, Current: r.Wraps, Missing: r.Missing, Accounts: r.Accounts})
	}
	return &body[api.KeyStatus]{out}, s.problem(err)
}

func (s *server) rotateKeys(ctx context.Context, in *struct{ Body api.RotateKeys }) (*body[api.KeysRotated], error) {
	if in.Body.Account != "" {
		n, err := s.Keys.RotateAccount(ctx, in.Body.Account)
		return &body[api.KeysRotated]{api.KeysRotated{Accounts: 1, Profiles: n}}, s.problem(err)
	}
	r, err := s.Keys.Rotate(ctx)
	return &body[api.KeysRotated]{api.KeysRotated{RootEpoch: r.Root, NewRoot: r.NewRoot, Accounts: r.Rewraps}}, s.problem(err)
}

func (s *server) retireRoot(ctx context.Context, in *struct {
	Epoch string `path:"epoch" maxLength:"128"`
}) (*struct{}, error) {
	return nil, s.problem(s.Keys.Retire(ctx, in.Epoch))
}

func (s *server) destroyKey(ctx context.Context, in *ByID) (*struct{}, error) {
	had, err := s.Keys.DestroyAccount(ctx, in.ID, s.Now())
	if err == nil && !had {
		err = orchestrator.ErrNotFound
	}
	return nil, s.problem(err)
}

func (s *server) backupKeys(ctx context.Context, in *struct {
	Days int `query:"days" minimum:"1" maximum:"90" default:"30" doc:"How long it can be restored."`
}) (*file, error) {
	var b bytes.Buffer
	if err := s.Keys.Backup(ctx, &b, s.Now(), time.Duration(in.Days)*24*time.Hour); err != nil {
		return nil, s.problem(err)
	}
	return &file{ContentType: "application/octet-stream", CacheControl: "no-store", Body: b.Bytes()}, nil
}

func (s *server) restoreKeys(ctx context.Context, in *struct {
	RawBody []byte `contentType:"application/octet-stream"`
}) (*body[api.KeysRestored], error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	n, err := s.Keys.Restore(ctx, bytes.NewReader(in.RawBody), s.Now())
	return &body[api.KeysRestored]{api.KeysRestored{Keys: n}}, s.problem(err)
}
