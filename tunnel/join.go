package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"go.uber.org/zap"
)

// Errors of an Enroller; they reach the host as what they are.
var (
	// ErrTokenUsed: the token was redeemed with another key.
	ErrTokenUsed = errors.New("tunnel: this join token was used by another key; if this is the right machine, make a new token with `driftctl hosts add`")
	// ErrTokenExpired: the token is too old.
	ErrTokenExpired = errors.New("tunnel: this join token has expired; make a new one with `driftctl hosts add`")
	// ErrTokenUnknown: no host has this join address, or it was removed.
	ErrTokenUnknown = errors.New("tunnel: no host is waiting to join with this token; make a new one with `driftctl hosts add`")
	// ErrRekeyStale: the host offers to replace a key that is not its present one.
	ErrRekeyStale = errors.New("tunnel: this host's key was replaced meanwhile; its tunnel.json may be an old copy: if it keeps being refused, remove the host and add it again")
	// ErrKeyTaken: the key belongs to another host, or is a join key.
	ErrKeyTaken = errors.New("tunnel: this public key is in use already; remove the host's tunnel.json so that it makes a new one")
)

// joinProblem is what a host is told, as an RFC 9457 problem.
type joinProblem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

const problemPrefix = "urn:driftstack:join:"

// refusals is the one table of what an Enroller refuses.
func refusals() []struct {
	err    error
	name   string
	status int
} {
	return []struct {
		err    error
		name   string
		status int
	}{
		{ErrTokenUsed, "token-used", http.StatusForbidden},
		{ErrTokenUnknown, "token-unknown", http.StatusForbidden},
		{ErrKeyTaken, "key-taken", http.StatusForbidden},
		{ErrTokenExpired, "token-expired", http.StatusGone},
		{ErrRekeyStale, "rekey-stale", http.StatusConflict},
	}
}

const maxJoin = 4 << 10

// JoinHandler serves wire.PathJoin for remote addresses in the join range and nothing else.
func JoinHandler(e Enroller, log *zap.Logger) http.Handler {
	if log == nil {
		log = zap.NewNop()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, ok := remote(r)
		switch {
		case !ok || !IsJoin(from):
			refuse(w, http.StatusForbidden, "not-a-join-tunnel", "Joining is possible only through the tunnel of a join token.")
			return
		case r.URL.Path != wire.PathJoin:
			refuse(w, http.StatusNotFound, "not-found", "")
			return
		case r.Method != http.MethodPost:
			w.Header().Set("Allow", http.MethodPost)
			refuse(w, http.StatusMethodNotAllowed, "method", "Use POST.")
			return
		}
		// A token is all it takes to get here: nobody may stay. Where w knows no deadlines (tests) only the rest is bounded.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(joinOne))
		ctx, cancel := context.WithTimeout(r.Context(), joinOne)
		defer cancel()
		offer, err := readJoin(http.MaxBytesReader(w, r.Body, maxJoin))
		if err != nil {
			refuse(w, http.StatusBadRequest, "malformed", err.Error())
			return
		}
		joined, err := e.Redeem(ctx, from, offer)
		if err != nil {
			for _, known := range refusals() {
				if errors.Is(err, known.err) {
					log.Warn("join refused", zap.Stringer("join_address", from), zap.Stringer("key", offer.PublicKey), zap.String("why", known.name))
					refuse(w, known.status, known.name, known.err.Error())
					return
				}
			}
			log.Error("join failed", zap.Stringer("join_address", from), zap.Error(err))
			refuse(w, http.StatusInternalServerError, "internal", "The orchestrator could not redeem the token now; it is not used up. Try again.")
			return
		}
		log.Info("host joined", zap.String("host", joined.Host), zap.String("address", joined.Address), zap.Stringer("key", offer.PublicKey))
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(joined) // a host that is gone asks again
	})
}

func readJoin(r io.Reader) (Offer, error) {
	var j wire.Join
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return Offer{}, fmt.Errorf("not a join request: %w", err)
	}
	key, err := ParseKey(j.PublicKey)
	if err != nil {
		return Offer{}, err
	}
	o := Offer{PublicKey: key, EncapsulationKey: j.EncapsulationKey}
	_, err = o.check()
	return o, err
}

// readRekey reads a wire.Rekey.
func readRekey(r io.Reader) (Offer, error) {
	var j wire.Rekey
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return Offer{}, fmt.Errorf("not a rekey request: %w", err)
	}
	key, err := ParseKey(j.PublicKey)
	if err != nil {
		return Offer{}, err
	}
	present, err := ParseKey(j.Replaces)
	if err != nil {
		return Offer{}, fmt.Errorf("replaces: %w", err)
	}
	o := Offer{PublicKey: key, EncapsulationKey: j.EncapsulationKey, Replaces: present}
	_, err = o.check()
	return o, err
}

func refuse(w http.ResponseWriter, status int, name, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(joinProblem{Type: problemPrefix + name, Title: http.StatusText(status), Status: status, Detail: detail})
}
