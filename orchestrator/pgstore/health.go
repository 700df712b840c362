package pgstore

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/tunnel"
)

// live is a condition on a row l of host_links: whoever wrote it is still there to take it back.
const live = `(l.lost_at IS NULL AND l.written_at > now() - interval '30 seconds')`

// connected is a condition on a row d of devices: some orchestrator has a live link to its host.
const connected = `EXISTS (SELECT FROM host_links l WHERE l.host = d.host AND ` + live + `)`

// takes is a condition on a row d of devices: some orchestrator that has a live link to its host may give it a session.
const takes = `EXISTS (SELECT FROM host_links l WHERE l.host = d.host AND ` + live + ` AND coalesce(l.damped_until <= now(), true))`

// notRevoked is a condition on a row d of devices.
const notRevoked = `d.host NOT IN (SELECT name FROM hosts WHERE revoked_at IS NOT NULL)`

// StoreLinks implements orchestrator.HostStore, in one statement for each kind. Rows of links that are lost, or not there, stay so: a
// report that crosses a HostDown must not bring the link back.
func (s *Store) StoreLinks(ctx context.Context, backend string, links []orchestrator.LinkReport) error {
	connected, pulsing := split(links)
	return unavailable(errors.Join(s.storeLinks(ctx, backend, connected), s.storePulses(ctx, pulsing)))
}

func split(links []orchestrator.LinkReport) (connected, pulsing []orchestrator.LinkReport) {
	for _, l := range links {
		if l.Pulses {
			pulsing = append(pulsing, l)
		} else {
			connected = append(connected, l)
		}
	}
	return connected, pulsing
}

// storePulses stores that the tunnels of hosts work, and what these find wrong with them.
func (s *Store) storePulses(ctx context.Context, links []orchestrator.LinkReport) error {
	if len(links) == 0 {
		return nil
	}
	var host, reason []string
	var silent []float64
	for _, l := range links {
		host, reason = append(host, l.Host), append(reason, storable(l.Tunnel.Pulse.Reason))
		silent = append(silent, l.Silent.Seconds())
	}
	_, err := s.pool.Exec(ctx, `
		UPDATE hosts h SET pulsed_at = now() - make_interval(secs => u.silent), pulsed_to = $1, pulse_reason = u.reason
		FROM unnest($2::text[], $3::float8[], $4::text[]) AS u(host, silent, reason)
		WHERE h.name = u.host AND h.public_key IS NOT NULL`, s.name, host, silent, reason)
	return err
}

