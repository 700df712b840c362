// Package httpapi is the public HTTP face: the control plane under /v1 with its OpenAPI document, the W3C WebDriver
// routes under /session and /wd/hub/session, and the clients' command stream. Handlers decode, call and encode.
//
// Errors of the control plane are RFC 9457 problems; errors of driver routes are W3C errors, always. Only what is no HTTP is
// answered by net/http, which says so in plain text and closes the connection.
//
// Out of scope: what a session is (package orchestrator), SQL (pgstore), the driver hosts' sockets (driverproxy).
package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/profilestate"
	"github.com/driftstack/fleet/recorder"
)

// Config is what the handlers call.
type Config struct {
	Orchestrator *orchestrator.Orchestrator
	Store        *pgstore.Store
	Profiles     *profilestate.Store
	Keys         *profilestate.Keyring
	Recordings   Recordings
	Residency    Residency     // nil: there are no routes for it
	Peers        *Peers        // nil: there is no other orchestrator
	Rest         time.Duration // how long the address of a removed host is not given to another
	Token        string        // the service token of the API server
	Log          *zap.Logger
	Now          func() time.Time
}

// Recordings are where recordings are read: what is stored by presigned URLs, what is being made here as it grows.
type Recordings interface {
	URL(ctx context.Context, region place.Region, key string, ttl time.Duration) (string, error)
	Live(session string, latest bool) (*recorder.Live, error)
	Room() (free int64, room recorder.Room)
}

type server struct{ Config }

// callLimit bounds a request of the control plane; the longest are those that wait for a state, for up to 30 s.
const callLimit = 45 * time.Second

// New returns the handler of the public listener.
func New(cfg Config) http.Handler {
	exactNames()
	s := &server{cfg}
	mux := http.NewServeMux()
	s.control(mux)
	mux.HandleFunc("GET /v1/sessions/{id}/stream", s.stream)
	mux.HandleFunc("GET /v1/sessions/{id}/recording/live", s.liveRecording)
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, &huma.ErrorModel{Status: http.StatusNotFound, Title: "Not Found",
			Detail: "there is no " + r.Method + " " + r.URL.Path + "; the routes are in /openapi.json"})
	})
	return s.recovered(s.authenticate(s.forwarding(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isDriverPath(r.URL.Path) {
			s.drive(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}))))
}

// exactNames has huma refuse fields whose names differ in their case: JSON's have one, and of "account" and "Account" in one request either would count.
var exactNames = sync.OnceFunc(func() { huma.ValidateStrictCasing = true })

// control registers the control plane.
func (s *server) control(mux *http.ServeMux) {
	c := huma.DefaultConfig("Driftstack fleet", "1")
	c.Info.Description = "Dispatches sessions onto real iPhones and tells what became of them. Driver commands go to the W3C WebDriver " +
		"routes under /session or /wd/hub/session, over the websocket /v1/sessions/{id}/stream, or many at once to /v1/sessions/{id}/batch. " +
		"WebDriver BiDi, where a session asked for it with webSocketUrl: true, is at the webSocketUrl of its capabilities."
	c.CreateHooks = nil // no $schema in answers
	c.DocsPath = ""     // its page loads a script from elsewhere
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"bearer": {Type: "http", Scheme: "bearer"},
		"basic":  {Type: "http", Scheme: "basic", Description: "The token as password; any user name."},
	}
	c.Security = []map[string][]string{{"bearer": {}}, {"basic": {}}}
	a := humago.New(mux, c)

	reg(a, http.MethodPost, "/v1/sessions", "create-session", "Queue a session", http.StatusCreated, s.createSession)
	reg(a, http.MethodPost, "/v1/sessions:explain", "explain-session", "Say what would become of a session, and of each device why, without creating it", 0, s.explainSession)
	reg(a, http.MethodGet, "/v1/sessions", "list-sessions", "List sessions, newest first", 0, s.listSessions)
	reg(a, http.MethodGet, "/v1/sessions/{id}", "get-session", "Get a session, or wait for a state of it", 0, s.getSession)
	reg(a, http.MethodDelete, "/v1/sessions/{id}", "cancel-session", "End a session", http.StatusAccepted, s.cancelSession)
	reg(a, http.MethodGet, "/v1/sessions/{id}/events", "session-events", "Read or follow a session's log", 0, s.events)
	describeEvents(a.OpenAPI())
	s.registerBatch(a)
	s.registerRecordings(a)
	reg(a, http.MethodGet, "/v1/sessions/{id}/"+reportWhat, "session-profile-report", "What became of each item of the profile in a session that runs", 0, s.profileReport)
	reg(a, http.MethodPut, "/v1/accounts/{id}", "put-account", "Create or change an account", 0, s.putAccount)
	reg(a, http.MethodGet, "/v1/accounts/{id}", "get-account", "Get an account", 0, s.getAccount)
	s.registerProfiles(a)
	s.registerKeys(a)
	s.registerResidency(a)
	reg(a, http.MethodPost, "/v1/hosts", "invite-host", "Invite a driver host and get its join token", http.StatusCreated, s.inviteHost)
	reg(a, http.MethodGet, "/v1/hosts", "list-hosts", "List driver hosts", 0, s.listHosts)
	reg(a, http.MethodGet, "/v1/hosts/{name}", "get-host", "Get all that is known of a driver host", 0, s.getHost)
	reg(a, http.MethodDelete, "/v1/hosts/{name}", "remove-host", "Remove a driver host: it is cut off at once", http.StatusNoContent, s.removeHost)
	reg(a, http.MethodPost, "/v1/hosts/{name}/rotate", "rotate-host", "Have a driver host make a new tunnel key", http.StatusAccepted, s.rotateHost)
	reg(a, http.MethodGet, "/v1/gateways", "list-gateways", "List the orchestrators' tunnel gateways", 0, s.listGateways)
	reg(a, http.MethodPost, "/v1/gateways/{name}/rotate", "rotate-gateway", "Replace a gateway's tunnel key", http.StatusAccepted, s.rotateGateway)
	reg(a, http.MethodGet, "/v1/devices", "list-devices", "List devices", 0, s.listDevices)
	s.operate(a)
}

