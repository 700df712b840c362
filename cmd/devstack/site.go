package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"strings"
	"time"
)

// The sample site: what a customer's programs would visit. Its login cookie carries a nonce and its signature, so that
// a login outlives a restart of devstack.
const (
	siteUser     = "ada"
	sitePassword = "lovelace"
	siteCookie   = "sample_login"
	siteTTL      = 24 * time.Hour
)

type site struct {
	origin string
	key    []byte
	server *http.Server
	done   chan error
}

// startSite serves the site on l until stop.
func startSite(l net.Listener, key string) *site {
	s := &site{origin: "http://" + l.Addr().String(), key: []byte(key), done: make(chan error, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("GET /login", s.page("Log in", loginPage))
	mux.HandleFunc("POST /login", s.login)
	mux.HandleFunc("GET /notes", s.page("Notes", notesPage))
	mux.HandleFunc("GET /counter", s.page("Counter", counterPage))
	s.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { s.done <- s.server.Serve(l) }()
	return s
}

func (s *site) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := s.server.Shutdown(ctx); err != nil {
		_ = s.server.Close() // a browser holds a connection open; nothing on it matters
	}
	if err := <-s.done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("sample site: %w", err)
	}
	return nil
}

func (s *site) login(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("user") != siteUser || r.FormValue("password") != sitePassword {
		http.Error(w, "wrong user or password", http.StatusForbidden)
		return
	}
	nonce := rand.Text()
	http.SetCookie(w, &http.Cookie{Name: siteCookie, Value: nonce + "." + s.sign(nonce), Path: "/",
		MaxAge: int(siteTTL.Seconds()), HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *site) sign(nonce string) string {
	mac := hmac.New(sha256.New, s.key)
	mac.Write([]byte(nonce))
	return hex.EncodeToString(mac.Sum(nil))
}

func (s *site) loggedIn(r *http.Request) bool {
	c, err := r.Cookie(siteCookie)
	if err != nil {
		return false
	}
	nonce, mac, _ := strings.Cut(c.Value, ".")
	return hmac.Equal([]byte(mac), []byte(s.sign(nonce)))
}

func (s *site) home(w http.ResponseWriter, r *http.Request) {
	who := "Nobody is logged in."
	if s.loggedIn(r) {
		who = "Logged in as " + siteUser + "."
	}
	render(w, "Home", template.HTML(`<p id="who">`+template.HTMLEscapeString(who)+`</p>`))
}

func (s *site) page(title string, body template.HTML) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { render(w, title, body) }
}

func render(w http.ResponseWriter, title string, body template.HTML) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	// The page is small and the client is a browser on this machine: it can miss nothing worth an error.
	_ = layout.Execute(w, map[string]any{"Title": title, "Body": body})
}

var layout = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{.Title}} · Driftstack sample</title>
<meta name="viewport" content="width=device-width">
<style>body{font:20px system-ui,sans-serif;margin:2rem;background:#f4f6fb;color:#123}
a{margin-right:1rem}button,input{font:inherit;padding:.4rem .8rem;margin:.2rem 0}#count{font-size:6rem}</style></head>
<body><nav><a href="/">Home</a><a href="/login">Log in</a><a href="/notes">Notes</a><a href="/counter">Counter</a></nav>
<h1>{{.Title}}</h1>{{.Body}}</body></html>`))

const (
	loginPage template.HTML = `<form method="post" action="/login">
<p><input id="user" name="user" placeholder="user" autocomplete="off"></p>
<p><input id="password" name="password" type="password" placeholder="password"></p>
<p><button id="submit">Log in</button></p></form>`

	notesPage template.HTML = `<p><input id="note" placeholder="a note"> <button id="save">Save</button></p>
<p>Kept in localStorage: <b id="saved"></b></p>
<script>
const show = () => document.getElementById('saved').textContent = localStorage.getItem('note') ?? '';
document.getElementById('save').onclick = () => { localStorage.setItem('note', document.getElementById('note').value); show(); };
show();
</script>`

	counterPage template.HTML = `<p id="count">0</p><p><button id="add">Add one</button></p>
<script>
let n = 0;
document.getElementById('add').onclick = () => document.getElementById('count').textContent = ++n;
</script>`
)
