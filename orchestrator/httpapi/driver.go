package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

const (
	bodyLimit      = 5 * time.Minute // for the whole body: 100 MiB over a slow line
	newSessionBody = 1 << 20
	commandBody    = wire.MaxMessage - 1<<17 // room for the frame around it
)

// driver registers the W3C WebDriver routes, bare and where Selenium's clients look for them.
func (s *server) driver(mux *http.ServeMux) {
	for _, prefix := range []string{"", "/wd/hub"} {
		mux.HandleFunc("GET "+prefix+"/status", s.status)
		mux.HandleFunc("POST "+prefix+"/session", s.newSession)
		mux.HandleFunc("DELETE "+prefix+"/session/{id}", s.deleteSession)
		mux.HandleFunc(prefix+"/session/{id}/{rest...}", func(w http.ResponseWriter, r *http.Request) {
			// The mux unescapes; the driver wants the path as the client wrote it.
			path := strings.TrimPrefix(r.URL.EscapedPath(), prefix+"/session/")
			_, path, _ = strings.Cut(path, "/")
			s.command(w, r, "/"+path)
		})
		mux.HandleFunc(prefix+"/session", unknownCommand)
		mux.HandleFunc(prefix+"/session/", unknownCommand)
		mux.HandleFunc(prefix+"/session/{id}", unknownCommand)
	}
	mux.HandleFunc("/wd/hub/", unknownCommand)
}

func unknownCommand(w http.ResponseWriter, r *http.Request) {
	writeW3C(w, http.StatusNotFound, webdriver.UnknownCommand, "no such command: "+r.Method+" "+r.URL.Path)
}

func isDriverPath(path string) bool {
	return path == "/session" || strings.HasPrefix(path, "/session/") || strings.HasPrefix(path, "/wd/hub/")
}

func (s *server) status(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	free, err := s.Store.DeviceFree(ctx)
	v := map[string]any{"ready": free, "message": "devices are free"}
	switch {
	case err != nil:
		v["message"] = "the database cannot be reached"
	case !free:
		v["message"] = "no device is free; a new session would be queued"
	}
	a, err := webdriver.ValueAnswer(v)
	if err != nil {
		a = (&webdriver.Error{Code: webdriver.UnknownError, Message: err.Error()}).Answer()
	}
	writeAnswer(w, a)
}

// newSession is W3C New Session: it queues a session, waits for it to run, and ends it when its client leaves meanwhile.
func (s *server) newSession(w http.ResponseWriter, r *http.Request) {
	// The body is read whole before anything waits: Go notices a client that leaves only then.
	b, ok := readBody(w, r, newSessionBody)
	if !ok {
		return
	}
	req, err := parseNewSession(b)
	if err != nil {
		s.sessionNotCreated(w, err)
		return
	}
	v, err := s.Orchestrator.Create(r.Context(), req)
	if err != nil {
		s.sessionNotCreated(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.Orchestrator.StartWithin(req))
	defer cancel()
	v, err = s.Orchestrator.Wait(ctx, v.ID, orchestrator.IsRunning)
	if err == nil && v.State == api.Running && r.Context().Err() == nil {
		a, err := webdriver.ValueAnswer(map[string]any{"sessionId": v.ID, "capabilities": v.Capabilities})
		if err != nil {
			s.sessionNotCreated(w, err)
			return
		}
		writeAnswer(w, a)
		return
	}
	// Nobody would quit it.
	clean, done := context.WithTimeout(context.WithoutCancel(r.Context()), callLimit)
	defer done()
	if c := s.Orchestrator.Cancel(clean, v.ID); err == nil {
		err = c
	}
	if err == nil {
		err = &orchestrator.EndError{Reason: orchestrator.DeviceUnavailable}
		if v.State == api.Ended {
			err = orchestrator.Ended(v)
		}
	}
	s.sessionNotCreated(w, err)
}

// parseNewSession reads a W3C New Session body; driftstack:options has the fields of api.CreateSession.
func parseNewSession(b []byte) (api.CreateSession, error) {
	var req api.CreateSession
	n, err := webdriver.ParseNewSession(b)
	if err != nil {
		return req, err
	}
	if len(n.Options) > 0 {
		d := json.NewDecoder(bytes.NewReader(n.Options))
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			return req, &orchestrator.InvalidError{Field: webdriver.OptionsName, Problem: strings.TrimPrefix(err.Error(), "json: ")}
		}
	}
	if len(req.Capabilities) > 0 {
		return req, &orchestrator.InvalidError{Field: webdriver.OptionsName + ".capabilities", Problem: "capabilities go beside the options, not into them"}
	}
	if req.Account == "" {
		return req, &orchestrator.InvalidError{Field: webdriver.OptionsName + ".account", Problem: `name the account: {"driftstack:options": {"account": "…"}}`}
	}
	req.Capabilities, err = n.Match()
	return req, err
}

// sessionNotCreated answers New Session with the status of the problem and a body that every client understands.
func (s *server) sessionNotCreated(w http.ResponseWriter, err error) {
	var own *webdriver.Error
	if errors.As(err, &own) {
		writeAnswer(w, own.Answer())
		return
	}
	var end *orchestrator.EndError
	if errors.As(err, &end) {
		row := orchestrator.Endings()[end.Reason]
		writeNotCreated(w, row.HTTP, end.Error(), map[string]any{"reason": string(end.Reason), "retry": row.Retry})
		return
	}
	var invalid *orchestrator.InvalidError
	if errors.As(err, &invalid) {
		writeW3C(w, http.StatusBadRequest, webdriver.InvalidArgument, invalid.Error())
		return
	}
	if after := retryAfter(err); after > 0 {
		w.Header().Set("Retry-After", seconds(after))
	}
	p := problemOf(err, s.Log)
	writeNotCreated(w, p.Status, p.Detail, map[string]any{"reason": p.Type})
}

// writeNotCreated answers with a status of at most 500, which is W3C's for "session not created": released Selenium clients
// for Python take every status above for success.
func writeNotCreated(w http.ResponseWriter, status int, message string, data map[string]any) {
	a := (&webdriver.Error{Code: webdriver.SessionNotCreated, Message: message, Data: data}).Answer()
	a.Status = min(status, http.StatusInternalServerError)
	writeAnswer(w, a)
}

func (s *server) deleteSession(w http.ResponseWriter, r *http.Request) {
	writeAnswer(w, s.Orchestrator.Quit(r.Context(), r.PathValue("id")))
}

func (s *server) command(w http.ResponseWriter, r *http.Request, path string) {
	b, ok := readBody(w, r, commandBody)
	if !ok {
		return
	}
	writeAnswer(w, s.Orchestrator.Command(r.Context(), r.PathValue("id"), webdriver.Command{Method: r.Method, Path: path, Body: b}))
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, bool) {
	// A body that trickles in holds nobody up for ever; the answer's writer sets no deadline of its own.
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(bodyLimit)) // not every server has one
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	_ = c.SetReadDeadline(time.Time{})
	if err != nil {
		writeW3C(w, http.StatusBadRequest, webdriver.InvalidArgument, "the request body cannot be read: "+err.Error())
		return nil, false
	}
	return b, true
}

func writeAnswer(w http.ResponseWriter, a webdriver.Answer) {
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body)
}

func writeW3C(w http.ResponseWriter, status int, code webdriver.Code, message string) {
	a := (&webdriver.Error{Code: code, Message: message}).Answer()
	a.Status = status
	writeAnswer(w, a)
}