// reg registers one operation; status 0 is huma's default.
func reg[I, O any](a huma.API, method, path, id, summary string, status int, h func(context.Context, *I) (*O, error)) {
	huma.Register(a, huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary, DefaultStatus: status,
		MaxBodyBytes: 1 << 20, BodyReadTimeout: callLimit,
	}, func(ctx context.Context, in *I) (*O, error) {
		ctx, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		return h(ctx, in)
	})
}

// authenticate lets the service token through, as bearer or as the password of basic authentication, which is how grid
// clients carry it in a URL.
func (s *server) authenticate(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(s.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isHop(r) {
			s.arrive(w, r, next)
			return
		}
		if public(r.URL.Path) || s.hasBiDiToken(r) {
			next.ServeHTTP(w, r)
			return
		}
		scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			_, token, ok = r.BasicAuth()
		}
		got := sha256.Sum256([]byte(token))
		if ok && subtle.ConstantTimeCompare(want[:], got[:]) == 1 {
			next.ServeHTTP(w, r)
			return
		}
		const detail = "send the service token: Authorization: Bearer TOKEN, or basic authentication with the token as password"
		w.Header().Set("Connection", "close") // nobody reads the body of a stranger
		w.Header().Add("WWW-Authenticate", `Bearer realm="driftstack"`)
		w.Header().Add("WWW-Authenticate", `Basic realm="driftstack"`)
		if isDriverPath(r.URL.Path) {
			a := (&webdriver.Error{Code: webdriver.UnknownError, Message: detail}).Answer()
			a.Status = http.StatusUnauthorized // W3C has no code for it, and clients show the message
			writeAnswer(w, a)
			return
		}
		writeProblem(w, &huma.ErrorModel{Status: http.StatusUnauthorized, Title: "Unauthorized", Detail: detail})
	})
}

func public(path string) bool {
	switch path {
	case "/healthz", "/openapi.json", "/openapi.yaml", "/openapi-3.0.json", "/openapi-3.0.yaml", "/status", "/wd/hub/status":
		return true
	}
	return false
}

func (s *server) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	if err := s.Store.Ping(ctx); err != nil {
		writeProblem(w, problemOf(err, s.Log))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
	if free, room := s.Recordings.Room(); room != recorder.RoomEnough { // sessions run: no reason to send them elsewhere
		_, _ = fmt.Fprintf(w, "room for recordings: %s, %d bytes free\n", room, free)
	}
}

type body[T any] struct{ Body T }

// ByID is exported because huma does not look into embedded fields that are not.
type ByID struct {
	ID string `path:"id" maxLength:"128"`
}

func (s *server) createSession(ctx context.Context, in *struct {
	IdempotencyKey string `header:"Idempotency-Key" doc:"Sent again within 24 hours with the same request, it gives the session that it made before, as it is now; with another request, 409. Up to 255 characters."`
	Body           api.CreateSession
}) (*body[api.Session], error) {
	v, err := s.Orchestrator.Create(ctx, in.Body, in.IdempotencyKey)
	return &body[api.Session]{v}, s.problem(err)
}

func (s *server) explainSession(ctx context.Context, in *struct {
	Limit int `query:"limit" minimum:"0" maximum:"1000" default:"50" doc:"How many devices are listed."`
	Body  api.CreateSession
}) (*body[api.Explanation], error) {
	v, err := s.Orchestrator.Explain(ctx, in.Body, in.Limit)
	return &body[api.Explanation]{v}, s.problem(err)
}

