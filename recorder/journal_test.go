package recorder

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

func TestJournalIsTriedUntilItTakesEveryState(t *testing.T) {
	b := newBench(t)
	var calls atomic.Int64
	b.ledger.fail = func(u RecordingUpdate) error {
		if n := calls.Add(1); u.State != StateRecording && n%2 == 0 {
			return errors.New("database is away")
		}
		return nil
	}
	r := b.begin("patient", place.EUOnly)
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
		t.Fatal(err)
	}
	b.seal(r)
	b.ledger.awaitState("patient", StateAvailable)
	<-r.Done()
	if got, want := b.ledger.states("patient"), []State{StateRecording, StateSealed, StateUploading, StateAvailable}; !slices.Equal(got, want) {
		t.Errorf("states %v, want %v", got, want)
	}
	b.wantNoSpool("patient")
}

func TestSpoolStaysUntilTheJournalKnows(t *testing.T) {
	b := newBench(t)
	var mute atomic.Bool
	asked := make(chan struct{}, 1000)
	b.ledger.fail = func(u RecordingUpdate) error {
		if mute.Load() && u.State == StateAvailable {
			asked <- struct{}{}
			return errors.New("database is away")
		}
		return nil
	}
	mute.Store(true)
	r := b.begin("unheard", place.EUOnly)
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
		t.Fatal(err)
	}
	b.seal(r)
	<-asked
	b.close()
	if _, err := os.Stat(filepath.Join(b.cfg.Dir, "unheard", bodyName)); err != nil {
		t.Fatalf("the spool is gone, the journal does not know where the recording is: %v", err)
	}
	mute.Store(false)
	b.ledger.mu.Lock()
	delete(b.ledger.by, "unheard") // a restarted recorder tells from where it is
	b.ledger.mu.Unlock()
	b.open()
	b.drain()
	b.ledger.awaitState("unheard", StateAvailable)
	if n := b.storage.front.Calls("recordings-eu", "PutObject"); n != 1 {
		t.Errorf("%d puts of one recording", n)
	}
	b.wantNoSpool("unheard")
}

func TestFencedRecordingIsLetGo(t *testing.T) {
	b := newBench(t)
	b.ledger.fail = func(u RecordingUpdate) error {
		if u.State != StateRecording {
			return ErrFenced
		}
		return nil
	}
	r := b.begin("fenced", place.EUOnly)
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
		t.Fatal(err)
	}
	b.seal(r)
	select {
	case <-r.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("still holds on")
	}
	if _, err := os.Stat(filepath.Join(b.cfg.Dir, "fenced", bodyName)); err != nil {
		t.Errorf("the spool of the newer holder is gone: %v", err)
	}
}

func TestBeginFailsWithoutTheJournal(t *testing.T) {
	b := newBench(t)
	b.ledger.fail = func(RecordingUpdate) error { return errors.New("database is away") }
	if _, err := b.rec.Begin(t.Context(), Spec{ID: "x", Session: "s", Account: "a", Placement: place.EUOnly}); err == nil {
		t.Error("begun")
	}
	b.wantNoSpool("x")
}

func TestTwoRecordersOnOneVolume(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	r := b.begin("held", place.EUOnly)
	src := play(stream)
	src.hold = make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- r.Ingest(t.Context(), src) }()
	// A second one starts while the first one records, and leaves it alone.
	second := b.cfg
	second.Journal = newLedger(t)
	other, err := Open(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Begin(t.Context(), r.spec); !errors.Is(err, ErrExists) {
		t.Errorf("begun by the other one: %v", err)
	}
	if err := other.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(src.hold)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if s := b.seal(r); s.Partial {
		t.Errorf("sealed %+v", s)
	}
	b.drain()
}

func TestSealEndsAnIngestThatStillRuns(t *testing.T) {
	b := newBench(t)
	r := b.begin("late", place.EUOnly)
	src := play(film(t, 3, 1))
	src.hold = make(chan struct{})
	defer close(src.hold)
	ended := make(chan error, 1)
	go func() { ended <- r.Ingest(t.Context(), src) }()
	b.waitFor("acknowledgement", func() bool { return src.ackedTo() == int64(len(src.stream)) })
	sealed := b.seal(r)
	if sealed.Cause != CauseLost || sealed.Duration != 3*time.Second {
		t.Errorf("sealed %+v", sealed)
	}
	if err := <-ended; !errors.Is(err, ErrSealed) {
		t.Errorf("Ingest: %v", err)
	}
	b.drain()
}

func TestSealThatFailedIsDoneInTheBackground(t *testing.T) {
	b := newBench(t)
	r := b.begin("hasty", place.EUOnly)
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	r.gate <- struct{}{} // somebody is busy with it
	if _, err := r.Seal(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("Seal: %v", err)
	}
	<-r.gate
	if u := b.ledger.awaitState("hasty", StateAvailable); u.Partial {
		t.Errorf("journal has %+v", u)
	}
	<-r.Done()
}

func TestClosedRecorder(t *testing.T) {
	b := newBench(t)
	r := b.begin("open", place.EUOnly)
	b.close()
	if _, err := b.rec.Begin(t.Context(), Spec{ID: "x", Session: "s", Account: "a", Placement: place.EUOnly}); !errors.Is(err, ErrClosed) {
		t.Errorf("Begin: %v", err)
	}
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); !errors.Is(err, ErrSpool) {
		t.Errorf("Ingest: %v", err)
	}
}

// TestSlowJournalOfOneHoldsUpNoOther: a row that is locked for one recording is no reason for another not to begin.
func TestSlowJournalOfOneHoldsUpNoOther(t *testing.T) {
	b := newBench(t)
	b.close()
	j := &stuckJournal{Journal: b.ledger, id: "slow", entered: make(chan struct{}), leave: make(chan struct{})}
	b.cfg.Journal = j
	b.open()
	slow := make(chan error, 1)
	go func() {
		_, err := b.rec.Begin(t.Context(), Spec{ID: "slow", Session: "s", Account: "a", Placement: place.EUOnly})
		slow <- err
	}()
	<-j.entered
	quick := make(chan error, 1)
	go func() {
		_, err := b.rec.Begin(t.Context(), Spec{ID: "quick", Session: "s", Account: "a", Placement: place.EUOnly})
		quick <- err
	}()
	select {
	case err := <-quick:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(journalTimeout / 2):
		t.Error("one recording cannot begin while the journal is busy with another")
	}
	b.close() // has nothing to wait for either
	close(j.leave)
	if err := <-slow; !errors.Is(err, ErrClosed) {
		t.Errorf("Begin that was overtaken by Close: %v", err)
	}
	b.open() // and what was journaled comes to its end
	b.ledger.awaitState("slow", StateEmpty)
}

type stuckJournal struct {
	Journal
	id             string
	entered, leave chan struct{}
	once           sync.Once
}

func (j *stuckJournal) RecordingChanged(ctx context.Context, u RecordingUpdate) error {
	if u.ID == j.id {
		j.once.Do(func() { close(j.entered) })
		select {
		case <-j.leave:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return j.Journal.RecordingChanged(ctx, u)
}
