package pgstore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
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
		names, news := make([]string, 0, len(hello.Devices)), make([]deviceNews, 0, len(hello.Devices))
		for i, d := range hello.Devices {
			names, news = append(names, d.Name), append(news, deviceNews{hello.Host, shapes[i], d})
		}
		if err := putDevices(ctx, tx, news); err != nil {
			return err
		}
		// A device that is no longer there is kept until no session holds it, for that alone.
		for _, statement := range []string{
			`UPDATE devices SET shape = NULL, state = 'quarantined', reason = 'its host does not have it any more: it is forgotten when its session ends'
			 WHERE host = $1 AND name <> ALL ($2) AND session IS NOT NULL`,
			`DELETE FROM devices WHERE host = $1 AND name <> ALL ($2) AND session IS NULL`,
		} {
			if _, err := tx.Exec(ctx, statement, hello.Host, names); err != nil {
				return err
			}
		}
		return notify(ctx, tx, chanQueue, "")
	}))
}

// deviceNews is what a host says of a device.
type deviceNews struct {
	host  string
	shape int64
	wire.Device
}

const putDevicesSQL = `
INSERT INTO devices (host, name, kind, model, platform_name, platform_version, labels, state, reason, browser, bidi, country, shape, host_cordoned)
SELECT u.host, u.name, u.kind, u.model, u.platform_name, u.platform_version, u.labels::jsonb, u.state, u.reason, u.browser, u.bidi, u.country, u.shape,
       (SELECT h.cordoned_at IS NOT NULL FROM hosts h WHERE h.name = u.host)
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::boolean[], $12::text[],
            $13::bigint[]) AS u (host, name, kind, model, platform_name, platform_version, labels, state, reason, browser, bidi, country, shape)
ON CONFLICT (host, name) DO UPDATE SET kind = excluded.kind, model = excluded.model, platform_name = excluded.platform_name,
    platform_version = excluded.platform_version, labels = excluded.labels, state = excluded.state, reason = excluded.reason, browser = excluded.browser,
    bidi = excluded.bidi, country = excluded.country, shape = excluded.shape
WHERE (devices.kind, devices.model, devices.platform_name, devices.platform_version, devices.labels, devices.state, devices.reason, devices.browser, devices.bidi, devices.country, devices.shape)
    IS DISTINCT FROM (excluded.kind, excluded.model, excluded.platform_name, excluded.platform_version, excluded.labels, excluded.state, excluded.reason, excluded.browser,
        excluded.bidi, excluded.country, excluded.shape) -- each orchestrator that a host is connected to is told the same`

// putDevices stores what hosts say, in the devices' order, in which everybody locks several. Of one device the last is true.
func putDevices(ctx context.Context, on execer, news []deviceNews) error {
	last := map[[2]string]deviceNews{}
	for _, n := range news {
		last[[2]string{n.host, n.Name}] = n
	}
	sorted := slices.SortedFunc(maps.Values(last), func(a, b deviceNews) int { return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.Name, b.Name)) })
	labels := make([]string, len(sorted))
	for i, n := range sorted {
		b, err := json.Marshal(object(n.Labels))
		if err != nil {
			return err
		}
		labels[i] = string(b)
	}
	text := func(of func(deviceNews) string) []string { return column(sorted, of) }
	_, err := on.Exec(ctx, putDevicesSQL, text(func(n deviceNews) string { return n.host }), text(func(n deviceNews) string { return n.Name }),
		text(func(n deviceNews) string { return n.Kind }), text(func(n deviceNews) string { return n.Model }),
		text(func(n deviceNews) string { return n.PlatformName }), text(func(n deviceNews) string { return n.PlatformVersion }), labels,
		text(func(n deviceNews) string { return string(n.State) }), text(func(n deviceNews) string { return n.Reason }),
		text(func(n deviceNews) string { return cmp.Or(n.Browser, "safari") }), column(sorted, func(n deviceNews) bool { return n.BiDi }),
		text(func(n deviceNews) string { return strings.ToUpper(n.Country) }), column(sorted, func(n deviceNews) int64 { return n.shape }))
	return err
}

// execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func newDeviceNews(pool *pgxpool.Pool) *batch[[]deviceNews, struct{}] {
	return &batch[[]deviceNews, struct{}]{run: func(ctx context.Context, news [][]deviceNews) ([]struct{}, error) {
		return make([]struct{}, len(news)), putDevices(ctx, pool, slices.Concat(news...))
	}}
}

// DevicesChanged implements driverproxy.Directory.
func (s *Store) DevicesChanged(ctx context.Context, host string, devices []wire.Device) error {
	news, ready := make([]deviceNews, len(devices)), false
	for i, d := range devices {
		shape, err := s.shape(ctx, d)
		if err != nil {
			return err
		}
		news[i], ready = deviceNews{host, shape, d}, ready || d.State == wire.DeviceReady
	}
	if _, err := s.batches.devices.do(ctx, news); err != nil {
		return err
	}
	if ready {
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
