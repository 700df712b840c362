package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/tunnel"
)

const (
	// gatewayLive is for how long a gateway counts as running after it was heard of; each says so every 10 s.
	gatewayLive = 60 * time.Second
	// gatewayKept is for how long hosts keep a tunnel to a gateway that is away: it may be updated, or moved.
	// A host that forgot it, and then loses the others for good, could not come back without a new token.
	gatewayKept = 7 * 24 * time.Hour
	// beatAge is how old the answer to a pulse may be.
	beatAge = time.Second
)

// Announce implements tunnel.Announcer: it keeps the row of this orchestrator's gateway. Only a gateway that is not heard
// of any more gives its name, its number or its key away. *ConflictError.
func (s *Store) Announce(ctx context.Context, a tunnel.Announcement) (orders tunnel.Orders, err error) {
	number, next := int(a.Gateway.Addr.As4()[3]), any(nil)
	if a.Gateway.NextPublicKey != (tunnel.Key{}) {
		next = a.Gateway.NextPublicKey.String()
	}
	key := a.Gateway.PublicKey.String()
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := s.displace(ctx, tx, number, key); err != nil {
			return err
		}
		var due, published bool
		var in *time.Duration
		err := tx.QueryRow(ctx, `
			INSERT INTO gateways AS g (orchestrator, number, endpoint, fleet_port, public_key) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (orchestrator) DO UPDATE SET number = $2, endpoint = $3, fleet_port = $4, public_key = $5, seen_at = now(),
			    rotated_at = CASE WHEN g.public_key = $5 THEN g.rotated_at ELSE now() END,
			    rotate = g.rotate AND g.public_key = $5 AND $6::text IS NULL,
			    next_public_key = $6,
			    next_at = CASE WHEN $6::text IS NULL THEN NULL WHEN g.next_public_key = $6 THEN coalesce(g.next_at, now() + g.rotate_in)
			              ELSE now() + g.rotate_in END
			RETURNING rotate OR rotated_at < now() - $7::interval, next_public_key IS NOT NULL, greatest(next_at - now(), '0')`,
			s.name, number, a.Gateway.Endpoint, int(a.Gateway.FleetPort), key, next, a.Every).Scan(&due, &published, &in)
		if err != nil {
			return err
		}
		orders = tunnel.Orders{Rotate: due && !published}
		if in != nil {
			orders.NextIn = *in
		}
		return nil
	})
	return orders, unavailable(err)
}

