package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/tunnel"
)

// numbersLock makes Invite give numbers one after the other.
const numbersLock = 0x6e756d62 // "numb"

// Invite implements orchestrator.HostStore. A number that has rested is given first, then the next that never was. A host
// that has not joined keeps its number. Nothing of an invitation that fails remains.
func (s *Store) Invite(ctx context.Context, name string, ttl time.Duration, mint func(number int) (orchestrator.Invitation, error)) (expires time.Time, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, numbersLock); err != nil {
			return err
		}
		number, err := numberFor(ctx, tx, name)
		if err != nil {
			return err
		}
		h, err := mint(number)
		if err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `
			INSERT INTO hosts (name, number, join_public_key, join_psk, join_expires_at) VALUES ($1, $2, $3, $4, now() + $5)
			ON CONFLICT (name) DO UPDATE SET number = $2, join_public_key = $3, join_psk = $4, join_expires_at = now() + $5,
			    revoked_at = NULL, seen_at = NULL, created_at = now()
			RETURNING join_expires_at`, name, number, h.JoinPublicKey.String(), h.PresharedKey[:], ttl).Scan(&expires)
		if err != nil {
			return err
		}
		return notify(ctx, tx, chanHosts, name)
	})
	return expires, unavailable(err)
}

// numberFor is the number of a host that may be invited. *ConflictError.
func numberFor(ctx context.Context, tx pgx.Tx, name string) (int, error) {
	var number *int
	var joined bool
	err := tx.QueryRow(ctx, `SELECT number, public_key IS NOT NULL FROM hosts WHERE name = $1 FOR UPDATE`, name).Scan(&number, &joined)
	switch {
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		return 0, err
	case joined:
		return 0, &orchestrator.ConflictError{Problem: fmt.Sprintf("host %q has joined already; remove it first to invite it anew", name)}
	case number != nil:
		return *number, nil
	}
	var n int
	err = tx.QueryRow(ctx, `
		WITH rested AS (
		    DELETE FROM resting_numbers WHERE number = (SELECT number FROM resting_numbers WHERE until <= now() ORDER BY until, number LIMIT 1)
		    RETURNING number)
		SELECT coalesce((SELECT number FROM rested),
		    greatest($1 - 1, (SELECT max(number) FROM hosts), (SELECT max(number) FROM resting_numbers)) + 1)`, tunnel.FirstHost).Scan(&n)
	if err == nil && n > tunnel.LastHost {
		return 0, &orchestrator.ConflictError{Problem: "every address of the tunnel is given or rests; remove hosts that are not needed and wait until theirs have rested"}
	}
	return n, err
}

func notify(ctx context.Context, tx pgx.Tx, channel, payload string) error {
	_, err := tx.Exec(ctx, `SELECT pg_notify($1, $2)`, channel, payload)
	return err
}

// Revoke takes a host's keys, so that every gateway cuts it off, and lets its number rest. Its name may be invited
// again. ErrNotFound.
func (s *Store) Revoke(ctx context.Context, name string, rest time.Duration, by orchestrator.Act) error {
	return unavailable(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var number *int
		var on int
		err := tx.QueryRow(ctx, `SELECT number, (SELECT count(*) FROM devices WHERE host = $1 AND session IS NOT NULL) FROM hosts WHERE name = $1 FOR UPDATE`,
			name).Scan(&number, &on)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return noHost(name)
		case err != nil:
			return err
		case number == nil:
			return &orchestrator.MissingError{What: fmt.Sprintf("host %q was removed already; `driftctl hosts add %s` lets it join anew", name, name)}
		}
		var batch pgx.Batch
		batch.Queue(`
			UPDATE hosts SET cordoned_at = NULL, cordoned_by = '', cordon_reason = '', drain_until = NULL, number = NULL, join_public_key = NULL, join_psk = NULL, join_expires_at = NULL, public_key = NULL, psk = NULL,
			    offer = NULL, ciphertext = NULL, next_public_key = NULL, next_psk = NULL, next_offer = NULL, next_ciphertext = NULL,
			    rotate = false, rotated_at = NULL, revoked_at = now(),
			    seen_at = greatest(seen_at, (SELECT max(heard_at) FROM host_links WHERE host = $1)) WHERE name = $1`, name)
		batch.Queue(`INSERT INTO resting_numbers (number, host, until) VALUES ($1, $2, now() + $3)`, *number, name, rest)
		batch.Queue(`DELETE FROM host_links WHERE host = $1`, name)
		// A device stays until its session has ended.
		batch.Queue(`DELETE FROM devices WHERE host = $1 AND session IS NULL`, name)
		batch.Queue(`SELECT pg_notify($1, $2)`, chanHosts, name)
		write(&batch, by, entry{action: "remove", host: name, detail: sessions(on)})
		return tx.SendBatch(ctx, &batch).Close()
	}))
}

