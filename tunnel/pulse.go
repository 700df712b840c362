package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/driftstack/fleet/driverproxy/wire"
	"go.uber.org/zap"
)

// Bounds of what hosts say.
const (
	maxPulse  = 16 << 10
	maxReason = 300 // bytes of a reason that are kept
	maxMTU    = 65535
	maxProbe  = 64 << 10
	serveOne  = 15 * time.Second // one request of a host
)

// pulses is what each host said last. Safe for use at once.
type pulses struct {
	now func() time.Time

	mu   sync.Mutex
	last map[netip.Addr]heard
}

type heard struct {
	wire.Pulse
	at time.Time
}

func (p *pulses) put(from netip.Addr, said wire.Pulse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		p.last = map[netip.Addr]heard{}
	}
	p.last[from] = heard{said, p.now()}
}

func (p *pulses) get(from netip.Addr) heard {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last[from]
}

// keep forgets hosts that are no more.
func (p *pulses) keep(known func(netip.Addr) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a := range p.last {
		if !known(a) {
			delete(p.last, a)
		}
	}
}

// decodePulse reads what a host says. Fields that are not known here are of a newer host and no mistake.
func decodePulse(r io.Reader) (wire.Pulse, error) {
	var p wire.Pulse
	if err := json.NewDecoder(r).Decode(&p); err != nil {
		return wire.Pulse{}, errors.New("not a pulse")
	}
	if p.MTU < 0 || p.RoundTrip < 0 || min(p.Repairs.Handshake, p.Repairs.Socket, p.Repairs.Resolve, p.Repairs.Device) < 0 {
		return wire.Pulse{}, errors.New("not a pulse: a number is negative")
	}
	if p.MTU > maxMTU || max(p.Repairs.Handshake, p.Repairs.Socket, p.Repairs.Resolve, p.Repairs.Device) > math.MaxInt32 {
		return wire.Pulse{}, errors.New("not a pulse: a number is too large")
	}
	if len(p.Backend) > maxReason {
		return wire.Pulse{}, errors.New("not a pulse: the backend's name is too long")
	}
	p.Backend = printable(p.Backend)
	if p.Reason = printable(p.Reason); len(p.Reason) > maxReason {
		p.Reason = strings.ToValidUTF8(p.Reason[:maxReason], "")
	}
	p.Backend, p.Reason = wire.Text(p.Backend), wire.Text(p.Reason)
	return p, nil
}

// printable is s as it may be stored and shown: a database takes no U+0000, and a terminal obeys what it is sent.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// servePulse remembers what a host says of its end, and answers with what it should hold. A pulse that cannot be
// answered counts nevertheless: it came through the tunnel.
func servePulse(p *pulses, beats Beats, log *zap.Logger) http.Handler {
	return post(func(w http.ResponseWriter, r *http.Request) {
		ctx, done := bounded(w, r)
		defer done()
		from, _ := remote(r)
		said, err := decodePulse(http.MaxBytesReader(w, r.Body, maxPulse))
		if err != nil {
			refuse(w, http.StatusBadRequest, "malformed", err.Error())
			return
		}
		p.put(from, said)
		beat, err := beats.Beat(ctx, from)
		if err != nil {
			log.Warn("a pulse is not answered", zap.Stringer("from", from), zap.Error(err))
			refuse(w, http.StatusServiceUnavailable, "internal", "The orchestrator cannot say now which gateways there are. Keep those you have.")
			return
		}
		answer(w, beat)
	})
}

// serveProbe sends a body back, so that packets of full size go both ways.
func serveProbe() http.Handler {
	return post(func(w http.ResponseWriter, r *http.Request) {
		_, done := bounded(w, r)
		defer done()
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxProbe))
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			refuse(w, http.StatusRequestEntityTooLarge, "malformed", "A probe has 64 KiB at most.")
			return
		} else if err != nil {
			return // the host has given up
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(b) // as above
	})
}

// serveRekey takes a host's next key. The device knows it before the host is told so: see settled.
func serveRekey(e Enroller, settle func(ctx context.Context, from netip.Addr), log *zap.Logger) http.Handler {
	return post(func(w http.ResponseWriter, r *http.Request) {
		ctx, done := bounded(w, r)
		defer done()
		from, _ := remote(r)
		offer, err := readRekey(http.MaxBytesReader(w, r.Body, maxJoin))
		if err != nil {
			refuse(w, http.StatusBadRequest, "malformed", err.Error())
			return
		}
		rekeyed, err := e.Rekey(ctx, from, offer)
		if err != nil {
			for _, known := range refusals() {
				if errors.Is(err, known.err) {
					log.Warn("next key refused", zap.Stringer("from", from), zap.Stringer("key", offer.PublicKey), zap.String("why", known.name))
					refuse(w, known.status, known.name, known.err.Error())
					return
				}
			}
			log.Error("rekeying failed", zap.Stringer("from", from), zap.Error(err))
			refuse(w, http.StatusInternalServerError, "internal", "The orchestrator could not take the next key now. Try again.")
			return
		}
		settle(ctx, from)
		log.Info("host offered its next key", zap.Stringer("from", from), zap.Stringer("key", offer.PublicKey))
		answer(w, rekeyed)
	})
}

// bounded ends a request that takes too long. Where w knows no deadlines (tests) only the context is bounded.
func bounded(w http.ResponseWriter, r *http.Request) (context.Context, func()) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(serveOne))
	ctx, cancel := context.WithTimeout(r.Context(), serveOne)
	return ctx, func() {
		cancel()
		_ = c.SetReadDeadline(time.Time{}) // the connection is kept for the next one
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a host that is gone asks again
}
