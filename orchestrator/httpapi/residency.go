package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/driftstack/fleet/orchestrator/api"
)

// Residency tells what is kept where.
type Residency interface {
	Report(ctx context.Context, account string, verify bool) (api.Residency, error)
}

func (s *server) registerResidency(a huma.API) {
	if s.Residency == nil {
		return
	}
	reg(a, http.MethodGet, "/v1/residency", "get-residency", "Get the register of what is kept where, with what there is", 0, s.residency)
	reg(a, http.MethodGet, "/v1/accounts/{id}/residency", "get-account-residency", "Get the register of what is kept where, of an account", 0, s.accountResidency)
}

// Verify is exported because huma does not look into embedded fields that are not.
type Verify struct {
	Verify bool `query:"verify" doc:"Ask the stores: probe and list the storage of every region, have the databases say where they are, compare their columns with the register."`
}

func (s *server) residency(ctx context.Context, in *struct {
	Verify
	Account string `query:"account" maxLength:"128" doc:"Only this account's."`
}) (*body[api.Residency], error) {
	v, err := s.Residency.Report(ctx, in.Account, in.Verify.Verify)
	return &body[api.Residency]{v}, s.problem(err)
}

func (s *server) accountResidency(ctx context.Context, in *struct {
	ByID
	Verify
}) (*body[api.Residency], error) {
	v, err := s.Residency.Report(ctx, in.ID, in.Verify.Verify)
	return &body[api.Residency]{v}, s.problem(err)
}
