package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/orchestrator/api"
)

// realChromium is a rig with Debian's chromedriver and Chromium, and a WebKit beside it.
func realChromium(t *testing.T) *rig {
	t.Helper()
	for _, program := range []string{"chromedriver", "chromium"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is missing, and CI must test with it: run `make setup-test`", program)
			}
			t.Skipf("part: chromium skipped: %s is missing: run `make setup-test`", program)
		}
	}
	return newRigOf(t, []host.Device{
		{Name: "webkit", Kind: host.KindWebKitGTK, Model: "WebKitGTK", PlatformName: "linux"},
		{Name: "chromium", Kind: host.KindChromeDriver, Model: "Chromium", PlatformName: "linux"},
	}, 10)
}

// call is one BiDi command and its result. Events that come meanwhile go to event.
func (c bidi) call(t *testing.T, id int, method, params string, event func(method string, params json.RawMessage)) json.RawMessage {
	t.Helper()
	must(t, c.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `{"id":%d,"method":%q,"params":%s}`, id, method, params)))
	for {
		var m struct {
			Type, Method   string
			ID             int
			Params, Result json.RawMessage
			Error, Message string
		}
		_ = c.SetReadDeadline(time.Now().Add(bidiLimit))
		must(t, c.ReadJSON(&m))
		switch {
		case m.Type == "event":
			event(m.Method, m.Params)
		case m.ID == id && m.Type == "success":
			return m.Result
		case m.ID == id:
			t.Fatalf("%s: %s: %s", method, m.Error, m.Message)
		}
	}
}

// talkativePage logs to its console.
func talkativePage(t *testing.T) string {
	t.Helper()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><title>start</title><script>console.log("hello from the page")</script>`)
	}))
	t.Cleanup(site.Close)
	return site.URL
}

// TestSeleniumBiDi runs the npm package's BiDi, which has nothing but the URL.
func TestSeleniumBiDi(t *testing.T) {
	t.Parallel()
	node, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat("../../test/selenium/node_modules/selenium-webdriver")
	}
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: run `make setup-test`", err)
		}
		t.Skipf("part: selenium skipped: %v: run `make setup-test`", err)
	}
	r := realChromium(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*bidiLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "bidi.js")
	cmd.Dir = "../../test/selenium"
	cmd.Env = append(os.Environ(), "DRIFTSTACK_URL="+r.url, "DRIFTSTACK_SERVICE_TOKEN="+token, "DRIFTSTACK_ACCOUNT=a", "SITE="+talkativePage(t))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("selenium-webdriver: %v\n%s", err, stderr.String())
	}
	saw := decode[struct{ Session, Title, Logged string }](t, out)
	if saw.Title != "start" || saw.Logged != "hello from the page" {
		t.Fatalf("the script printed %s", out)
	}
	v, err := r.client.Wait(ctx, saw.Session, api.Ended)
	if err != nil || v.Reason != "completed" || v.Device != "chromium" {
		t.Fatalf("session after the script: %+v, %v", v, err)
	}
	t.Log("part: chromium real")
	t.Log("part: selenium real")
}

// TestRealBiDi is what a customer's program does, on a real browser.
func TestRealBiDi(t *testing.T) {
	r := realChromium(t)
	site := talkativePage(t)
	const want = `"webSocketUrl":true,"browserName":"safari"`
	resp, b := r.call(t, "POST", "/session", `{"capabilities":{"alwaysMatch":{`+want+`,"driftstack:options":{"account":"a"}}}}`)
	if resp.StatusCode != 500 || !strings.Contains(string(b), "Safari has no WebDriver BiDi") {
		t.Errorf("BiDi on WebKit: %d %s", resp.StatusCode, b)
	}
	resp, b = r.call(t, "POST", "/v1/sessions", `{"account":"a","capabilities":{`+want+`}}`)
	if resp.StatusCode != 422 || !strings.Contains(string(b), "Safari has no WebDriver BiDi") {
		t.Errorf("BiDi on WebKit: %d %s", resp.StatusCode, b)
	}

	s := r.start(t, "", `"browserName":"chrome","webSocketUrl":true`)
	t.Log("part: chromium real")
	at := s.socket(t)
	if !strings.HasPrefix(at, "ws"+strings.TrimPrefix(r.url, "http")+"/session/"+s.id+"/bidi?token=") {
		t.Errorf("webSocketUrl %s does not point at %s", at, r.url)
	}
	if s.caps["browserName"] != "chrome" || s.caps["goog:chromeOptions"] != nil {
		t.Errorf("capabilities %v", s.caps)
	}
	c := dialBiDi(t, at)
	var logged []string
	event := func(method string, params json.RawMessage) {
		if method == "log.entryAdded" {
			logged = append(logged, decode[struct{ Text string }](t, params).Text)
		}
	}
	c.call(t, 1, "session.subscribe", `{"events":["log.entryAdded"]}`, event)
	tree := decode[struct{ Contexts []struct{ Context string } }](t, c.call(t, 2, "browsingContext.getTree", `{}`, event))
	if len(tree.Contexts) != 1 {
		t.Fatalf("contexts %+v", tree)
	}
	in := tree.Contexts[0].Context
	c.call(t, 3, "browsingContext.navigate", fmt.Sprintf(`{"context":%q,"url":%q,"wait":"complete"}`, in, site), event)
	text := strings.Repeat("0123456789abcdef", 2<<20/16)
	result := decode[struct{ Result struct{ Value string } }](t, c.call(t, 4, "script.callFunction", fmt.Sprintf(
		`{"functionDeclaration":"text => 'seen ' + text","awaitPromise":false,"target":{"context":%q},"arguments":[{"type":"string","value":%q}]}`, in, text), event))
	if result.Result.Value != "seen "+text {
		t.Errorf("2 MiB came back as %d bytes", len(result.Result.Value))
	}
	if len(logged) != 1 || logged[0] != "hello from the page" {
		t.Errorf("logged %q", logged)
	}
	if _, b := r.call(t, "GET", "/session/"+s.id+"/title", ""); string(b) != `{"value":"start"}` {
		t.Errorf("title %s", b)
	}
	if resp, b := r.call(t, "DELETE", "/session/"+s.id, ""); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	if code, reason := c.closed(t); code != websocket.CloseNormalClosure || reason != "the session has ended: completed" {
		t.Errorf("closed with %d %q", code, reason)
	}
	// The same program without BiDi gets Safari, or what stands in for it.
	if plain := r.start(t, "", `"browserName":"safari"`); plain.caps["webSocketUrl"] != nil {
		t.Errorf("capabilities %v", plain.caps)
	}
}
