package httpapi

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

// Operator is who calls, as they say: it goes into the audit log, and proves nothing.
type Operator struct {
	By string `header:"Driftstack-Operator" maxLength:"128" doc:"Who does it, for the audit log: a name that people know. Everybody has the same token."`
}

func (o Operator) act(reason string) orchestrator.Act {
	return orchestrator.Act{By: cmp.Or(o.By, "unnamed"), Reason: reason}
}

// HostName is exported because huma does not look into embedded fields that are not.
type HostName struct {
	Name string `path:"name" maxLength:"63"`
}

// DeviceName likewise.
type DeviceName struct {
	Device string `path:"device" maxLength:"128"`
}

// operate registers what operators do to hosts and devices, and where it can be read.
func (s *server) operate(a huma.API) {
	reg(a, http.MethodPost, "/v1/hosts/{name}/cordon", "cordon-host", "Keep new sessions off a host; those on it go on", 0, s.cordonHost)
	reg(a, http.MethodPost, "/v1/hosts/{name}/uncordon", "uncordon-host", "Let a host take sessions again: undoes a cordon or a drain", 0, s.uncordonHost)
	reg(a, http.MethodPost, "/v1/hosts/{name}/drain", "drain-host", "Keep new sessions off a host, and end those on it after a deadline", http.StatusAccepted, s.drainHost)
	reg(a, http.MethodPost, "/v1/hosts/{name}/devices/{device}/cordon", "cordon-device", "Keep new sessions off a device; one on it goes on", http.StatusNoContent, s.cordonDevice)
	reg(a, http.MethodPost, "/v1/hosts/{name}/devices/{device}/uncordon", "uncordon-device", "Let a device take sessions again", http.StatusNoContent, s.uncordonDevice)
	reg(a, http.MethodPost, "/v1/hosts/{name}/devices/{device}/release", "force-release", "Take a device from its session at once", http.StatusAccepted, s.forceRelease)
	reg(a, http.MethodGet, "/v1/accounts/{id}/quota", "get-quota", "Get what an account may have, and has", 0, s.getQuota)
	reg(a, http.MethodPut, "/v1/accounts/{id}/quota", "put-quota", "Change what an account may have", 0, s.putQuota)
	reg(a, http.MethodGet, "/v1/accounts/{id}/profile-execution", "get-profile-execution", "Get where an account's sessions with a profile may run", 0, s.getProfileExecution)
	reg(a, http.MethodPut, "/v1/accounts/{id}/profile-execution", "put-profile-execution", "Change where an account's sessions with a profile may run", 0, s.putProfileExecution)
	reg(a, http.MethodGet, "/v1/fleet", "get-fleet", "Count hosts, devices and sessions, and who waits, as of one moment", 0, s.fleet)
	reg(a, http.MethodGet, "/v1/audit", "list-audit", "Read what operators did, newest first", 0, s.listAudit)
}

type operateHost struct {
	HostName
	Operator
	Body *api.Operate `required:"false"`
}

func reasonOf(b *api.Operate) string {
	if b == nil {
		return ""
	}
	return b.Reason
}

// hostNow answers with the host as it is after a change.
func (s *server) hostNow(ctx context.Context, name string, err error) (*body[api.Host], error) {
	if err != nil {
		return nil, s.problem(err)
	}
	v, err := s.Store.Host(ctx, name)
	return &body[api.Host]{v.Host}, s.problem(err)
}

func (s *server) cordonHost(ctx context.Context, in *operateHost) (*body[api.Host], error) {
	return s.hostNow(ctx, in.Name, s.Store.CordonHost(ctx, in.Name, in.act(reasonOf(in.Body))))
}

func (s *server) uncordonHost(ctx context.Context, in *operateHost) (*body[api.Host], error) {
	return s.hostNow(ctx, in.Name, s.Store.UncordonHost(ctx, in.Name, in.act(reasonOf(in.Body))))
}

func (s *server) drainHost(ctx context.Context, in *struct {
	HostName
	Operator
	Body *api.Drain `required:"false"`
}) (*body[api.Host], error) {
	deadline, reason := orchestrator.DefaultDrain, ""
	if in.Body != nil {
		reason = in.Body.Reason
		deadline = cmp.Or(time.Duration(in.Body.DeadlineSeconds)*time.Second, deadline)
	}
	return s.hostNow(ctx, in.Name, s.Store.DrainHost(ctx, in.Name, deadline, in.act(reason)))
}

type operateDevice struct {
	HostName
	DeviceName
	Operator
	Body *api.Operate `required:"false"`
}

func (s *server) cordonDevice(ctx context.Context, in *operateDevice) (*struct{}, error) {
	return nil, s.problem(s.Store.CordonDevice(ctx, in.Name, in.Device, in.act(reasonOf(in.Body))))
}

func (s *server) uncordonDevice(ctx context.Context, in *operateDevice) (*struct{}, error) {
	return nil, s.problem(s.Store.UncordonDevice(ctx, in.Name, in.Device, in.act(reasonOf(in.Body))))
}

func (s *server) forceRelease(ctx context.Context, in *struct {
	HostName
	DeviceName
	Operator
	Body api.ForceRelease
}) (*body[api.Released], error) {
	session, err := s.Store.ForceRelease(ctx, in.Name, in.Device, in.act(in.Body.Reason))
	return &body[api.Released]{api.Released{Session: session}}, s.problem(err)
}

func (s *server) getQuota(ctx context.Context, in *ByID) (*body[api.AccountQuota], error) {
	v, err := s.Store.Quota(ctx, in.ID)
	return &body[api.AccountQuota]{v}, s.problem(err)
}

func (s *server) putQuota(ctx context.Context, in *struct {
	ByID
	Operator
	Body api.PutQuota
}) (*body[api.AccountQuota], error) {
	v, err := s.Store.PutQuota(ctx, in.ID, in.Body.Quota, in.act(in.Body.Reason))
	return &body[api.AccountQuota]{v}, s.problem(err)
}

func (s *server) getProfileExecution(ctx context.Context, in *ByID) (*body[api.ProfileExecution], error) {
	v, err := s.Store.ProfileExecution(ctx, in.ID)
	return &body[api.ProfileExecution]{v}, s.problem(err)
}

func (s *server) putProfileExecution(ctx context.Context, in *struct {
	ByID
	Operator
	Body api.PutProfileExecution
}) (*body[api.ProfileExecution], error) {
	v, err := s.Store.PutProfileExecution(ctx, in.ID, in.Body.ProfileExecution, in.act(in.Body.Reason))
	return &body[api.ProfileExecution]{v}, s.problem(err)
}

func (s *server) listAudit(ctx context.Context, in *struct {
	Host   string `query:"host" maxLength:"63" doc:"Only what was done to this host and its devices."`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Before int64  `query:"before" minimum:"0" doc:"next of the page before"`
}) (*body[api.AuditList], error) {
	v, err := s.Store.Audit(ctx, pgstore.AuditFilter{Host: in.Host, Before: in.Before, Limit: in.Limit})
	return &body[api.AuditList]{v}, s.problem(err)
}

func (s *server) fleet(ctx context.Context, _ *struct{}) (*body[api.Fleet], error) {
	v, err := s.Store.Fleet(ctx)
	return &body[api.Fleet]{v}, s.problem(err)
}
