package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/driftstack/fleet/orchestrator"
)

// probePath answers nothing but that this process is who was asked for.
const probePath = "/peer"

const probeLimit = 3 * time.Second

// Probe asks whether the URL of a replica leads to that very process. The error says what is there instead.
func (p *Peers) Probe(ctx context.Context, r orchestrator.Replica) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	u, err := url.Parse(r.URL)
	if err != nil {
		return err
	}
	u.Path = probePath
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set(hopHeader, hop(p.cfg.Token, r.ID, req.Method, u.RequestURI()))
	resp, err := p.pinned.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("%s cannot be reached: %w", r.URL, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNoContent:
		return nil
	case misdirected:
		return fmt.Errorf("%s leads to another orchestrator, or to one with another service token: name an address that is this process's alone", r.URL)
	}
	return fmt.Errorf("%s leads to something else, which answers %s", r.URL, resp.Status)
}
