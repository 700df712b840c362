package httpapi_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/httpapi"
)

// wireCall writes a request as it is, which no HTTP client would, and reads the answer.
func wireCall(t *testing.T, url, request string) (*http.Response, []byte) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	_, err = io.WriteString(c, request)
	must(t, err)
	must(t, c.(*net.TCPConn).CloseWrite())
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp, b
}

// wantW3C checks what the specification says of every error answer.
func wantW3C(t *testing.T, resp *http.Response, b []byte, status int, code webdriver.Code) (message string) {
	t.Helper()
	h := resp.Header
	if resp.StatusCode != status || h.Get("Content-Type") != "application/json; charset=utf-8" || h.Get("Cache-Control") != "no-cache" || h.Get("Location") != "" {
		t.Fatalf("%d %v: %s, want %d", resp.StatusCode, h, b, status)
	}
	if resp.Request.Method == http.MethodHead {
		if len(b) != 0 {
			t.Errorf("an answer to HEAD has a body: %s", b)
		}
		return ""
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var v struct {
		Value struct {
			Error      *webdriver.Code `json:"error"`
			Message    *string         `json:"message"`
			Stacktrace *string         `json:"stacktrace"`
			Data       map[string]any  `json:"data"`
		} `json:"value"`
	}
	if err := d.Decode(&v); err != nil || v.Value.Error == nil || *v.Value.Error != code || v.Value.Message == nil || *v.Value.Message == "" || v.Value.Stacktrace == nil {
		t.Fatalf("%s, %v: want a W3C error %q", b, err, code)
	}
	return *v.Value.Message
}

// Whatever is sent to a driver route, the answer is W3C's: no redirect of a path that is not clean, no HTML, no plain text.
func TestDriverRoutesAnswerInW3COnly(t *testing.T) {
	r := newRig(t, 1, 10)
	live := r.running(t, api.CreateSession{})
	driver := <-r.drivers
	waiting, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
	must(t, err)
	ended, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
	must(t, err)
	must(t, second(r.client.Cancel(t.Context(), ended.ID)))

	const unknownCommand, unknownMethod, noSession, invalid = webdriver.UnknownCommand, webdriver.UnknownMethod, webdriver.InvalidSessionID, webdriver.InvalidArgument
	type row struct {
		method, path string
		extra        string // headers
		body         string
		status       int
		code         webdriver.Code
	}
	at := "/session/" + live.ID
	rows := []row{
		// Match a request: first the path, then the method, then the session.
		{"GET", "", "", "", 404, unknownCommand}, {"GET", "/", "", "", 404, unknownCommand}, {"POST", "/nonsense", "", "{}", 404, unknownCommand},
		{"GET", "/status/", "", "", 404, unknownCommand}, {"GET", "//status", "", "", 404, unknownCommand}, {"GET", "/./status", "", "", 404, unknownCommand},
		{"POST", "/status", "", "{}", 405, unknownMethod}, {"HEAD", "/status", "", "", 405, unknownMethod}, {"OPTIONS", "/status", "", "", 405, unknownMethod},
		{"GET", "/session", "", "", 405, unknownMethod}, {"DELETE", "/session", "", "", 405, unknownMethod}, {"PUT", "/session", "", "{}", 405, unknownMethod},
		{"HEAD", "/session", "", "", 405, unknownMethod}, {"OPTIONS", "/session", "", "", 405, unknownMethod}, {"TRACE", "/session", "", "", 405, unknownMethod},
		{"BREW", "/session", "", "", 405, unknownMethod},
		{"POST", "/session/", "", "{}", 404, unknownCommand}, {"POST", "//session", "", "{}", 404, unknownCommand}, {"POST", "/session//", "", "{}", 404, unknownCommand},
		{"GET", "/session//url", "", "", 404, unknownCommand}, {"GET", "/x/../session", "", "", 404, unknownCommand}, {"GET", "/session/../v1/hosts", "", "", 404, unknownCommand},
		{"GET", "/session/..", "", "", 405, unknownMethod}, {"DELETE", "/session/..", "", "", 404, noSession}, {"GET", "/session/%2e%2e/url", "", "", 404, noSession},
		{"GET", at, "", "", 405, unknownMethod}, {"POST", at, "", "{}", 405, unknownMethod}, {"PATCH", at, "", "{}", 405, unknownMethod},
		{"DELETE", at + "/", "", "", 404, unknownCommand}, {"GET", at + "/url/", "", "", 404, unknownCommand}, {"GET", at + "//url", "", "", 404, unknownCommand},
		{"GET", at + "/./url", "", "", 404, unknownCommand}, {"GET", at + "/../../v1/hosts", "", "", 404, unknownCommand}, {"GET", at + "/nonsense", "", "", 404, unknownCommand},
		{"GET", at + "/%ff", "", "", 404, unknownCommand}, {"GET", at + "/\xff\xfe", "", "", 404, unknownCommand}, {"GET", at + "/%00", "", "", 404, unknownCommand},
		{"DELETE", at + "/url", "", "", 405, unknownMethod}, {"PUT", at + "/url", "", "{}", 405, unknownMethod}, {"PATCH", at + "/url", "", "{}", 405, unknownMethod},
		{"HEAD", at + "/url", "", "", 405, unknownMethod}, {"OPTIONS", at + "/url", "", "", 405, unknownMethod}, {"PUT", at + "/nonsense", "", "{}", 404, unknownCommand},
		{"GET", at + "/element/%2e%2e/text", "", "", 400, invalid}, {"GET", at + "/element/a%2fb/text", "", "", 400, invalid},
		{"GET", "/session/none/nonsense", "", "", 404, unknownCommand}, {"PUT", "/session/none/url", "", "{}", 405, unknownMethod},
		{"GET", "/session/none/url", "", "", 404, noSession}, {"GET", "/session/none/url?x=%zz;&", "", "", 404, noSession}, {"POST", "/session/none/url", "", "no JSON", 404, noSession},
		{"GET", "/session/%ff/url", "", "", 404, noSession}, {"GET", "/session/\xff/url", "", "", 404, noSession}, {"GET", "/session/%00/url", "", "", 404, noSession},
		{"GET", "/session/" + strings.Repeat("x", 9000) + "/url", "", "", 404, noSession},
		{"GET", "/session/" + ended.ID + "/url", "", "", 404, noSession}, {"DELETE", "/session/" + ended.ID, "", "", 404, noSession},
		{"GET", "/session/" + waiting.ID + "/url", "", "", 500, webdriver.SessionNotCreated},
		// Parameters are a JSON object, whatever the content type says.
		{"POST", at + "/url", "", "", 400, invalid}, {"POST", at + "/url", "", "null", 400, invalid}, {"POST", at + "/url", "", `["http://x/"]`, 400, invalid},
		{"POST", at + "/url", "", `{"url":`, 400, invalid}, {"POST", at + "/url", "", `{"url":"http://x/"}}`, 400, invalid}, {"POST", at + "/url", "", "\xff\xfe{}", 400, invalid},
		{"POST", at + "/url", "Content-Type: text/html\r\n", "<html>", 400, invalid}, {"POST", at + "/url", "Content-Type: ;;;\r\n", `{"url":7}`, 400, invalid},
		{"POST", "/session", "", "", 400, invalid}, {"POST", "/session", "", "null", 400, invalid}, {"POST", "/session", "", "{}", 400, invalid},
		{"POST", "/session", "Content-Type: application/x-www-form-urlencoded\r\n", "capabilities=1", 400, invalid}, {"POST", "/session", "", `{"Capabilities":{}}`, 400, invalid},
		{"POST", "/session?x=y", "", "\x00", 400, invalid},
		// Bodies that are too long or do not arrive.
		{"POST", "/session", "", strings.Repeat(" ", 2<<20), 400, invalid},
		{"POST", at + "/se/file", "Expect: 100-continue\r\nContent-Length: 200000000\r\n", "", 400, invalid},
		{"POST", at + "/url", "Content-Length: 100\r\n", `{"url":`, 400, invalid},
		{"POST", at + "/url", "Transfer-Encoding: chunked\r\n", "5\r\n{\"url\r\nnonsense", 400, invalid},
		{"POST", "/session", "Transfer-Encoding: chunked\r\n", strings.Repeat("10000\r\n"+strings.Repeat(" ", 1<<16)+"\r\n", 20) + "0\r\n\r\n", 400, invalid},
		// A stranger.
		{"GET", at + "/url", "Authorization: Bearer none\r\n", "", 401, webdriver.UnknownError}, {"POST", "/session", "Authorization: none\r\n", "{}", 401, webdriver.UnknownError},
		{"GET", "//session", "Authorization: none\r\n", "", 401, webdriver.UnknownError},
	}
	for _, c := range rows {
		for _, prefix := range []string{"", "/wd/hub"} {
			if prefix == "" && (len(c.path) < 2 || c.path == "/nonsense") { // no driver route without the prefix
				continue
			}
			name := fmt.Sprintf("%s %.60q %q %.20q", c.method, prefix+c.path, c.extra, c.body)
			t.Run(name, func(t *testing.T) {
				request := c.method + " " + prefix + c.path + " HTTP/1.1\r\nHost: fleet\r\nConnection: close\r\n" + c.extra
				if !strings.Contains(c.extra, "Authorization") {
					request += "Authorization: Bearer " + token + "\r\n"
				}
				if c.body != "" && !strings.Contains(c.extra, "Content-Length") && !strings.Contains(c.extra, "chunked") {
					request += fmt.Sprintf("Content-Length: %d\r\n", len(c.body))
				}
				resp, b := wireCall(t, r.url, request+"\r\n"+c.body)
				wantW3C(t, resp, b, c.status, c.code)
				allow := ""
				if c.status == http.StatusMethodNotAllowed {
					allow = map[string]string{"/status": "GET", "/session": "POST", at + "/url": "POST, GET", "/session/none/url": "POST, GET"}[c.path]
					allow = cmp.Or(allow, "DELETE") // of a session
				}
				if got := resp.Header.Get("Allow"); got != allow {
					t.Errorf("Allow: %q, want %q", got, allow)
				}
			})
		}
	}
	// The session has come through all of it, and takes a command with a query and any content type.
	for _, prefix := range []string{"", "/wd/hub"} {
		resp, b := r.call(t, "POST", prefix+at+"/url?x=y", " {\"url\": \"http://site.example/\xff\"}\r\n", func(q *http.Request) { q.Header.Set("Content-Type", "text/plain") })
		if resp.StatusCode != 200 || string(b) != `{"value":null}` || resp.Header.Get("Content-Type") != "application/json; charset=utf-8" || resp.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%d %v %s", resp.StatusCode, resp.Header, b)
		}
	}
	// Nothing of the rest reached the driver but the two URLs that are numbers: they are for it to refuse.
	if e := driver.Executed(); len(e) != 4 {
		t.Errorf("the driver executed %+v", e)
	}
}