func (s *Store) storeLinks(ctx context.Context, backend string, links []orchestrator.LinkReport) error {
	if len(links) == 0 {
		return nil
	}
	var c struct {
		host, backend, reason                     []string
		silent                                    []float64
		round, rx, tx                             []int64
		pulsed                                    []bool
		mtu, handshake, socket, resolve, deviceNo []int32
		shaken                                    []*time.Time
		damped                                    []*float64 // seconds from now: the database has a clock of its own
		losses                                    []int32
	}
	for _, l := range links {
		c.host = append(c.host, l.Host)
		c.silent = append(c.silent, l.Silent.Seconds())
		c.round = append(c.round, l.RoundTrip.Microseconds())
		t := l.Tunnel
		c.rx, c.tx = append(c.rx, t.RxBytes), append(c.tx, t.TxBytes)
		var shaken *time.Time
		if !t.Handshake.IsZero() {
			shaken = &t.Handshake
		}
		c.shaken = append(c.shaken, shaken)
		c.pulsed = append(c.pulsed, !t.PulsedAt.IsZero())
		c.backend, c.reason = append(c.backend, storable(t.Pulse.Backend)), append(c.reason, storable(t.Pulse.Reason))
		c.mtu = append(c.mtu, int32(t.Pulse.MTU))
		damped, losses := (*float64)(nil), 0
		if l.Damping != nil {
			left := l.Damping.Left.Seconds()
			damped, losses = &left, l.Damping.Losses
		}
		c.damped, c.losses = append(c.damped, damped), append(c.losses, int32(losses))
		r := t.Pulse.Repairs
		c.handshake, c.socket = append(c.handshake, int32(r.Handshake)), append(c.socket, int32(r.Socket))
		c.resolve, c.deviceNo = append(c.resolve, int32(r.Resolve)), append(c.deviceNo, int32(r.Device))
	}
	// Repairs count from the start of the agent, so that only more of them than at the pulse before are news.
	_, err := s.pool.Exec(ctx, `
		UPDATE host_links l SET written_at = now(), heard_at = now() - make_interval(secs => u.silent), round_trip = u.round, gateway = $2,
		    damped_until = now() + make_interval(secs => u.damped), losses = u.losses, handshake_at = u.shaken, rx_bytes = u.rx, tx_bytes = u.tx,
		    backend = CASE WHEN u.pulsed THEN u.backend ELSE l.backend END,
		    mtu = CASE WHEN u.pulsed THEN u.mtu ELSE l.mtu END,
		    reason = CASE WHEN u.pulsed THEN u.reason ELSE l.reason END,
		    repairs_handshake = CASE WHEN u.pulsed THEN u.handshake ELSE l.repairs_handshake END,
		    repairs_socket = CASE WHEN u.pulsed THEN u.socket ELSE l.repairs_socket END,
		    repairs_resolve = CASE WHEN u.pulsed THEN u.resolve ELSE l.repairs_resolve END,
		    repairs_device = CASE WHEN u.pulsed THEN u.device ELSE l.repairs_device END,
		    repaired_at = CASE WHEN u.pulsed AND l.backend <> '' AND (u.handshake > l.repairs_handshake OR u.socket > l.repairs_socket
		        OR u.resolve > l.repairs_resolve OR u.device > l.repairs_device) THEN now() ELSE l.repaired_at END
		FROM unnest($3::text[], $4::float8[], $5::bigint[], $6::timestamptz[], $7::bigint[], $8::bigint[], $9::boolean[], $10::text[], $11::integer[],
		    $12::text[], $13::integer[], $14::integer[], $15::integer[], $16::integer[], $17::float8[], $18::integer[])
		    AS u(host, silent, round, shaken, rx, tx, pulsed, backend, mtu, reason, handshake, socket, resolve, device, damped, losses)
		WHERE l.host = u.host AND l.orchestrator = $1 AND l.lost_at IS NULL`,
		s.name, backend, c.host, c.silent, c.round, c.shaken, c.rx, c.tx, c.pulsed, c.backend, c.mtu, c.reason, c.handshake, c.socket, c.resolve, c.deviceNo,
		c.damped, c.losses)
	return err
}

// storable is text of a host as the database takes it. One host's must not keep those of all others from being stored.
func storable(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "")
}

