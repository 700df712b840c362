package recorder

import (
	"errors"
	"testing"

	"github.com/driftstack/fleet/orchestrator/place"
)

// TestLook: what lies in each region is listed, of one account or of all, and a bucket that is not where it has to be any more is told.
func TestLook(t *testing.T) {
	b := newBench(t)
	for id, p := range map[string]place.Placement{"both": place.Replicated, "eu-1": place.EUOnly, "eu-2": place.EUOnly} {
		r := b.begin(id, p)
		if err := r.Ingest(t.Context(), play(film(t, 1, 1))); err != nil {
			t.Fatal(err)
		}
		b.seal(r)
	}
	b.drain()
	for account, want := range map[string][2]int64{"acme": {3, 1}, "": {3, 1}, "acm": {}, "acme2": {}, "../acme": {}} {
		got, err := b.rec.Look(t.Context(), account)
		if err != nil {
			t.Fatal(err)
		}
		if account == "../acme" {
			if len(got) != 0 {
				t.Errorf("%q: %+v", account, got)
			}
			continue
		}
		if len(got) != 2 || got[0].Region != place.EU || got[1].Region != place.US || [2]int64{got[0].Objects, got[1].Objects} != want ||
			(got[0].Bytes > 0) != (want[0] > 0) || got[0].More {
			t.Errorf("%q: %+v", account, got)
		}
	}
	b.storage.front.Cut("recordings-us", true)
	got, err := b.rec.Look(t.Context(), "acme")
	if err == nil || errors.Is(err, ErrMisplaced) || len(got) != 1 || got[0].Objects != 3 {
		t.Errorf("with the US down: %+v, %v", got, err)
	}
	b.storage.front.Cut("recordings-us", false)

	// Somebody gives the EU bucket a twin at the default endpoint.
	cfg := b.cfg
	us := *cfg.US
	us.Endpoint = b.storage.jurisdiction("recordings-us", "recordings-eu")
	moved, err := newStore(cfg.EU.Target, cfg.EU.site(&us), b.rec.cfg.stores())
	if err != nil {
		t.Fatal(err)
	}
	defer moved.idle()
	eu := b.rec.eu
	b.rec.eu = euStore{moved}
	got, err = b.rec.Look(t.Context(), "acme")
	b.rec.eu = eu
	if !errors.Is(err, ErrMisplaced) || len(got) != 2 {
		t.Errorf("with a bucket in both: %+v, %v", got, err)
	}
}
