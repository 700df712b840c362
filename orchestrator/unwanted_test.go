package orchestrator

import (
	"context"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// forgetful is a store whose answers get lost; cancels are answered with err.
type forgetful struct {
	creating
	created   *[]string
	cancelled *[]string
	err       *error
}

func (f forgetful) Create(_ context.Context, n NewSession) (time.Time, error) {
	*f.created = append(*f.created, n.ID)
	return time.Time{}, ErrUnavailable
}

func (f forgetful) Cancel(_ context.Context, session string) error {
	*f.cancelled = append(*f.cancelled, session)
	return *f.err
}

// TestUnansweredCreateIsEnded: for as long as the session may still come to be, and no longer.
func TestUnansweredCreateIsEnded(t *testing.T) {
	var created, cancelled []string
	var answer error
	now := time.Now()
	o := New(Deps{Log: zap.NewNop(), Now: func() time.Time { return now }, Sessions: forgetful{
		creating{offers: []webdriver.Offer{{Browser: "safari"}}, seen: func(context.Context) {}}, &created, &cancelled, &answer}})
	create := func(key string) {
		t.Helper()
		if _, err := o.Create(t.Context(), api.CreateSession{Account: "a"}, key); err == nil || len(created) == 0 {
			t.Fatalf("%v, %v", created, err)
		}
	}
	look := func(what string, err error, want ...string) {
		t.Helper()
		answer, cancelled = err, nil
		o.endUnwanted(t.Context())
		if !slices.Equal(cancelled, want) {
			t.Errorf("%s: cancelled %v, want %v", what, cancelled, want)
		}
	}
	look("nothing", nil)
	create("under a key")
	look("one that is asked for again", nil)
	created = nil
	create("")
	look("while the database is away", ErrUnavailable, created[0])
	now = now.Add(time.Hour)
	look("still", ErrUnavailable, created[0])
	look("it was not queued, and will not be", ErrNotFound, created[0])
	look("after that", nil)
	create("")
	look("it is not there yet", ErrNotFound, created[1])
	now = now.Add(landLimit / 2)
	look("still", ErrNotFound, created[1])
	look("it was queued after all", nil, created[1])
	look("after that", nil)
}

// TestAbandonOutlastsTheDatabase: a New Session whose client has left while the database is away for long.
func TestAbandonOutlastsTheDatabase(t *testing.T) {
	var created, cancelled []string
	answer := error(ErrUnavailable)
	o := New(Deps{Log: zap.NewNop(), Sessions: forgetful{creating{}, &created, &cancelled, &answer}})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.Abandon(gone, "s"); err == nil {
		t.Fatal("abandoned while the database is away")
	}
	answer, cancelled = nil, nil
	for range 2 {
		o.endUnwanted(t.Context())
	}
	if !slices.Equal(cancelled, []string{"s"}) {
		t.Errorf("cancelled %v", cancelled)
	}
}
