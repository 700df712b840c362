package orchestrator

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/driftstack/fleet/orchestrator/api"
)

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
