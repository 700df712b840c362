package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

const (
	echoSize    = 64
	echoRounds  = 11
	echoInRound = 1000 // of each side, taking turns
	flowRounds  = 7
	flowBytes   = 64 << 20 // a direction and round
)

// end is one way from a host to its gateway: ours, or bare.
type end struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	addr string // of the gateway, without a port
	echo *socket.Conn
	flow net.Conn // of which the other end is sink
	sink net.Conn
}

func (e *end) close() error {
	if e.echo != nil {
		e.echo.Close()
	}
	for _, c := range []net.Conn{e.flow, e.sink} {
		if c != nil {
			_ = c.Close()
		}
	}
	return nil
}

// path measures a websocket's echo and a connection's throughput through Gateway and Link, beside the same over wireguard-go
// and its tun/netstack alone. Sides take turns at every echo and every flow, so that what else the machine does meets both.
func (t *tunnelBench) path(ctx context.Context) (_ []figure, err error) {
	s, err := t.openSite(ctx, siteConfig{Name: "path", Fleet: echoes})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	link, err := s.link(ctx, "host")
	if err != nil {
		return nil, err
	}
	hostEnd, gatewayEnd, err := tunneltest.BarePair(tunnelMTU, nil)
	if err != nil {
		return nil, err
	}
	s.add(func() error { return errors.Join(hostEnd.Close(), gatewayEnd.Close()) })
	bareListener, err := gatewayEnd.Listen(tunnelFleet)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: echoHandler(), ReadHeaderTimeout: 10 * time.Second}
	s.start(func(context.Context) error { _ = server.Serve(bareListener); return nil }) // ends with Close
	s.add(server.Close)

	ours := &end{dial: link.DialContext, addr: s.gateway.Addr().String()}
	bare := &end{dial: hostEnd.DialContext, addr: gatewayEnd.Addr.String()}
	s.add(ours.close)
	s.add(bare.close)
	for e, listen := range map[*end]func() (net.Listener, error){
		ours: func() (net.Listener, error) { return s.gateway.Listen(ctx, tunnelFleet+1) },
		bare: func() (net.Listener, error) { return gatewayEnd.Listen(tunnelFleet + 1) },
	} {
		if err := e.open(ctx, listen); err != nil {
			return nil, err
		}
	}
	echo, err := measureEcho(ctx, ours, bare)
	if err != nil {
		return nil, err
	}
	flow, err := measureFlow(ours, bare)
	return []figure{echo, flow}, err
}

func echoes(*pgstore.Store) http.Handler { return echoHandler() }

func echoHandler() http.Handler {
	endpoint := &socket.Endpoint{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := endpoint.Accept(w, r, socket.Session(1<<20))
		if err != nil {
			return
		}
		defer c.Close()
		for {
			b, err := c.ReadBinary()
			if err != nil {
				return
			}
			if c.WriteBinary(r.Context(), b) != nil {
				return
			}
		}
	})
}

// open dials the end's websocket and its plain connection.
func (e *end) open(ctx context.Context, listen func() (net.Listener, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var err error
	if e.echo, err = e.socket(ctx); err != nil {
		return err
	}
	l, err := listen()
	if err != nil {
		return err
	}
	accepted := make(chan error, 1)
	go func() {
		var err error
		e.sink, err = l.Accept()
		accepted <- err
	}()
	e.flow, err = e.dial(ctx, "tcp", fmt.Sprintf("%s:%d", e.addr, tunnelFleet+1))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return errors.Join(<-accepted, l.Close())
}

func (e *end) socket(ctx context.Context) (*socket.Conn, error) {
	return new(socket.Endpoint).Dial(ctx, e.dial, fmt.Sprintf("ws://%s:%d%s", e.addr, tunnelFleet, echoPath), socket.Session(1<<20))
}

func roundTrip(ctx context.Context, c *socket.Conn, message []byte) (time.Duration, error) {
	begin := time.Now()
	if err := c.WriteBinary(ctx, message); err != nil {
		return 0, err
	}
	b, err := c.ReadBinary()
	if err == nil && len(b) != len(message) {
		err = fmt.Errorf("an echo of %d bytes for %d", len(b), len(message))
	}
	return time.Since(begin), err
}

// measureEcho is the median over the rounds of the ratio of the rounds' medians.
func measureEcho(ctx context.Context, ours, bare *end) (figure, error) {
	message := make([]byte, echoSize)
	var mine, reference, ratios []float64
	for round := range echoRounds + 1 {
		var a, b []time.Duration
		for range echoInRound {
			x, err1 := roundTrip(ctx, ours.echo, message)
			y, err2 := roundTrip(ctx, bare.echo, message)
			if err := errors.Join(err1, err2); err != nil {
				return figure{}, err
			}
			a, b = append(a, x), append(b, y)
		}
		if round == 0 {
			continue // warm up
		}
		x, y := micros(median(a)), micros(median(b))
		mine, reference, ratios = append(mine, x), append(reference, y), append(ratios, x/y)
	}
	return atMost("tunnel/echo-vs-bare", middle(mine), middle(reference), middle(ratios), "ratio", 1.05), nil
}

// measureFlow is the worse of both directions' median ratio.
func measureFlow(ours, bare *end) (figure, error) {
	var worst figure
	for _, up := range []bool{true, false} {
		var mine, reference, ratios []float64
		for round := range flowRounds + 1 {
			x, err1 := ours.carry(up)
			y, err2 := bare.carry(up)
			if err := errors.Join(err1, err2); err != nil {
				return figure{}, err
			}
			if round == 0 {
				continue // warm up: the windows grow
			}
			mine, reference, ratios = append(mine, x), append(reference, y), append(ratios, x/y)
		}
		f := atLeast("tunnel/throughput-vs-bare", middle(mine), middle(reference), middle(ratios), "ratio", 0.95)
		fmt.Printf("tunnel throughput, host to gateway %v: %.0f MB/s, bare %.0f, ratio %.2f\n", up, f.Ours, f.Reference, f.Value)
		if worst.Name == "" || f.Value < worst.Value {
			worst = f
		}
	}
	return worst, nil
}

// carry moves flowBytes and says how many MB a second that was.
func (e *end) carry(up bool) (float64, error) {
	from, to := e.sink, e.flow
	if up {
		from, to = e.flow, e.sink
	}
	sent := make(chan error, 1)
	begin := time.Now()
	go func() {
		b := make([]byte, 64<<10)
		for range flowBytes / len(b) {
			if _, err := from.Write(b); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	b := make([]byte, 64<<10)
	for left := flowBytes; left > 0; {
		n, err := to.Read(b[:min(left, len(b))])
		if err != nil {
			return 0, errors.Join(err, io.ErrUnexpectedEOF)
		}
		left -= n
	}
	took := time.Since(begin)
	return flowBytes / 1e6 / took.Seconds(), <-sent
}
