package host_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// TestRealBiDi is Debian's chromedriver and Chromium.
func TestRealBiDi(t *testing.T) {
	t.Parallel()
	needReal(t, "chromedriver", "chromium")
	s := newFleet(t)
	cfg := s.config(t)
	cfg.Devices[0].Kind, cfg.Devices[0].PlatformName = host.KindChromeDriver, "linux"
	s.run(t, cfg)
	t.Log("part: chromium real")
	session := assign(t, s, wantBiDi("s1"))
	if c := string(session.Capabilities()); !strings.Contains(c, `"browserName":"chrome"`) || !strings.Contains(c, `"webSocketUrl":true`) || strings.Contains(c, "ws://") || strings.Contains(c, s.state) {
		t.Errorf("capabilities %s", c)
	}
	c := connect(t, session)
	// 2 MiB there and back.
	text := strings.Repeat("0123456789abcdef", 2<<20/16)
	var tree struct {
		Contexts []struct{ Context string } `json:"contexts"`
	}
	c.call(t, 1, "browsingContext.getTree", map[string]any{}, &tree)
	if len(tree.Contexts) == 0 {
		t.Fatal("there is no browsing context")
	}
	var result struct {
		Result struct{ Value string } `json:"result"`
	}
	c.call(t, 2, "script.callFunction", map[string]any{
		"functionDeclaration": "(text) => 'seen ' + text", "awaitPromise": false, "target": map[string]string{"context": tree.Contexts[0].Context},
		"arguments": []any{map[string]string{"type": "string", "value": text}},
	}, &result)
	if sha256.Sum256([]byte(result.Result.Value)) != sha256.Sum256([]byte("seen "+text)) {
		t.Errorf("%d bytes came back", len(result.Result.Value))
	}
	do[any](t, session, "POST", "/url", map[string]string{"url": site(t)}) // commands go on beside it
	if got := do[string](t, session, "GET", "/title", nil); got != "start" {
		t.Errorf("title %q", got)
	}
	if found, err := filepath.Glob(filepath.Join(s.state, "sessions", "*", "data", "chromium", "Default")); err != nil || len(found) != 1 {
		t.Errorf("the browser's data directory is not below the session's: %v %v", found, err)
	}
	release(t, session)
	if code, _ := c.closed(t); code == websocket.CloseAbnormalClosure {
		t.Error("no goodbye")
	}
	s.idle(t)
}

// TestRealBiDiDeaths kills the browser, and then a driver, under a BiDi connection.
func TestRealBiDiDeaths(t *testing.T) {
	t.Parallel()
	needReal(t, "chromedriver", "chromium")
	s := newFleet(t)
	cfg := s.config(t)
	cfg.Devices[0].Kind = host.KindChromeDriver
	s.run(t, cfg)
	for i, victim := range []string{"chromium", "chromedriver"} {
		session := assign(t, s, wantBiDi(fmt.Sprint("s", i)))
		c := connect(t, session)
		c.call(t, 1, "session.status", map[string]any{}, new(any))
		pid := pidOf(s.state, victim)
		if pid == 0 {
			t.Fatalf("there is no %s: %v", victim, processesBelow(s.state))
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("%s: %v", victim, err)
		}
		within(t, "the session ends", session.Done())
		release(t, session)
		c.end(&socket.Close{Code: socket.CloseGoingAway})
		c.closed(t)
		s.idle(t)
	}
	// A client can end the browser over BiDi, which nobody but the driver understands.
	session := assign(t, s, wantBiDi("closed"))
	c := connect(t, session)
	if err := c.WriteMessage(websocket.TextMessage, []byte(`{"id":1,"method":"browser.close","params":{}}`)); err != nil {
		t.Fatal(err)
	}
	within(t, "the session ends", session.Done())
	var f *wire.Failure
	if err := session.Err(); !errors.As(err, &f) || f.Code != wire.FailureDriver {
		t.Errorf("Err %v, want driver_failed", err)
	}
	release(t, session)
	s.idle(t)
}

// TestRealChromiumLeftovers kills all that watches over a browser: the next agent finds it.
func TestRealChromiumLeftovers(t *testing.T) {
	t.Parallel()
	needReal(t, "chromedriver", "chromium")
	s := newImpatientFleet(t)
	cfg := s.config(t)
	cfg.Devices[0].Kind = host.KindChromeDriver
	agent := s.startAgent(t, cfg)
	s.connected(t)
	session := assign(t, s, wantBiDi("s1"))
	supervisor := pidOf(s.state, host.SuperviseCommand)
	if supervisor == 0 {
		t.Fatal("there is no supervisor")
	}
	freeze(t, supervisor) // so that it cannot do its work before it is killed
	for _, pid := range []int{agent.Process.Pid, supervisor} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	_ = agent.Wait()
	within(t, "the session ends", session.Done())
	s.run(t, cfg)
	s.idle(t)
}

// call is one BiDi command, and its result; events are passed over.
func (c *bidi) call(t *testing.T, id int, method string, params, result any) {
	t.Helper()
	if err := c.WriteJSON(map[string]any{"id": id, "method": method, "params": params}); err != nil {
		t.Fatal(err)
	}
	for {
		var m struct {
			Type   string          `json:"type"`
			ID     int             `json:"id"`
			Error  string          `json:"error"`
			Result json.RawMessage `json:"result"`
		}
		if err := c.ReadJSON(&m); err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		if m.ID != id {
			continue
		}
		if m.Type != "success" {
			t.Fatalf("%s: %s", method, m.Error)
		}
		if err := json.Unmarshal(m.Result, result); err != nil {
			t.Fatal(err)
		}
		return
	}
}
