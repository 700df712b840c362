package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/tunnel"
)

// NextHostNumber implements orchestrator.HostStore. Numbers are not used twice, even when the invitation fails.
func (s *Store) NextHostNumber(ctx context.Context) (int, error) {
	var n int
	err := s.pool.QueryRow(ctx, `SELECT nextval('host_numbers')`).Scan(&n)
	return n, unavailable(err)
}

// Invite implements orchestrator.HostStore.
func (s *Store) Invite(ctx context.Context, h orchestrator.Invitation) error {
	tag, err := s.pool.Exec(ctx, `
		WITH h AS (
		    INSERT INTO hosts AS h (name, number, join_public_key, join_psk, psk, join_expires_at) VALUES ($1, $2, $3, $4, $4, $5)
		    ON CONFLICT (name) DO UPDATE SET number = $2, join_public_key = $3, join_psk = $4, psk = $4, join_expires_at = $5
		    WHERE h.public_key IS NULL RETURNING name)
		SELECT pg_notify('`+chanHosts+`', name) FROM h`, h.Name, h.Number, h.JoinPublicKey.String(), h.PresharedKey[:], h.ExpiresAt)
	if err == nil && tag.RowsAffected() == 0 {
		return &orchestrator.ConflictError{Problem: fmt.Sprintf("host %q has joined already; remove it first to invite it anew", h.Name)}
	}
	return unavailable(err)
}

// RemoveHost forgets a host, its keys and its devices. ErrNotFound; *ConflictError while a session runs on it.
func (s *Store) RemoveHost(ctx context.Context, name string) error {
	var exists, removed bool
	err := s.pool.QueryRow(ctx, `
		WITH h AS (DELETE FROM hosts WHERE name = $1
		           AND NOT EXISTS (SELECT FROM devices WHERE host = $1 AND session IS NOT NULL) RETURNING name),
		     n AS (SELECT pg_notify('`+chanHosts+`', name) FROM h)
		SELECT EXISTS (SELECT FROM hosts WHERE name = $1), EXISTS (SELECT FROM n)`, name).Scan(&exists, &removed)
	switch {
	case err != nil:
		return unavailable(err)
	case !exists:
		return orchestrator.ErrNotFound
	case !removed:
		return &orchestrator.ConflictError{Problem: fmt.Sprintf("a session runs on host %q; end it first", name)}
	}
	return nil
}

var _ tunnel.PeerSource = (*Store)(nil)

// Peers implements tunnel.PeerSource: the key of every joined host, and of every token that can still be redeemed.
func (s *Store) Peers(ctx context.Context) ([]tunnel.Peer, error) { return s.peers(ctx, "") }

// PeersOf implements tunnel.PeerSource.
func (s *Store) PeersOf(ctx context.Context, host string) ([]tunnel.Peer, error) {
	return s.peers(ctx, host)
}

// Promote implements tunnel.PeerSource.
func (s *Store) Promote(context.Context, tunnel.Key) error { return nil }

// Rekey implements tunnel.Enroller.
func (s *Store) Rekey(context.Context, netip.Addr, tunnel.Offer) (wire.Rekeyed, error) {
	return wire.Rekeyed{}, errors.New("pgstore: keys are not rotated yet")
}

