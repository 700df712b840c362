package client

import (
	"context"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

// As returns a client whose acts are in the audit log under that name.
func (c *Client) As(operator string) *Client {
	as := *c
	as.operator = operator
	return &as
}

// CordonHost keeps new sessions off a host.
func (c *Client) CordonHost(ctx context.Context, name, reason string) (h api.Host, err error) {
	return h, c.call(ctx, http.MethodPost, hostPath(name)+"/cordon", api.Operate{Reason: reason}, &h)
}

// UncordonHost lets a host take sessions again; it undoes a drain as well.
func (c *Client) UncordonHost(ctx context.Context, name string) (h api.Host, err error) {
	return h, c.call(ctx, http.MethodPost, hostPath(name)+"/uncordon", api.Operate{}, &h)
}

// DrainHost keeps new sessions off a host, and ends those on it after the deadline, in whole seconds; 0 is the server's default.
func (c *Client) DrainHost(ctx context.Context, name, reason string, deadline time.Duration) (h api.Host, err error) {
	return h, c.call(ctx, http.MethodPost, hostPath(name)+"/drain",
		api.Drain{Operate: api.Operate{Reason: reason}, DeadlineSeconds: int(math.Ceil(deadline.Seconds()))}, &h)
}

// CordonDevice keeps new sessions off a device.
func (c *Client) CordonDevice(ctx context.Context, host, device, reason string) error {
	return c.call(ctx, http.MethodPost, devicePath(host, device)+"/cordon", api.Operate{Reason: reason}, nil)
}

// UncordonDevice lets a device take sessions again.
func (c *Client) UncordonDevice(ctx context.Context, host, device string) error {
	return c.call(ctx, http.MethodPost, devicePath(host, device)+"/uncordon", api.Operate{}, nil)
}

// ForceRelease takes a device from its session, which ends as force_released.
func (c *Client) ForceRelease(ctx context.Context, host, device, reason string) (r api.Released, err error) {
	return r, c.call(ctx, http.MethodPost, devicePath(host, device)+"/release", api.ForceRelease{Reason: reason}, &r)
}

// Audit is one page of the audit log, newest first; host may be empty, before is Next of the page before, or 0.
func (c *Client) Audit(ctx context.Context, host string, limit int, before int64) (l api.AuditList, err error) {
	q := url.Values{"host": {host}, "limit": {strconv.Itoa(limit)}, "before": {strconv.FormatInt(before, 10)}}
	return l, c.call(ctx, http.MethodGet, "/v1/audit?"+q.Encode(), nil, &l)
}

// Quota is what an account may have, and has.
func (c *Client) Quota(ctx context.Context, account string) (q api.AccountQuota, err error) {
	return q, c.call(ctx, http.MethodGet, "/v1/accounts/"+url.PathEscape(account)+"/quota", nil, &q)
}

// PutQuota replaces what an account may have.
func (c *Client) PutQuota(ctx context.Context, account string, p api.PutQuota) (q api.AccountQuota, err error) {
	return q, c.call(ctx, http.MethodPut, "/v1/accounts/"+url.PathEscape(account)+"/quota", p, &q)
}

// ProfileReport says what became of each item of the profile in a session that runs; limit is how many items are listed.
func (c *Client) ProfileReport(ctx context.Context, session string, limit int) (r api.ProfileReport, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/sessions/"+url.PathEscape(session)+"/profile-report?limit="+strconv.Itoa(limit), nil, &r)
}

// ProfileExecution is where an account's sessions with a profile may run.
func (c *Client) ProfileExecution(ctx context.Context, account string) (v api.ProfileExecution, err error) {
	return v, c.call(ctx, http.MethodGet, "/v1/accounts/"+url.PathEscape(account)+"/profile-execution", nil, &v)
}

// PutProfileExecution changes it.
func (c *Client) PutProfileExecution(ctx context.Context, account string, p api.PutProfileExecution) (v api.ProfileExecution, err error) {
	return v, c.call(ctx, http.MethodPut, "/v1/accounts/"+url.PathEscape(account)+"/profile-execution", p, &v)
}

// Fleet is what there is, and what it does, as of one moment.
func (c *Client) Fleet(ctx context.Context) (f api.Fleet, err error) {
	return f, c.call(ctx, http.MethodGet, "/v1/fleet", nil, &f)
}

func hostPath(name string) string { return "/v1/hosts/" + url.PathEscape(name) }

func devicePath(host, device string) string {
	return hostPath(host) + "/devices/" + url.PathEscape(device)
}
