package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// lived is a connection with a past: when it was opened, written to and read from, in seconds since the link was opened.
type lived struct {
	name                string
	opened, wrote, read int
	own, closed         bool
}

// conns gives g the connections, and returns whether each is closed now.
func conns(t *testing.T, g *remoteGateway, all []lived) func() []bool {
	t.Helper()
	var theirs []net.Conn
	for _, c := range all {
		ours, other := net.Pipe()
		tr := &tracked{Conn: ours, g: g, own: c.own, opened: time.Duration(c.opened) * time.Second}
		tr.wrote.Store(int64(time.Duration(c.wrote) * time.Second))
		tr.read.Store(int64(time.Duration(c.read) * time.Second))
		g.conns[tr] = struct{}{}
		theirs = append(theirs, other)
		t.Cleanup(func() { _ = errors.Join(ours.Close(), other.Close()) })
	}
	return func() []bool {
		var closed []bool
		for _, c := range theirs {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := c.Read(make([]byte, 1))
			if err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("a pipe: %v", err)
			}
			closed = append(closed, err == io.EOF)
		}
		return closed
	}
}

func checkConns(t *testing.T, all []lived, closed []bool) {
	t.Helper()
	for i, c := range all {
		if closed[i] != c.closed {
			t.Errorf("%s: closed %t", c.name, closed[i])
		}
	}
}

// keeperAt is a keeper so many seconds after its link was opened.
func keeperAt(t *testing.T, seconds int) *keeper {
	l, _ := dialLink(t, nil)
	t.Cleanup(l.end)
	time.Sleep(time.Duration(seconds) * time.Second) // of the bubble
	g := l.all()[0]
	return &keeper{l: l, g: g, log: testLog(t), pulser: newPulser(l, g), clocks: newClocks(time.Now)}
}

// TestNewEpoch: what was opened before the gateway's last beat of its epoch is dead; what was opened after that may be of
// the new one, and is judged by whether it speaks; the same epoch closes nothing.
func TestNewEpoch(t *testing.T) {
	for _, epoch := range []string{"1", "2"} {
		t.Run(epoch, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keeperAt(t, 100)
				k.epoch, k.beatAt = "1", 50*time.Second
				anew := epoch == "2"
				all := []lived{
					{"of before", 40, 90, 95, false, anew},
					{"the link's own", 40, 90, 95, true, false},
					{"in between, and silent", 60, 61, 62, false, false},
					{"in between, and speaks", 60, 61, 98, false, false},
					{"of now", 98, 98, 98, false, false},
				}
				closed := conns(t, k.g, all)
				k.took(t.Context(), &beat{wire.Beat{Epoch: epoch}}, 97*time.Second, 0)
				checkConns(t, all, closed())
				if k.epoch != epoch || k.beatAt != 97*time.Second || (k.judgeAt > 0) != anew {
					t.Errorf("epoch %s of %s, judged at %s", k.epoch, k.beatAt, k.judgeAt)
				}
				if anew {
					if k.judgeAt != 100*time.Second+speakLimit {
						t.Errorf("judged at %s", k.judgeAt)
					}
					k.judge()
					all[2].closed = true
					checkConns(t, all, closed())
					if k.judgeAt != 0 {
						t.Error("judged twice")
					}
				}
			})
		})
	}
}

// TestHealed: after a long silence, or sleep, what was opened before it is closed; after a short one what has written
// meanwhile and hears nothing back.
func TestHealed(t *testing.T) {
	for _, c := range []struct {
		name  string
		t     trouble
		all   []lived
		later []bool
	}{
		{"long", trouble{heard: 90 * time.Second}, []lived{
			{"before", 40, 40, 40, false, true},
			{"the link's own", 40, 40, 40, true, false},
			{"since", 95, 95, 0, false, false},
		}, []bool{true, false, true}},
		{"short", trouble{heard: 98 * time.Second}, []lived{
			{"idle", 40, 40, 40, false, false},
			{"waits for an answer", 40, 99, 40, false, false},
			{"has one", 40, 99, 101, false, false},
		}, []bool{false, true, false}},
		{"short sleep by the monotonic clock", trouble{heard: 98 * time.Second, slept: true}, []lived{
			{"idle", 40, 40, 40, false, true},
			{"opened awake", 99, 98, 0, false, false},
		}, []bool{true, false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keeperAt(t, 100)
				closed := conns(t, k.g, c.all)
				k.g.setMending(true)
				healed := k.g.healing()
				k.healed(t.Context(), c.t, nil, 99*time.Second)
				checkConns(t, c.all, closed())
				select {
				case <-healed:
				default:
					t.Error("dials are not told")
				}
				if k.g.isMending() != nil || k.pathAt != 100*time.Second || k.slept != c.t.slept {
					t.Errorf("mending %v, path measured at %s, slept %t", k.g.isMending(), k.pathAt, k.slept)
				}
				k.judge()
				for i := range c.all {
					c.all[i].closed = c.later[i]
				}
				checkConns(t, c.all, closed())
			})
		})
	}
}

