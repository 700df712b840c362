package orchestrator

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/driftstack/fleet/driverproxy"
)

// untidy is a database in which nothing happens but that rows pile up.
type untidy struct {
	HostStore
	SessionStore
	asked []time.Time
	fails int // so many times
}

func (*untidy) Reap(context.Context, string, bool) ([]Reason, error)              { return nil, nil }
func (*untidy) Cancelled(context.Context, string) (ids []string, _ error)         { return nil, nil }
func (*untidy) EndDrained(context.Context) (int, error)                           { return 0, nil }
func (*untidy) StoreLinks(context.Context, string, []LinkReport) error            { return nil }
func (*untidy) Unwelcome(context.Context, []string) (unwelcome []string, _ error) { return nil, nil }

func (u *untidy) Tidy(context.Context) (Tidied, error) {
	u.asked = append(u.asked, time.Now())
	if len(u.asked) <= u.fails {
		return Tidied{Wants: 1}, errors.New("away")
	}
	return Tidied{Keys: 3}, nil
}

// TestTidyGoesOn: rows that pile up are deleted again and again while the orchestrator runs, also after that has failed, and not afterwards.
func TestTidyGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, log := observer.New(zap.InfoLevel)
		u := &untidy{fails: 2}
		o := New(Deps{ID: "eu-1", Sessions: u, Hosts: u, Fleet: driverproxy.NewFleet(driverproxy.Config{}), Log: zap.New(core)})
		begin := time.Now()
		ctx, stop := context.WithTimeout(t.Context(), 3*tidyEvery+time.Minute)
		defer stop()
		o.Run(ctx)
		time.Sleep(2 * tidyEvery)
		if len(u.asked) != 3 || u.asked[0].Sub(begin) != tidyEvery {
			t.Errorf("begun at %v, asked at %v", begin, u.asked)
		}
		if warned, told := log.FilterLevelExact(zap.WarnLevel).Len(), log.FilterField(zap.Int("idempotency_keys", 3)).Len(); warned != 2 || told != 1 {
			t.Errorf("%d warnings, %d times keys were deleted: %+v", warned, told, log.All())
		}
	})
}
