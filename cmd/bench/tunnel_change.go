package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/tunnel"
)

const (
	changeRounds  = 40
	changeEvery   = 300 * time.Millisecond // so that one change is over before the next
	changeLimit   = 10 * time.Second
	changeRest    = time.Hour
	changeBar     = 5   // ms
	verifiedBar   = 200 // ms
	pingGapBar    = 100 // ms
	pingEvery     = 2 * time.Millisecond
	changeSettled = 2 * time.Second
)

// change measures how soon a gateway with tunnelPeers hosts does as the database says: hosts are removed and invited through
// pgstore.Store, and the gateway hears of it through LISTEN and NOTIFY. The clock runs from the commit, by Postgres's own account
// and before its WAL is on disk, until the device has accepted. One more host keeps an echo going all the while.
func (t *tunnelBench) change(ctx context.Context) (_ []figure, err error) {
	heard := &ear{wake: make(chan struct{}, 1)}
	s, err := t.openSite(ctx, siteConfig{Name: "change", Fleet: echoes, Log: zap.New(heard)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	members, err := enrol(ctx, t, "change", tunnelPeers)
	if err != nil {
		return nil, err
	}
	link, err := s.link(ctx, "pinger")
	if err != nil {
		return nil, err
	}
	if err := s.gateway.Reconcile(ctx); err != nil {
		return nil, err
	}
	e := &end{dial: link.DialContext, addr: s.gateway.Addr().String()}
	if e.echo, err = e.socket(ctx); err != nil {
		return nil, err
	}
	s.add(e.close)
	pings := &pinger{}
	s.start(func(ctx context.Context) error { return pings.run(ctx, e.echo) })

	var changes []changed
	pause(ctx, changeSettled)
	pings.reset()
	for round := range changeRounds {
		pause(ctx, changeEvery)
		heard.forget()
		name := fmt.Sprintf("new-%d", round)
		if round%2 == 0 {
			name = members[round].name
			err = s.store.Revoke(ctx, name, changeRest, orchestrator.Act{By: "bench"})
		} else {
			_, err = s.hosts.Invite(ctx, name, []tunnel.GatewayInfo{s.info})
		}
		if err != nil {
			return nil, err
		}
		took, err := heard.wait(ctx, "tunnel peers changed", name)
		if err != nil {
			return nil, err
		}
		read := took
		if took.host != "" { // otherwise the tick's look at everything came first, which logs once it has read back
			if read, err = heard.wait(ctx, "tunnel peers verified", ""); err != nil {
				return nil, err
			}
		}
		changes = append(changes, changed{name, took.at, read.at})
	}
	gap, err := pings.worst()
	if err != nil {
		return nil, err
	}
	var accepted, verified []float64
	for _, c := range changes {
		at, err := t.committed(ctx, "change", c.host)
		if err != nil {
			return nil, err
		}
		accepted, verified = append(accepted, millis(c.accepted.Sub(at))), append(verified, millis(c.verified.Sub(at)))
	}
	mine, worst, read := middle(accepted), slices.Max(accepted), slices.Max(verified)
	fmt.Printf("tunnel change: accepted after %.2f ms (median; worst %.2f), verified after %.0f ms (median; worst %.0f), worst gap between echoes meanwhile %.0f ms\n",
		mine, worst, middle(verified), read, millis(gap))
	f := atMost("tunnel/one-change-in-10k", mine, 0, mine, "ms", changeBar)
	f.OK = f.OK && read <= verifiedBar && millis(gap) <= pingGapBar
	return []figure{f}, nil
}

// changed is what became of one change.
type changed struct {
	host               string
	accepted, verified time.Time
}

// committed is when the newest version of a host's row was committed.
func (t *tunnelBench) committed(ctx context.Context, database, host string) (time.Time, error) {
	out, err := t.cluster.Run(ctx, database, "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM hosts WHERE name = '"+host+"';")
	if err != nil {
		return time.Time{}, err
	}
	n, err := strconv.ParseInt(out, 10, 64)
	return time.UnixMicro(n), err
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// event is a line of a gateway's log, and when it was written; host is "" where it names none.
type event struct {
	what, host string
	at         time.Time
}

// ear is a log that is listened to: a gateway says there when its device has accepted a change, and when it was read back.
type ear struct {
	mu   sync.Mutex
	list []event
	wake chan struct{} // holds one token
}

var _ zapcore.Core = (*ear)(nil)

func (e *ear) Enabled(zapcore.Level) bool        { return true }
func (e *ear) With([]zapcore.Field) zapcore.Core { return e }
func (e *ear) Sync() error                       { return nil }

func (e *ear) Check(entry zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return c.AddCore(entry, e)
}

func (e *ear) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	h := event{what: entry.Message, at: entry.Time}
	for _, f := range fields {
		if f.Key == "host" {
			h.host = f.String
		}
	}
	e.mu.Lock()
	e.list = append(e.list, h)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default: // wait looks at everything there is
	}
	return nil
}

func (e *ear) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = nil
}

// wait returns an event of the host, or of none, and forgets it and what was before.
func (e *ear) wait(ctx context.Context, what, host string) (event, error) {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	for {
		e.mu.Lock()
		i := slices.IndexFunc(e.list, func(h event) bool { return h.what == what && (h.host == host || h.host == "") })
		if i >= 0 {
			h := e.list[i]
			e.list = slices.Delete(e.list, 0, i+1)
			e.mu.Unlock()
			return h, nil
		}
		e.mu.Unlock()
		select {
		case <-e.wake:
		case <-ctx.Done():
			return event{}, fmt.Errorf("the gateway did not say %q of %q: %w", what, host, ctx.Err())
		}
	}
}

// pinger keeps an echo going and remembers the longest time without an answer.
type pinger struct {
	mu   sync.Mutex
	last time.Time
	gap  time.Duration
	n    int
}

func (p *pinger) run(ctx context.Context, c *socket.Conn) error {
	message := make([]byte, echoSize)
	t := time.NewTicker(pingEvery)
	defer t.Stop()
	for {
		if _, err := roundTrip(ctx, c, message); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		p.mu.Lock()
		now := time.Now()
		if !p.last.IsZero() {
			p.gap = max(p.gap, now.Sub(p.last))
		}
		p.last = now
		p.n++
		p.mu.Unlock()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *pinger) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gap, p.n = 0, 0
}

func (p *pinger) worst() (time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n < 100 {
		return 0, fmt.Errorf("only %d echoes came back", p.n)
	}
	return max(p.gap, time.Since(p.last)), nil
}
