package tunnel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A host's key and preshared key are replaced in four steps. A host that dies after any of them goes on from there:
//
//	1 the next key is made and stored beside the key
//	2 it is offered to every gateway                    they accept it beside the key; the same offer gets the same answer
//	3 it is stored as the key, with its preshared key   a gateway gives it the address with its first handshake
//	4 the device takes it
//
// Connections live through it: the address stays, and what is lost between step 4 and the first handshake is sent again.

const rekeyLimit = 10 * time.Second // of one gateway's answer

// startRekey replaces the host's key, unless that is under way. It is called from a keeper. A failure is tried again
// with the next beat.
func (l *Link) startRekey() {
	if !l.rekeying.CompareAndSwap(false, true) {
		return
	}
	l.keepers.Go(func() {
		defer l.rekeying.Store(false)
		began := time.Now()
		switch err := l.rekey(l.life); {
		case l.life.Err() != nil:
		case err != nil:
			l.cfg.Log.Warn("this host's key is not replaced yet; trying again with the next beat", zap.Error(err))
		default:
			l.cfg.Log.Info("this host has a new key", zap.Stringer("key", l.held().key.Public()), zap.Duration("after", time.Since(began)))
		}
	})
}

// rekeyDue says whether a beat, or what was left of a rotation before, asks for a new key.
func (l *Link) rekeyDue(b wire.Beat) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.joined && (b.Rotate || l.state.Next != nil)
}

func (l *Link) rekey(ctx context.Context) error {
	next, err := l.nextCandidate()
	if err != nil {
		return err
	}
	offer, err := next.offer(l.held().key.Public())
	if err != nil {
		return err
	}
	answer, err := l.offerAll(ctx, offer)
	if err == nil {
		err = l.takeKey(ctx, next, answer)
	}
	if errors.Is(err, ErrConfirmation) || errors.Is(err, ErrKeyTaken) { // this one will never do
		err = errors.Join(err, l.update(func(s *state) { s.Next = nil }))
	}
	return err
}

// nextCandidate is the next key, stored.
func (l *Link) nextCandidate() (candidate, error) {
	l.mu.Lock()
	stored := l.state.Next
	l.mu.Unlock()
	if stored != nil {
		return *stored, nil
	}
	c, err := newCandidate()
	if err != nil {
		return c, err
	}
	return c, l.update(func(s *state) { s.Next = &c })
}

// offerAll offers the next key to all gateways at once. One answer is enough: a gateway that is not reached now hears
// of the key from its registry, and the others must not wait for it.
func (l *Link) offerAll(ctx context.Context, o Offer) (wire.Rekeyed, error) {
	body, err := json.Marshal(wire.Rekey{PublicKey: o.PublicKey.String(), EncapsulationKey: o.EncapsulationKey, Replaces: o.Replaces.String()})
	if err != nil {
		return wire.Rekeyed{}, fmt.Errorf("tunnel: rekey: %w", err)
	}
	dev := l.held().dev
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, err
		}
		return dev.dial(ctx, to)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: rekeyLimit}
	gs := l.Gateways()
	answers, errs := make([]*wire.Rekeyed, len(gs)), make([]error, len(gs))
	var all sync.WaitGroup
	for i, g := range gs {
		all.Go(func() {
			var a wire.Rekeyed
			if err := request(ctx, client, g, wire.PathRekey, body, &a); err != nil {
				errs[i] = fmt.Errorf("tunnel: offer a key to gateway %s: %w", g.Addr, err)
				return
			}
			answers[i] = &a
		})
	}
	all.Wait()
	var answer *wire.Rekeyed
	for _, a := range answers {
		if a == nil {
			continue
		}
		if answer != nil && !bytes.Equal(answer.Ciphertext, a.Ciphertext) {
			return wire.Rekeyed{}, fmt.Errorf("tunnel: gateways answer one offer differently: %w", ErrConfirmation)
		}
		answer = a
	}
	if answer == nil {
		return wire.Rekeyed{}, errors.Join(errs...)
	}
	if err := errors.Join(errs...); err != nil {
		l.cfg.Log.Warn("not every gateway has taken the next key from this host; they hear of it from the others", zap.Error(err))
	}
	return *answer, nil
}