// Unwelcome implements orchestrator.HostStore: a host that is connected has joined.
func (s *Store) Unwelcome(ctx context.Context, hosts []string) ([]string, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT u.name FROM unnest($1::text[]) AS u(name) LEFT JOIN hosts h ON h.name = u.name
		WHERE h.public_key IS NULL`, hosts)
	if err != nil {
		return nil, unavailable(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return names, unavailable(err)
}

// Hosts lists every host.
func (s *Store) Hosts(ctx context.Context) ([]api.Host, error) {
	details, err := s.hosts(ctx, "")
	list := make([]api.Host, 0, len(details))
	for _, d := range details {
		list = append(list, d.Host)
	}
	return list, err
}

// Host returns all that is known of a host. ErrNotFound.
func (s *Store) Host(ctx context.Context, name string) (api.HostDetail, error) {
	found, err := s.hosts(ctx, name)
	if err != nil {
		return api.HostDetail{}, err
	}
	if len(found) == 0 {
		return api.HostDetail{}, orchestrator.ErrNotFound
	}
	found[0].DeviceList, err = s.devices(ctx, name)
	return found[0], err
}

// forgotten is how long a link to an orchestrator that is gone is still shown.
const forgotten = 24 * time.Hour

func (s *Store) hosts(ctx context.Context, name string) ([]api.HostDetail, error) {
	list, err := readHosts(ctx, s.pool, name)
	return list, unavailable(err)
}

// batcher is a pool or a transaction.
type batcher interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// readHosts reads one host, or all when name is empty, and judges each.
func readHosts(ctx context.Context, from batcher, name string) ([]api.HostDetail, error) {
	var now time.Time
	var gateways []string
	var facts []hostFacts
	var list []api.HostDetail
	links := map[string][]linkFacts{}
	of := func(column string) narrowed {
		n := narrowed{where: `true`}
		n.by(column+` = $%d`, name, name != "")
		return n
	}
	one, linksOf := of(`name`), of(`host`)
	b := &pgx.Batch{}
	b.Queue(`SELECT now(), coalesce((SELECT array_agg(orchestrator ORDER BY orchestrator) FROM gateways WHERE seen_at > now() - interval '30 seconds'), '{}')`).
		QueryRow(func(row pgx.Row) error { return row.Scan(&now, &gateways) })
	b.Queue(`
		SELECT name, number, public_key IS NOT NULL OR join_public_key IS NULL, coalesce(public_key, ''), rotated_at, coalesce(next_public_key, ''),
		       join_expires_at, revoked_at, pulsed_at, pulsed_to, pulse_reason, seen_at, created_at,
		       cordoned_at, cordoned_by, cordon_reason, drain_until,
		       (SELECT count(*) FROM devices d WHERE d.host = hosts.name), (SELECT count(*) FROM devices d WHERE d.host = hosts.name AND session IS NOT NULL)
		FROM hosts WHERE `+one.where+` ORDER BY name`, one.args...).
		Query(func(rows pgx.Rows) error {
			for rows.Next() {
				var h hostFacts
				var d api.HostDetail
				var number *int
				var c cordoned
				if err := rows.Scan(&h.name, &number, &h.joined, &d.PublicKey, &d.KeySince, &d.NextPublicKey,
					&h.tokenUntil, &h.revokedAt, &h.pulsedAt, &h.pulsedTo, &h.pulseReason, &d.SeenAt, &d.CreatedAt,
					&c.at, &c.by, &c.reason, &c.until, &d.Devices, &d.Sessions); err != nil {
					return err
				}
				d.Cordon = c.shown(d.Sessions)
				d.Name, d.TokenExpiresAt, d.RevokedAt = h.name, h.tokenUntil, h.revokedAt
				d.Address = address(number)
				facts, list = append(facts, h), append(list, d)
			}
			return rows.Err()
		})
	b.Queue(`
		SELECT host, orchestrator, `+live+`, reason, heard_at, written_at, lost_at, goodbye, round_trip, handshake_at, rx_bytes, tx_bytes, mtu,
		       gateway, backend, repairs_handshake, repairs_socket, repairs_resolve, repairs_device, repaired_at,
		       losses, CASE WHEN damped_until > now() THEN damped_until END
		FROM host_links l WHERE `+linksOf.where+` ORDER BY host, orchestrator`, linksOf.args...).
		Query(func(rows pgx.Rows) error {
			for rows.Next() {
				var l linkFacts
				r := &l.Repairs
				if err := rows.Scan(&l.host, &l.Orchestrator, &l.live, &l.Reason, &l.HeardAt, &l.writtenAt, &l.LostAt, &l.goodbye, &l.RoundTripUS,
					&l.HandshakeAt, &l.RxBytes, &l.TxBytes, &l.MTU, &l.GatewayBackend, &l.HostBackend,
					&r.Handshake, &r.Socket, &r.Resolve, &r.Device, &l.RepairedAt, &l.Losses, &l.DampedUntil); err != nil {
					return err
				}
				l.Up, l.ReportedAt = l.live, l.writtenAt
				links[l.host] = append(links[l.host], l)
			}
			return rows.Err()
		})
	if err := from.SendBatch(ctx, b).Close(); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, err
	}
	for i := range list {
		summarize(&list[i], facts[i], links[list[i].Name], gateways, now)
	}
	return list, nil
}

// summarize fills in what follows from the links.
func summarize(d *api.HostDetail, h hostFacts, links []linkFacts, gateways []string, now time.Time) {
	d.State, d.Reason = judge(h, links, gateways, now)
	d.DampedUntil = dampedUntil(links)
	for _, l := range links {
		if sign := l.sign(); d.SeenAt == nil || sign.After(*d.SeenAt) {
			d.SeenAt = &sign
		}
		if l.live {
			d.RoundTripUS = max(d.RoundTripUS, l.RoundTripUS)
		} else if now.Sub(l.writtenAt) > forgotten && len(links) > 1 {
			continue
		}
		d.Links = append(d.Links, l.HostLink)
	}
}

// dampedUntil is when a host takes sessions again whose live links are all damped.
func dampedUntil(links []linkFacts) (until *time.Time) {
	for _, l := range links {
		switch {
		case !l.live:
		case l.DampedUntil == nil:
			return nil
		case until == nil || l.DampedUntil.Before(*until):
			until = l.DampedUntil
		}
	}
	return until
}

func address(number *int) string {
	if number == nil {
		return ""
	}
	addr, err := tunnel.HostAddr(*number)
	if err != nil {
		addr = netip.Addr{} // shown as what it is
	}
	return addr.String()
}

// DeviceFree says whether any device could take a session now.
func (s *Store) DeviceFree(ctx context.Context) (bool, error) {
	var free bool
	err := s.pool.QueryRow(ctx, `
		SELECT (SELECT true FROM devices d WHERE state = 'ready' AND session IS NULL AND `+open+` AND `+takes+` ORDER BY shape, used_at LIMIT 1) IS NOT NULL`).Scan(&free)
	return free, unavailable(err)
}

// Devices lists every device.
func (s *Store) Devices(ctx context.Context) ([]api.Device, error) { return s.devices(ctx, "") }

// devices lists those of one host, or all when host is empty.
func (s *Store) devices(ctx context.Context, host string) ([]api.Device, error) {
	n := narrowed{where: `true`}
	n.by(`host = $%d`, host, host != "")
	rows, err := s.pool.Query(ctx, `
		WITH d AS (SELECT d.*, state <> 'quarantined' AND NOT `+connected+` AS offline FROM devices d WHERE `+n.where+`)
		SELECT host, name, kind, browser, bidi, model, platform_name, platform_version, country, labels,
		       CASE WHEN offline THEN 'offline' WHEN state = 'ready' AND session IS NOT NULL THEN 'busy' ELSE state END,
		       CASE WHEN offline THEN 'its host is not connected' ELSE reason END, coalesce(session, ''),
		       cordoned_at, cordoned_by, cordon_reason, host_cordoned
		FROM d ORDER BY host, name`, n.args...)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d api.Device, err error) {
		var c cordoned
		var byHost bool
		err = row.Scan(&d.Host, &d.Name, &d.Kind, &d.Browser, &d.BiDi, &d.Model, &d.PlatformName, &d.PlatformVersion, &d.Country, &d.Labels,
			&d.State, &d.Reason, &d.Session, &c.at, &c.by, &c.reason, &byHost)
		if d.Cordon = c.shown(0); d.Cordon == nil && byHost {
			d.Cordon = &api.Cordon{State: api.Cordoned, Reason: "its host is cordoned"}
		}
		return d, err
	})
	return list, unavailable(err)
}
