package tunnel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"go.uber.org/zap"
)

const (
	joinLimit  = 2 * time.Minute  // of the whole, when the caller sets no deadline
	joinOne    = 15 * time.Second // of one request, at the gateway
	joinAnswer = 5 * time.Second  // for a host to wait before it asks again, longer each time: the same offer gets the same answer
	joinPause  = 2 * time.Second  // between rounds over all gateways, up to twice that
	joinMTU    = 576              // nobody measures the path for the two small messages of a join; the own tunnel's is measured
	maxAnswer  = 64 << 10
	maxHost    = 253
	tokenUsage = "a join token was given but is not used"
)

// prepareState returns the host's state. Without one, or for another token than the one it was made for, it makes a new
// key and stores it: a key must survive everything that can happen after it was sent.
func prepareState(cfg LinkConfig) (*state, error) {
	s, err := loadState(cfg.StateDir)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case err == nil && s.joined():
		if cfg.Token != "" {
			cfg.Log.Info(tokenUsage+": this host has joined; to join anew, remove the state file first",
				zap.String("host", s.Host), zap.String("state", statePath(cfg.StateDir)))
		}
		return s, nil
	case cfg.Token == "":
		return nil, ErrNoToken
	}
	t, err := ParseToken(cfg.Token)
	if err != nil {
		return nil, err
	}
	if s != nil && s.Fingerprint == t.fingerprint() {
		return s, s.save(cfg.StateDir) // an attempt before this one made the key; its seed may be new, see decodeState
	}
	c, err := newCandidate()
	if err != nil {
		return nil, err
	}
	_, psk, err := t.Credentials()
	if err != nil {
		return nil, err
	}
	s = &state{PrivateKey: c.PrivateKey, Seed: c.Seed, PresharedKey: psk, Gateways: t.Gateways, JoinAddr: t.Addr, Fingerprint: t.fingerprint()}
	return s, s.save(cfg.StateDir)
}

// join redeems the token over the tunnel it opens, and stores the answer.
func join(ctx context.Context, cfg LinkConfig, s *state) (_ *state, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, joinLimit)
		defer cancel()
	}
	t, err := ParseToken(cfg.Token)
	if err != nil {
		return nil, err
	}
	key, err := t.JoinKey()
	if err != nil {
		return nil, err
	}
	small := cfg
	small.MTU = min(cfg.MTU, joinMTU)
	l, err := openLink(ctx, small, s, key, s.JoinAddr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	offer, err := s.candidate().offer(Key{})
	if err != nil {
		return nil, err
	}
	joined, err := l.redeem(ctx, offer)
	if err != nil {
		return nil, err
	}
	done, err := answered(s, joined)
	if err != nil {
		return nil, err
	}
	if err := done.save(cfg.StateDir); err != nil {
		return nil, err
	}
	cfg.Log.Info("this host has joined", zap.String("host", done.Host), zap.Stringer("address", done.Addr))
	return done, nil
}

// candidate is the key that redeems the token.
func (s *state) candidate() candidate { return candidate{s.PrivateKey, s.Seed} }

// answered is s with a gateway's answer, which must be for this host.
func answered(s *state, joined wire.Joined) (*state, error) {
	own, err := netip.ParseAddr(joined.Address)
	if err != nil {
		return nil, fmt.Errorf("tunnel: join: the gateway gave the address %q: %w", joined.Address, err)
	}
	if joined.Host == "" || len(joined.Host) > maxHost {
		return nil, errors.New("tunnel: join: the gateway gave no usable host name")
	}
	psk, err := s.candidate().accept(s.PresharedKey, joined.Ciphertext, joined.Confirmation)
	if err != nil {
		return nil, fmt.Errorf("tunnel: join: %w", err)
	}
	done := *s
	done.Host, done.Addr, done.PresharedKey, done.Seed = joined.Host, own, psk, kemSeed{}
	if err := done.check(); err != nil {
		return nil, fmt.Errorf("tunnel: join: the gateway's answer: %w", err)
	}
	return &done, nil
}

// redeem asks every gateway in turn until one answers or refuses.
func (l *Link) redeem(ctx context.Context, offer Offer) (wire.Joined, error) {
	transport := &http.Transport{DialContext: l.DialContext, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	body, err := json.Marshal(wire.Join{PublicKey: offer.PublicKey.String(), EncapsulationKey: offer.EncapsulationKey})
	if err != nil {
		return wire.Joined{}, fmt.Errorf("tunnel: join: %w", err)
	}
	for round := time.Duration(1); ; round++ {
		client.Timeout = min(round*joinAnswer, joinOne) // of a gateway that is only slow nothing is gained by asking anew
		var errs []error
		for _, g := range l.Gateways() {
			joined, err := redeemAt(ctx, client, g, body)
			if err == nil {
				return joined, nil
			}
			err = fmt.Errorf("tunnel: join at gateway %s (%s): %w", g.Addr, g.Endpoint, err)
			if final(err) {
				return wire.Joined{}, err
			}
			errs = append(errs, err)
		}
		err := errors.Join(errs...)
		l.cfg.Log.Warn("no gateway has answered the join request, trying again", zap.Error(err))
		select {
		case <-ctx.Done():
			return wire.Joined{}, errors.Join(fmt.Errorf("tunnel: this host could not join: is UDP to the gateways open, and is the token still valid? %w", ctx.Err()), err)
		case <-l.held().dev.gone():
			return wire.Joined{}, fmt.Errorf("tunnel: join: %w", ErrDeviceGone)
		case <-time.After(joinPause + rand.N(joinPause)): // hosts that failed together do not come back together
		}
	}
}

func final(err error) bool {
	for _, r := range refusals() {
		if errors.Is(err, r.err) {
			return true
		}
	}
	return false
}

func redeemAt(ctx context.Context, client *http.Client, g GatewayInfo, body []byte) (wire.Joined, error) {
	var j wire.Joined
	err := request(ctx, client, g, wire.PathJoin, body, &j)
	return j, err
}

// request posts body to a path of the gateway and decodes the answer; a refusal is the Enroller's error.
func request(ctx context.Context, client *http.Client, g GatewayInfo, path string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+g.Fleet()+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(resp.StatusCode, b)
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// refusal turns a problem back into the Enroller's error.
func refusal(status int, b []byte) error {
	var p joinProblem
	_ = json.Unmarshal(b, &p) // another form is reported by its status
	name, ours := strings.CutPrefix(p.Type, problemPrefix)
	for _, r := range refusals() {
		if ours && r.name == name {
			return r.err
		}
	}
	return fmt.Errorf("HTTP status %d: %s", status, p.Detail)
}
