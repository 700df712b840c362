package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// TestGuard is the whole matrix of who reaches what.
func TestGuard(t *testing.T) {
	said := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })
	}
	g := guard(routes{join: said("join"), pulse: said("pulse"), probe: said("probe"), rekey: said("rekey"), fleet: said("fleet")})
	for _, c := range []struct {
		from, path, reached string
		status              int
	}{
		{"10.76.1.0:5", wire.PathJoin, "join", 200},
		{"[::ffff:10.76.1.0]:5", wire.PathJoin, "join", 200},
		{"10.76.1.0:5", wire.PathControl, "", 403},
		{"10.76.1.0:5", "/", "", 403},
		{"10.76.1.0:5", wire.PathJoin + "/", "", 403},
		{"10.77.1.0:5", wire.PathControl, "fleet", 200},
		{"10.77.1.0:5", wire.PathRecording, "fleet", 200},
		{"10.77.1.0:5", wire.PathJoin, "", 404},
		{"10.77.1.0:5", wire.PathPulse, "pulse", 200},
		{"10.77.1.0:5", wire.PathProbe, "probe", 200},
		{"10.77.1.0:5", wire.PathRekey, "rekey", 200},
		{"10.77.1.0:5", wire.PathRekey + "/", "fleet", 200},
		{"10.76.1.0:5", wire.PathPulse, "", 403},
		{"10.76.1.0:5", wire.PathProbe, "", 403},
		{"10.76.1.0:5", wire.PathRekey, "", 403},
		{"10.77.0.2:5", wire.PathRekey, "", 403},
		{"127.0.0.1:5", wire.PathPulse, "", 403},
		{"10.77.0.2:5", wire.PathControl, "", 403}, // another gateway
		{"10.76.0.2:5", wire.PathJoin, "", 403},
		{"127.0.0.1:5", wire.PathControl, "", 403},
		{"192.0.2.1:5", wire.PathJoin, "", 403},
		{"@", wire.PathControl, "", 403}, // a unix socket
		{"", wire.PathControl, "", 403},
	} {
		r := httptest.NewRequest(http.MethodPost, c.path, nil)
		r.RemoteAddr = c.from
		r.Header.Set("X-Forwarded-For", "10.77.1.0") // nobody may say who they are
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		if w.Code != c.status || c.reached != "" && w.Body.String() != c.reached {
			t.Errorf("%s to %s: %d %s", c.from, c.path, w.Code, w.Body)
		}
		if c.reached == "" {
			checkProblem(t, w)
		}
	}
}

func checkProblem(t *testing.T, w *httptest.ResponseRecorder) joinProblem {
	t.Helper()
	var p joinProblem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != w.Code || p.Title == "" ||
		w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("not a problem: %v %s %s", err, w.Header(), w.Body)
	}
	return p
}

type enrollFunc func(context.Context, netip.Addr, Offer) (wire.Joined, error)

func (f enrollFunc) Redeem(ctx context.Context, a netip.Addr, o Offer) (wire.Joined, error) {
	return f(ctx, a, o)
}

func (f enrollFunc) Rekey(context.Context, netip.Addr, Offer) (wire.Rekeyed, error) {
	return wire.Rekeyed{}, errors.ErrUnsupported
}

