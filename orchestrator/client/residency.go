package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/driftstack/fleet/orchestrator/api"
)

// Residency is the register of what is kept where, of an account or, with "", of all; verify has the stores looked at.
func (c *Client) Residency(ctx context.Context, account string, verify bool) (v api.Residency, err error) {
	path := "/v1/residency"
	if account != "" {
		path = "/v1/accounts/" + url.PathEscape(account) + "/residency"
	}
	return v, c.call(ctx, http.MethodGet, path+"?verify="+strconv.FormatBool(verify), nil, &v)
}
