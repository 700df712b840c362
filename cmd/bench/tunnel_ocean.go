package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/recorder/capture"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

const (
	oceanSeeds = 5
	oceanBytes = 12 << 20
	oceanDelay = 65 * time.Millisecond // one way
	oceanLoss  = 0.001                 // each way
	oceanLimit = 5 * time.Minute       // for one recording
)

// ocean measures how fast one recording reaches the orchestrator over a line of 130 ms and 0.1 % loss, beside one TCP stream
// of as many bytes through wireguard-go and its tun/netstack alone, over the same line with the same seeds. Ours is the whole way:
// what the recorder wrote, through recorder/capture, the host's sockets, Link, Gateway and driverproxy.Fleet. The clock runs
// from the host's first dial, or the stream's, until the last byte.
func (t *tunnelBench) ocean(ctx context.Context) ([]figure, error) {
	var mine, reference, ratios []float64
	for seed := range uint64(oceanSeeds) {
		x, err1 := t.recorded(ctx, seed+1)
		y, err2 := t.streamed(ctx, seed+1)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		fmt.Printf("tunnel ocean, seed %d: %.2f MB/s, stock netstack %.2f\n", seed+1, x, y)
		mine, reference, ratios = append(mine, x), append(reference, y), append(ratios, x/y)
	}
	return []figure{atLeast("tunnel/ocean-vs-stock-netstack", middle(mine), middle(reference), middle(ratios), "ratio", 2)}, nil
}

func line(target string, seed uint64) (*tunneltest.Relay, error) {
	return tunneltest.OpenRelay(tunneltest.RelayConfig{Target: target, Delay: oceanDelay, Loss: oceanLoss, Seed: seed})
}

func rate(took time.Duration) float64 { return oceanBytes / 1e6 / took.Seconds() }

// zeros is a recorder whose encoder is done at once: what counts is how fast its output travels.
type zeros struct{ *capture.Capture }

func (zeros) Args(host.Display) []string {
	return []string{"head", "-c", fmt.Sprint(oceanBytes), "/dev/zero"}
}

func (z zeros) Pump(ctx context.Context, stdout io.Reader, c host.RecordingConn, _ func() bool) error {
	return z.Capture.Pump(ctx, stdout, c, nil)
}

// recorded is the MB a second of one recording.
func (t *tunnelBench) recorded(ctx context.Context, seed uint64) (_ float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, oceanLimit)
	defer cancel()
	var fleet *driverproxy.Fleet
	var relay *tunneltest.Relay
	s, err := t.openSite(ctx, siteConfig{
		Name: fmt.Sprintf("ocean_%d", seed),
		Fleet: func(store *pgstore.Store) http.Handler {
			fleet = driverproxy.NewFleet(driverproxy.Config{Orchestrator: "bench", Epoch: "1", Directory: store})
			return fleet.Handler()
		},
		Via: func(udp string) (string, error) {
			var err error
			if relay, err = line(udp, seed); err != nil {
				return "", err
			}
			return relay.Addr(), nil
		},
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close(), relay.Close()) }()
	s.add(within(fleet.Close))
	link, err := s.link(ctx, "host")
	if err != nil {
		return 0, err
	}
	s.start(func(ctx context.Context) error {
		return host.Run(ctx, host.Config{
			Name: "host", Agent: "bench", StateDir: filepath.Join(s.dir, "host"), Orchestrators: host.Fixed(s.info.Fleet()), Dial: link.DialContext,
			Devices:  []host.Device{{Name: "d", Kind: host.KindFake, Model: "fake", PlatformName: "none"}},
			Fake:     func(string) *drivertest.Driver { return drivertest.NewQuiet() },
			Recorder: zeros{capture.New(capture.Config{})},
		})
	})
	session, err := assign(ctx, fleet)
	if err != nil {
		return 0, err
	}
	s.add(func() error { return within(session.Release)() })
	c, err := session.Recording(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	for got := int64(0); ; {
		m, err := c.Receive(ctx)
		if err != nil {
			return 0, err
		}
		switch m := m.(type) {
		case *wire.Chunk:
			got = m.Offset + int64(len(m.Data))
			if err := c.Ack(ctx, got); err != nil {
				return 0, err
			}
		case *wire.End:
			if m.Total != oceanBytes || got != oceanBytes || m.Reason != wire.EndStopped {
				return 0, fmt.Errorf("a recording of %d bytes ended at %d of %d with reason %d", oceanBytes, got, m.Total, m.Reason)
			}
			return rate(time.Since(c.Since())), nil
		}
	}
}

// assign starts a recorded session as soon as the host is there.
func assign(ctx context.Context, fleet *driverproxy.Fleet) (*driverproxy.Session, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := fleet.Assign(ctx, driverproxy.Assignment{Host: "host", Device: "d", Session: "bench", Term: 1, Capabilities: []byte(`{}`), Record: true})
		if err == nil || !errors.Is(err, driverproxy.ErrHostLost) {
			return s, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("the host is not there: %w", ctx.Err())
		}
	}
}

// streamed is the MB a second of one TCP stream over wireguard-go and its netstack alone.
func (t *tunnelBench) streamed(ctx context.Context, seed uint64) (_ float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, oceanLimit)
	defer cancel()
	var relay *tunneltest.Relay
	from, to, err := tunneltest.BarePair(tunnelMTU, func(udp netip.AddrPort) (netip.AddrPort, error) {
		var err error
		if relay, err = line(udp.String(), seed); err != nil {
			return netip.AddrPort{}, err
		}
		return netip.ParseAddrPort(relay.Addr())
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, from.Close(), to.Close(), relay.Close()) }()
	l, err := to.Listen(tunnelFleet)
	if err != nil {
		return 0, err
	}
	defer l.Close()
	warm, err := from.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", to.Addr, tunnelFleet)) // the handshake is no part of it
	if err != nil {
		return 0, err
	}
	defer warm.Close()
	if c, err := l.Accept(); err != nil {
		return 0, err
	} else {
		defer c.Close()
	}
	begin := time.Now()
	c, err := from.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", to.Addr, tunnelFleet))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, io.LimitReader(nothing{}, oceanBytes))
		sent <- err
	}()
	in, err := l.Accept()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	if err := in.SetReadDeadline(begin.Add(oceanLimit)); err != nil {
		return 0, err
	}
	if _, err := io.CopyN(io.Discard, in, oceanBytes); err != nil {
		return 0, err
	}
	return rate(time.Since(begin)), <-sent
}

// nothing reads as zeros without end.
type nothing struct{}

func (nothing) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
