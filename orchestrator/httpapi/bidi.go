package httpapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// bidi is the websocket of a client's WebDriver BiDi connection.
func (s *server) bidi(w http.ResponseWriter, r *http.Request, session string) {
	if !socket.Asked(r) {
		writeAnswer(w, (&webdriver.Error{Code: webdriver.InvalidArgument, Message: "this is where WebDriver BiDi connects, with a websocket"}).Answer())
		return
	}
	if a := s.Orchestrator.BiDi(w, r, session); a != nil {
		writeAnswer(w, *a)
	}
}

// bareSession answers a websocket at /session, where sessions of BiDi alone begin.
func bareSession(w http.ResponseWriter, r *http.Request) {
	writeAnswer(w, (&webdriver.Error{Code: webdriver.UnknownCommand, Message: "sessions do not begin with a websocket here: start one with POST " + r.URL.Path +
		" and the capability webSocketUrl: true, and connect to the webSocketUrl that its capabilities then have"}).Answer())
}

// bidiToken lets whoever has it connect to one session's BiDi, and do nothing else: clients connect to a URL and send no headers.
// It needs no place in the database, and every orchestrator with the same service token knows it.
func (s *server) bidiToken(session string) string {
	mac := hmac.New(sha256.New, []byte(s.Token))
	mac.Write([]byte("WebDriver BiDi of session " + session))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// hasBiDiToken says whether the request is for a BiDi connection, with the token for it in its URL.
func (s *server) hasBiDiToken(r *http.Request) bool {
	session, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, hub), "/bidi")
	if !ok || r.Method != http.MethodGet {
		return false
	}
	session, ok = strings.CutPrefix(session, "/session/")
	got := r.URL.Query().Get("token")
	return ok && subtle.ConstantTimeCompare([]byte(got), []byte(s.bidiToken(session))) == 1
}

// bidiURL is where a client connects that has reached us the same way. TLS may end in front of us.
func (s *server) bidiURL(from Origin, session string) string {
	u := url.URL{Scheme: "ws", Host: from.Host, Path: from.Prefix + "/session/" + session + "/bidi", RawQuery: "token=" + s.bidiToken(session)}
	if from.TLS {
		u.Scheme = "wss"
	}
	return u.String()
}

// Origin is how a client reached us. It is exported because huma does not look into embedded fields that are not.
type Origin struct {
	Host   string
	Prefix string // "" or hub
	TLS    bool
}

func originOf(r *http.Request) Origin {
	o := Origin{Host: r.Host, TLS: r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https"}
	if strings.HasPrefix(r.URL.Path, hub+"/") {
		o.Prefix = hub
	}
	return o
}

// Resolve implements huma.Resolver.
func (o *Origin) Resolve(c huma.Context) []error {
	o.Host, o.TLS = c.Host(), c.TLS() != nil || c.Header("X-Forwarded-Proto") == "https"
	return nil
}

// shown is a session whose capabilities have the URL of its BiDi, if it has one, where we store that it does.
func (s *server) shown(v api.Session, from Origin) api.Session {
	raw, _ := v.Capabilities.(json.RawMessage)
	var capabilities map[string]json.RawMessage
	if json.Unmarshal(raw, &capabilities) != nil || string(capabilities["webSocketUrl"]) != "true" {
		return v
	}
	at, err := json.Marshal(s.bidiURL(from, v.ID))
	if err != nil {
		return v
	}
	capabilities["webSocketUrl"] = at
	v.Capabilities = capabilities
	return v
}
