package httpapi

import (
	"context"
	"net/http"

	"github.com/driftstack/fleet/driverproxy/stream"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// stream is the websocket of a client's driver commands.
func (s *server) stream(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	ctx, cancel := context.WithTimeout(r.Context(), callLimit)
	v, err := s.Store.Get(ctx, id)
	cancel()
	if err != nil {
		writeProblem(w, problemOf(err, s.Log))
		return
	}
	if v.State == api.Ended {
		writeProblem(w, problemOf(orchestrator.Ended(v), s.Log))
		return
	}
	stream.Serve(w, r, func(c webdriver.Command) webdriver.Answer {
		if c.Method == http.MethodDelete && c.Path == "" {
			return s.Orchestrator.Quit(r.Context(), id)
		}
		return s.Orchestrator.Command(r.Context(), id, c)
	})
}
