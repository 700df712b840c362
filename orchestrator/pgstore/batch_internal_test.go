package pgstore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/driftstack/fleet/orchestrator"
)

// asked is a batch that writes down what it is asked, and is answered by the test.
type asked struct {
	*batch[int, string]
	statements chan []int
	answers    chan error
}

func newAsked() asked {
	a := asked{batch: &batch[int, string]{}, statements: make(chan []int), answers: make(chan error)}
	a.run = func(ctx context.Context, calls []int) ([]string, error) {
		a.statements <- calls
		select {
		case err := <-a.answers:
			return column(calls, func(n int) string { return fmt.Sprint("answer ", n) }), err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return a
}

// calls starts calls one after the other, each once the one before waits, and returns their errors.
func (a asked) calls(ctx context.Context, t *testing.T, numbers ...int) func() []error {
	errs := make([]error, len(numbers))
	var all sync.WaitGroup
	for i, n := range numbers {
		before := a.length()
		all.Go(func() {
			var got string
			if got, errs[i] = a.do(ctx, n); errs[i] == nil && got != fmt.Sprint("answer ", n) {
				errs[i] = fmt.Errorf("the answer of another: %s", got)
			}
		})
		for a.length() == before {
			if ctx.Err() != nil || t.Context().Err() != nil {
				break
			}
			runtime.Gosched()
		}
	}
	return func() []error { all.Wait(); return errs }
}

func (a asked) length() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.waiting)
}

// first occupies the batch with a call, so that others gather.
func (a asked) first(t *testing.T) func() error {
	done := make(chan error, 1)
	go func() { _, err := a.do(t.Context(), 0); done <- err }()
	if got := <-a.statements; !slices.Equal(got, []int{0}) {
		t.Fatalf("the first call is asked as %v", got)
	}
	return func() error { return <-done }
}

func TestBatchGathersWhileOneRuns(t *testing.T) {
	a := newAsked()
	first := a.first(t)
	rest := a.calls(t.Context(), t, 1, 2, 3)
	a.answers <- nil
	if got := <-a.statements; !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("asked %v", got)
	}
	a.answers <- nil
	if err := errors.Join(append(rest(), first())...); err != nil {
		t.Error(err)
	}
	a.running.Wait()
	if a.busy || len(a.waiting) > 0 {
		t.Error("it is not at rest")
	}
}

// TestBatchRefusalIsOnesOwn: what the database refuses of one must not fail the others.
func TestBatchRefusalIsOnesOwn(t *testing.T) {
	for name, together := range map[string]error{"refused": &pgconn.PgError{Code: "22P02"}, "no text": &pgconn.PgError{Code: "22021"}, "deadlock": &pgconn.PgError{Code: "40P01"}, "no room for all": errAlone} {
		t.Run(name, func(t *testing.T) {
			a := newAsked()
			first := a.first(t)
			rest := a.calls(t.Context(), t, 1, 2)
			a.answers <- nil
			<-a.statements
			a.answers <- together
			if got := <-a.statements; !slices.Equal(got, []int{1}) {
				t.Errorf("asked %v", got)
			}
			bad := &pgconn.PgError{Code: "22P02"}
			a.answers <- bad
			if got := <-a.statements; !slices.Equal(got, []int{2}) {
				t.Errorf("asked %v", got)
			}
			a.answers <- nil
			errs := rest()
			if first() != nil || !errors.Is(errs[0], bad) || errs[1] != nil {
				t.Errorf("got %v", errs)
			}
		})
	}
}

// TestBatchWithoutDatabaseFailsAsOne: nobody is asked for again when there is nobody to ask.
func TestBatchWithoutDatabaseFailsAsOne(t *testing.T) {
	for name, lost := range map[string]error{"connection": errors.New("EOF"), "shutdown": &pgconn.PgError{Code: "57P01"}} {
		t.Run(name, func(t *testing.T) {
			a := newAsked()
			first := a.first(t)
			rest := a.calls(t.Context(), t, 1, 2)
			a.answers <- nil
			<-a.statements
			a.answers <- lost
			for _, err := range rest() {
				if !errors.Is(err, orchestrator.ErrUnavailable) {
					t.Errorf("got %v", err)
				}
			}
			if err := first(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBatchLeavesOutWhoHasLeft(t *testing.T) {
	a := newAsked()
	first := a.first(t)
	left, leave := context.WithCancel(t.Context())
	gone := a.calls(left, t, 1)
	stay := a.calls(t.Context(), t, 2)
	leave()
	if err := gone()[0]; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	a.answers <- nil
	if got := <-a.statements; !slices.Equal(got, []int{2}) {
		t.Errorf("asked %v", got)
	}
	a.answers <- nil
	if err := errors.Join(append(stay(), first())...); err != nil {
		t.Error(err)
	}
}

// TestBatchEndsWithItsMostPatientCaller: a database that does not answer holds nobody up for longer than somebody waits for it.
func TestBatchEndsWithItsMostPatientCaller(t *testing.T) {
	a := newAsked()
	first := a.first(t)
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	later, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	one, two := a.calls(soon, t, 1), a.calls(later, t, 2)
	a.answers <- nil
	<-a.statements // and no answer
	for _, err := range append(one(), two()...) {
		if !errors.Is(err, orchestrator.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
	if err := first(); err != nil {
		t.Error(err)
	}
	a.running.Wait()
}

// TestUndoneIsTriedAgain: what the database undid for another's sake says nothing against doing it again, as what it refused does.
func TestUndoneIsTriedAgain(t *testing.T) {
	for code, again := range map[string]bool{"40P01": true, "40001": true, "57014": true, "53100": true, "08006": true, "23505": false, "42601": false} {
		if err := unavailable(&pgconn.PgError{Code: code}); errors.Is(err, orchestrator.ErrUnavailable) != again {
			t.Errorf("%s: %v", code, err)
		}
	}
}
