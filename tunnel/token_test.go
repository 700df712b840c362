package tunnel

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func testToken(t testing.TB) (Token, string) {
	t.Helper()
	tok, err := NewToken(4711, []GatewayInfo{
		{Endpoint: "gw-a.example.eu:51820", PublicKey: Key{1}, Addr: addr(ownRange, 1), FleetPort: 7443},
		{Endpoint: "[2001:db8::1]:51820", PublicKey: Key{2}, Addr: addr(ownRange, 2), FleetPort: 7444},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := tok.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return tok, s
}

func TestTokenRoundTrip(t *testing.T) {
	tok, s := testToken(t)
	got, err := ParseToken(" " + s + "\n")
	if err != nil || !reflect.DeepEqual(got, tok) {
		t.Fatalf("%v, %v", got, err)
	}
	pub, psk, err := tok.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	priv, err := got.JoinKey()
	if err != nil || priv.Public() != pub {
		t.Errorf("host and orchestrator derive different join keys: %v", err)
	}
	if [32]byte(priv) == [32]byte(psk) || [32]byte(psk) == [32]byte(tok.Secret) {
		t.Error("derived keys are not independent")
	}
	other, _ := testToken(t)
	if otherPub, otherPSK, err := other.Credentials(); err != nil || otherPub == pub || otherPSK == psk {
		t.Error("two tokens derive the same keys")
	}
}

// TestTokenTypos: every single wrong, missing or doubled character is found, and the error does not quote the token.
func TestTokenTypos(t *testing.T) {
	_, s := testToken(t)
	try := func(what, bad string) {
		t.Helper()
		_, err := ParseToken(bad)
		if !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", what, err)
		} else if strings.Contains(err.Error(), s[20:40]) {
			t.Errorf("%s: the error quotes the token: %v", what, err)
		}
	}
	for i := range s {
		for _, c := range "Aa0-_" {
			if s[i] != byte(c) {
				try(fmt.Sprintf("character %d is %c", i, c), s[:i]+string(c)+s[i+1:])
			}
		}
		try(fmt.Sprintf("cut after %d", i), s[:i])
		try(fmt.Sprintf("without %d", i), s[:i]+s[i+1:])
	}
	try("twice", s+s)
	try("no token", "hello")
	try("long", tokenPrefix+strings.Repeat("A", maxTokenLength))
}

// TestTokenRefused: a whole token whose content makes no sense.
func TestTokenRefused(t *testing.T) {
	tok, _ := testToken(t)
	for name, edit := range map[string]func(*Token){
		"host address":      func(t *Token) { t.Addr = addr(ownRange, 256) },
		"no gateway":        func(t *Token) { t.Gateways = nil },
		"many gateways":     func(t *Token) { t.Gateways = make([]GatewayInfo, maxGateways+1) },
		"gateway twice":     func(t *Token) { t.Gateways[1] = t.Gateways[0] },
		"address of a host": func(t *Token) { t.Gateways[0].Addr = addr(ownRange, 256) },
		"no key":            func(t *Token) { t.Gateways[0].PublicKey = Key{} },
		"no fleet port":     func(t *Token) { t.Gateways[0].FleetPort = 0 },
		"no port":           func(t *Token) { t.Gateways[0].Endpoint = "gw" },
		"port 0":            func(t *Token) { t.Gateways[0].Endpoint = "gw:0" },
		"port name":         func(t *Token) { t.Gateways[0].Endpoint = "gw:http" },
		"no host":           func(t *Token) { t.Gateways[0].Endpoint = ":1" },
		"two lines":         func(t *Token) { t.Gateways[0].Endpoint = "gw\nx:1" },
		"long endpoint":     func(t *Token) { t.Gateways[0].Endpoint = strings.Repeat("g", 260) + ":1" },
	} {
		bad := tok
		bad.Gateways = append([]GatewayInfo(nil), tok.Gateways...)
		edit(&bad)
		if s, err := bad.Encode(); err == nil {
			t.Errorf("%s: encoded as %s", name, s)
		}
	}
	// A newer version with a right checksum is told from a typo.
	body := append([]byte{2}, make([]byte, 60)...)
	sum := sha256.Sum256(body)
	_, err := ParseToken(tokenPrefix + base64.RawURLEncoding.EncodeToString(append(body, sum[:tokenChecksum]...)))
	wantText(t, err, "version is 2")
}

func FuzzParseToken(f *testing.F) {
	tok, s := testToken(f)
	f.Add([]byte(s), false)
	body, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(s, tokenPrefix))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body[:len(body)-tokenChecksum], true)
	f.Add(append([]byte{tokenVersion}, tok.Secret[:]...), true)
	f.Add([]byte("dsj1_"), false)
	f.Fuzz(func(t *testing.T, b []byte, sign bool) {
		s := string(b)
		if sign { // past the checksum, which fuzzing cannot guess
			sum := sha256.Sum256(b)
			s = tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b[:len(b):len(b)], sum[:tokenChecksum]...))
		}
		tok, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrToken) {
				t.Fatalf("%v", err)
			}
			return
		}
		// One token has one spelling.
		again, err := tok.Encode()
		if err != nil || again != strings.TrimSpace(s) {
			t.Fatalf("%q\n%q\n%v", s, again, err)
		}
	})
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		n         int
		own, join string
	}{{256, "10.77.1.0", "10.76.1.0"}, {300, "10.77.1.44", "10.76.1.44"}, {65535, "10.77.255.255", "10.76.255.255"}} {
		own, err1 := HostAddr(c.n)
		join, err2 := JoinAddr(c.n)
		if err := errors.Join(err1, err2); err != nil || own.String() != c.own || join.String() != c.join {
			t.Errorf("%d: %s %s %v", c.n, own, join, err)
		}
		if !IsHost(own) || IsHost(join) || !IsJoin(join) || IsJoin(own) || IsGateway(own) || IsGateway(join) {
			t.Errorf("%d: ranges overlap", c.n)
		}
		for _, a := range []netip.Addr{own, join, netip.AddrFrom16(own.As16())} {
			if n, ok := Number(a); n != c.n || !ok || !Network().Contains(a.Unmap()) {
				t.Errorf("number of %s: %d %t", a, n, ok)
			}
		}
	}
	for _, n := range []int{-1, 0, 255, 65536} {
		_, err1 := HostAddr(n)
		_, err2 := JoinAddr(n)
		if err1 == nil || err2 == nil {
			t.Errorf("number %d is accepted", n)
		}
	}
	for _, n := range []int{0, 256, -1} {
		if a, err := GatewayAddr(n); err == nil {
			t.Errorf("gateway %d is %s", n, a)
		}
	}
	if a, err := GatewayAddr(255); err != nil || !IsGateway(a) || IsHost(a) {
		t.Errorf("gateway 255: %s %v", a, err)
	}
	for _, s := range []string{"10.76.0.1", "10.77.0.0", "10.78.1.1", "11.77.1.1", "::1", "192.168.1.1"} {
		a := netip.MustParseAddr(s)
		if _, ok := Number(a); ok || IsJoin(a) || IsHost(a) || IsGateway(a) {
			t.Errorf("%s is somebody's", s)
		}
	}
	if (IsJoin(netip.Addr{}) || IsHost(netip.Addr{}) || IsGateway(netip.Addr{})) {
		t.Error("the zero address is somebody's")
	}
}

func TestKeyText(t *testing.T) {
	k := Key{1, 2, 3}
	b, err := json.Marshal(map[string]Key{"k": k})
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]Key
	if err := json.Unmarshal(b, &back); err != nil || back["k"] != k {
		t.Errorf("%s: %v %v", b, back, err)
	}
	for _, bad := range []string{"", "AAAA", Key{}.String(), k.String() + "=", k.String()[:42] + "!="} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
