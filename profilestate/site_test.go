package profilestate

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// site is a small web site that answers on every name for this machine: 127.0.0.1, localhost and *.localhost are
// different hosts to a browser.
type site struct {
	port string
	mu   sync.Mutex
	sent []string // host, path and Cookie header of requests that carried cookies, icons apart
}

func startSite(t *testing.T) *site {
	t.Helper()
	s := &site{}
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		for _, c := range []string{
			"login=tok-8f2a; HttpOnly; SameSite=Lax", "session=short", "remember=long; Max-Age=86400; SameSite=Strict",
			"empty=; SameSite=Lax", "hushed=; HttpOnly", "area=app-only; Path=/app", "refused=x; Secure",
		} {
			w.Header().Add("Set-Cookie", c)
		}
		if strings.HasPrefix(r.Host, "site.localhost") {
			w.Header().Add("Set-Cookie", "wide=shared; Domain=site.localhost")
			w.Header().Add("Set-Cookie", "far=future; Expires=Fri, 01 Jan 2100 00:00:00 GMT")
		}
		writePage(w, "logged in")
	})
	mux.HandleFunc("/whoami", func(w http.ResponseWriter, r *http.Request) {
		names := []string{}
		for _, c := range r.Cookies() {
			names = append(names, c.Name+"="+c.Value)
		}
		writePage(w, strings.Join(names, " "))
	})
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Set-Cookie", "login=; Max-Age=0; HttpOnly")
		writePage(w, "logged out")
	})
	mux.HandleFunc("/robots.txt", func(w http.ResponseWriter, r *http.Request) {
		switch strings.Split(r.Host, ".")[0] {
		case "password":
			w.Header().Set("WWW-Authenticate", "Basic realm=x")
			http.Error(w, "password", http.StatusUnauthorized)
		case "sandbox":
			w.Header().Set("Content-Security-Policy", "sandbox")
			fmt.Fprint(w, "no storage here")
		case "elsewhere":
			http.Redirect(w, r, "http://localhost:"+s.port+"/", http.StatusFound)
		case "nothing":
			w.WriteHeader(http.StatusNoContent)
		case "spa":
			writePage(w, "<script>localStorage.setItem('script','ran')</script>")
		default:
			fmt.Fprint(w, "User-agent: *")
		}
	})
	mux.HandleFunc("/app/robots.txt", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Host, "moved.") {
			http.Redirect(w, r, "/robots.txt", http.StatusFound)
			return
		}
		http.NotFound(w, r)
	})
	mux.HandleFunc("/app/", func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) })
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) { writePage(w, "hello") })
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	_, s.port, _ = net.SplitHostPort(l.Addr().String())
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: s.record(mux)}}
	srv.Start()
	t.Cleanup(srv.Close)
	return s
}

func writePage(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!doctype html><body>%s", body)
}

func (s *site) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := r.Header.Get("Cookie"); c != "" && r.URL.Path != "/favicon.ico" {
			s.mu.Lock()
			s.sent = append(s.sent, r.Host+r.URL.Path)
			s.mu.Unlock()
		}
		// These hosts have no usable page besides the root and what their robots.txt is.
		if h := strings.Split(r.Host, ".")[0]; r.URL.Path != "/" && r.URL.Path != "/robots.txt" && (h == "sandbox" || h == "elsewhere" || h == "spa") {
			w.Header().Set("Content-Security-Policy", "sandbox")
		}
		next.ServeHTTP(w, r)
	})
}

// sentCookies lists the requests that carried cookies since it was last asked.
func (s *site) sentCookies() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.sent
	s.sent = nil
	return out
}

func (s *site) at(host string) string { return "http://" + host + ":" + s.port }
