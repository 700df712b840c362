package httpapi

import (
	"context"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

func (s *server) rotateHost(ctx context.Context, in *struct {
	Name string `path:"name" maxLength:"63"`
}) (*struct{}, error) {
	return nil, s.problem(s.Store.RotateHost(ctx, in.Name))
}

func (s *server) listGateways(ctx context.Context, _ *struct{}) (*body[api.GatewayList], error) {
	v, err := s.Store.GatewayList(ctx)
	return &body[api.GatewayList]{api.GatewayList{Gateways: v}}, s.problem(err)
}

// rotateLead is from when a gateway's next key is published to when it is used, unless something else is asked for.
const rotateLead = 7 * 24 * time.Hour

func (s *server) rotateGateway(ctx context.Context, in *struct {
	Name string `path:"name" maxLength:"63"`
	Body api.RotateGateway
}) (*struct{}, error) {
	within := time.Duration(in.Body.WithinSeconds) * time.Second
	if within == 0 {
		within = rotateLead
	}
	return nil, s.problem(s.Store.RotateGateway(ctx, in.Name, within))
}