// takeKey stores the key, and has the device use it with every gateway.
func (l *Link) takeKey(ctx context.Context, next candidate, answer wire.Rekeyed) error {
	l.heeding.Lock()
	defer l.heeding.Unlock()
	l.restoring.Lock()
	defer l.restoring.Unlock()
	psk, err := next.accept(l.held().psk, answer.Ciphertext, answer.Confirmation)
	if err != nil {
		return err
	}
	gs := l.all()
	for _, g := range gs { // nobody makes a handshake with half of the change
		g.setting.Lock()
		defer g.setting.Unlock()
	}
	if err := l.update(func(s *state) { s.PrivateKey, s.PresharedKey, s.Next = next.PrivateKey, psk, nil }); err != nil {
		return err
	}
	l.mu.Lock()
	l.key = next.PrivateKey
	l.mu.Unlock()
	key := wgtypes.Key(next.PrivateKey)
	var without wgtypes.Config
	with := wgtypes.Config{PrivateKey: &key}
	for _, g := range gs {
		for _, p := range l.peerConfigs(g, psk) {
			if p.Remove {
				without.Peers = append(without.Peers, p)
			} else {
				with.Peers = append(with.Peers, p)
			}
		}
	}
	// A peer that is there when the key changes sends a handshake at once if it has something to send: with the old
	// preshared key, and so close before the right one that the gateway takes that for a replay.
	err = l.held().dev.apply(ctx, without)
	if err == nil {
		err = l.held().dev.apply(ctx, with)
	}
	for _, g := range gs {
		g.set = time.Now()
		if err != nil {
			g.nudge() // its keeper finds out what is wrong with the device
		}
	}
	return err
}

// Gateways replace their keys too, at a time that they announce with their beats; see Gateway.Keep. A host keeps the key
// that follows beside the key, and turns from one to the other: when the time has come, and by and by while the gateway
// is not heard. What it turned to is confirmed by the next beat.

const (
	turnDelay = 50 * time.Millisecond // after the gateway
	turnSlack = 5 * time.Second       // a beat that tells of a turn so close is of before it
)

// schedule notes when a gateway's next key takes over.
func (l *Link) schedule(said []wire.Gateway) {
	for _, g := range l.all() {
		for _, s := range said {
			if s.Address != g.addr.String() || s.NextIn <= 0 {
				continue
			}
			g.mu.Lock()
			if g.info.NextPublicKey.String() == s.NextPublicKey {
				g.turnAt = g.since() + s.NextIn + turnDelay
			}
			g.mu.Unlock()
		}
	}
}

// untilTurn is how long the key is still good; ok is false when nothing is scheduled.
func (g *remoteGateway) untilTurn() (_ time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.turnAt - g.since(), g.turnAt > 0
}

// turn exchanges the gateway's key and its next key, and says whether there is one.
func (g *remoteGateway) turn() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.turnAt = 0
	if g.info.NextPublicKey == (Key{}) {
		return false
	}
	g.info.PublicKey, g.info.NextPublicKey = g.info.NextPublicKey, g.info.PublicKey
	return true
}

// ahead is what a beat says of a gateway, seen by a host that holds have: one that has turned already is not turned back
// by a beat of a moment before.
func ahead(have, said GatewayInfo, in time.Duration) GatewayInfo {
	if said.NextPublicKey != (Key{}) && have.PublicKey == said.NextPublicKey && in > 0 && in <= turnSlack {
		said.PublicKey, said.NextPublicKey = said.NextPublicKey, said.PublicKey
	}
	return said
}
