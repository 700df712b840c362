package tunnel

import (
	"testing"

	"go.uber.org/goleak"
)

// TestNothingLeftRunning: what a gateway and a link start ends with them, connections that were open included.
func TestNothingLeftRunning(t *testing.T) {
	before := goleak.IgnoreCurrent()
	r := &registry{}
	w, err := openWorld(t.Context(), r, worldConfig{number: 1, dir: t.TempDir(), log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	token := r.mustInvite(t, 256, "mac", w.info)
	w.settle(t)
	l, err := OpenLink(t.Context(), LinkConfig{StateDir: t.TempDir(), Token: token, Backend: BackendNetstack, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	checkWhoami(t, l, w.info)
	c, err := l.DialContext(t.Context(), "tcp", w.info.Fleet()) // left open, in the middle of a request
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives its link")
	}
	w.mustStop(t)
	goleak.VerifyNone(t, before)
}