func (s *server) listSessions(ctx context.Context, in *struct {
	Origin
	Account string   `query:"account" maxLength:"128"`
	Profile string   `query:"profile" maxLength:"128"`
	Host    string   `query:"host" maxLength:"63"`
	State   string   `query:"state" enum:"queued,starting,running,finishing,ended"`
	Label   []string `query:"label,explode" maxItems:"32" doc:"KEY=VALUE: only sessions with that label. Repeat it for sessions that have them all."`
	Limit   int      `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor  string   `query:"cursor" maxLength:"256" doc:"next of the page before"`
}) (*body[api.SessionList], error) {
	labels, err := parseLabels(in.Label)
	if err != nil {
		return nil, s.problem(err)
	}
	v, err := s.Store.List(ctx, pgstore.SessionFilter{Account: in.Account, Profile: in.Profile, Host: in.Host, State: in.State, Labels: labels, Limit: in.Limit, Cursor: in.Cursor})
	for i := range v.Sessions {
		v.Sessions[i] = s.shown(v.Sessions[i], in.Origin)
	}
	return &body[api.SessionList]{v}, s.problem(err)
}

// parseLabels reads KEY=VALUE; a key ends at the first =.
func parseLabels(list []string) (api.Labels, error) {
	labels := api.Labels{}
	for _, l := range list {
		key, value, ok := strings.Cut(l, "=")
		if had, twice := labels[key]; !ok || key == "" || twice && had != value {
			return nil, &orchestrator.InvalidError{Field: "label", Problem: "write each as KEY=VALUE, and no key with two values"}
		}
		labels[key] = value
	}
	return labels, nil
}

func (s *server) getSession(ctx context.Context, in *struct {
	ByID
	Origin
	Wait           string `query:"wait" enum:"running,ended" doc:"Answer when it runs (or will never), or when it has ended; or as it is after timeout_seconds."`
	TimeoutSeconds int    `query:"timeout_seconds" minimum:"1" maximum:"30" default:"30"`
}) (*body[api.Session], error) {
	reached := func(api.Session) bool { return true }
	switch in.Wait {
	case "running":
		reached = orchestrator.IsRunning
	case "ended":
		reached = orchestrator.HasEnded
	}
	waiting, cancel := context.WithTimeout(ctx, time.Duration(in.TimeoutSeconds)*time.Second)
	defer cancel()
	v, err := s.Orchestrator.Wait(waiting, in.ID, reached)
	if err == nil {
		v = s.Orchestrator.Place(ctx, v)
	}
	return &body[api.Session]{s.shown(v, in.Origin)}, s.problem(err)
}

func (s *server) cancelSession(ctx context.Context, in *struct {
	ByID
	Origin
}) (*body[api.Session], error) {
	if err := s.Orchestrator.Cancel(ctx, in.ID); err != nil {
		return nil, s.problem(err)
	}
	v, err := s.Store.Get(ctx, in.ID)
	return &body[api.Session]{s.shown(v, in.Origin)}, s.problem(err)
}

func (s *server) putAccount(ctx context.Context, in *struct {
	ID string `path:"id" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9._-]+$"`
	Operator
	Body api.PutAccount
}) (*body[api.Account], error) {
	v, err := s.Store.PutAccount(ctx, in.ID, in.Body, in.act(in.Body.Reason))
	return &body[api.Account]{v}, s.problem(err)
}

func (s *server) getAccount(ctx context.Context, in *ByID) (*body[api.Account], error) {
	v, err := s.Store.Account(ctx, in.ID)
	return &body[api.Account]{v}, s.problem(err)
}

func (s *server) inviteHost(ctx context.Context, in *struct{ Body api.CreateHost }) (*body[api.JoinToken], error) {
	gateways, err := s.Store.Gateways(ctx)
	if err != nil {
		return nil, s.problem(err)
	}
	v, err := s.Orchestrator.Invite(ctx, in.Body.Name, gateways)
	return &body[api.JoinToken]{v}, s.problem(err)
}

func (s *server) listHosts(ctx context.Context, _ *struct{}) (*body[api.HostList], error) {
	v, err := s.Store.Hosts(ctx)
	return &body[api.HostList]{api.HostList{Hosts: v}}, s.problem(err)
}

func (s *server) getHost(ctx context.Context, in *struct {
	Name string `path:"name" maxLength:"63"`
}) (*body[api.HostDetail], error) {
	v, err := s.Store.Host(ctx, in.Name)
	return &body[api.HostDetail]{v}, s.problem(err)
}

func (s *server) removeHost(ctx context.Context, in *struct {
	HostName
	Operator
	Reason string `query:"reason" maxLength:"256" doc:"Why, for the audit log."`
}) (*struct{}, error) {
	return nil, s.problem(s.Store.Revoke(ctx, in.Name, s.Rest, in.act(in.Reason)))
}

func (s *server) listDevices(ctx context.Context, _ *struct{}) (*body[api.DeviceList], error) {
	v, err := s.Store.Devices(ctx)
	return &body[api.DeviceList]{api.DeviceList{Devices: v}}, s.problem(err)
}