var _ tunnel.Enroller = (*Store)(nil)

// Redeem implements tunnel.Enroller: the first offer is the host's, the same again gets the same answer.
func (s *Store) Redeem(ctx context.Context, joinAddr netip.Addr, o tunnel.Offer) (joined wire.Joined, err error) {
	number, ok := tunnel.Number(joinAddr)
	if !ok || !tunnel.IsJoin(joinAddr) {
		return joined, tunnel.ErrTokenUnknown
	}
	addr, err := tunnel.HostAddr(number)
	if err != nil {
		return joined, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var name string
		var joinPSK, psk, offer, ciphertext []byte
		var fresh, expired, superseded bool
		err := tx.QueryRow(ctx, `
			SELECT name, join_psk, psk, offer, ciphertext, public_key IS NULL, coalesce(join_expires_at <= now(), true),
			       coalesce(join_public_key <> $2 AND $3, false)
			FROM hosts WHERE number = $1 AND (join_public_key IS NOT NULL OR public_key IS NOT NULL) FOR UPDATE`,
			number, o.Through.String(), o.Through != (tunnel.Key{})).Scan(&name, &joinPSK, &psk, &offer, &ciphertext, &fresh, &expired, &superseded)
		digest := o.Digest()
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return tunnel.ErrTokenUnknown
		case err != nil:
			return err
		case !fresh && !bytes.Equal(offer, digest[:]):
			return tunnel.ErrTokenUsed
		case !fresh:
			joined, err = answerOf(psk, ciphertext).Joined(name, addr.String())
			return err
		case superseded:
			return tunnel.ErrTokenUnknown
		case expired:
			return tunnel.ErrTokenExpired
		}
		if err := free(ctx, tx, o.PublicKey); err != nil {
			return err
		}
		a, err := o.Answer(tunnel.PresharedKey(joinPSK))
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE hosts SET public_key = $2, psk = $3, offer = $4, ciphertext = $5, rotated_at = now() WHERE number = $1`,
			number, o.PublicKey.String(), a.PresharedKey[:], digest[:], a.Ciphertext); err != nil {
			return err
		}
		if joined, err = a.Joined(name, addr.String()); err != nil {
			return err
		}
		return notify(ctx, tx, chanHosts, name)
	})
	return joined, taken(err)
}

func answerOf(psk, ciphertext []byte) tunnel.Answer {
	a := tunnel.Answer{Ciphertext: ciphertext}
	copy(a.PresharedKey[:], psk)
	return a
}

// free says that nobody has a key: ErrKeyTaken.
func free(ctx context.Context, tx pgx.Tx, k tunnel.Key) error {
	var used bool
	err := tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM hosts WHERE $1 IN (public_key, join_public_key, next_public_key))
		    OR EXISTS (SELECT FROM gateways WHERE $1 IN (public_key, next_public_key))`, k.String()).Scan(&used)
	if err == nil && used {
		return tunnel.ErrKeyTaken
	}
	return err
}