// Who sends too much is told so, also when it reads no answer before it has sent everything, as most clients do.
func TestTooLongBodyIsAnswered(t *testing.T) {
	r := newRig(t, 1, 10)
	valid := `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a","recording":false}}}}`
	for _, prefix := range []string{"", "/wd/hub"} {
		for _, size := range []int{1<<20 + 1, 32 << 20} {
			c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
			must(t, err)
			must(t, c.SetDeadline(time.Now().Add(time.Minute)))
			_, err = fmt.Fprintf(c, "POST %s/session HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", prefix, token, size, valid)
			must(t, err)
			_, err = c.Write(bytes.Repeat([]byte(" "), size-len(valid)))
			must(t, err)
			resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{})
			must(t, err)
			b, err := io.ReadAll(resp.Body)
			must(t, err)
			must(t, c.Close())
			if m := wantW3C(t, resp, b, 400, webdriver.InvalidArgument); !strings.Contains(m, "longer than 1048576 bytes") {
				t.Errorf("%d bytes: %s", size, m)
			}
		}
	}
	if l, err := r.client.Sessions(t.Context(), nil); err != nil || len(l.Sessions) != 0 {
		t.Errorf("%+v, %v", l, err)
	}
}

// What is no HTTP is answered by net/http itself, in plain text, before we see it; it closes the connection then, as
// the specification allows where no request can be made of what was received.
func TestWhatIsNoHTTPClosesTheConnection(t *testing.T) {
	server := httptest.NewServer(httpapi.New(httpapi.Config{Token: token, Log: zap.NewNop(), Now: time.Now}))
	defer server.Close()
	for _, request := range []string{
		"nonsense\r\n\r\n", "GET /session/%zz/url HTTP/1.1\r\nHost: x\r\n\r\n", "GET /session/a b/url HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /status HTTP/1.1\r\n\r\n", "GET /status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("y", 2<<20) + "\r\n\r\n",
		"POST /session HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: sandwich\r\n\r\n", "GET /status HTTP/9.9\r\nHost: x\r\n\r\n",
	} {
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		must(t, err)
		must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		go func() { _, _ = io.WriteString(c, request) }() // it may be cut off
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode < 400 || !resp.Close {
			t.Errorf("%.40q: %+v, %v", request, resp, err)
		}
		must(t, c.Close())
	}
}