// displace makes room for this gateway, if who had its name, number or key is gone.
func (s *Store) displace(ctx context.Context, tx pgx.Tx, number int, key string) error {
	rows, err := tx.Query(ctx, `
		SELECT orchestrator, number, public_key, extract(epoch FROM now() - seen_at)::int, seen_at > now() - $4::interval
		FROM gateways WHERE orchestrator = $1 AND $3 NOT IN (public_key, coalesce(next_public_key, '')) OR orchestrator <> $1 AND (number = $2 OR public_key = $3)
		FOR UPDATE`, s.name, number, key, gatewayLive)
	if err != nil {
		return err
	}
	type other struct {
		Name    string
		Number  int
		Key     string
		Seconds int
		Live    bool
	}
	others, err := pgx.CollectRows(rows, pgx.RowToStructByPos[other])
	if err != nil {
		return err
	}
	for _, o := range others {
		switch {
		case !o.Live:
			s.log.Warn("a gateway that is gone is replaced", zap.String("orchestrator", o.Name), zap.Int("number", o.Number), zap.Int("seen_seconds_ago", o.Seconds))
		case o.Name == s.name:
			return &orchestrator.ConflictError{Problem: fmt.Sprintf("an orchestrator with the name %q and another tunnel key ran %d s ago: give each orchestrator its own --name; "+
				"if it is this one with another --state-dir, wait a minute after the other has stopped", o.Name, o.Seconds)}
		case o.Number == number:
			return &orchestrator.ConflictError{Problem: fmt.Sprintf("orchestrator %q with --tunnel-number %d ran %d s ago: give each orchestrator its own number; "+
				"if it is this one under another name, wait a minute after the other has stopped", o.Name, number, o.Seconds)}
		default:
			return &orchestrator.ConflictError{Problem: fmt.Sprintf("orchestrator %q with the same tunnel key ran %d s ago: do not share a --state-dir, nor copy its gateway.key", o.Name, o.Seconds)}
		}
		if o.Name != s.name {
			if _, err := tx.Exec(ctx, `DELETE FROM gateways WHERE orchestrator = $1`, o.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// RotateGateway asks a gateway for a new key, which takes over in within. ErrNotFound.
func (s *Store) RotateGateway(ctx context.Context, name string, within time.Duration) error {
	tag, err := s.pool.Exec(ctx, `
		WITH g AS (UPDATE gateways SET rotate = true, rotate_in = $2,
		           next_at = CASE WHEN next_public_key IS NULL THEN NULL ELSE least(next_at, now() + $2) END
		           WHERE orchestrator = $1 RETURNING orchestrator)
		SELECT pg_notify('`+chanGateway+`', orchestrator) FROM g`, name, within)
	if err == nil && tag.RowsAffected() == 0 {
		return orchestrator.ErrNotFound
	}
	return unavailable(err)
}

// gatewayRow is a gateway with what is scheduled for it.
type gatewayRow struct {
	Name     string
	Number   int
	Endpoint string
	Port     int
	Key      string
	NextKey  string
	NextIn   *time.Duration
	Rotated  time.Time
	Seen     time.Time
	Live     bool
}

func (s *Store) gatewayRows(ctx context.Context, seenWithin time.Duration) ([]gatewayRow, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT orchestrator, number, endpoint, fleet_port, public_key, coalesce(next_public_key, ''), greatest(next_at - now(), '0'), rotated_at, seen_at,
		       seen_at > now() - $2::interval
		FROM gateways WHERE orchestrator = $1 OR seen_at > now() - $3::interval ORDER BY number`, s.name, gatewayLive, seenWithin)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[gatewayRow])
	return list, unavailable(err)
}

// GatewayList lists every gateway that was heard of within a month.
func (s *Store) GatewayList(ctx context.Context) ([]api.Gateway, error) {
	rows, err := s.gatewayRows(ctx, 30*24*time.Hour)
	if err != nil {
		return nil, err
	}
	out := make([]api.Gateway, 0, len(rows))
	for _, r := range rows {
		addr, err := tunnel.GatewayAddr(r.Number)
		if err != nil {
			return nil, err
		}
		g := api.Gateway{Name: r.Name, Address: addr.String(), Endpoint: r.Endpoint, PublicKey: r.Key, NextPublicKey: r.NextKey,
			Live: r.Live, RotatedAt: r.Rotated, SeenAt: r.Seen}
		if r.NextIn != nil {
			g.NextInSeconds = int64(r.NextIn.Seconds())
		}
		out = append(out, g)
	}
	return out, nil
}

// Gateways are those that run, for a join token.
func (s *Store) Gateways(ctx context.Context) ([]tunnel.GatewayInfo, error) {
	rows, err := s.gatewayRows(ctx, gatewayLive)
	if err != nil {
		return nil, err
	}
	var out []tunnel.GatewayInfo
	for _, r := range rows {
		key, err := tunnel.ParseKey(r.Key)
		if err != nil {
			return nil, fmt.Errorf("gateway %s: %w", r.Name, err)
		}
		addr, err := tunnel.GatewayAddr(r.Number)
		if err != nil {
			return nil, fmt.Errorf("gateway %s: %w", r.Name, err)
		}
		out = append(out, tunnel.GatewayInfo{Endpoint: r.Endpoint, PublicKey: key, Addr: addr, FleetPort: uint16(r.Port)})
	}
	return out, nil
}

// beats is what pulses are answered with: with thousands of hosts one look a second serves them all. A host takes a pulse
// without an answer for a broken tunnel, so that nobody waits for a database that hangs once there is an answer to give.
type beats struct {
	looks sync.WaitGroup // waited for by Close

	mu      sync.Mutex // guards what follows
	closed  bool
	looking chan struct{} // closed when the look under way is over; nil: none is
	last    *beat         // nil: none was ever found
	err     error         // of the last look
}

// beat is never changed.
type beat struct {
	at       time.Time
	gateways []gatewayRow
	rotate   map[int]bool // numbers of the hosts that are to rotate
}

const (
	beatLimit = 5 * time.Second        // of a look
	beatWait  = 200 * time.Millisecond // for a look, when there is an older answer; a host waits for half a second
)

var _ tunnel.Announcer = (*Store)(nil)

var _ tunnel.Beats = (*Store)(nil)

// Beat implements tunnel.Beats. While the database is away hosts are told what was so last.
func (s *Store) Beat(ctx context.Context, hostAddr netip.Addr) (wire.Beat, error) {
	number, ok := tunnel.Number(hostAddr)
	if !ok || !tunnel.IsHost(hostAddr) {
		return wire.Beat{}, orchestrator.ErrNotFound
	}
	var err error
	last, over, mine := s.lookForBeats()
	if over != nil && (mine || last == nil) {
		wait := beatLimit
		if last != nil {
			wait = beatWait
		}
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-over:
		case <-t.C:
		case <-ctx.Done():
		}
		s.beats.mu.Lock()
		last, err = s.beats.last, s.beats.err
		s.beats.mu.Unlock()
	}
	if last == nil {
		return wire.Beat{}, errors.Join(fmt.Errorf("%w: which gateways there are is not known", orchestrator.ErrUnavailable), err)
	}
	return last.of(s.name, number), nil
}

// lookForBeats is what was found last, and the look that is under way, if what was found is not fresh; mine says that it
// was begun for this caller.
func (s *Store) lookForBeats() (last *beat, over <-chan struct{}, mine bool) {
	b := &s.beats
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last != nil && time.Since(b.last.at) < beatAge || b.closed {
		return b.last, nil, false
	}
	if b.looking == nil {
		mine = true
		done := make(chan struct{})
		b.looking = done
		b.looks.Go(func() {
			found, err := s.findBeats()
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.looking, b.err = nil, err; err == nil {
				b.last = found
			}
			close(done)
		})
	}
	return b.last, b.looking, mine
}

func (s *Store) findBeats() (*beat, error) {
	ctx, cancel := context.WithTimeout(context.Background(), beatLimit)
	defer cancel()
	at := time.Now()
	gateways, err := s.gatewayRows(ctx, gatewayKept)
	if err != nil {
		return nil, err
	}
	rows, err := s.pool.Query(ctx, `SELECT number FROM hosts WHERE rotate AND public_key IS NOT NULL`)
	if err != nil {
		return nil, unavailable(err)
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return nil, unavailable(err)
	}
	rotate := make(map[int]bool, len(numbers))
	for _, n := range numbers {
		rotate[n] = true
	}
	return &beat{at, gateways, rotate}, nil
}

// close waits for the look under way, which is bounded; none begins any more.
func (b *beats) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.looks.Wait()
}

func (b *beat) of(name string, number int) wire.Beat {
	out := wire.Beat{Orchestrator: name, Rotate: b.rotate[number]}
	for _, r := range b.gateways {
		addr, err := tunnel.GatewayAddr(r.Number)
		if err != nil {
			continue // the table checks its numbers
		}
		g := wire.Gateway{Endpoint: r.Endpoint, PublicKey: r.Key, Address: addr.String(), FleetPort: uint16(r.Port), NextPublicKey: r.NextKey}
		if r.NextIn != nil && r.NextKey != "" { // 0 would be "not yet known"
			g.NextIn = max(*r.NextIn-time.Since(b.at), 1)
		}
		out.Gateways = append(out.Gateways, g)
	}
	return out
}
