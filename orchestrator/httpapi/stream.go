package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/driftstack/fleet/driverproxy/stream"
)

// stream is the websocket of a client's driver commands.
func (s *server) stream(w http.ResponseWriter, r *http.Request) {
	resume, err := stream.ParseResume(r.URL.Query())
	if err != nil {
		writeProblem(w, &huma.ErrorModel{Type: typeInvalid, Status: http.StatusBadRequest, Title: "Invalid request", Detail: err.Error()})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callLimit)
	seat, err := s.Orchestrator.Stream(ctx, r.PathValue("id"), resume)
	cancel()
	if err != nil {
		if after := retryAfter(err); after > 0 {
			w.Header().Set("Retry-After", seconds(after))
		}
		writeProblem(w, problemOf(err, s.Log))
		return
	}
	seat.Serve(w, r)
}
