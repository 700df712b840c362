package pgstore_test

import (
	"context"
	"crypto/mlkem"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/tunnel"
)

func gatewayInfo(n byte) tunnel.GatewayInfo {
	return tunnel.GatewayInfo{Endpoint: "gw.example:51820", PublicKey: tunnel.Key{200, n}, Addr: netip.AddrFrom4([4]byte{10, 77, 0, n}), FleetPort: 7700}
}

func invite(t *testing.T, s *pgstore.Store, name string, ttl time.Duration) tunnel.Token {
	t.Helper()
	tok, err := tryInvite(s, name, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func tryInvite(s *pgstore.Store, name string, ttl time.Duration) (tok tunnel.Token, err error) {
	_, err = s.Invite(context.Background(), name, ttl, func(number int) (i orchestrator.Invitation, err error) {
		if tok, err = tunnel.NewToken(number, []tunnel.GatewayInfo{gatewayInfo(1)}); err != nil {
			return i, err
		}
		i.JoinPublicKey, i.PresharedKey, err = tok.Credentials()
		return i, err
	})
	return tok, err
}

func newOffer(t *testing.T) tunnel.Offer {
	t.Helper()
	key, err := tunnel.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return offerOf(t, key.Public())
}

func offerOf(t *testing.T, k tunnel.Key) tunnel.Offer {
	t.Helper()
	dk, err := mlkem.GenerateKey768()
	if err != nil {
		t.Fatal(err)
	}
	return tunnel.Offer{PublicKey: k, EncapsulationKey: dk.EncapsulationKey().Bytes()}
}

func own(t *testing.T, tok tunnel.Token) netip.Addr {
	t.Helper()
	n, _ := tunnel.Number(tok.Addr)
	a, err := tunnel.HostAddr(n)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// names are the peers' names, so that one look tells what a gateway accepts.
func names(t *testing.T, s *pgstore.Store, host string) map[string]tunnel.Peer {
	t.Helper()
	ps, err := s.Peers(t.Context())
	if host != "" {
		ps, err = s.PeersOf(t.Context(), host)
	}
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]tunnel.Peer{}
	for _, p := range ps {
		got[p.Name] = p
	}
	return got
}

func TestRedeem(t *testing.T) {
	s := open(t, 0)
	ctx := t.Context()
	first, stale := invite(t, s, "mac-1", time.Hour), invite(t, s, "mac-2", -time.Second)
	if _, err := s.Redeem(ctx, stale.Addr, newOffer(t)); !errors.Is(err, tunnel.ErrTokenExpired) {
		t.Errorf("expired: %v", err)
	}
	// A token that another has superseded, at a gateway that has not heard of that yet.
	older, _, err := first.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	first = invite(t, s, "mac-1", time.Hour)
	late := newOffer(t)
	late.Through = older
	if _, err := s.Redeem(ctx, first.Addr, late); !errors.Is(err, tunnel.ErrTokenUnknown) {
		t.Errorf("through the token of before: %v", err)
	}
	offer := newOffer(t)
	if offer.Through, _, err = first.Credentials(); err != nil {
		t.Fatal(err)
	}
	joined, err := s.Redeem(ctx, first.Addr, offer)
	if err != nil {
		t.Fatal(err)
	}
	if joined.Host != "mac-1" || joined.Address != own(t, first).String() || len(joined.Ciphertext) != wire.CiphertextSize || len(joined.Confirmation) == 0 {
		t.Errorf("joined as %q %s", joined.Host, joined.Address)
	}
	if again, err := s.Redeem(ctx, first.Addr, offer); err != nil || !reflect.DeepEqual(again, joined) {
		t.Errorf("the same offer again: %v", err)
	}
	third := invite(t, s, "mac-3", time.Hour)
	joinKey, _, err := third.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		addr  netip.Addr
		offer tunnel.Offer
		want  error
	}{
		"another key":                 {first.Addr, newOffer(t), tunnel.ErrTokenUsed},
		"another encapsulation key":   {first.Addr, offerOf(t, offer.PublicKey), tunnel.ErrTokenUsed},
		"another host's key":          {third.Addr, offerOf(t, offer.PublicKey), tunnel.ErrKeyTaken},
		"somebody's join key":         {third.Addr, offerOf(t, joinKey), tunnel.ErrKeyTaken},
		"nobody's address":            {netip.MustParseAddr("10.76.234.96"), newOffer(t), tunnel.ErrTokenUnknown},
		"an own address":              {own(t, third), newOffer(t), tunnel.ErrTokenUnknown},
		"a broken encapsulation key":  {third.Addr, tunnel.Offer{PublicKey: tunnel.Key{5}}, tunnel.ErrOffer},
		"the address is of a gateway": {netip.MustParseAddr("10.76.0.1"), newOffer(t), tunnel.ErrTokenUnknown},
	} {
		if _, err := s.Redeem(ctx, c.addr, c.offer); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var conflict *orchestrator.ConflictError
	if _, err := tryInvite(s, "mac-1", time.Hour); !errors.As(err, &conflict) {
		t.Errorf("a joined host was invited anew: %v", err)
	}

	got := names(t, s, "")
	if len(got) != 3 || got["mac-1"].Addr != own(t, first) || got["mac-1 (join)"].Addr != first.Addr || got["mac-3 (join)"].Host != "mac-3" {
		t.Errorf("peers %v", got)
	}
	if got["mac-1"].PresharedKey == got["mac-1 (join)"].PresharedKey {
		t.Error("the token's preshared key is the host's")
	}
	if got := names(t, s, "mac-3"); len(got) != 1 || got["mac-3 (join)"].Next {
		t.Errorf("peers of one host: %v", got)
	}
	if err := s.HostUp(ctx, wire.Hello{Host: "mac-1"}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s, "mac-1"); len(got) != 1 {
		t.Errorf("a host that is up keeps its join key: %v", got)
	}
}

// TestOneTokenTwice: of two machines that redeem one token at once, through two orchestrators, one has it.
func TestOneTokenTwice(t *testing.T) {
	dsn := postgres.Database(t)
	var stores [2]*pgstore.Store
	for i := range stores {
		s, err := pgstore.Open(t.Context(), dsn, []string{"eu-1", "eu-2"}[i], zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		stores[i] = s
	}
	for range 20 {
		tok := invite(t, stores[0], "mac", time.Hour)
		offers := [2]tunnel.Offer{newOffer(t), newOffer(t)}
		var errs [4]error
		var answers [4]wire.Joined
		var group sync.WaitGroup
		for i := range 4 { // each offer twice, through both
			group.Go(func() { answers[i], errs[i] = stores[i/2].Redeem(context.Background(), tok.Addr, offers[i%2]) })
		}
		group.Wait()
		won := 0
		if errs[0] != nil {
			won = 1
		}
		if lost := 1 - won; errs[won] != nil || errs[won+2] != nil || !errors.Is(errs[lost], tunnel.ErrTokenUsed) || !errors.Is(errs[lost+2], tunnel.ErrTokenUsed) {
			t.Fatalf("%v", errs)
		}
		if !reflect.DeepEqual(answers[won], answers[won+2]) {
			t.Fatal("one offer got two answers")
		}
		if err := stores[0].Revoke(t.Context(), "mac", 0, orchestrator.Act{By: "test"}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNumbers: no number is lost, none is given twice, and a removed host's rests.
func TestNumbers(t *testing.T) {
	s := open(t, 0)
	ctx := t.Context()
	first := invite(t, s, "mac-1", time.Hour)
	if again := invite(t, s, "mac-1", time.Hour); again.Addr != first.Addr || again.Secret == first.Secret {
		t.Errorf("invited again: %s instead of %s, same secret %t", again.Addr, first.Addr, again.Secret == first.Secret)
	}
	failed := errors.New("no token")
	for range 3 {
		if _, err := s.Invite(ctx, "mac-2", time.Hour, func(int) (orchestrator.Invitation, error) { return orchestrator.Invitation{}, failed }); !errors.Is(err, failed) {
			t.Errorf("a token that was not made: %v", err)
		}
	}
	second := invite(t, s, "mac-2", time.Hour)
	if n, _ := tunnel.Number(second.Addr); n != tunnel.FirstHost+1 {
		t.Errorf("failed invitations took numbers: the next is %d", n)
	}
	if err := s.Revoke(ctx, "mac-1", time.Hour, orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Revoke(ctx, "mac-2", 0, orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mac-1", "nobody"} {
		if err := s.Revoke(ctx, name, time.Hour, orchestrator.Act{By: "test"}); !errors.Is(err, orchestrator.ErrNotFound) {
			t.Errorf("%s is removed twice: %v", name, err)
		}
	}
	// The one that has rested is given first, then new ones; the one that rests is not.
	if tok := invite(t, s, "mac-3", time.Hour); tok.Addr != second.Addr {
		t.Errorf("a rested number is not given: %s", tok.Addr)
	}
	if tok := invite(t, s, "mac-1", time.Hour); tok.Addr == first.Addr || tok.Addr == second.Addr {
		t.Errorf("a removed host that is invited again has %s", tok.Addr)
	}
	// Many at once.
	seen := map[netip.Addr]bool{}
	var mu sync.Mutex
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			tok, err := tryInvite(s, "many-"+string(rune('a'+i)), time.Hour)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			seen[tok.Addr] = true
		})
	}
	group.Wait()
	if len(seen) != 50 || seen[first.Addr] {
		t.Errorf("%d addresses for 50 hosts, the resting one among them: %t", len(seen), seen[first.Addr])
	}
}

func TestRevoke(t *testing.T) {
	s := open(t, 1) // mac-1 is up with a device
	ctx := t.Context()
	peer := names(t, s, "mac-1")["mac-1"]
	mustCreate(t, s, wish("a"))
	c := mustClaim(t, s)
	if err := s.Revoke(ctx, "mac-1", time.Hour, orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s, ""); len(got) != 0 {
		t.Errorf("a removed host has peers: %v", got)
	}
	if _, err := s.HostByAddr(ctx, peer.Addr); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("a removed host is found: %v", err)
	}
	if err := s.Promote(ctx, peer.PublicKey); err != nil {
		t.Error(err)
	}
	if _, err := s.Rekey(ctx, peer.Addr, newOffer(t)); !errors.Is(err, tunnel.ErrRekeyStale) {
		t.Errorf("a removed host rotates: %v", err)
	}
	var conflict *orchestrator.ConflictError
	if err := s.RotateHost(ctx, "mac-1"); !errors.As(err, &conflict) {
		t.Errorf("a removed host is to rotate: %v", err)
	}
	devices, err := s.Devices(ctx)
	if err != nil || len(devices) != 1 || devices[0].State != "offline" {
		t.Errorf("devices while its session ends: %v, %v", devices, err)
	}
	if err := finish(s, c, orchestrator.HostLost); err != nil {
		t.Fatal(err)
	}
	if err := s.RotateOldHosts(ctx, time.Hour); err != nil {
		t.Fatal(err)
	}
	if devices, err = s.Devices(ctx); err != nil || len(devices) != 0 {
		t.Errorf("devices of a removed host: %v, %v", devices, err)
	}
	if tok := invite(t, s, "mac-1", time.Hour); own(t, tok) == peer.Addr {
		t.Error("its address did not rest")
	}
	if got := names(t, s, ""); len(got) != 1 {
		t.Errorf("invited again it has peers %v", got)
	}
}

func TestRekey(t *testing.T) {
	s := open(t, 0)
	ctx := t.Context()
	tok := invite(t, s, "mac", time.Hour)
	first := newOffer(t)
	if _, err := s.Redeem(ctx, tok.Addr, first); err != nil {
		t.Fatal(err)
	}
	at := own(t, tok)
	next := newOffer(t)
	next.Replaces = first.PublicKey
	answer, err := s.Rekey(ctx, at, next)
	if err != nil {
		t.Fatal(err)
	}
	same := func(when string) {
		t.Helper()
		if again, err := s.Rekey(ctx, at, next); err != nil || !reflect.DeepEqual(again, answer) {
			t.Errorf("%s the same offer gets another answer: %v", when, err)
		}
	}
	same("before its first handshake")
	got := names(t, s, "mac")
	if p := got["mac (next)"]; !p.Next || p.PublicKey != next.PublicKey || p.Addr != at || got["mac"].PublicKey != first.PublicKey || p.PresharedKey == got["mac"].PresharedKey {
		t.Errorf("peers %v", got)
	}
	if err := s.RotateHost(ctx, "mac"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Promote(ctx, next.PublicKey); err != nil {
			t.Fatal(err)
		}
	}
	same("after it")
	if p := names(t, s, "mac"); len(p) != 2 || p["mac"].PublicKey != next.PublicKey || p["mac"].PresharedKey != got["mac (next)"].PresharedKey {
		t.Errorf("peers %v", p) // its token is there until it is up
	}
	if b, err := s.Beat(ctx, at); err != nil || b.Rotate {
		t.Errorf("it is to rotate again: %v", err)
	}
	late := newOffer(t)
	late.Replaces = first.PublicKey
	if _, err := s.Rekey(ctx, at, late); !errors.Is(err, tunnel.ErrRekeyStale) {
		t.Errorf("an offer that was long under way: %v", err)
	}
	used := offerOf(t, first.PublicKey)
	used.Replaces = next.PublicKey
	if _, err := s.Rekey(ctx, at, used); err != nil {
		t.Errorf("a key that is nobody's any more: %v", err)
	}
	// An agent that comes back with an older state offers another key instead: the one it holds counts.
	third := newOffer(t)
	third.Replaces = next.PublicKey
	if _, err := s.Rekey(ctx, at, third); err != nil {
		t.Fatal(err)
	}
	// The gateway saw the handshake and could not say so; the host offers the one after it.
	fourth := newOffer(t)
	fourth.Replaces = third.PublicKey
	if _, err := s.Rekey(ctx, at, fourth); err != nil {
		t.Fatal(err)
	}
	if p := names(t, s, "mac"); p["mac"].PublicKey != third.PublicKey || p["mac (next)"].PublicKey != fourth.PublicKey {
		t.Errorf("peers %v", p)
	}
	other := invite(t, s, "other", time.Hour)
	if _, err := s.Redeem(ctx, other.Addr, offerOf(t, fourth.PublicKey)); !errors.Is(err, tunnel.ErrKeyTaken) {
		t.Errorf("another host's next key: %v", err)
	}
}

// TestOldHostsRotate: twenty at once, the oldest first, and only those that have a key.
func TestOldHostsRotate(t *testing.T) {
	s := open(t, 0)
	ctx := t.Context()
	for i := range 25 {
		name := fmt.Sprintf("mac-%02d", i)
		tok := invite(t, s, name, time.Hour)
		if _, err := s.Redeem(ctx, tok.Addr, newOffer(t)); err != nil {
			t.Fatal(err)
		}
		s.AgeKey(t, name, time.Duration(100-i)*24*time.Hour)
	}
	invite(t, s, "invited", time.Hour)
	s.AgeKey(t, "invited", 200*24*time.Hour)
	if err := s.Revoke(ctx, "mac-00", time.Hour, orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	s.AgeKey(t, "mac-24", time.Hour) // young
	var want []string
	for i := range 23 {
		want = append(want, fmt.Sprintf("mac-%02d", i+1))
	}
	for _, n := range []int{20, 23, 23} {
		if err := s.RotateOldHosts(ctx, 30*24*time.Hour); err != nil {
			t.Fatal(err)
		}
		if got := s.Rotating(t); !slices.Equal(got, want[:n]) {
			t.Errorf("asked %v, not %v", got, want[:n])
		}
	}
}
