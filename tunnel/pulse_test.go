package tunnel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

type beatFunc func(netip.Addr) (wire.Beat, error)

func (f beatFunc) Beat(_ context.Context, from netip.Addr) (wire.Beat, error) { return f(from) }

func ask(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = "10.77.1.0:1234"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestPulse(t *testing.T) {
	host := netip.MustParseAddr("10.77.1.0")
	at := time.Unix(1000, 0)
	p := &pulses{now: func() time.Time { return at }}
	beat := wire.Beat{Orchestrator: "eu-1", Epoch: "e", Gateways: []wire.Gateway{{Endpoint: "192.0.2.1:1", NextIn: time.Second}}, Rotate: true}
	var fail error
	h := servePulse(p, beatFunc(func(from netip.Addr) (wire.Beat, error) {
		if from != host {
			t.Errorf("asked for %s", from)
		}
		return beat, fail
	}), zap.NewNop())
	said := wire.Pulse{Backend: "tun", MTU: 1200, RoundTrip: time.Millisecond, Repairs: wire.Repairs{Socket: 2}, Reason: "MTU 1200"}
	b, err := json.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	w := ask(h, "POST", wire.PathPulse, string(b))
	var got wire.Beat
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
		t.Fatalf("%d %v %s", w.Code, err, w.Body)
	}
	if diff := cmp.Diff(beat, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(heard{said, at}, p.get(host), cmp.AllowUnexported(heard{})); diff != "" {
		t.Error(diff)
	}
	// What cannot be answered was heard nevertheless, and does not show why.
	at, fail = at.Add(time.Minute), errors.New("password of the database")
	if w := ask(h, "POST", wire.PathPulse, `{"mtu":1280,"newer":1}`); w.Code != 503 || strings.Contains(w.Body.String(), "password") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got := p.get(host); got.MTU != 1280 || !got.at.Equal(at) {
		t.Errorf("%+v", got)
	}
	for body, status := range map[string]int{
		`{"mtu":65536}`: 400, `{"repairs":{"device":2147483648}}`: 400,
		"": 400, "[]": 400, `{"mtu":-1}`: 400, `{"repairs":{"socket":-1}}`: 400,
		`{"backend":"` + strings.Repeat("x", maxReason+1) + `"}`: 400,
		`{"reason":"` + strings.Repeat("x", maxPulse) + `"}`:     400,
	} {
		if w := ask(h, "POST", wire.PathPulse, body); w.Code != status {
			t.Errorf("%.40s: %d", body, w.Code)
		}
	}
	// What a hostile host says is stored beside what all others say, and shown to people.
	if w := ask(h, "POST", wire.PathPulse, `{"backend":"t\u0000un","reason":"a\u0000\u001b[2Jb`+"\xff"+`é"}`); w.Code != 503 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got := p.get(host); got.Backend != "t\ufffdun" || got.Reason != "a\ufffd\ufffd[2Jb\ufffdé" {
		t.Errorf("kept as %q, %q", got.Backend, got.Reason)
	}
	if w := ask(h, "GET", wire.PathPulse, ""); w.Code != 405 {
		t.Errorf("GET: %d", w.Code)
	}
	p.keep(func(a netip.Addr) bool { return a != host })
	if got := p.get(host); !got.at.IsZero() {
		t.Errorf("a host that is gone is remembered: %+v", got)
	}
}

func TestProbe(t *testing.T) {
	body := strings.Repeat("x", maxProbe)
	if w := ask(serveProbe(), "POST", wire.PathProbe, body); w.Code != 200 || w.Body.String() != body {
		t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
	}
	if w := ask(serveProbe(), "POST", wire.PathProbe, body+"x"); w.Code != 413 {
		t.Errorf("too long: %d", w.Code)
	}
}

type rekeyFunc func(netip.Addr, Offer) (wire.Rekeyed, error)

func (f rekeyFunc) Rekey(_ context.Context, from netip.Addr, o Offer) (wire.Rekeyed, error) {
	return f(from, o)
}

func (f rekeyFunc) Redeem(context.Context, netip.Addr, Offer) (wire.Joined, error) {
	return wire.Joined{}, errors.New("not this one")
}

// TestRekeyHandler: a host is told that its next key is taken once the gateway's device knows it, and not before.
func TestRekeyHandler(t *testing.T) {
	offer := testOffer(t)
	offer.Replaces = Key{1}
	body, err := json.Marshal(wire.Rekey{PublicKey: offer.PublicKey.String(), EncapsulationKey: offer.EncapsulationKey, Replaces: offer.Replaces.String()})
	if err != nil {
		t.Fatal(err)
	}
	host := netip.MustParseAddr("10.77.1.0")
	for _, c := range []struct {
		name, body string
		err        error
		status     int
	}{
		{"good", string(body), nil, 200},
		{"taken", string(body), ErrKeyTaken, 403},
		{"broken", string(body), errors.New("password of the database"), 500},
		{"stale", string(body), ErrRekeyStale, 409},
		{"no key", "{}", nil, 400},
		{"a join", joinBody(t, offer), nil, 400},
		{"long", strings.Repeat(" ", maxJoin) + string(body), nil, 400},
	} {
		var steps []string
		h := serveRekey(rekeyFunc(func(from netip.Addr, o Offer) (wire.Rekeyed, error) {
			steps = append(steps, "stored")
			if diff := cmp.Diff(offer, o); diff != "" || from != host {
				t.Errorf("%s: %s %s", c.name, from, diff)
			}
			return wire.Rekeyed{Ciphertext: []byte{1}}, c.err
		}), func(_ context.Context, from netip.Addr) { steps = append(steps, "configured for "+from.String()) }, zap.NewNop())
		w := ask(h, "POST", wire.PathRekey, c.body)
		want := map[int]string{200: "stored configured for 10.77.1.0", 403: "stored", 409: "stored", 500: "stored", 400: ""}[c.status]
		if w.Code != c.status || strings.Join(steps, " ") != want || strings.Contains(w.Body.String(), "password") {
			t.Errorf("%s: %d %v %s", c.name, w.Code, steps, w.Body)
		}
	}
}

func FuzzDecodePulse(f *testing.F) {
	f.Add([]byte(`{"backend":"tun","mtu":1280,"round_trip_ns":1,"repairs":{"handshake":1},"reason":"é"}`))
	f.Add([]byte(`{"reason":"` + strings.Repeat("é", maxReason) + `"}`))
	f.Add([]byte(`{"backend":"\u0000","reason":"\u001b[2J\u0000"}`)) // no database takes it, and it is stored with what others say
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePulse(bytes.NewReader(b))
		if err == nil && (wire.Text(p.Reason) != p.Reason || wire.Text(p.Backend) != p.Backend) {
			t.Errorf("not fit to be stored or shown: %+v", p)
		}
		if err == nil && (p.MTU < 0 || len(p.Reason) > maxReason || len(p.Backend) > maxReason) {
			t.Errorf("%+v", p)
		}
	})
}
