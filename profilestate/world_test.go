package profilestate

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	errNoProfile = errors.New("no such profile")
	errHeld      = errors.New("a session holds the profile")
)

// world is an index, its ledger and a key store with the semantics of the contracts, in memory, or in a file that processes share.
type world struct {
	path string // "": in memory

	mu sync.Mutex // guards what follows
	s  worldState

	before func() error // runs before a Publish; an error is its answer
	after  func() error // runs after a Publish that took effect; an error is its answer
}

type worldState struct {
	Profiles    map[string]*worldProfile
	AccountKeys map[string]AccountKey
	ProfileKeys map[string]ProfileKey
	Ledger      map[string]Destroyed
	KeyLedger   map[string]Destroyed
}

type worldProfile struct {
	Current, Last int64
	Generations   map[int64]Generation
	Deleted       bool
	Holder        string // session; "" is nobody
	Term          int64
}

func newWorld() *world {
	return &world{s: worldState{make(map[string]*worldProfile), make(map[string]AccountKey), make(map[string]ProfileKey), make(map[string]Destroyed), make(map[string]Destroyed)}}
}

func (w *world) index() *testIndex { return &testIndex{w} }
func (w *world) keys() *testKeys   { return &testKeys{w} }

// do runs one atomic step.
func (w *world) do(f func(*worldState) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.path == "" {
		return f(&w.s)
	}
	lock, err := os.OpenFile(w.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	s := newWorld().s
	if b, err := os.ReadFile(w.path); err == nil {
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
	}
	if err := f(&s); err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(w.path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(w.path+".new", w.path)
}

func (r Ref) String() string { return r.Account + "/" + r.Profile }

// hold makes a session the profile's writer; the profile comes to be.
func (w *world) hold(ref Ref, session string, term int64) {
	_ = w.do(func(s *worldState) error {
		p := s.make(ref)
		p.Holder, p.Term = session, term
		return nil
	})
}

func (s *worldState) make(ref Ref) *worldProfile {
	p := s.Profiles[ref.String()]
	if p == nil {
		p = &worldProfile{Generations: make(map[int64]Generation)}
		s.Profiles[ref.String()] = p
	}
	return p
}

func (s *worldState) profile(ref Ref) (*worldProfile, error) {
	p := s.Profiles[ref.String()]
	if p == nil || p.Deleted {
		return nil, errNoProfile
	}
	return p, nil
}

type testIndex struct{ *world }

func (x *testIndex) Head(_ context.Context, ref Ref) (h Head, err error) {
	return h, x.do(func(s *worldState) error {
		p, err := s.profile(ref)
		if err != nil {
			return err
		}
		h = Head{p.Generations[p.Current], p.Last, s.Ledger[Ref{ref.Account, ""}.String()].Epoch}
		return nil
	})
}

func (x *testIndex) Publish(_ context.Context, w Writer, ref Ref, head Head, next Generation) error {
	if x.before != nil {
		if err := x.before(); err != nil {
			return err
		}
	}
	err := x.do(func(s *worldState) error {
		p, err := s.profile(ref)
		if err != nil {
			return err
		}
		switch {
		case w.Session == "" && p.Holder != "":
			return errHeld
		case w.Session != "" && (p.Holder != w.Session || p.Term != w.Term):
			return ErrFenced
		case s.Ledger[Ref{ref.Account, ""}.String()].Epoch != head.Destroyed:
			return ErrKeyDestroyed
		case p.Current != head.Current.Number || p.Generations[p.Current].Digest != head.Current.Digest || p.Last != head.Last || next.Number != p.Last+1:
			return ErrConflict
		}
		p.Generations[next.Number], p.Last = next, next.Number
		if w.Candidate == "" {
			p.Current = next.Number
		}
		return nil
	})
	if err == nil && x.after != nil {
		return x.after()
	}
	return err
}

func (x *testIndex) Generations(_ context.Context, ref Ref) (list []Generation, err error) {
	return list, x.do(func(s *worldState) error {
		p, err := s.profile(ref)
		if err != nil {
			return err
		}
		for _, n := range slices.Backward(slices.Sorted(maps.Keys(p.Generations))) {
			list = append(list, p.Generations[n])
		}
		return nil
	})
}

func (x *testIndex) Quarantine(_ context.Context, ref Ref, number int64, reason string) error {
	return x.do(func(s *worldState) error {
		p, err := s.profile(ref)
		if err != nil {
			return err
		}
		g := p.Generations[number]
		g.State, g.Reason = Quarantined, reason
		p.Generations[number] = g
		return nil
	})
}

func (x *testIndex) MakeCurrent(_ context.Context, ref Ref, head Head, number int64) error {
	return x.do(func(s *worldState) error {
		p, err := s.profile(ref)
		if err != nil {
			return err
		}
		g, ok := p.Generations[number]
		switch {
		case p.Holder != "":
			return errHeld
		case !ok || g.State == Quarantined || p.Current != head.Current.Number || p.Last != head.Last:
			return ErrConflict
		}
		g.State, g.Reason = Good, ""
		p.Generations[number], p.Current = g, number
		return nil
	})
}

func (x *testIndex) Forget(_ context.Context, ref Ref, number int64) error {
	return x.do(func(s *worldState) error {
		p, err := s.profile(ref)
		if err != nil {
			return err
		}
		if p.Current == number {
			return ErrCurrent
		}
		delete(p.Generations, number)
		return nil
	})
}

func (x *testIndex) DeleteProfile(_ context.Context, ref Ref, epoch int64) error {
	return x.do(func(s *worldState) error {
		p, err := s.profile(ref)
		if err != nil {
			return err
		}
		if p.Holder != "" {
			return errHeld
		}
		p.Deleted, p.Generations = true, nil
		s.Ledger[ref.String()] = Destroyed{ref.Account, ref.Profile, epoch, time.Now()}
		return nil
	})
}

func (x *testIndex) Files(_ context.Context, ref Ref) (files []string, err error) {
	return files, x.do(func(s *worldState) error {
		p := s.Profiles[ref.String()]
		if p == nil {
			return errNoProfile
		}
		for _, g := range p.Generations {
			files = append(files, g.File)
		}
		return nil
	})
}

func (x *testIndex) Prune(_ context.Context, keep int, before time.Time) (n int, err error) {
	return n, x.do(func(s *worldState) error {
		for _, p := range s.Profiles {
			newer := 0
			for _, number := range slices.Backward(slices.Sorted(maps.Keys(p.Generations))) {
				g := p.Generations[number]
				if newer >= keep && number != p.Current && g.At.Before(before) {
					delete(p.Generations, number)
					n++
				}
				if g.State == Good {
					newer++
				}
			}
		}
		return nil
	})
}

func (x *testIndex) Destroyed(context.Context) (lines []Destroyed, err error) {
	return lines, x.do(func(s *worldState) error {
		lines = slices.Collect(maps.Values(s.Ledger))
		return nil
	})
}

func (x *testIndex) RecordDestroyed(_ context.Context, lines []Destroyed) error {
	return x.do(func(s *worldState) error { record1(s.Ledger, lines); return nil })
}

func record1(ledger map[string]Destroyed, lines []Destroyed) {
	for _, d := range lines {
		if key := (Ref{d.Account, d.Profile}).String(); ledger[key].Epoch < d.Epoch {
			ledger[key] = d
		}
	}
}

type testKeys struct{ *world }

func (k *testKeys) Keys(_ context.Context, ref Ref) (w WrappedKeys, err error) {
	return w, k.do(func(s *worldState) error {
		w = WrappedKeys{s.AccountKeys[ref.Account], s.ProfileKeys[ref.String()], s.KeyLedger[Ref{ref.Account, ""}.String()].Epoch}
		w.Account.Account, w.Profile.Ref = ref.Account, ref
		return nil
	})
}

func (k *testKeys) PutAccountKey(_ context.Context, key AccountKey) (won AccountKey, err error) {
	return won, k.do(func(s *worldState) error {
		if s.AccountKeys[key.Account].Epoch < key.Epoch {
			s.AccountKeys[key.Account] = key
		}
		won = s.AccountKeys[key.Account]
		return nil
	})
}

func (k *testKeys) PutProfileKey(_ context.Context, key ProfileKey) (won ProfileKey, err error) {
	return won, k.do(func(s *worldState) error {
		if s.AccountKeys[key.Account].Epoch != key.Epoch {
			return ErrConflict
		}
		if s.ProfileKeys[key.Ref.String()].Epoch < key.Epoch {
			s.ProfileKeys[key.Ref.String()] = key
		}
		won = s.ProfileKeys[key.Ref.String()]
		return nil
	})
}

func (k *testKeys) Rewrap(_ context.Context, root string, limit int, f func(AccountKey) (AccountKey, error)) (n int, err error) {
	return n, k.do(func(s *worldState) error {
		for name, a := range s.AccountKeys {
			if a.Root == root || n == limit {
				continue
			}
			next, err := f(a)
			if err != nil {
				return err
			}
			s.AccountKeys[name] = next
			n++
		}
		return nil
	})
}

func (k *testKeys) RotateAccount(_ context.Context, account string, f func(AccountKey, []ProfileKey) (AccountKey, []ProfileKey, error)) error {
	return k.do(func(s *worldState) error {
		if s.AccountKeys[account].Epoch == 0 {
			return ErrNoKey
		}
		var list []ProfileKey
		for _, p := range s.ProfileKeys {
			if p.Account == account {
				list = append(list, p)
			}
		}
		a, profiles, err := f(s.AccountKeys[account], list)
		if err != nil {
			return err
		}
		s.AccountKeys[account] = a
		for _, p := range profiles {
			s.ProfileKeys[p.Ref.String()] = p
		}
		return nil
	})
}

func (k *testKeys) Count(context.Context) (n KeyCount, err error) {
	return n, k.do(func(s *worldState) error {
		n = KeyCount{make(map[string]int), len(s.ProfileKeys), len(s.KeyLedger)}
		for _, a := range s.AccountKeys {
			n.AccountsByRoot[a.Root]++
		}
		return nil
	})
}

func (k *testKeys) Export(context.Context) (d KeyDump, err error) {
	return d, k.do(func(s *worldState) error {
		d = KeyDump{slices.Collect(maps.Values(s.AccountKeys)), slices.Collect(maps.Values(s.ProfileKeys)), slices.Collect(maps.Values(s.KeyLedger))}
		return nil
	})
}

func (k *testKeys) Import(_ context.Context, d KeyDump) (n int, err error) {
	return n, k.do(func(s *worldState) error {
		record1(s.KeyLedger, d.Destroyed)
		for _, a := range d.Accounts {
			if s.AccountKeys[a.Account].Epoch == 0 && s.KeyLedger[Ref{a.Account, ""}.String()].Epoch < a.Epoch {
				s.AccountKeys[a.Account] = a
				n++
			}
		}
		for _, p := range d.Profiles {
			dead := max(s.KeyLedger[Ref{p.Account, ""}.String()].Epoch, s.KeyLedger[p.Ref.String()].Epoch)
			if s.ProfileKeys[p.Ref.String()].Epoch == 0 && s.AccountKeys[p.Account].Epoch == p.Epoch && dead < p.Epoch {
				s.ProfileKeys[p.Ref.String()] = p
				n++
			}
		}
		return nil
	})
}

func (k *testKeys) Destroyed(context.Context) (lines []Destroyed, err error) {
	return lines, k.do(func(s *worldState) error {
		lines = slices.Collect(maps.Values(s.KeyLedger))
		return nil
	})
}

func (k *testKeys) RecordDestroyed(_ context.Context, lines []Destroyed) error {
	return k.do(func(s *worldState) error {
		record1(s.KeyLedger, lines)
		for name, a := range s.AccountKeys {
			if a.Epoch <= s.KeyLedger[Ref{a.Account, ""}.String()].Epoch {
				delete(s.AccountKeys, name)
			}
		}
		for name, p := range s.ProfileKeys {
			if p.Epoch <= max(s.KeyLedger[Ref{p.Account, ""}.String()].Epoch, s.KeyLedger[name].Epoch) {
				delete(s.ProfileKeys, name)
			}
		}
		return nil
	})
}

// clone is a copy that shares nothing.
func clone(t testing.TB, s worldState) worldState {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	c := newWorld().s
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}
