package tunnel

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// A join token is tokenPrefix and the base64url form, without padding, of
//
//	version:u8=1 secret:32 join address:4 n:u8 n×{key:32 address:4 fleet port:u16 len:u8 endpoint} checksum:4
//
// with big-endian integers. The checksum is the start of the SHA-256 of what stands before it: it finds typos, it
// authenticates nothing.
const (
	tokenPrefix    = "dsj1_"
	tokenVersion   = 1
	tokenChecksum  = 4
	maxGateways    = 32
	maxEndpoint    = 255
	maxTokenLength = 16 << 10
)

// ErrToken is wrapped by every error of ParseToken.
var ErrToken = errors.New("tunnel: this is not a whole join token, copy it again as `driftctl hosts add` printed it")

// GatewayInfo is what a host knows of a gateway.
type GatewayInfo struct {
	Endpoint  string     `json:"endpoint"`   // host:port of its UDP socket, reachable from the host
	PublicKey Key        `json:"public_key"` //
	Addr      netip.Addr `json:"address"`    // in the tunnel
	FleetPort uint16     `json:"fleet_port"` // of its fleet listener, in the tunnel

	NextPublicKey Key `json:"next_public_key,omitzero"` // takes the place of PublicKey some time; not part of a token
}

// Fleet is host:port of the fleet listener, to be dialled over the link.
func (g GatewayInfo) Fleet() string { return netip.AddrPortFrom(g.Addr, g.FleetPort).String() }

// Secret is what a join token is about. It prints as "[redacted]".
type Secret [32]byte

// Token lets one host join once. It prints without its secret; Encode is the text that travels.
type Token struct {
	Secret   Secret
	Addr     netip.Addr // join address
	Gateways []GatewayInfo
}

// NewToken makes a token with a new secret for host n.
func NewToken(n int, gateways []GatewayInfo) (Token, error) {
	a, err := JoinAddr(n)
	if err != nil {
		return Token{}, err
	}
	t := Token{Addr: a, Gateways: gateways}
	if _, err := rand.Read(t.Secret[:]); err != nil {
		return Token{}, fmt.Errorf("tunnel: new token: %w", err)
	}
	return t, t.check()
}

// Format implements fmt.Formatter, so that no verb reveals the secret.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// String implements fmt.Stringer.
func (s Secret) String() string { return redacted }

// MarshalText implements encoding.TextMarshaler, and with it JSON.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// String says whom the token is for, without its secret.
func (t Token) String() string { return fmt.Sprintf("join token for %s (%s)", t.Addr, t.fingerprint()) }

// JoinKey is the private key of the join tunnel. Only the host computes it.
func (t Token) JoinKey() (PrivateKey, error) {
	b, err := t.derive("driftstack tunnel v1 join key")
	return clamp(b), err
}

// Credentials is what the orchestrator stores of a token, instead of the token.
func (t Token) Credentials() (joinKey Key, psk PresharedKey, err error) {
	priv, err := t.JoinKey()
	if err != nil {
		return Key{}, PresharedKey{}, err
	}
	b, err := t.derive("driftstack tunnel v1 preshared key")
	return priv.Public(), b, err
}

func (t Token) derive(info string) (out [32]byte, err error) {
	b, err := hkdf.Key(sha256.New, t.Secret[:], nil, info, len(out))
	if err != nil {
		return out, fmt.Errorf("tunnel: derive from token: %w", err)
	}
	return [32]byte(b), nil
}

// fingerprint tells tokens apart without revealing them.
func (t Token) fingerprint() string {
	b, err := t.derive("driftstack tunnel v1 fingerprint")
	if err != nil {
		return ""
	}
	return hex.EncodeToString(b[:8])
}

// Encode is the token as text.
func (t Token) Encode() (string, error) {
	if err := t.check(); err != nil {
		return "", err
	}
	b := append([]byte{tokenVersion}, t.Secret[:]...)
	b = append(b, t.Addr.AsSlice()...)
	b = append(b, byte(len(t.Gateways)))
	for _, g := range t.Gateways {
		b = append(b, g.PublicKey[:]...)
		b = append(b, g.Addr.AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, g.FleetPort)
		b = append(b, byte(len(g.Endpoint)))
		b = append(b, g.Endpoint...)
	}
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenChecksum]...)), nil
}

