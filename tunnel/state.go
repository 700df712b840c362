package tunnel

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
)

const (
	stateFile    = "tunnel.json"
	stateVersion = 2
)

// state is what a host keeps of its tunnel. It exists from before the token is redeemed; Host and Addr are set once it was.
//
// A key is stored before it is offered, and with its preshared key before a device takes it: whatever a crash leaves is
// a key that the gateways accept, or one that they can be offered again.
type state struct {
	PrivateKey   PrivateKey
	PresharedKey PresharedKey // the token's until it was redeemed
	Seed         kemSeed      // of the join; none once it was answered
	Next         *candidate   // the key that follows, while it is being offered
	Gateways     []GatewayInfo
	JoinAddr     netip.Addr
	Fingerprint  string // of the token it was made for
	Host         string
	Addr         netip.Addr
}

func (s *state) joined() bool { return s.Addr.IsValid() }

// stateJSON is the file: the one place where the keys are written out.
type stateJSON struct {
	Version      int           `json:"version"`
	PrivateKey   string        `json:"private_key"`
	PresharedKey string        `json:"preshared_key"`
	Seed         string        `json:"kem_seed,omitempty"`
	Next         *nextJSON     `json:"next,omitempty"`
	Gateways     []GatewayInfo `json:"gateways"`
	JoinAddr     netip.Addr    `json:"join_address"`
	Fingerprint  string        `json:"token"`
	Host         string        `json:"host,omitempty"`
	Addr         *netip.Addr   `json:"address,omitempty"`
}

type nextJSON struct {
	PrivateKey string `json:"private_key"`
	Seed       string `json:"kem_seed"`
}

func statePath(dir string) string { return filepath.Join(dir, stateFile) }

// loadState reads the state of dir; a missing file is an fs.ErrNotExist error.
func loadState(dir string) (*state, error) {
	b, err := readSecret(statePath(dir))
	if err != nil {
		return nil, err
	}
	s, err := decodeState(b)
	if err != nil {
		return nil, fmt.Errorf("tunnel: %s: %w: restore the file, or remove it and join with a new token", statePath(dir), err)
	}
	return s, nil
}

func (s *state) save(dir string) error {
	b, err := s.encode()
	if err != nil {
		return err
	}
	return writeSecret(statePath(dir), b, true)
}

func (s *state) encode() ([]byte, error) {
	j := stateJSON{
		Version: stateVersion, PrivateKey: reveal(s.PrivateKey), PresharedKey: reveal(s.PresharedKey),
		Gateways: s.Gateways, JoinAddr: s.JoinAddr, Fingerprint: s.Fingerprint, Host: s.Host,
	}
	if s.joined() {
		j.Addr = &s.Addr
	} else {
		j.Seed = revealBytes(s.Seed[:])
	}
	if s.Next != nil {
		j.Next = &nextJSON{reveal(s.Next.PrivateKey), revealBytes(s.Next.Seed[:])}
	}
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("tunnel: encode state: %w", err)
	}
	return append(b, '\n'), nil
}

func decodeState(b []byte) (*state, error) {
	var j stateJSON
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return nil, fmt.Errorf("not the state of a tunnel: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not the state of a tunnel: data after it")
	}
	if j.Version < 1 || j.Version > stateVersion {
		return nil, fmt.Errorf("version %d, this program knows 1 to %d", j.Version, stateVersion)
	}
	priv, err := decodeKey(j.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	psk, err := decodeKey(j.PresharedKey)
	if err != nil {
		return nil, fmt.Errorf("preshared key: %w", err)
	}
	s := &state{
		PrivateKey: clamp(priv), PresharedKey: psk, Gateways: j.Gateways,
		JoinAddr: j.JoinAddr, Fingerprint: j.Fingerprint, Host: j.Host,
	}
	if j.Addr != nil {
		s.Addr = *j.Addr
	}
	switch {
	case s.joined() && j.Seed != "":
		return nil, errors.New("it has joined and has a seed to join with")
	case s.joined():
	case j.Version == 1: // had no seed: a host that has not joined makes one now
		s.Seed, err = newSeed()
	default:
		s.Seed, err = decodeSeed(j.Seed)
	}
	if err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	if j.Next != nil {
		if s.Next, err = decodeNext(*j.Next); err != nil {
			return nil, fmt.Errorf("next key: %w", err)
		}
	}
	return s, s.check()
}

func decodeNext(j nextJSON) (*candidate, error) {
	key, err := decodeKey(j.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	seed, err := decodeSeed(j.Seed)
	if err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	return &candidate{clamp(key), seed}, nil
}

func (s *state) check() error {
	switch {
	case !s.JoinAddr.Is4() || !IsJoin(s.JoinAddr):
		return fmt.Errorf("%s is not a join address", s.JoinAddr)
	case s.joined() != (s.Host != ""):
		return errors.New("it has a host name or an address, not both")
	case s.joined():
		if err := checkAddress(s.JoinAddr, s.Addr); err != nil {
			return err
		}
	case s.Next != nil:
		return errors.New("it has a next key before it has joined")
	}
	return checkGateways(s.Gateways)
}

// checkAddress holds the one rule that ties the addresses of a host together.
func checkAddress(join, own netip.Addr) error {
	n, _ := Number(join)
	if m, _ := Number(own); !own.Is4() || !IsHost(own) || m != n {
		return fmt.Errorf("%s is not the own address that belongs to join address %s", own, join)
	}
	return nil
}