// TestStopBeforeStart: a beat may drop a gateway whose keeper has not started yet.
func TestStopBeforeStart(t *testing.T) {
	l, _ := dialLink(t, nil)
	g := l.all()[0]
	g.stop()
	l.startKeeper(g)
	l.keepers.Wait()
	l.end()
}

// TestDialEndsWithHeal: a dial that began while its gateway was not heard waits for its own lost packet no longer than
// that, and does not count.
func TestDialEndsWithHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, d := dialLink(t, nil)
		defer l.end()
		l.joined = true
		g := l.all()[0]
		close(g.ready)
		d.dialf = func(ctx context.Context, n int) error {
			if n <= 2*dialAttempts { // lost
				time.AfterFunc(100*time.Millisecond, g.heal)
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		began := time.Now()
		c, err := l.DialContext(t.Context(), "tcp", "10.77.0.1:1")
		if err != nil || time.Since(began) != 2*dialAttempts*100*time.Millisecond {
			t.Fatalf("after %s and %d dials: %v", time.Since(began), d.dials, err)
		}
		_ = c.Close()
	})
}

// TestOpenIsBounded: a device that cannot be made keeps nobody waiting for ever, and one that is made too late is closed.
func TestOpenIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, closed := make(chan struct{}), make(chan struct{})
		stuck := backend{BackendTUN, func(context.Context, deviceConfig) (wgDevice, error) {
			<-release
			return lateDevice{closed: closed}, nil
		}}
		began := time.Now()
		_, _, err := openAmong(t.Context(), []backend{stuck}, BackendTUN, deviceConfig{Log: testLog(t)})
		if !errors.Is(err, ErrDeviceHung) || time.Since(began) != openLimit {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		close(release)
		<-closed
	})
}

type lateDevice struct {
	wgDevice
	closed chan struct{}
}

func (d lateDevice) close() error { close(d.closed); return nil }

// sizedDevice takes an MTU.
type sizedDevice struct {
	*dialDevice
	mtu int
}

func (d *sizedDevice) setMTU(_ context.Context, mtu int) error { d.mtu = mtu; return nil }

// TestMTUOfNewDevice: while a device is replaced the MTU is not changed on the one that goes.
func TestMTUOfNewDevice(t *testing.T) {
	l, d := dialLink(t, nil)
	defer l.end()
	old, next := &sizedDevice{d, 0}, &sizedDevice{d, 0}
	l.dev = old
	l.restoring.Lock() // as restore does
	began, done := make(chan struct{}), make(chan error)
	go func() {
		close(began)
		done <- l.setMTU(t.Context(), lowMTU)
	}()
	<-began
	for range 1000 {
		runtime.Gosched()
	}
	l.mu.Lock()
	l.dev = next
	l.mu.Unlock()
	l.restoring.Unlock()
	if err := <-done; err != nil || old.mtu != 0 || next.mtu != lowMTU || l.MTU() != lowMTU {
		t.Errorf("%v: MTU of the old device %d, of the new %d", err, old.mtu, next.mtu)
	}
}

// TestHandshakesUnderLoad: a device is closed at once, but for one that many handshakes came to just before.
func TestHandshakesUnderLoad(t *testing.T) {
	var h handshakes
	now := time.Unix(1000, 0)
	if h.settle(now) != 0 {
		t.Error("idle")
	}
	for i := range crowded - 1 {
		h.add(now.Add(time.Duration(i) * time.Millisecond))
	}
	if h.settle(now) != 0 {
		t.Error("few")
	}
	now = now.Add(time.Second)
	for range crowded {
		h.add(now)
	}
	if got := h.settle(now.Add(time.Second)); got != loadLasts-time.Second {
		t.Errorf("many: %s", got)
	}
	if h.settle(now.Add(loadLasts)) != 0 {
		t.Error("long ago")
	}
}

// TestRefusalIsASignOfLife: a machine without an orchestrator is not asked again and again.
func TestRefusalIsASignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keeperAt(t, 100)
		dev := k.l.dev.(*dialDevice)
		dev.dialf = func(context.Context, int) error { return &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED} }
		if tr := k.ask(t.Context(), "test"); tr != nil {
			t.Errorf("it is repaired: %+v", tr)
		}
		if quiet := k.g.quiet(); quiet != 0 {
			t.Errorf("quiet for %s", quiet)
		}
	})
}
