package recorder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// ErrNoRoom says that the spool's volume has less free than a mark of Config allows for.
var ErrNoRoom = errors.New("recorder: the spool's volume is nearly full: give it room, or see why recordings do not get to storage")

// Room is what the spool's volume has left.
type Room int

// Rooms, from the best to the worst.
const (
	RoomEnough Room = iota
	RoomLow         // below Config.BeginAbove: no recording is begun
	RoomNone        // below Config.TakeAbove: nothing is taken from hosts either
)

// String implements fmt.Stringer.
func (r Room) String() string {
	return [...]string{RoomEnough: "enough", RoomLow: "low", RoomNone: "none"}[r]
}

// volume watches what the spool's volume has free.
type volume struct {
	dir         string
	free        func(dir string) (int64, error)
	begin, take int64 // marks
	log         *zap.Logger

	mu      sync.Mutex // guards what follows
	bytes   int64
	room    Room
	changed chan struct{} // closed when room has changed
}

func newVolume(c *Config) *volume {
	return &volume{dir: c.Dir, free: c.Free, begin: c.BeginAbove, take: c.TakeAbove, log: c.Log, changed: make(chan struct{})}
}

// freeBytes is what an unprivileged process may still write to dir's volume.
func freeBytes(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}

// look measures. A volume that cannot be asked is taken to be as it was: its writes say what is wrong with it.
func (v *volume) look() {
	free, err := v.free(v.dir)
	if err != nil {
		v.log.Warn("the spool's volume does not say how much is free", zap.Error(err))
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.room
	v.bytes, v.room = free, v.roomOf(free, was)
	if v.room == was {
		return
	}
	close(v.changed)
	v.changed = make(chan struct{})
	say := v.log.Error
	if v.room < was {
		say = v.log.Info
	}
	say("room on the spool's volume", zap.Stringer("room", v.room), zap.Stringer("was", was), zap.Int64("free", free),
		zap.Int64("begin_above", v.begin), zap.Int64("take_above", v.take))
}

// roomOf releases a mark a tenth above it: at the mark itself each byte would turn it over.
func (v *volume) roomOf(free int64, was Room) Room {
	below := func(mark int64, room Room) bool {
		if was >= room {
			mark += mark / 10
		}
		return free < mark
	}
	switch {
	case below(v.take, RoomNone):
		return RoomNone
	case below(v.begin, RoomLow):
		return RoomLow
	}
	return RoomEnough
}

func (v *volume) lookAgain(ctx context.Context, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			v.look()
		case <-ctx.Done():
			return
		}
	}
}

func (v *volume) now() (free int64, room Room, changed <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.bytes, v.room, v.changed
}

// mayTake waits until there is room for what hosts send. ErrNoRoom: there was none until ctx ended.
func (v *volume) mayTake(ctx context.Context) error {
	for {
		_, room, changed := v.now()
		if room < RoomNone {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNoRoom, context.Cause(ctx))
		}
	}
}

// Room is what the spool's volume had free when it was last looked at, in bytes, and what follows from it.
func (r *Recorder) Room() (free int64, room Room) {
	free, room, _ = r.volume.now()
	return free, room
}

// decline journals a recording that is not begun for lack of room, so that whoever looks for it reads why.
func (r *Recorder) decline(ctx context.Context, spec Spec) error {
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	err := r.cfg.Journal.RecordingChanged(ctx, RecordingUpdate{ID: spec.ID, Session: spec.Session, Account: spec.Account, Term: spec.Term,
		Placement: spec.Placement, Key: spec.Key(), Started: spec.Started, State: StateEmpty, Cause: CauseSpoolFull, At: r.cfg.Now().UTC()})
	if err != nil {
		return fmt.Errorf("recorder: begin: journal: %w", err)
	}
	return ErrNoRoom
}
