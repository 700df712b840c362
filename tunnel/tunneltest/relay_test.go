package tunneltest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// echoer answers every datagram and remembers who sent.
type echoer struct {
	conn *net.UDPConn
	mu   sync.Mutex
	from []netip.AddrPort
}

func openEchoer(t testing.TB) *echoer {
	t.Helper()
	c, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	e := &echoer{conn: c}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			e.mu.Lock()
			e.from = append(e.from, from)
			e.mu.Unlock()
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return e
}

func (e *echoer) seen() []netip.AddrPort {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.from
}

func openTest(t testing.TB, cfg RelayConfig) (*Relay, *echoer, *net.UDPConn) {
	t.Helper()
	e := openEchoer(t)
	cfg.Target = e.conn.LocalAddr().String()
	r, err := OpenRelay(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, e, dial(t, r)
}

func dial(t testing.TB, r *Relay) *net.UDPConn {
	t.Helper()
	a, err := net.ResolveUDPAddr("udp4", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialUDP("udp4", nil, a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func send(t testing.TB, c *net.UDPConn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

func receive(t testing.TB, c *net.UDPConn) []byte {
	t.Helper()
	buf := make([]byte, 1<<16)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func number(i int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(i)) }

func TestDelayKeepsOrder(t *testing.T) {
	const delay, n = 30 * time.Millisecond, 100 // as many as the sockets of any machine hold
	r, _, c := openTest(t, RelayConfig{Delay: delay})
	began := time.Now()
	send(t, c, number(0))
	for end := began.Add(10 * time.Second); !r.up.holds(); { // the delay counts from when the relay has read it
		if time.Now().After(end) {
			t.Fatal("the relay read nothing")
		}
		runtime.Gosched()
	}
	r.SetDelay(0) // what comes later does not overtake
	for i := 1; i < n; i++ {
		send(t, c, number(i))
	}
	for i := range n {
		if got := binary.BigEndian.Uint32(receive(t, c)); int(got) != i {
			t.Fatalf("datagram %d came when %d was due", got, i)
		}
		if took := time.Since(began); took < delay {
			t.Fatalf("after %s", took)
		}
	}
}

// holds says whether a datagram was ever put on the line.
func (l *line) holds() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.last.IsZero()
}

// TestLossIsSeeded: the same seed loses the same datagrams, about as many as asked for.
func TestLossIsSeeded(t *testing.T) {
	const n = 2000
	lost := func(seed uint64) (up []int) {
		r, _, c := openTest(t, RelayConfig{Loss: 0.1, Seed: seed})
		for i := range n {
			before, deadline := r.Stats(), time.Now().Add(10*time.Second)
			send(t, c, number(i))
			for ; ; runtime.Gosched() { // up: forwarded or lost; what is forwarded comes back, or is lost on its way
				s := r.Stats()
				if s.Lost > before.Lost && s.Forwarded == before.Forwarded {
					up = append(up, i)
				}
				if s.Lost > before.Lost || s.Forwarded == before.Forwarded+2 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("datagram %d is neither lost nor forwarded: %+v", i, s)
				}
			}
		}
		return up
	}
	a, b, other := lost(1), lost(1), lost(2)
	if len(a) < n/20 || len(a) > n/5 || len(a) != len(b) {
		t.Fatalf("%d and %d of %d lost", len(a), len(b), n)
	}
	same := len(a) == len(other)
	for i := range a {
		if a[i] != b[i] {
			t.Fatal("the same seed loses others")
		}
		same = same && a[i] == other[i]
	}
	if same {
		t.Error("another seed loses the same")
	}
}

func TestCutSizeRebind(t *testing.T) {
	r, e, c := openTest(t, RelayConfig{MaxSize: 100})
	wait := func(reached func(Stats) bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !reached(r.Stats()); {
			if time.Now().After(end) {
				t.Fatalf("%+v", r.Stats())
			}
		}
	}
	r.Cut(true)
	send(t, c, number(1))
	wait(func(s Stats) bool { return s.Cut == 1 })
	r.Cut(false)
	send(t, c, make([]byte, 101))
	wait(func(s Stats) bool { return s.TooLarge == 1 })
	send(t, c, make([]byte, 100))
	if got := receive(t, c); len(got) != 100 {
		t.Errorf("%d bytes", len(got))
	}
	send(t, c, number(2))
	receive(t, c)
	if err := r.Rebind(); err != nil {
		t.Fatal(err)
	}
	old := e.seen()[0]
	if _, err := e.conn.WriteToUDPAddrPort(number(3), old); err != nil { // to the port that is forgotten
		t.Fatal(err)
	}
	send(t, c, number(4))
	if got := binary.BigEndian.Uint32(receive(t, c)); got != 4 {
		t.Errorf("%d came back", got)
	}
	second := dial(t, r)
	send(t, second, number(5))
	receive(t, second)
	from := e.seen()
	if len(from) != 4 || from[0] != from[1] || from[2] == old || from[3] == from[2] {
		t.Errorf("the gateway saw %v", from)
	}
	// A gateway that moved, and one that cannot be.
	moved := openEchoer(t)
	if err := r.SetTarget(moved.conn.LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
	send(t, c, number(6))
	receive(t, c)
	if len(moved.seen()) != 1 {
		t.Error("the new target saw nothing")
	}
	if err := r.SetTarget("nowhere"); err == nil {
		t.Error("an impossible target is taken")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	before := goleak.IgnoreCurrent()
	r, err := OpenRelay(RelayConfig{Target: "127.0.0.1:9", Delay: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, r)
	send(t, c, number(1))
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, before)
}

func TestPathFor(t *testing.T) {
	for mtu, want := range map[int]int{1280: 1312, 1200: 1232, 1281: 1328} {
		if got := PathFor(mtu); got != want {
			t.Errorf("PathFor(%d) = %d, not %d", mtu, got, want)
		}
	}
}

// BenchmarkRelay passes full-size datagrams both ways; its share of a core at a given rate is what matters.
func BenchmarkRelay(b *testing.B) {
	_, _, c := openTest(b, RelayConfig{})
	const size, window = 1312, 64
	b.SetBytes(size)
	tokens := make(chan struct{}, window)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for range b.N {
			if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				return
			}
			if _, err := c.Read(buf); err != nil {
				b.Errorf("some are lost: %v", err)
				return
			}
			<-tokens
		}
	}()
	msg := make([]byte, size)
	for range b.N {
		select {
		case tokens <- struct{}{}:
		case <-done:
			return
		}
		send(b, c, msg)
	}
	<-done
}
