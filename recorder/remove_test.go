package recorder

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// unwanted are Removals in memory; what was handed out comes again at the next look.
type unwanted struct {
	mu   sync.Mutex // guards what follows
	list []StoredCopy
	gone map[string]bool
}

func (u *unwanted) CopiesToRemove(_ context.Context, region place.Region, _, _ time.Duration, _ int) ([]StoredCopy, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(u.list), func(c StoredCopy) bool { return c.Region != region || u.gone[c.Recording] }), nil
}

func (u *unwanted) CopyRemoved(_ context.Context, c StoredCopy, _ time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gone[c.Recording] = true
	return nil
}

func (u *unwanted) add(c StoredCopy) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.list = append(u.list, c)
}

func (u *unwanted) has(id string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.gone[id]
}

// TestRemoveCopies: a copy that is not wanted goes, once its region answers and by one object after the other, whoever runs by then; the others stay.
func TestRemoveCopies(t *testing.T) {
	b := newBench(t)
	u := &unwanted{gone: map[string]bool{}}
	b.close()
	b.cfg.Removals, b.cfg.ScanEvery = u, 50*time.Millisecond
	b.open()
	var keys []string
	var sealed []Sealed
	for _, id := range []string{"goes", "stays"} {
		r := b.begin(id, place.Replicated)
		if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
			t.Fatal(err)
		}
		sealed = append(sealed, b.seal(r))
		keys = append(keys, b.ledger.awaitState(id, StateReplicated).Key)
	}
	b.storage.front.Cut("recordings-us", true)
	before := b.storage.front.Calls("recordings-us", "other")
	was, _ := b.ledger.last("goes")
	u.add(StoredCopy{Recording: "goes", Region: place.US, Bucket: "recordings-us", Key: keys[0], EU: was.Copies[0].ETag})
	u.add(StoredCopy{Recording: "other bucket", Region: place.US, Bucket: "recordings-old", Key: keys[1]})
	b.waitFor("a try", func() bool { return b.storage.front.Calls("recordings-us", "other") >= before+2 })
	if u.has("goes") {
		t.Fatal("said to be gone with its region down")
	}
	b.close()
	b.storage.front.Cut("recordings-us", false)
	b.open()
	b.waitFor("the removal", func() bool { return u.has("goes") })
	if b.object(place.US, keys[0]) != nil {
		t.Error("the copy is still there")
	}
	b.wantObject(place.EU, keys[0], sealed[0], -1)
	b.wantObject(place.EU, keys[1], sealed[1], -1)
	b.wantObject(place.US, keys[1], sealed[1], -1)
	if u.has("other bucket") {
		t.Error("a copy in a bucket that this recorder has not is said to be gone")
	}
	if n := b.storage.front.Calls("recordings-eu", "DeleteObject"); n != 0 {
		t.Errorf("%d objects were deleted in the EU", n)
	}
}
