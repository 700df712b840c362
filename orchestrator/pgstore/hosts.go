package pgstore

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/tunnel"
)

var _ driverproxy.Directory = (*Store)(nil)

// HostByAddr implements driverproxy.Directory.
func (s *Store) HostByAddr(ctx context.Context, addr netip.Addr) (string, error) {
	number, ok := tunnel.Number(addr)
	if !ok || !tunnel.IsHost(addr) {
		return "", orchestrator.ErrNotFound
	}
	var name string
	err := s.pool.QueryRow(ctx, `SELECT name FROM hosts WHERE number = $1 AND public_key IS NOT NULL`, number).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", orchestrator.ErrNotFound
	}
	return name, unavailable(err)
}

// HostUp implements driverproxy.Directory. A host that is up needs its token no more; one that was removed is refused.
func (s *Store) HostUp(ctx context.Context, hello wire.Hello) error {
	shapes := make([]int64, len(hello.Devices))
	for i, d := range hello.Devices { // not in the transaction: hosts that come at once have the same ones
		var err error
		if shapes[i], err = s.shape(ctx, d); err != nil {
			return err
		}
	}
	return unavailable(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// One that was removed and invited again while it said hello has not joined, and its new token is not spent.
		var token bool
		err := tx.QueryRow(ctx, `SELECT join_public_key IS NOT NULL FROM hosts WHERE name = $1 AND public_key IS NOT NULL FOR UPDATE`, hello.Host).Scan(&token)
		if errors.Is(err, pgx.ErrNoRows) {
			return orchestrator.ErrRemoved
		}
		if err != nil {
			return err
		}
		var batch pgx.Batch
		batch.Queue(`UPDATE hosts SET seen_at = now(), join_public_key = NULL, join_psk = NULL, join_expires_at = NULL WHERE name = $1`, hello.Host)
		batch.Queue(`
			INSERT INTO host_links (host, orchestrator) VALUES ($1, $2)
			ON CONFLICT (host, orchestrator) DO UPDATE SET heard_at = now(), written_at = now(), round_trip = 0, lost_at = NULL, goodbye = false, reason = ''`,
			hello.Host, s.name)
		if token { // gateways hold a peer for it; ten thousand hosts that come back after a restart are no news to them
			batch.Queue(`SELECT pg_notify($1, $2)`, chanHosts, hello.Host)
		}
		if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
			return err
		}
		names := make([]string, 0, len(hello.Devices))
		for i, d := range hello.Devices {
			names = append(names, d.Name)
			if err := putDevice(ctx, tx, hello.Host, d, shapes[i]); err != nil {
				return err
			}
		}
		// A device that is no longer there stays listed until no session holds it.
		if _, err := tx.Exec(ctx, `DELETE FROM devices WHERE host = $1 AND name <> ALL ($2) AND session IS NULL`, hello.Host, names); err != nil {
			return err
		}
		return notify(ctx, tx, chanQueue, "")
	}))
}

// execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func putDevice(ctx context.Context, on execer, host string, d wire.Device, shape int64) error {
	_, err := on.Exec(ctx, `
		INSERT INTO devices (host, name, kind, model, platform_name, platform_version, labels, state, reason, browser, bidi, country, shape, host_cordoned)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, (SELECT cordoned_at IS NOT NULL FROM hosts WHERE name = $1))
		ON CONFLICT (host, name) DO UPDATE SET kind = $3, model = $4, platform_name = $5, platform_version = $6, labels = $7,
		    state = $8, reason = $9, browser = $10, bidi = $11, country = $12, shape = $13`,
		host, d.Name, d.Kind, d.Model, d.PlatformName, d.PlatformVersion, object(d.Labels), string(d.State), d.Reason,
		cmp.Or(d.Browser, "safari"), d.BiDi, strings.ToUpper(d.Country), shape)
	return err
}

// DeviceChanged implements driverproxy.Directory.
func (s *Store) DeviceChanged(ctx context.Context, host string, d wire.Device) error {
	shape, err := s.shape(ctx, d)
	if err != nil {
		return err
	}
	if err := putDevice(ctx, s.pool, host, d, shape); err != nil {
		return unavailable(err)
	}
	if d.State == wire.DeviceReady {
		s.news.tell(chanQueue, "")
	}
	return nil
}

// HostDown implements driverproxy.Directory. Nothing is claimed on a host that is not connected, so that what cannot be
// stored now only shows, until the link has not been refreshed for long enough.
func (s *Store) HostDown(ctx context.Context, host string, cause error) {
	goodbye := errors.Is(cause, driverproxy.ErrGoodbye)
	_, err := s.pool.Exec(ctx, `
		UPDATE host_links SET lost_at = now(), written_at = now(), heard_at = CASE WHEN $3 THEN now() ELSE heard_at END, goodbye = $3, reason = $4
		WHERE host = $1 AND orchestrator = $2`, host, s.name, goodbye, storable(cause.Error()))
	if err != nil {
		s.log.Warn("a host that went down is not stored as such", zap.String("host", host), zap.Error(unavailable(err)))
	}
}

// AllHostsDown says that no host is connected to this orchestrator: what it knows at its start.
func (s *Store) AllHostsDown(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE host_links SET lost_at = now(), goodbye = false, reason = 'the orchestrator was started anew'
		WHERE orchestrator = $1 AND lost_at IS NULL`, s.name)
	return unavailable(err)
}