func TestJoinHandler(t *testing.T) {
	offer := testOffer(t)
	key := offer.PublicKey
	good := joinBody(t, offer)
	for _, c := range []struct {
		name, method, from, body string
		err                      error
		status                   int
		kind                     string
	}{
		{"good", "POST", "10.76.1.0:1", good, nil, 200, ""},
		{"used", "POST", "10.76.1.0:1", good, ErrTokenUsed, 403, "token-used"},
		{"unknown", "POST", "10.76.1.0:1", good, ErrTokenUnknown, 403, "token-unknown"},
		{"taken", "POST", "10.76.1.0:1", good, ErrKeyTaken, 403, "key-taken"},
		{"expired", "POST", "10.76.1.0:1", good, errors.Join(errors.New("row 7"), ErrTokenExpired), 410, "token-expired"},
		{"broken", "POST", "10.76.1.0:1", good, errors.New("password of the database"), 500, "internal"},
		{"own address", "POST", "10.77.1.0:1", good, nil, 403, "not-a-join-tunnel"},
		{"get", "GET", "10.76.1.0:1", "", nil, 405, "method"},
		{"empty", "POST", "10.76.1.0:1", "", nil, 400, "malformed"},
		{"no key", "POST", "10.76.1.0:1", "{}", nil, 400, "malformed"},
		{"zero key", "POST", "10.76.1.0:1", `{"public_key":"` + Key{}.String() + `"}`, nil, 400, "malformed"},
		{"no encapsulation key", "POST", "10.76.1.0:1", `{"public_key":"` + key.String() + `"}`, nil, 400, "malformed"},
		{"short encapsulation key", "POST", "10.76.1.0:1", `{"public_key":"` + key.String() + `","encapsulation_key":"AAAA"}`, nil, 400, "malformed"},
		{"unknown field", "POST", "10.76.1.0:1", strings.Replace(good, "{", `{"host":"x",`, 1), nil, 400, "malformed"},
		{"long", "POST", "10.76.1.0:1", strings.Repeat(" ", maxJoin+1) + good, nil, 400, "malformed"},
	} {
		called := false
		h := JoinHandler(enrollFunc(func(_ context.Context, a netip.Addr, o Offer) (wire.Joined, error) {
			called = true
			if a != netip.MustParseAddr("10.76.1.0") || o.Digest() != offer.Digest() {
				t.Errorf("%s: redeemed for %s with %s", c.name, a, o.PublicKey)
			}
			return wire.Joined{Host: "mac", Address: "10.77.1.0"}, c.err
		}), nil)
		r := httptest.NewRequest(c.method, wire.PathJoin, strings.NewReader(c.body))
		r.RemoteAddr = c.from
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.status || called != (c.status == 200 || c.err != nil) {
			t.Errorf("%s: %d, redeemed %t: %s", c.name, w.Code, called, w.Body)
		}
		if c.status == 200 {
			var j wire.Joined
			if err := json.Unmarshal(w.Body.Bytes(), &j); err != nil || j.Host != "mac" || j.Address != "10.77.1.0" {
				t.Errorf("%s: %v %s", c.name, err, w.Body)
			}
			continue
		}
		if p := checkProblem(t, w); p.Type != problemPrefix+c.kind {
			t.Errorf("%s: problem %s", c.name, p.Type)
		}
		if strings.Contains(w.Body.String(), "password") || strings.Contains(w.Body.String(), "row 7") {
			t.Errorf("%s: the cause is shown: %s", c.name, w.Body)
		}
		for _, known := range refusals() { // and back, on the host
			if c.err != nil && errors.Is(c.err, known.err) && !errors.Is(refusal(w.Code, w.Body.Bytes()), known.err) {
				t.Errorf("%s: the host reads %v", c.name, refusal(w.Code, w.Body.Bytes()))
			}
		}
	}
}

// TestAnswerRefused: a host takes no answer that would give it somebody else's address, or a preshared key that the
// gateway has not.
func TestAnswerRefused(t *testing.T) {
	c, err := newCandidate()
	if err != nil {
		t.Fatal(err)
	}
	s := &state{PrivateKey: c.PrivateKey, Seed: c.Seed, PresharedKey: PresharedKey{7}, JoinAddr: addr(joinRange, 256), Gateways: testState(t).Gateways}
	offer, err := c.offer(Key{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := offer.Answer(s.PresharedKey)
	if err != nil {
		t.Fatal(err)
	}
	good, err := a.Joined("mac", "10.77.1.0")
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*wire.Joined){
		"another host's":       func(j *wire.Joined) { j.Address = "10.77.1.1" },
		"a gateway's":          func(j *wire.Joined) { j.Address = "10.77.0.1" },
		"join address":         func(j *wire.Joined) { j.Address = "10.76.1.0" },
		"none":                 func(j *wire.Joined) { j.Address = "" },
		"no name":              func(j *wire.Joined) { j.Host = "" },
		"no ciphertext":        func(j *wire.Joined) { j.Ciphertext = nil },
		"a damaged ciphertext": func(j *wire.Joined) { j.Ciphertext[9] ^= 1 },
		"no confirmation":      func(j *wire.Joined) { j.Confirmation = nil },
		"another confirmation": func(j *wire.Joined) { j.Confirmation[9] ^= 1 },
	} {
		bad := good
		bad.Ciphertext, bad.Confirmation = slices.Clone(good.Ciphertext), slices.Clone(good.Confirmation)
		edit(&bad)
		_, err := answered(s, bad)
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if crypto := strings.Contains(name, "ciphertext") || strings.Contains(name, "confirmation"); crypto != errors.Is(err, ErrConfirmation) {
			t.Errorf("%s: %v", name, err)
		}
	}
	done, err := answered(s, good)
	if err != nil || !done.joined() || done.Host != "mac" || done.PresharedKey != a.PresharedKey || done.Seed != (kemSeed{}) {
		t.Errorf("%+v %v", done, err)
	}
}

// TestJoinIsBounded: neither a host that sends slowly nor a store that hangs may keep a request for ever.
func TestJoinIsBounded(t *testing.T) {
	e := enrollFunc(func(ctx context.Context, _ netip.Addr, _ Offer) (wire.Joined, error) {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("the Enroller has no deadline")
		}
		return wire.Joined{Host: "mac", Address: "10.77.1.0"}, nil
	})
	r := httptest.NewRequest(http.MethodPost, wire.PathJoin, strings.NewReader(joinBody(t, testOffer(t))))
	r.RemoteAddr = "10.76.1.0:1234"
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	JoinHandler(e, nil).ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	if left := time.Until(w.read); left <= 0 || left > joinOne {
		t.Errorf("the body may take %v", left)
	}
}

type deadlines struct {
	*httptest.ResponseRecorder
	read time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.read = t
	return nil
}
