package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

const maxBeat = 256 << 10

// pulser speaks with one gateway over one connection that is kept open. It belongs to one goroutine.
type pulser struct {
	l      *Link
	g      *remoteGateway
	client *http.Client
	trip   time.Duration // of the last pulse, from when it had a connection
	before time.Duration // of the one before
	open   bool          // the last request was answered, so that its connection may still be there

	mu      sync.Mutex    // guards dropped
	dropped chan struct{} // closed and made anew by drop: dials go on after the request that wanted them has been given up
}

// beat is a gateway's answer to a pulse.
type beat struct {
	wire.Beat
}

// errSpoke wraps what a gateway, or its machine, said instead of a beat: the tunnel works.
var errSpoke = errors.New("the gateway answers, but not with a beat")

func spoke(err error) bool { return errors.Is(err, errSpoke) }

func newPulser(l *Link, g *remoteGateway) *pulser {
	p := &pulser{l: l, g: g, dropped: make(chan struct{})}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		ctx, done := until(ctx, p.under(), net.ErrClosed)
		defer done()
		info := g.get()
		c, err := l.held().dev.dial(ctx, netip.AddrPortFrom(info.Addr, info.FleetPort))
		if err != nil {
			return nil, err
		}
		return g.track(c, true), nil
	}
	p.client = &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true, MaxIdleConns: 1, MaxIdleConnsPerHost: 1}}
	return p
}

func (p *pulser) under() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dropped
}

func (p *pulser) close() { p.drop() }

// drop makes the next request dial.
func (p *pulser) drop() {
	p.open = false
	p.mu.Lock()
	close(p.dropped)
	p.dropped = make(chan struct{})
	p.mu.Unlock()
	p.client.CloseIdleConnections()
}

// limit bounds a pulse that asks whether the gateway is there.
func (p *pulser) limit() time.Duration {
	if !p.open {
		return probeLimit
	}
	return min(max(askLimit, 3*p.usual()), slowAsk)
}

// usual is a round trip as two pulses took it: one that got lost or met a busy machine says nothing.
func (p *pulser) usual() time.Duration { return min(p.trip, p.before) }

// pace is for repairs: a handshake, a dial and the pulse take three round trips.
func (p *pulser) pace() *pace {
	return &pace{short: min(max(shortTry, 4*p.usual()+150*time.Millisecond), probeLimit), random: mathrand.Float64}
}

// pulse says how this end is and returns what the gateway says. An error that is answered comes from a gateway that
// is there.
func (p *pulser) pulse(ctx context.Context, limit time.Duration) (*beat, error) {
	said, err := json.Marshal(wire.Pulse{
		Backend: p.l.Backend(), MTU: p.l.MTU(), RoundTrip: p.trip, Repairs: p.l.Repairs(), Reason: p.l.reason(p.g),
	})
	if err != nil {
		return nil, err
	}
	kept, began := false, time.Time{}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		kept, began = i.Reused, time.Now()
	}})
	got, err := p.post(ctx, limit, wire.PathPulse, said, maxBeat)
	if err != nil && kept && !silent(err) && !spoke(err) { // closed by the other end, which is there then
		p.drop()
		got, err = p.post(ctx, limit, wire.PathPulse, said, maxBeat)
	}
	if err != nil {
		return nil, err
	}
	p.before, p.trip = p.trip, time.Since(began)
	if p.before == 0 {
		p.before = p.trip
	}
	var b beat
	if err := json.Unmarshal(got, &b.Beat); err != nil {
		return nil, fmt.Errorf("%w: %w", errSpoke, err)
	}
	return &b, nil
}

const probeSize = 8 << 10 // several full-size packets each way

// probe has full-size packets go both ways, on a connection of its own: one that is open may have learned a smaller size.
func (p *pulser) probe(ctx context.Context, limit time.Duration) error {
	p.drop()
	body := make([]byte, probeSize)
	_, _ = rand.Read(body) // never fails; nothing on the way can compress it
	got, err := p.post(ctx, limit, wire.PathProbe, body, probeSize+1)
	if err == nil && !bytes.Equal(got, body) {
		err = fmt.Errorf("%w: the probe came back changed", errSpoke)
	}
	return err
}

func (p *pulser) post(ctx context.Context, limit time.Duration, path string, body []byte, most int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.g.get().Fleet()+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			p.g.heard.Store(int64(p.g.since())) // by its machine; else it would be asked again at once
			err = fmt.Errorf("%w: %w", errSpoke, err)
		}
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: HTTP status %d", errSpoke, resp.StatusCode)
	}
	p.open = true
	return b, nil
}
