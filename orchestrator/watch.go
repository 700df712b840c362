package orchestrator

import "sync"

// watch wakes those who wait for news of a session. A wake carries nothing: the waiter looks for itself, so wakes may
// be merged and may come without news.
type watch struct {
	mu   sync.Mutex
	subs map[string]map[chan struct{}]struct{} // guarded by mu; by session
}

func newWatch() *watch { return &watch{subs: map[string]map[chan struct{}]struct{}{}} }

// subscribe returns a channel with room for one wake, and what ends the subscription.
func (w *watch) subscribe(session string) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs[session] == nil {
		w.subs[session] = map[chan struct{}]struct{}{}
	}
	w.subs[session][c] = struct{}{}
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.subs[session], c)
		if len(w.subs[session]) == 0 {
			delete(w.subs, session)
		}
	}
}

// wake wakes the waiters of a session, or all of them when session is empty.
func (w *watch) wake(session string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if session != "" {
		for c := range w.subs[session] {
			poke(c)
		}
		return
	}
	for _, m := range w.subs {
		for c := range m {
			poke(c)
		}
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
