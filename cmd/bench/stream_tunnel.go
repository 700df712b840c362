package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/driftstack/fleet/orchestrator/pgstore"
)

const (
	throughRounds  = 9
	throughInRound = 500 // of each of the four, taking turns
)

// benchThroughTunnel measures a command through the netstack tunnel beside a websocket echo through the same one. Of the command is
// taken away what the driver takes when it is called directly, and what the client's own hop takes: a request that the orchestrator
// answers by itself, behind the same authentication.
func benchThroughTunnel(ctx context.Context) (_ []figure, err error) {
	f, s, err := openTunnelled(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	direct, err := f.direct(ctx)
	if err != nil {
		return nil, err
	}
	id, err := f.session(ctx)
	if err != nil {
		return nil, err
	}
	echo := &end{dial: s.dial, addr: s.addr}
	if echo.echo, err = echo.socket(ctx); err != nil {
		return nil, err
	}
	defer echo.echo.Close()
	at := f.url + "/session/" + id
	answered, err1 := openCallers(ctx, &f.undo, http.StatusOK, at+"/title", direct)
	refused, err2 := openCallers(ctx, &f.undo, http.StatusNotFound, at+"/nonsense")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	command, past, hop := answered[0], answered[1], refused[0]
	message := make([]byte, echoSize)
	var mine, bare, ratios []float64
	for round := range throughRounds + 1 {
		var a, b, c, d []time.Duration
		for range throughInRound {
			w, err1 := command.call()
			x, err2 := past.call()
			y, err3 := hop.call()
			z, err4 := roundTrip(ctx, echo.echo, message)
			if err := errors.Join(err1, err2, err3, err4); err != nil {
				return nil, err
			}
			a, b, c, d = append(a, w), append(b, x), append(c, y), append(d, z)
		}
		if round == 0 {
			continue // warm up
		}
		ours, echoed := micros(median(a))-micros(median(b))-micros(median(c)), micros(median(d))
		mine, bare, ratios = append(mine, ours), append(bare, echoed), append(ratios, ours/echoed)
	}
	r, err := throughputOf([]*caller{command})
	if err != nil {
		return nil, err
	}
	fmt.Printf("stream tunnel: %.0f commands/s of one client, %.0f echoes/s\n", r, 1e6/middle(bare))
	return []figure{atMost("stream/tunnel-vs-echo", middle(mine), middle(bare), middle(ratios), "ratio", 1.3)}, nil
}

// tunnelled is the way of a host to the gateway.
type tunnelled struct {
	ground
	addr string // of the gateway, without a port
}

// openTunnelled is openFleet with its host behind a tunnel, whose gateway also echoes.
func openTunnelled(ctx context.Context) (_ *fleet, _ *tunnelled, err error) {
	f := &fleet{http: &http.Client{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	dir, cluster, err := openCluster(ctx, &f.undo)
	if err != nil {
		return nil, nil, err
	}
	var served atomic.Pointer[http.Handler]
	site, err := (&tunnelBench{dir: dir, cluster: cluster}).openSite(ctx, siteConfig{Name: "through", Fleet: func(*pgstore.Store) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, echoPath) {
				echoHandler().ServeHTTP(w, r)
				return
			}
			(*served.Load()).ServeHTTP(w, r)
		})
	}})
	if err != nil {
		return nil, nil, err
	}
	f.add(site.close)
	link, err := site.link(ctx, "bench")
	if err != nil {
		return nil, nil, err
	}
	t := &tunnelled{addr: site.gateway.Addr().String(), ground: ground{name: "bench", cluster: cluster, store: site.store, directory: site.store, dial: link.DialContext, serve: func(h http.Handler) (string, error) {
		served.Store(&h)
		return site.info.Fleet(), nil
	}}}
	return f, t, f.on(ctx, t.ground, dir, fakes(1))
}
