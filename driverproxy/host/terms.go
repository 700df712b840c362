package host

import (
	"slices"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// termsKept is how many sessions' terms are remembered: far more than a host runs while a late frame can be on its way.
const termsKept = 4096

// terms remembers what became of the latest sessions.
type terms struct {
	of    map[string]*fate
	order []string // oldest first
}

type fate struct {
	newest   int64 // highest term seen
	released int64 // highest term released
	leftover *wire.Failure
	wiped    *wire.Wiped
}

func newTerms() terms { return terms{of: map[string]*fate{}} }

func (t *terms) get(session string) fate {
	if f := t.of[session]; f != nil {
		return *f
	}
	return fate{}
}

func (t *terms) newest(session string) int64 { return t.get(session).newest }

func (t *terms) released(session string) int64 { return t.get(session).released }

// left is what became of a session that is over: what was wiped, and what could not be.
func (t *terms) left(session string) (*wire.Wiped, *wire.Failure) {
	f := t.get(session)
	return f.wiped, f.leftover
}

func (t *terms) see(session string, term int64) {
	f := t.of[session]
	if f == nil {
		f = &fate{}
		t.of[session] = f
		t.order = append(t.order, session)
	}
	f.newest = max(f.newest, term)
	if len(t.order) > termsKept {
		delete(t.of, t.order[0])
		t.order = slices.Delete(t.order, 0, 1)
	}
}

// release and leave are for a session that was seen.
func (t *terms) release(session string, term int64) { t.of[session].released = term }

func (t *terms) leave(session string, w *wire.Wiped, f *wire.Failure) {
	if of := t.of[session]; of != nil {
		of.wiped, of.leftover = w, f
	}
}
