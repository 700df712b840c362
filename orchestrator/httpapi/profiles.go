package httpapi

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/profilestate"
)

// stateBody is how long an imported storageState may be: the profile's own limit is told more kindly, so there is room above it.
const stateBody = 80 << 20

func (s *server) registerProfiles(a huma.API) {
	reg(a, http.MethodPost, "/v1/profiles", "create-profile", "Create an empty profile", http.StatusCreated, s.createProfile)
	reg(a, http.MethodGet, "/v1/profiles", "list-profiles", "List profiles", 0, s.listProfiles)
	reg(a, http.MethodGet, "/v1/profiles/{id}", "get-profile", "Get a profile's metadata", 0, s.getProfile)
	reg(a, http.MethodPatch, "/v1/profiles/{id}", "change-profile", "Change a profile's metadata", 0, s.changeProfile)
	reg(a, http.MethodDelete, "/v1/profiles/{id}", "delete-profile", "Delete a profile: its key is destroyed, its files removed", http.StatusNoContent, s.deleteProfile)
	reg(a, http.MethodPost, "/v1/profiles/{id}/clone", "clone-profile", "Create a profile with the state of another", http.StatusCreated, s.cloneProfile)
	reg(a, http.MethodPost, "/v1/profiles/{id}/rollback", "rollback-profile", "Go back to the newest older generation that opens", 0, s.rollbackProfile)
	reg(a, http.MethodGet, "/v1/profiles/{id}/generations", "list-generations", "List a profile's saved states, newest first", 0, s.listGenerations)
	reg(a, http.MethodPost, "/v1/profiles/{id}/generations/{number}/promote", "promote-generation", "Make a generation the current one", 0, s.promoteGeneration)
	reg(a, http.MethodDelete, "/v1/profiles/{id}/generations/{number}", "delete-generation", "Delete a generation that is not current", http.StatusNoContent, s.deleteGeneration)
	reg(a, http.MethodGet, "/v1/profiles/{id}/storage-state", "export-profile", "Export cookies and localStorage as Playwright's storageState", 0, s.exportProfile)
	huma.Register(a, huma.Operation{
		OperationID: "import-profile", Method: http.MethodPut, Path: "/v1/profiles/{id}/storage-state", Summary: "Import Playwright's storageState as the next generation",
		MaxBodyBytes: stateBody, BodyReadTimeout: bodyLimit, SkipValidateBody: true,
	}, s.importProfile)
}

func (s *server) createProfile(ctx context.Context, in *struct{ Body api.CreateProfile }) (*body[api.Profile], error) {
	v, err := s.Store.CreateProfile(ctx, uuid.NewString(), in.Body)
	return &body[api.Profile]{v}, s.problem(err)
}

// reportWhat is where the report of a session's restore is, below the session.
const reportWhat = "profile-report"

