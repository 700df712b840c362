package httpapi_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// deafClaims is a store whose claims are carried out, and whose answers to those that give something get lost: of the first one,
// before it is carried out, which is at the second look for what was lost.
type deafClaims struct {
	orchestrator.SessionStore
	mu    *sync.Mutex
	lose  *int // answers; guarded by mu
	looks *int // guarded by mu
	late  func(context.Context)
}

func (s *deafClaims) Claim(ctx context.Context, holder string, hosts []string, ttl time.Duration, most, concurrent int) ([]orchestrator.Claim, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *s.lose == 2 {
		*s.lose--
		s.late = func(ctx context.Context) { _, _, _ = s.SessionStore.Claim(ctx, holder, hosts, ttl, most, concurrent) }
		return nil, false, orchestrator.ErrUnavailable
	}
	if s.late != nil {
		return nil, false, orchestrator.ErrUnavailable // it is away still
	}
	got, left, err := s.SessionStore.Claim(ctx, holder, hosts, ttl, most, concurrent)
	if len(got) > 0 && *s.lose > 0 {
		*s.lose--
		return nil, false, orchestrator.ErrUnavailable
	}
	return got, left, err
}

func (s *deafClaims) Reclaim(ctx context.Context, holder string, known []string, ttl time.Duration, most int) ([]orchestrator.Claim, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got, err := s.SessionStore.Reclaim(ctx, holder, known, ttl, most)
	if *s.looks++; *s.looks == 2 && s.late != nil {
		s.late(ctx)
		s.late = nil
	}
	return got, err
}

// TestClaimWhoseAnswerIsLost: whoever claimed takes the session up once the database answers again, also where the claim was carried out only
// after it had been given up. The device starts one driver for it, and what runs already is left alone.
func TestClaimWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]int{"carried out": 1, "carried out late": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var lost, looks int
			r := newTappedRig(t, []host.Device{{Name: "phone-a", Kind: host.KindFake, PlatformName: "iOS"}, {Name: "phone-b", Kind: host.KindFake, PlatformName: "iOS"}}, 10, taps{
				sessions: func(s orchestrator.SessionStore) orchestrator.SessionStore {
					return &deafClaims{SessionStore: s, mu: &mu, lose: &lost, looks: &looks}
				},
			})
			runs := r.running(t, api.CreateSession{})
			mu.Lock()
			lost = lose
			mu.Unlock()
			ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
			defer cancel()
			s, err := r.client.CreateSession(ctx, unrecorded(api.CreateSession{}))
			must(t, err)
			if s, err = r.client.Wait(ctx, s.ID, api.Running); err != nil || s.State != api.Running || s.Term != 2 {
				t.Fatalf("%s %s of term %d, %v", s.State, s.Reason, s.Term, err)
			}
			if n := r.openSessions(); n != 2 {
				t.Errorf("%d driver sessions are open", n)
			}
			if v, err := r.client.Session(ctx, runs.ID); err != nil || v.State != api.Running || v.Term != 1 {
				t.Errorf("the other: %+v, %v", v, err)
			}
			must(t, second(r.client.Cancel(ctx, s.ID)))
			if s, err = r.client.Wait(ctx, s.ID, api.Ended); err != nil || s.Reason != "cancelled" {
				t.Errorf("%s, %v", s.Reason, err)
			}
		})
	}
}
