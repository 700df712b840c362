package httpapi

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"io"
	"net/http"
	"strings"

	"github.com/driftstack/fleet/orchestrator"
)

// hopHeader is on every request that one orchestrator forwards to another: the process it is for, and a MAC of that, the method and
// the target under a key that whoever has the service token has. It takes the place of the client's own credentials, which are not
// passed on, and nothing that a client sends is taken for it. A request that has it is never forwarded again.
//
// Postgres says where the others are; when another process has got such an address, or one with another service token, it
// answers 421 and has run nothing.
const hopHeader = "Driftstack-Forwarded"

// misdirected says that the request was forwarded to where its session is not. Nothing else answers it.
const misdirected = http.StatusMisdirectedRequest

// hop makes the header's value.
func hop(token, to, method, target string) string {
	key := hmac.New(sha256.New, []byte(token))
	key.Write([]byte("requests between orchestrators"))
	mac := hmac.New(sha256.New, key.Sum(nil))
	for _, part := range []string{to, method, target} {
		mac.Write([]byte(part))
		mac.Write([]byte{0})
	}
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// isHop says whether a request says that an orchestrator forwarded it; hops says whether that is true, and it is for this process.
func isHop(r *http.Request) bool { return len(r.Header.Values(hopHeader)) > 0 }

func (s *server) hops(r *http.Request) bool {
	got, want := r.Header.Values(hopHeader), ""
	if s.Peers != nil {
		want = hop(s.Token, s.Peers.cfg.ID, r.Method, r.RequestURI)
	}
	return len(got) == 1 && want != "" && subtle.ConstantTimeCompare([]byte(got[0]), []byte(want)) == 1
}

// arrive serves a request that another orchestrator forwarded.
func (s *server) arrive(w http.ResponseWriter, r *http.Request, next http.Handler) {
	session, routed := sessionOf(r)
	probe := r.URL.Path == probePath
	if !s.hops(r) || !probe && (!routed || !s.Orchestrator.Holds(session)) {
		if s.hops(r) { // who is still sending reads no answer
			_, _ = io.CopyN(io.Discard, r.Body, drainedBody)
		}
		w.Header().Set("Connection", "close")
		w.WriteHeader(misdirected)
		return
	}
	if probe {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	r.Header.Del(hopHeader)
	next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), hopped{}, true)))
}

// hopped marks the context of a request that was forwarded.
type hopped struct{}

func wasForwarded(r *http.Request) bool { return r.Context().Value(hopped{}) != nil }

// sessionOf is the session of a request that only who has the session can serve. What Postgres knows is served by anybody.
func sessionOf(r *http.Request) (session string, ok bool) {
	p := r.URL.EscapedPath()
	if isDriverPath(r.URL.Path) {
		session, ok = strings.CutPrefix(strings.TrimPrefix(p, hub), "/session/")
		session, _, deeper := strings.Cut(session, "/")
		return unescape(session), ok && session != "" && (deeper || r.Method == http.MethodDelete)
	}
	session, ok = strings.CutPrefix(p, "/v1/sessions/")
	session, what, _ := strings.Cut(session, "/")
	get, post := r.Method == http.MethodGet, r.Method == http.MethodPost
	return unescape(session), ok && (get && (what == "stream" || what == liveWhat || what == reportWhat) || post && what == "batch")
}

// forwarding serves requests of sessions where the sessions are.
func (s *server) forwarding(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session, ok := sessionOf(r)
		if !ok || s.Peers == nil || wasForwarded(r) {
			next.ServeHTTP(w, r)
			return
		}
		to, err := s.Orchestrator.Locate(r.Context(), session, "")
		if err == nil && to == (orchestrator.Replica{}) {
			next.ServeHTTP(w, r)
			return
		}
		s.forward(w, r, next, session, to, err)
	})
}
