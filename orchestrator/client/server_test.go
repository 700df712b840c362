package client_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/stream"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// server stands in for an orchestrator in the examples: one session, on the fake driver. How the real one answers this client is
// tested where it is, in package httpapi.
type server struct {
	driver *httptest.Server
	base   string // the driver's URL of the session
	log    []api.Event
}

// orchestrator serves one session, and returns its URL and what stops it.
func orchestrator() (url string, stop func()) {
	s := &server{driver: httptest.NewServer(drivertest.New())}
	resp, err := http.Post(s.driver.URL+"/session", "application/json", strings.NewReader(`{"capabilities":{}}`))
	if err != nil {
		panic(err) // an example has no other way to fail
	}
	defer resp.Body.Close()
	s.base = s.driver.URL + "/session/fake-1"
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/sessions", s.session(api.Queued))
	mux.HandleFunc("GET /v1/sessions/{id}", s.session(api.Running))
	mux.HandleFunc("POST /v1/sessions/{id}/batch", s.batch)
	mux.HandleFunc("GET /v1/sessions/{id}/events", s.follow)
	mux.HandleFunc("GET /v1/sessions/{id}/stream", func(w http.ResponseWriter, r *http.Request) {
		if seat, err := stream.New(stream.NewToken(), 0, s, time.Now).Sit(0); err == nil {
			seat.Serve(w, r)
		}
	})
	mux.HandleFunc("/session/{id}/{rest...}", s.command)
	mux.HandleFunc("DELETE /session/{id}", s.command)
	front := httptest.NewServer(mux)
	return front.URL, func() {
		front.CloseClientConnections()
		front.Close()
		s.driver.Close()
	}
}

func (s *server) session(state api.SessionState) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(api.Session{ID: "714f84b6", Account: "acme", State: state})
	}
}

// Alone, Begin and Acknowledge implement stream.Runner.
func (s *server) Alone(webdriver.Command) bool { return false }
func (s *server) Begin(_ uint64, c webdriver.Command) func() stream.Result {
	return func() stream.Result { return stream.Result{Answer: s.do(c)} }
}
func (s *server) Acknowledge(uint64) {}

// do runs a command at the driver, and logs it.
func (s *server) do(c webdriver.Command) webdriver.Answer {
	req, err := http.NewRequest(c.Method, s.base+c.Path, strings.NewReader(string(c.Body)))
	if err != nil {
		return (&webdriver.Error{Code: webdriver.InvalidArgument, Message: err.Error()}).Answer()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return (&webdriver.Error{Code: webdriver.UnknownError, Message: err.Error()}).Answer()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return (&webdriver.Error{Code: webdriver.UnknownError, Message: err.Error()}).Answer()
	}
	route, _ := webdriver.Match(c.Method, c.Path)
	s.event(api.Event{Kind: "command", Route: route.String(), Status: resp.StatusCode})
	if route == webdriver.RouteDeleteSession {
		s.event(api.Event{Kind: "ended", Reason: "completed"})
	}
	return webdriver.Answer{Status: resp.StatusCode, Body: body}
}

func (s *server) runs(_ context.Context, c webdriver.Command) (webdriver.Answer, error) {
	return s.do(c), nil
}

func (s *server) event(e api.Event) {
	e.Seq = int64(len(s.log) + 1)
	s.log = append(s.log, e)
}

func (s *server) command(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	a := s.do(webdriver.Command{Method: r.Method, Path: strings.TrimPrefix(r.URL.EscapedPath(), "/session/"+r.PathValue("id")), Body: body})
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body)
}

func (s *server) batch(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	b, refused := batch.Parse(body)
	if refused != nil {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]any{"status": 400, "title": "Invalid batch", "detail": refused.Message})
		return
	}
	_ = json.NewEncoder(w).Encode(b.Run(r.Context(), batch.Driver{Do: s.runs, Now: time.Now}))
}

func (s *server) follow(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for _, e := range s.log {
		b, err := json.Marshal(e)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.Kind, b)
	}
}