// FuzzDriverRoutes asks for any path with any method, with nobody behind the routes: every answer is W3C's all the same.
func FuzzDriverRoutes(f *testing.F) {
	for _, s := range [][2]string{{"GET", "/session/x/url"}, {"POST", "/wd/hub//session"}, {"HEAD", "/wd/hub/status"}, {"DELETE", "/session/%2e%2e/"}, {"GET", "/x/../session"}, {"PUT", "/session/../v1/hosts"}} {
		f.Add(s[0], s[1])
	}
	h := httpapi.New(httpapi.Config{Token: token, Log: zap.NewNop(), Now: time.Now})
	f.Fuzz(func(t *testing.T, method, target string) {
		request := method + " " + target + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\n\r\n"
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request)))
		if err != nil || r.Header.Get("Authorization") == "" {
			return // net/http answers it
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		clean := path.Clean("/" + r.URL.Path)
		if clean != "/session" && clean != "/status" && !strings.HasPrefix(clean, "/session/") && clean != "/wd/hub" && !strings.HasPrefix(clean, "/wd/hub/") {
			return
		}
		var v struct {
			Value struct {
				Error string `json:"error"`
			} `json:"value"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || v.Value.Error == "" || w.Code < 400 || w.Header().Get("Location") != "" {
			t.Fatalf("%q %q: %d %v %s", method, target, w.Code, w.Header(), w.Body)
		}
	})
}

// A defect of ours costs one answer and not the connection, and is not told in a customer's words.
func TestPanicIsAnswered(t *testing.T) {
	core, logged := observer.New(zapcore.DebugLevel)
	// There is no orchestrator and no store behind these routes: every one of them is a nil pointer away from its end.
	server := httptest.NewServer(httpapi.New(httpapi.Config{Token: token, Log: zap.New(core), Now: time.Now}))
	defer server.Close()
	r := &rig{url: server.URL}
	for range 2 {
		for path, w3c := range map[string]bool{"/session/secret/url": true, "/wd/hub/session/secret/url": true, "/status": true, "/v1/hosts": false} {
			resp, b := r.call(t, "GET", path, "", func(q *http.Request) { q.Header.Set("X-Secret", "secret") })
			if w3c {
				wantW3C(t, resp, b, 500, webdriver.UnknownError)
			} else if p := decode[problem](t, b); resp.StatusCode != 500 || p.Status != 500 {
				t.Errorf("%s: %d %s", path, resp.StatusCode, b)
			}
		}
	}
	if n := logged.FilterMessage("panic in a request").Len(); n != 8 {
		t.Errorf("%d panics logged", n)
	}
	for _, e := range logged.All() {
		if s := fmt.Sprint(e.ContextMap()); strings.Contains(s, "secret") {
			t.Errorf("a log line holds what was sent: %s", s)
		}
	}
}