// ParseToken parses a token as Encode wrote it; white space around it does not matter. Errors wrap ErrToken and say
// what is wrong without quoting the token.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	switch {
	case !ok:
		return Token{}, fmt.Errorf("%w: it does not begin with %s", ErrToken, tokenPrefix)
	case len(s) > maxTokenLength:
		return Token{}, fmt.Errorf("%w: %d characters are too many", ErrToken, len(s))
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil {
		return Token{}, fmt.Errorf("%w: a character is wrong or missing", ErrToken)
	}
	if len(b) < 1+tokenChecksum {
		return Token{}, fmt.Errorf("%w: it is cut short", ErrToken)
	}
	body, sum := b[:len(b)-tokenChecksum], b[len(b)-tokenChecksum:]
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:tokenChecksum]) {
		return Token{}, fmt.Errorf("%w: its checksum does not hold, a character is wrong or missing", ErrToken)
	}
	if body[0] != tokenVersion {
		return Token{}, fmt.Errorf("%w: its version is %d, this program knows %d: install the program that fits the orchestrator", ErrToken, body[0], tokenVersion)
	}
	t, err := decodeToken(body[1:])
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return t, nil
}

func decodeToken(b []byte) (Token, error) {
	r := bytes.NewReader(b)
	var t Token
	var a [4]byte
	read := func(p []byte) bool { _, err := io.ReadFull(r, p); return err == nil }
	var n [1]byte
	if !read(t.Secret[:]) || !read(a[:]) || !read(n[:]) {
		return Token{}, errors.New("a field is missing")
	}
	t.Addr = netip.AddrFrom4(a)
	for range n[0] {
		var g GatewayInfo
		var port [2]byte
		var length [1]byte
		if !read(g.PublicKey[:]) || !read(a[:]) || !read(port[:]) || !read(length[:]) {
			return Token{}, errors.New("a gateway is missing")
		}
		endpoint := make([]byte, length[0])
		if !read(endpoint) {
			return Token{}, errors.New("an endpoint is missing")
		}
		g.Addr, g.FleetPort, g.Endpoint = netip.AddrFrom4(a), binary.BigEndian.Uint16(port[:]), string(endpoint)
		t.Gateways = append(t.Gateways, g)
	}
	if r.Len() > 0 {
		return Token{}, fmt.Errorf("%d bytes too many", r.Len())
	}
	return t, t.check()
}

func (t Token) check() error {
	if !IsJoin(t.Addr) {
		return fmt.Errorf("tunnel: token: %s is not a join address", t.Addr)
	}
	return checkGateways(t.Gateways)
}

func checkGateways(gs []GatewayInfo) error {
	if len(gs) == 0 || len(gs) > maxGateways {
		return fmt.Errorf("tunnel: %d gateways, not 1 to %d", len(gs), maxGateways)
	}
	keys, addrs := map[Key]bool{}, map[netip.Addr]bool{}
	for _, g := range gs {
		if err := g.check(); err != nil {
			return err
		}
		if keys[g.PublicKey] || keys[g.NextPublicKey] || addrs[g.Addr] {
			return fmt.Errorf("tunnel: gateway %s: its key or address is there twice", g.Addr)
		}
		keys[g.PublicKey], addrs[g.Addr] = true, true
		if g.NextPublicKey != (Key{}) {
			keys[g.NextPublicKey] = true
		}
	}
	return nil
}

func (g GatewayInfo) check() error {
	switch host, port, err := net.SplitHostPort(g.Endpoint); {
	case !g.Addr.Is4() || !IsGateway(g.Addr):
		return fmt.Errorf("tunnel: %s is not the address of a gateway", g.Addr)
	case g.PublicKey == g.NextPublicKey:
		return fmt.Errorf("tunnel: gateway %s: its next key is its key", g.Addr)
	case g.PublicKey == Key{}:
		return fmt.Errorf("tunnel: gateway %s has no public key", g.Addr)
	case g.FleetPort == 0:
		return fmt.Errorf("tunnel: gateway %s has no fleet port", g.Addr)
	case err != nil || host == "" || len(g.Endpoint) > maxEndpoint || strings.ContainsAny(host, " \t\r\n="):
		return fmt.Errorf("tunnel: gateway %s: endpoint %q is not host:port", g.Addr, g.Endpoint)
	default:
		if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 {
			return fmt.Errorf("tunnel: gateway %s: endpoint %q has no port between 1 and 65535", g.Addr, g.Endpoint)
		}
	}
	return nil
}
