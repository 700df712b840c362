package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// creating is a store that sees how a session is created.
type creating struct {
	SessionStore
	offers []webdriver.Offer
	seen   func(ctx context.Context)
}

// Offers has what is wanted of the platform only.
func (c creating) Offers(ctx context.Context, n NewSession) (offers []webdriver.Offer, err error) {
	c.seen(ctx)
	for _, o := range c.offers {
		if n.Want.Platform == "" || strings.EqualFold(o.Platform, n.Want.Platform) {
			offers = append(offers, o)
		}
	}
	return offers, ctx.Err()
}

// Shapes is what the offers are made of.
func (c creating) Shapes(_ context.Context, n NewSession) (shapes []Shape, err error) {
	for _, o := range c.offers {
		s := Shape{Device: api.Device{Browser: o.Browser, PlatformName: o.Platform}}
		if n.Want.Platform != "" && !strings.EqualFold(o.Platform, n.Want.Platform) {
			s.Misses = []api.Key{api.KeyPlatform}
		}
		shapes = append(shapes, s)
	}
	return shapes, nil
}

func (c creating) Create(ctx context.Context, _ NewSession) (time.Time, error) {
	c.seen(ctx)
	return time.Time{}, ctx.Err()
}

// A client that leaves while its session is queued leaves a session that is known, and can be cancelled.
func TestCreateIsNotCutShort(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	bounded := true
	o := New(Deps{Log: zap.NewNop(), Sessions: creating{offers: []webdriver.Offer{{Browser: "safari"}}, seen: func(ctx context.Context) {
		leave()
		_, ok := ctx.Deadline()
		bounded = bounded && ok
	}}})
	if s, err := o.Create(ctx, api.CreateSession{Account: "a"}, ""); err != nil || s.ID == "" || !bounded {
		t.Errorf("%+v, %v, bounded %v", s, err, bounded)
	}
}

func TestPlatformNameIsAWish(t *testing.T) {
	o := New(Deps{Log: zap.NewNop(), Sessions: creating{offers: []webdriver.Offer{{Browser: "safari", Platform: "iOS"}, {Browser: "safari", Platform: "iPadOS"}}, seen: func(context.Context) {}}})
	for _, c := range []struct{ caps, asked, want, says string }{
		{``, "", "", ""}, {`{}`, "iOS", "iOS", ""}, {`{"platformName":"iOS"}`, "", "iOS", ""}, {`{"platformName":"ios"}`, "iOS", "ios", ""},
		{`{"platformName":"ANY"}`, "iPadOS", "iPadOS", ""}, {`{"platformName":null}`, "", "", ""}, {`{"platformName":""}`, "", "", ""},
		{`{"platformName":"iOS"}`, "iPadOS", "", `platformName "iOS": there is iPadOS`}, {`{"platformName":"` + strings.Repeat("x", 65) + `"}`, "", "", "there is iOS, iPadOS"},
		{`{}`, "android", "", "no enrolled device has platform android; the enrolled ones have iOS, iPadOS"}, {``, strings.Repeat("x", 65), "", "device.platform"},
	} {
		s, err := o.Create(t.Context(), api.CreateSession{Account: "a", Device: api.DeviceWant{Platform: c.asked}, Capabilities: []byte(c.caps)}, "")
		var invalid *InvalidError
		if c.says == "" && (err != nil || s.Want.Platform != c.want) ||
			c.says != "" && (!errors.As(err, &invalid) && !errors.Is(err, ErrNoSuchDevice) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s and %q: %q, %v, want %q or %q", c.caps, c.asked, s.Want.Platform, err, c.want, c.says)
		}
	}
}

func TestLabelsAreBounded(t *testing.T) {
	many := func(n int) api.Labels {
		l := api.Labels{}
		for i := range n {
			l[fmt.Sprint(i)] = "v"
		}
		return l
	}
	for _, good := range []api.Labels{nil, {}, {"a": ""}, {"run": "a=b, c\n"}, {strings.Repeat("ü", 64): strings.Repeat("ü", 256)}, many(32)} {
		if s, err := plan("s", api.CreateSession{Account: "a", Labels: good}, Deps{QueueLimit: 1}); err != nil || len(s.Labels) != len(good) {
			t.Errorf("%d labels: %v, %v", len(good), s.Labels, err)
		}
	}
	for says, bad := range map[string]api.Labels{
		"no =": {"a=b": ""}, "1 to 64": {"": "x"}, "has 1 to 64": {strings.Repeat("x", 65): ""}, "256": {"x": strings.Repeat("x", 257)}, "at most 32": many(33),
	} {
		var invalid *InvalidError
		if _, err := plan("s", api.CreateSession{Account: "a", Labels: bad}, Deps{QueueLimit: 1}); !errors.As(err, &invalid) || invalid.Field != "labels" || !strings.Contains(invalid.Problem, says) {
			t.Errorf("%.70v: %v, want one that says %q", bad, err, says)
		}
	}
}
