package httpapi_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/httpapi"
)

// reports notes what it is asked for.
type reports struct{ asked []string }

func (r *reports) Report(_ context.Context, account string, verify bool) (api.Residency, error) {
	if verify {
		account += " verified"
	}
	r.asked = append(r.asked, account)
	if account == "nobody" {
		return api.Residency{}, orchestrator.ErrNotFound
	}
	return api.Residency{Account: account, Problems: []string{}}, nil
}

func TestResidency(t *testing.T) {
	r := &reports{}
	server := httptest.NewServer(httpapi.New(httpapi.Config{Residency: r, Token: token, Log: zap.NewNop(), Now: time.Now}))
	defer server.Close()
	c, err := client.New(server.URL, token)
	must(t, err)
	for _, ask := range []struct {
		account string
		verify  bool
	}{{"", false}, {"", true}, {"a", false}, {"a", true}} {
		if v, err := c.Residency(t.Context(), ask.account, ask.verify); err != nil || v.Account != r.asked[len(r.asked)-1] {
			t.Errorf("%+v, %v", v, err)
		}
	}
	if !slices.Equal(r.asked, []string{"", " verified", "a", "a verified"}) {
		t.Errorf("asked for %q", r.asked)
	}
	if _, err := c.Residency(t.Context(), "nobody", false); !isProblem(err, 404) {
		t.Errorf("of nobody: %v", err)
	}
	stranger, err := client.New(server.URL, "another-token-of-somebody")
	must(t, err)
	if _, err := stranger.Residency(t.Context(), "", false); !isProblem(err, 401) || len(r.asked) != 5 {
		t.Errorf("to a stranger: %v", err)
	}
}

func isProblem(err error, status int) bool {
	var p *client.Problem
	return errors.As(err, &p) && p.Status == status
}