// peers are those of one host, or of all when of is empty.
func (s *Store) peers(ctx context.Context, of string) ([]tunnel.Peer, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT name, number, public_key, psk, false FROM hosts WHERE public_key IS NOT NULL AND ($1 = '' OR name = $1)
		UNION ALL
		SELECT name, number, join_public_key, join_psk, true FROM hosts
		WHERE join_public_key IS NOT NULL AND join_expires_at > now() AND ($1 = '' OR name = $1)`, of)
	if err != nil {
		return nil, unavailable(err)
	}
	type host struct {
		name   string
		number int
		key    string
		psk    []byte
		join   bool
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (h host, err error) {
		return h, row.Scan(&h.name, &h.number, &h.key, &h.psk, &h.join)
	})
	if err != nil {
		return nil, unavailable(err)
	}
	peers := make([]tunnel.Peer, 0, len(list))
	for _, h := range list {
		p, err := peer(h.name, h.number, h.key, h.psk, h.join)
		if err != nil { // one damaged row must not cut off every other host
			s.log.Error("a host is left out of the tunnel", zap.String("host", h.name), zap.Error(err))
			continue
		}
		peers = append(peers, p)
	}
	return peers, nil
}

func peer(name string, number int, key string, psk []byte, join bool) (p tunnel.Peer, err error) {
	p.Host, p.Name = name, name
	if p.PublicKey, err = tunnel.ParseKey(key); err != nil {
		return p, fmt.Errorf("public key: %w", err)
	}
	if len(psk) != len(p.PresharedKey) {
		return p, fmt.Errorf("preshared key of %d bytes", len(psk))
	}
	copy(p.PresharedKey[:], psk)
	if join {
		p.Name += " (join)"
		p.Addr, err = tunnel.JoinAddr(number)
		return p, err
	}
	p.Addr, err = tunnel.HostAddr(number)
	return p, err
}

var _ tunnel.Enroller = (*Store)(nil)

// Redeem implements tunnel.Enroller: the first key is the host's, the same key again gets the same answer.
func (s *Store) Redeem(ctx context.Context, joinAddr netip.Addr, o tunnel.Offer) (wire.Joined, error) {
	hostKey := o.PublicKey
	number, ok := tunnel.Number(joinAddr)
	if !ok || !tunnel.IsJoin(joinAddr) {
		return wire.Joined{}, tunnel.ErrTokenUnknown
	}
	var name, key string
	var expired bool
	err := s.pool.QueryRow(ctx, `
		WITH h AS (
		    UPDATE hosts SET public_key = $2 WHERE number = $1 AND public_key IS NULL AND join_expires_at > now()
		      AND NOT EXISTS (SELECT FROM hosts WHERE join_public_key = $2) RETURNING name),
		n AS (SELECT pg_notify('`+chanHosts+`', name) FROM h)
		SELECT name, CASE WHEN EXISTS (SELECT FROM n) THEN $2 ELSE coalesce(public_key, '') END, coalesce(join_expires_at <= now(), true)
		FROM hosts WHERE number = $1`, number, hostKey.String()).Scan(&name, &key, &expired)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return wire.Joined{}, tunnel.ErrTokenUnknown
	case violates(err, "hosts_public_key_key"):
		return wire.Joined{}, tunnel.ErrKeyTaken
	case err != nil:
		return wire.Joined{}, unavailable(err)
	case key == "" && expired:
		return wire.Joined{}, tunnel.ErrTokenExpired
	case key == "": // it may be redeemed, but not with this key: it is somebody's join key
		return wire.Joined{}, tunnel.ErrKeyTaken
	case key != hostKey.String():
		return wire.Joined{}, tunnel.ErrTokenUsed
	}
	addr, err := tunnel.HostAddr(number)
	return wire.Joined{Host: name, Address: addr.String()}, err
}

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
	return unavailable(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			WITH h AS (UPDATE hosts SET seen_at = now(), join_public_key = NULL, join_psk = NULL, join_expires_at = NULL
			           WHERE name = $1 AND revoked_at IS NULL RETURNING name)
			INSERT INTO host_links (host, orchestrator) SELECT name, $2 FROM h
			ON CONFLICT (host, orchestrator) DO UPDATE SET heard_at = now(), written_at = now(), round_trip = 0, lost_at = NULL, goodbye = false, reason = ''`,
			hello.Host, s.name)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return orchestrator.ErrRemoved
		}
		names := make([]string, 0, len(hello.Devices))
		for _, d := range hello.Devices {
			names = append(names, d.Name)
			if err := putDevice(ctx, tx, hello.Host, d); err != nil {
				return err
			}
		}
		// A device that is no longer there stays listed until no session holds it.
		if _, err := tx.Exec(ctx, `DELETE FROM devices WHERE host = $1 AND name <> ALL ($2) AND session IS NULL`, hello.Host, names); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `SELECT pg_notify('`+chanQueue+`', ''), pg_notify('`+chanHosts+`', $1)`, hello.Host)
		return err
	}))
}

func putDevice(ctx context.Context, tx pgx.Tx, host string, d wire.Device) error {
	labels := d.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO devices (host, name, kind, model, platform_name, platform_version, labels, state, reason)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		ON CONFLICT (host, name) DO UPDATE SET kind = $3, model = $4, platform_name = $5, platform_version = $6, labels = $7,
		    state = $8, reason = $9`,
		host, d.Name, d.Kind, d.Model, d.PlatformName, d.PlatformVersion, labels, string(d.State), d.Reason)
	return err
}

// DeviceChanged implements driverproxy.Directory.
func (s *Store) DeviceChanged(ctx context.Context, host string, d wire.Device) error {
	return unavailable(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := putDevice(ctx, tx, host, d); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `SELECT pg_notify('`+chanQueue+`', '')`)
		return err
	}))
}

// HostDown implements driverproxy.Directory. Nothing is claimed on a host that is not connected, so that what cannot be
// stored now only shows, until the link has not been refreshed for long enough.
func (s *Store) HostDown(ctx context.Context, host string, cause error) {
	goodbye := errors.Is(cause, driverproxy.ErrGoodbye)
	_, err := s.pool.Exec(ctx, `
		UPDATE host_links SET lost_at = now(), written_at = now(), heard_at = CASE WHEN $3 THEN now() ELSE heard_at END, goodbye = $3, reason = $4
		WHERE host = $1 AND orchestrator = $2`, host, s.name, goodbye, cause.Error())
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
