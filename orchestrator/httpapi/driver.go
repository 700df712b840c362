package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/driftstack/fleet/driverproxy/bulk"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

const (
	bodyLimit      = 5 * time.Minute // for a whole body, in or out: 100 MiB over a slow line
	newSessionBody = 1 << 20
	commandBody    = wire.MaxMessage - 1<<17 // room for the frame around it
	drainedBody    = 4 * wire.MaxMessage     // of a body that is too long: who is still sending reads no answer
)

// hub is where Selenium's clients look for the W3C routes; they are there and at the root.
const hub = "/wd/hub"

// isDriverPath says whether a path, clean or not, is the W3C routes'. They have no mux: it would answer a path that is not
// clean with a redirect and one that it does not know in plain text, and W3C clients understand neither.
func isDriverPath(p string) bool {
	return hasDriverPrefix(p) || hasDriverPrefix(path.Clean("/"+p))
}

func hasDriverPrefix(p string) bool {
	for _, prefix := range []string{hub, "/session", "/status"} {
		if rest, ok := strings.CutPrefix(p, prefix); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// drive routes a request to a driver path, as "match a request" of the specification does.
func (s *server) drive(w http.ResponseWriter, r *http.Request) {
	// As the client wrote it: the driver wants it so.
	p := strings.TrimPrefix(r.URL.EscapedPath(), hub)
	id, command, deeper := strings.Cut(strings.TrimPrefix(p, "/session/"), "/")
	switch {
	case p == "/status":
		only(w, r, http.MethodGet, s.status)
	case p == "/session" && r.Method == http.MethodGet && socket.Asked(r):
		bareSession(w, r)
	case p == "/session":
		only(w, r, http.MethodPost, s.newSession)
	case id == "" || !strings.HasPrefix(p, "/session/"):
		writeAnswer(w, (&webdriver.Error{Code: webdriver.UnknownCommand, Message: "no such command: " + r.Method + " " + r.URL.Path}).Answer())
	case !deeper:
		only(w, r, http.MethodDelete, func(w http.ResponseWriter, r *http.Request) {
			writeAnswer(w, s.Orchestrator.Quit(r.Context(), unescape(id)))
		})
	case command == "bidi" && r.Method == http.MethodGet:
		s.bidi(w, r, unescape(id))
	default:
		s.command(w, r, unescape(id), "/"+command)
	}
}

// unescape: the server has parsed the path, so that its escapes are known to be right.
func unescape(segment string) string {
	plain, _ := url.PathUnescape(segment)
	return plain
}

// only serves an endpoint that takes one method.
func only(w http.ResponseWriter, r *http.Request, method string, serve http.HandlerFunc) {
	if r.Method != method {
		w.Header().Set("Allow", method)
		e := webdriver.Error{Code: webdriver.UnknownMethod, Message: r.URL.Path + " takes " + method + ", not " + r.Method}
		writeAnswer(w, e.Answer())
		return
	}
	serve(w, r)
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
	req, wants, err := parseNewSession(b)
	if err != nil {
		s.sessionNotCreated(w, err)
		return
	}
	v, err := s.Orchestrator.CreateFirst(r.Context(), req, wants)
	if err != nil {
		s.sessionNotCreated(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.Orchestrator.StartWithin(req))
	defer cancel()
	v, err = s.Orchestrator.Attend(ctx, v.ID)
	if err == nil && v.State == api.Running && r.Context().Err() == nil {
		a, err := webdriver.ValueAnswer(map[string]any{"sessionId": v.ID, "capabilities": s.shown(v, originOf(r)).Capabilities})
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
	if c := s.Orchestrator.Abandon(clean, v.ID); err == nil {
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
func parseNewSession(b []byte) (req api.CreateSession, n webdriver.NewSession, err error) {
	if n, err = webdriver.ParseNewSession(b); err != nil {
		return req, n, err
	}
	if len(n.Options) > 0 {
		d := json.NewDecoder(bytes.NewReader(n.Options))
		d.DisallowUnknownFields()
		err := d.Decode(&req)
		if err == nil {
			err = webdriver.ExactNames(n.Options, &req)
		}
		var wrong *json.UnmarshalTypeError // its own words are about our types
		switch {
		case errors.As(err, &wrong) && wrong.Field != "":
			return req, n, &orchestrator.InvalidError{Field: webdriver.OptionsName + "." + wrong.Field, Problem: "does not take a JSON " + wrong.Value}
		case err != nil:
			return req, n, &orchestrator.InvalidError{Field: webdriver.OptionsName, Problem: strings.TrimPrefix(err.Error(), "json: ")}
		}
	}
	if len(req.Capabilities) > 0 {
		return req, n, &orchestrator.InvalidError{Field: webdriver.OptionsName + ".capabilities", Problem: "capabilities go beside the options, not into them"}
	}
	if req.Account == "" {
		return req, n, &orchestrator.InvalidError{Field: webdriver.OptionsName + ".account", Problem: `name the account: {"driftstack:options": {"account": "…"}}`}
	}
	return req, n, nil
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
		writeAnswer(w, (&webdriver.Error{Code: webdriver.InvalidArgument, Message: invalid.Error()}).Answer())
		return
	}
	if after := retryAfter(err); after > 0 {
		w.Header().Set("Retry-After", seconds(after))
	}
	p := problemOf(err, s.Log)
	data := map[string]any{"reason": p.Type}
	var held *orchestrator.ProfileHeldError
	var quota *orchestrator.QuotaError
	switch {
	case errors.As(err, &held):
		h := newHeldProblem(p, held)
		data["reason"], data["holder"], data["expires_at"] = h.Reason, h.Holder, h.Expires
	case errors.As(err, &quota):
		data["reason"], data["quota"], data["retry"] = string(orchestrator.Quota), quota.Quota, orchestrator.Endings()[orchestrator.Quota].Retry
	}
	writeNotCreated(w, p.Status, p.Detail, data)
}

// writeNotCreated answers as W3C has it, with 500; only a full queue has a status of its own, because HTTP clients know to
// come back after it. Nothing is above 500: released Selenium clients for Python take that for success.
func writeNotCreated(w http.ResponseWriter, status int, message string, data map[string]any) {
	a := (&webdriver.Error{Code: webdriver.SessionNotCreated, Message: message, Data: data}).Answer()
	if status == http.StatusTooManyRequests {
		a.Status = status
	}
	writeAnswer(w, a)
}

func (s *server) command(w http.ResponseWriter, r *http.Request, session, path string) {
	b, ok := readBody(w, r, commandBody)
	if !ok {
		return
	}
	if r.Method != http.MethodPost { // only a POST has parameters
		b = nil
	}
	a := s.Orchestrator.Command(r.Context(), session, webdriver.Command{Method: r.Method, Path: path, Body: b})
	if a.Status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", strings.Join(webdriver.Methods(path), ", "))
	}
	writeAnswer(w, a)
}

// readBody reads a body into one piece of memory, or answers why not.
func readBody(w http.ResponseWriter, r *http.Request, most int64) ([]byte, bool) {
	if r.ContentLength == 0 {
		return nil, true
	}
	// A body that trickles in holds nobody up for ever; the answer's writer sets no deadline of its own.
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(bodyLimit)) // not every server has one
	b, err := []byte(nil), bulk.ErrTooLong
	if r.ContentLength <= most {
		b, err = bulk.Read(r.Body, r.ContentLength, most)
	}
	if errors.Is(err, bulk.ErrTooLong) && r.Header.Get("Expect") == "" { // who expects to be told sends nothing before
		_, _ = io.CopyN(io.Discard, r.Body, drainedBody)
	}
	_ = c.SetReadDeadline(time.Time{})
	if err == nil {
		return b, true
	}
	message := "the request's body cannot be read: " + err.Error()
	if errors.Is(err, bulk.ErrTooLong) {
		message = fmt.Sprintf("the request's body is longer than %d bytes", most)
	}
	writeAnswer(w, (&webdriver.Error{Code: webdriver.InvalidArgument, Message: message}).Answer())
	return nil, false
}

func writeAnswer(w http.ResponseWriter, a webdriver.Answer) {
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Length", strconv.Itoa(len(a.Body))) // or the client would not know how much room to make

	if len(a.Body) > 64<<10 { // what the system does not take at once is held until the client takes it
		c := http.NewResponseController(w)
		_ = c.SetWriteDeadline(time.Now().Add(bodyLimit)) // not every server has one
		defer func() { _ = c.SetWriteDeadline(time.Time{}) }()
	}
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // the client may be gone
}