// taken is what two hosts are told that offered one key at once.
func taken(err error) error {
	if violates(err, "hosts_public_key_key") || violates(err, "hosts_next_public_key_key") {
		return tunnel.ErrKeyTaken
	}
	for _, known := range []error{tunnel.ErrKeyTaken, tunnel.ErrTokenUnknown, tunnel.ErrTokenUsed, tunnel.ErrTokenExpired, tunnel.ErrRekeyStale, tunnel.ErrOffer} {
		if errors.Is(err, known) {
			return err
		}
	}
	return unavailable(err)
}

// promote makes the next key of a host its own.
const promote = `
	UPDATE hosts SET public_key = next_public_key, psk = next_psk, offer = next_offer, ciphertext = next_ciphertext,
	    next_public_key = NULL, next_psk = NULL, next_offer = NULL, next_ciphertext = NULL, rotate = false, rotated_at = now()
	WHERE next_public_key = $1`

// Rekey implements tunnel.Enroller. An offer that replaces the host's next key promotes that first: the host uses it.
func (s *Store) Rekey(ctx context.Context, hostAddr netip.Addr, o tunnel.Offer) (rekeyed wire.Rekeyed, err error) {
	number, ok := tunnel.Number(hostAddr)
	if !ok || !tunnel.IsHost(hostAddr) {
		return rekeyed, tunnel.ErrRekeyStale
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, promote+` AND number = $2`, o.Replaces.String(), number); err != nil {
			return err
		}
		var name, key string
		var psk, offer, ciphertext, nextPSK, nextOffer, nextCiphertext []byte
		err := tx.QueryRow(ctx, `
			SELECT name, public_key, psk, offer, ciphertext, next_psk, next_offer, next_ciphertext
			FROM hosts WHERE number = $1 AND public_key IS NOT NULL FOR UPDATE`,
			number).Scan(&name, &key, &psk, &offer, &ciphertext, &nextPSK, &nextOffer, &nextCiphertext)
		digest := o.Digest()
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return tunnel.ErrRekeyStale
		case err != nil:
			return err
		case bytes.Equal(offer, digest[:]): // promoted already
			rekeyed, err = answerOf(psk, ciphertext).Rekeyed()
			return err
		case key != o.Replaces.String():
			return tunnel.ErrRekeyStale
		case bytes.Equal(nextOffer, digest[:]):
			rekeyed, err = answerOf(nextPSK, nextCiphertext).Rekeyed()
			return err
		}
		if err := free(ctx, tx, o.PublicKey); err != nil {
			return err
		}
		a, err := o.Answer(tunnel.PresharedKey(psk))
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE hosts SET next_public_key = $2, next_psk = $3, next_offer = $4, next_ciphertext = $5 WHERE number = $1`,
			number, o.PublicKey.String(), a.PresharedKey[:], digest[:], a.Ciphertext); err != nil {
			return err
		}
		if rekeyed, err = a.Rekeyed(); err != nil {
			return err
		}
		return notify(ctx, tx, chanHosts, name)
	})
	return rekeyed, taken(err)
}

// Promote implements tunnel.PeerSource.
func (s *Store) Promote(ctx context.Context, next tunnel.Key) error {
	_, err := s.pool.Exec(ctx, `WITH h AS (`+promote+` RETURNING name) SELECT pg_notify('`+chanHosts+`', name) FROM h`, next.String())
	return unavailable(err)
}

// RotateHost asks a host to make a new key; asked again before it has, it makes one. ErrNotFound, *ConflictError for a
// host that has no key.
func (s *Store) RotateHost(ctx context.Context, name string) error {
	var joined, revoked bool
	err := s.pool.QueryRow(ctx, `UPDATE hosts SET rotate = public_key IS NOT NULL WHERE name = $1 RETURNING public_key IS NOT NULL, revoked_at IS NOT NULL`,
		name).Scan(&joined, &revoked)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return orchestrator.ErrNotFound
	case err != nil:
		return unavailable(err)
	case revoked:
		return &orchestrator.ConflictError{Problem: fmt.Sprintf("host %q was removed and has no key; invite it anew if it is to join again", name)}
	case !joined:
		return &orchestrator.ConflictError{Problem: fmt.Sprintf("host %q has not joined yet and has no key to replace", name)}
	}
	return nil
}

// RotateOldHosts asks hosts whose key is older than age to make a new one: a few at a time, the oldest first, so that a
// fleet that joined on one day does not rotate in one second. Orchestrators that do this at once pass over each other's. It also clears away the devices that removed hosts left.
func (s *Store) RotateOldHosts(ctx context.Context, age time.Duration) error {
	const atOnce = 20
	var batch pgx.Batch
	batch.Queue(`
		UPDATE hosts SET rotate = true WHERE name IN (
		    SELECT name FROM hosts WHERE public_key IS NOT NULL AND NOT rotate AND coalesce(rotated_at, created_at) < now() - $1::interval
		    ORDER BY coalesce(rotated_at, created_at) LIMIT $2 FOR UPDATE SKIP LOCKED)`, age, atOnce)
	batch.Queue(`DELETE FROM devices d USING hosts h WHERE h.name = d.host AND h.revoked_at IS NOT NULL AND d.session IS NULL`)
	return unavailable(s.pool.SendBatch(ctx, &batch).Close())
}

var _ tunnel.PeerSource = (*Store)(nil)

// Peers implements tunnel.PeerSource: the key of every joined host, the one that follows it, and that of every token
// that can still be redeemed.
func (s *Store) Peers(ctx context.Context) ([]tunnel.Peer, error) { return s.peers(ctx, "") }

// PeersOf implements tunnel.PeerSource.
func (s *Store) PeersOf(ctx context.Context, host string) ([]tunnel.Peer, error) {
	return s.peers(ctx, "AND name = $1", host)
}

const (
	ownPeer  = ""
	joinPeer = "join"
	nextPeer = "next"
)

func (s *Store) peers(ctx context.Context, where string, args ...any) ([]tunnel.Peer, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT name, number, public_key, psk, '`+ownPeer+`' FROM hosts WHERE public_key IS NOT NULL `+where+`
		UNION ALL
		SELECT name, number, next_public_key, next_psk, '`+nextPeer+`' FROM hosts WHERE next_public_key IS NOT NULL `+where+`
		UNION ALL
		SELECT name, number, join_public_key, join_psk, '`+joinPeer+`' FROM hosts
		WHERE join_public_key IS NOT NULL AND join_expires_at > now() `+where, args...)
	if err != nil {
		return nil, unavailable(err)
	}
	type row struct {
		Name   string
		Number int
		Key    string
		PSK    []byte
		Kind   string
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return nil, unavailable(err)
	}
	peers := make([]tunnel.Peer, 0, len(list))
	for _, h := range list {
		p, err := peer(h.Name, h.Number, h.Key, h.PSK, h.Kind)
		if err != nil { // one damaged row must not cut off every other host
			s.log.Error("a host is left out of the tunnel", zap.String("host", h.Name), zap.Error(err))
			continue
		}
		peers = append(peers, p)
	}
	return peers, nil
}

func peer(name string, number int, key string, psk []byte, kind string) (p tunnel.Peer, err error) {
	p.Host, p.Name, p.Next = name, name, kind == nextPeer
	if kind != ownPeer {
		p.Name += " (" + kind + ")"
	}
	if p.PublicKey, err = tunnel.ParseKey(key); err != nil {
		return p, fmt.Errorf("public key: %w", err)
	}
	if len(psk) != len(p.PresharedKey) {
		return p, fmt.Errorf("preshared key of %d bytes", len(psk))
	}
	copy(p.PresharedKey[:], psk)
	if kind == joinPeer {
		p.Addr, err = tunnel.JoinAddr(number)
		return p, err
	}
	p.Addr, err = tunnel.HostAddr(number)
	return p, err
}
