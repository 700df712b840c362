//go:build soak

package httpapi_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// What a command costs that comes to another orchestrator: less than a millisecond more, on loopback.
func TestSoakForwardingCost(t *testing.T) {
	r, one, two := newPeers(t, 10*time.Minute, "eu-1", "eu-2")
	s, _ := r.running(t, api.CreateSession{})
	call := func(at *mate) time.Duration {
		begin := time.Now()
		_, err := at.client.Do(t.Context(), s.ID, webdriver.Command{Method: http.MethodPost, Path: "/execute/sync", Body: []byte(`{"script":"","args":[1]}`)})
		must(t, err)
		return time.Since(begin)
	}
	var direct, forwarded []time.Duration
	for range 5000 { // taking turns
		direct, forwarded = append(direct, call(one)), append(forwarded, call(two))
	}
	slices.Sort(direct)
	slices.Sort(forwarded)
	p50, p99 := len(direct)/2, len(direct)*99/100
	t.Logf("MEASURED direct p50 %s p99 %s, forwarded p50 %s p99 %s", direct[p50], direct[p99], forwarded[p50], forwarded[p99])
	if added := forwarded[p50] - direct[p50]; added > time.Millisecond {
		t.Errorf("forwarding adds %s", added)
	}
}
