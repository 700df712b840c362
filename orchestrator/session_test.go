package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/api"
)

// creating is a store that sees how a session is created.
type creating struct {
	SessionStore
	seen func(ctx context.Context)
}

func (c creating) Create(ctx context.Context, _ NewSession) (time.Time, error) {
	c.seen(ctx)
	return time.Time{}, ctx.Err()
}

// A client that leaves while its session is queued leaves a session that is known, and can be cancelled.
func TestCreateIsNotCutShort(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	bounded := false
	o := New(Deps{Log: zap.NewNop(), Sessions: creating{seen: func(ctx context.Context) {
		leave()
		_, bounded = ctx.Deadline()
	}}})
	if s, err := o.Create(ctx, api.CreateSession{Account: "a"}); err != nil || s.ID == "" || !bounded {
		t.Errorf("%+v, %v, bounded %v", s, err, bounded)
	}
}

func TestPlatformNameIsAWish(t *testing.T) {
	for _, c := range []struct{ caps, asked, want, says string }{
		{``, "", "", ""}, {`{}`, "iOS", "iOS", ""}, {`{"platformName":"iOS"}`, "", "iOS", ""}, {`{"platformName":"ios"}`, "iOS", "ios", ""},
		{`{"platformName":"ANY"}`, "iPadOS", "iPadOS", ""}, {`{"platformName":null}`, "", "", ""}, {`{"platformName":""}`, "", "", ""},
		{`{"platformName":"iOS"}`, "iPadOS", "", "device.platform"}, {`{"platformName":"` + strings.Repeat("x", 65) + `"}`, "", "", "platformName"}, {``, strings.Repeat("x", 65), "", "device.platform"},
	} {
		s, err := plan("s", api.CreateSession{Account: "a", Device: api.DeviceWant{Platform: c.asked}, Capabilities: []byte(c.caps)}, 1)
		var invalid *InvalidError
		if c.says == "" && (err != nil || s.Want.Platform != c.want) || c.says != "" && (!errors.As(err, &invalid) || !strings.Contains(invalid.Field, c.says)) {
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
		if s, err := plan("s", api.CreateSession{Account: "a", Labels: good}, 1); err != nil || len(s.Labels) != len(good) {
			t.Errorf("%d labels: %v, %v", len(good), s.Labels, err)
		}
	}
	for says, bad := range map[string]api.Labels{
		"no =": {"a=b": ""}, "1 to 64": {"": "x"}, "has 1 to 64": {strings.Repeat("x", 65): ""}, "256": {"x": strings.Repeat("x", 257)}, "at most 32": many(33),
	} {
		var invalid *InvalidError
		if _, err := plan("s", api.CreateSession{Account: "a", Labels: bad}, 1); !errors.As(err, &invalid) || invalid.Field != "labels" || !strings.Contains(invalid.Problem, says) {
			t.Errorf("%.70v: %v, want one that says %q", bad, err, says)
		}
	}
}
