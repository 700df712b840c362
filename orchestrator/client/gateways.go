package client

import (
	"context"
	"math"
	"net/http"
	"net/url"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

// RotateHost has a host make a new tunnel key, within 15 s if it is connected.
func (c *Client) RotateHost(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/v1/hosts/"+url.PathEscape(name)+"/rotate", nil, nil)
}

// Gateways lists the orchestrators' tunnel gateways.
func (c *Client) Gateways(ctx context.Context) ([]api.Gateway, error) {
	var l api.GatewayList
	err := c.call(ctx, http.MethodGet, "/v1/gateways", nil, &l)
	return l.Gateways, err
}

// RotateGateway has a gateway make a new key and use it within that time, from a minute to 30 days, in whole seconds; 0 is
// the server's default.
func (c *Client) RotateGateway(ctx context.Context, name string, within time.Duration) error {
	return c.call(ctx, http.MethodPost, "/v1/gateways/"+url.PathEscape(name)+"/rotate", api.RotateGateway{WithinSeconds: int64(math.Ceil(within.Seconds()))}, nil)
}