func isReport(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/"+reportWhat) }

func (s *server) profileReport(ctx context.Context, in *struct {
	ByID
	Limit int `query:"limit" minimum:"0" maximum:"10000" default:"1000" doc:"How many items are listed: those first that are not as they were saved."`
}) (*body[api.ProfileReport], error) {
	v, err := s.Orchestrator.ProfileReport(ctx, in.ID, in.Limit)
	return &body[api.ProfileReport]{v}, s.problem(err)
}

func (s *server) listProfiles(ctx context.Context, in *struct {
	Account string `query:"account" maxLength:"128"`
}) (*body[api.ProfileList], error) {
	v, err := s.Store.Profiles(ctx, in.Account, "")
	return &body[api.ProfileList]{api.ProfileList{Profiles: v}}, s.problem(err)
}

func (s *server) getProfile(ctx context.Context, in *ByID) (*body[api.Profile], error) {
	return s.shownProfile(ctx, in.ID)
}

func (s *server) shownProfile(ctx context.Context, id string) (*body[api.Profile], error) {
	v, err := s.Store.Profiles(ctx, "", id)
	if err == nil && len(v) == 0 {
		err = orchestrator.ErrNotFound
	}
	if err != nil {
		return nil, s.problem(err)
	}
	return &body[api.Profile]{v[0]}, nil
}

func (s *server) changeProfile(ctx context.Context, in *struct {
	ByID
	Body api.ChangeProfile
}) (*body[api.Profile], error) {
	if err := s.Store.ChangeProfile(ctx, in.ID, in.Body); err != nil {
		return nil, s.problem(err)
	}
	return s.shownProfile(ctx, in.ID)
}

func (s *server) deleteProfile(ctx context.Context, in *ByID) (*struct{}, error) {
	return nil, s.problem(s.withProfile(ctx, in.ID, func(ref profilestate.Ref) error { return s.Profiles.Delete(ctx, ref) }))
}

// withProfile looks up whose a profile is.
func (s *server) withProfile(ctx context.Context, id string, f func(profilestate.Ref) error) error {
	ref, err := s.Store.ProfileRef(ctx, id)
	if err != nil {
		return err
	}
	return f(ref)
}

func (s *server) cloneProfile(ctx context.Context, in *struct {
	ByID
	Body api.CloneProfile
}) (*body[api.Profile], error) {
	var made string
	err := s.withProfile(ctx, in.ID, func(from profilestate.Ref) error {
		v, err := s.Store.CreateProfile(ctx, uuid.NewString(), api.CreateProfile{
			Account: from.Account, Name: in.Body.Name, Archetype: in.Body.Archetype, Description: in.Body.Description,
		})
		if err != nil {
			return err
		}
		made = v.ID
		to := profilestate.Ref{Account: from.Account, Profile: v.ID}
		if _, _, err := s.Profiles.Clone(ctx, from, in.Body.Generation, to, profilestate.Writer{}); err != nil {
			clean, done := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
			defer done()
			_ = s.Profiles.Delete(clean, to) // an empty profile is no harm
			return err
		}
		return nil
	})
	if err != nil {
		return nil, s.problem(err)
	}
	return s.shownProfile(ctx, made)
}

func (s *server) rollbackProfile(ctx context.Context, in *ByID) (*body[api.Profile], error) {
	err := s.withProfile(ctx, in.ID, func(ref profilestate.Ref) error {
		_, err := s.Profiles.Rollback(ctx, ref)
		return err
	})
	if err != nil {
		return nil, s.problem(err)
	}
	return s.shownProfile(ctx, in.ID)
}

func (s *server) listGenerations(ctx context.Context, in *ByID) (*body[api.GenerationList], error) {
	out := &body[api.GenerationList]{api.GenerationList{Generations: []api.Generation{}}}
	err := s.withProfile(ctx, in.ID, func(ref profilestate.Ref) error {
		head, err := s.Store.Head(ctx, ref)
		if err != nil {
			return err
		}
		list, err := s.Store.Generations(ctx, ref)
		for _, g := range list {
			out.Body.Generations = append(out.Body.Generations, api.Generation{
				Number: g.Number, Current: g.Number == head.Current.Number, State: string(g.State), Reason: g.Reason, Source: string(g.Source),
				Session: g.Session, Previous: g.Previous, Bytes: g.Bytes, CreatedAt: g.At,
			})
		}
		return err
	})
	return out, s.problem(err)
}

// ByNumber is exported because huma does not look into embedded fields that are not.
type ByNumber struct {
	ByID
	Number int64 `path:"number" minimum:"1"`
}

func (s *server) promoteGeneration(ctx context.Context, in *ByNumber) (*body[api.Profile], error) {
	err := s.withProfile(ctx, in.ID, func(ref profilestate.Ref) error { return s.Profiles.Promote(ctx, ref, in.Number) })
	if err != nil {
		return nil, s.problem(err)
	}
	return s.shownProfile(ctx, in.ID)
}

func (s *server) deleteGeneration(ctx context.Context, in *ByNumber) (*struct{}, error) {
	return nil, s.problem(s.withProfile(ctx, in.ID, func(ref profilestate.Ref) error { return s.Profiles.DeleteGeneration(ctx, ref, in.Number) }))
}

// file is an answer that is not built from a struct.
type file struct {
	ContentType  string `header:"Content-Type"`
	CacheControl string `header:"Cache-Control"`
	Body         []byte
}

func (s *server) exportProfile(ctx context.Context, in *struct {
	ByID
	Generation int64 `query:"generation" minimum:"0" doc:"Which one; default: the current one."`
}) (*file, error) {
	out := &file{ContentType: "application/json", CacheControl: "no-store"}
	err := s.withProfile(ctx, in.ID, func(ref profilestate.Ref) error {
		snapshot, err := s.Profiles.Export(ctx, ref, in.Generation)
		if err != nil {
			return err
		}
		out.Body, err = snapshot.Export()
		return err
	})
	if err != nil {
		return nil, s.problem(err)
	}
	return out, nil
}

func (s *server) importProfile(ctx context.Context, in *struct {
	ByID
	RawBody []byte `contentType:"application/json"`
}) (*body[api.Profile], error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	err := s.withProfile(ctx, in.ID, func(ref profilestate.Ref) error {
		_, err := s.Profiles.Import(ctx, ref, in.RawBody)
		return err
	})
	if err != nil {
		return nil, s.problem(err)
	}
	return s.shownProfile(ctx, in.ID)
}
