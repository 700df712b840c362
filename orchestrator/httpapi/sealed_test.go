package httpapi_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// writtenCapabilities notes what is stored of capabilities, and what is read again.
type writtenCapabilities struct {
	orchestrator.SessionStore
	mu            *sync.Mutex // guards what follows
	stored, given *[]string
}

func (w writtenCapabilities) Create(ctx context.Context, n orchestrator.NewSession) (time.Time, error) {
	w.mu.Lock()
	*w.stored = append(*w.stored, string(n.Capabilities))
	w.mu.Unlock()
	return w.SessionStore.Create(ctx, n)
}

func (w writtenCapabilities) Claim(ctx context.Context, holder string, hosts []string, ttl time.Duration, most, concurrent int) ([]orchestrator.Claim, bool, error) {
	got, left, err := w.SessionStore.Claim(ctx, holder, hosts, ttl, most, concurrent)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range got {
		*w.given = append(*w.given, string(c.Capabilities))
	}
	return got, left, err
}

// What a customer writes into capabilities is sealed while its session is queued, and is what the driver gets.
func TestQueuedCapabilitiesAreSealed(t *testing.T) {
	t.Parallel()
	var stored, given []string
	var mu sync.Mutex
	r := newTappedRig(t, []host.Device{{Name: "phone-a", Kind: host.KindFake, PlatformName: "iOS"}}, 10, taps{sessions: func(s orchestrator.SessionStore) orchestrator.SessionStore {
		return writtenCapabilities{s, &mu, &stored, &given}
	}})
	const text = "471147"
	driver := <-r.drivers
	s := r.running(t, api.CreateSession{Capabilities: []byte(`{"timeouts":{"script":` + text + `}}`)})
	mu.Lock()
	defer mu.Unlock()
	if len(stored) != 1 || !strings.HasPrefix(stored[0], `"`) || strings.Contains(stored[0], text) || len(given) != 1 || given[0] != stored[0] {
		t.Errorf("stored %q, given %q", stored, given)
	}
	if got := string(driver.Asked()); !strings.Contains(got, text) {
		t.Errorf("session %s: the driver was asked for %s", s.ID, got)
	}
}
