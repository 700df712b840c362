package recorder

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/driftstack/fleet/orchestrator/place"
)

func TestStorageKilledWhileRecording(t *testing.T) {
	b := newBench(t)
	stream := film(t, 20, 8)
	r := b.begin("storm", place.Replicated)
	src := play(stream[:2*len(stream)/3])
	src.end, src.hold = nil, make(chan struct{})
	src.lost = errLost
	ended := make(chan error, 1)
	go func() { ended <- r.Ingest(t.Context(), src) }()
	b.waitFor("part", func() bool { return b.storage.front.Calls("recordings-eu", "UploadPart") >= 1 })
	b.storage.kill()
	close(src.hold)
	if err := <-ended; !errors.Is(err, errLost) {
		t.Fatalf("Ingest: %v", err)
	}
	// The host comes back from what was acknowledged while the storage is still down, and goes on to the end.
	back := play(stream)
	back.pos = src.ackedTo()
	if err := r.Ingest(t.Context(), back); err != nil {
		t.Fatalf("Ingest after a break: %v", err)
	}
	sealed := b.seal(r)
	if sealed.Partial {
		t.Errorf("sealed %+v, although nothing is missing", sealed)
	}
	if u, _ := b.ledger.last("storm"); u.State == StateAvailable {
		t.Error("available with the storage dead")
	}
	b.storage.start()
	b.drain()
	u := b.ledger.awaitState("storm", StateReplicated)
	b.wantObject(place.EU, u.Key, sealed, 200)
	b.wantObject(place.US, u.Key, sealed, 200)
	b.wantNoSpool("storm")
}

// TestStorageDownForAWholeSession: nothing is there from before its start until after its end, and then all of it goes up, once.
func TestStorageDownForAWholeSession(t *testing.T) {
	b := newBench(t)
	b.storage.kill()
	stream := film(t, 20, 8)
	r := b.begin("alone", place.Replicated)
	if err := r.Ingest(t.Context(), play(stream)); err != nil {
		t.Fatal(err)
	}
	sealed := b.seal(r)
	if sealed.Partial {
		t.Errorf("sealed %+v", sealed)
	}
	b.waitFor("a try", func() bool {
		return b.storage.front.Calls("recordings-eu", "Create") > 1 && b.storage.front.Calls("recordings-us", "Create") > 1
	})
	if u, _ := b.ledger.last("alone"); u.State == StateAvailable || u.State == StateReplicated {
		t.Errorf("journal has %+v", u)
	}
	b.storage.start()
	b.drain()
	u := b.ledger.awaitState("alone", StateReplicated)
	for _, region := range []place.Region{place.EU, place.US} {
		b.wantObject(region, u.Key, sealed, 200)
		if n, parts := int64(b.storage.front.Calls("recordings-"+string(region), "UploadPart")), partCount(sealed.Bytes, minPartSize); n > parts {
			t.Errorf("%d parts were sent to the %s, of %d", n, region, parts)
		}
		if left := b.uploads(region); left != nil {
			t.Errorf("left in the storage: %v", left)
		}
	}
	b.wantNoSpool("alone")
}

func TestOneRegionDown(t *testing.T) {
	b := newBench(t)
	b.storage.front.Cut("recordings-us", true)
	r := b.begin("half", place.Replicated)
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
		t.Fatal(err)
	}
	sealed := b.seal(r)
	u := b.ledger.awaitState("half", StateAvailable)
	if u.Copies[1].State == CopyVerified {
		t.Errorf("copies %+v with the US down", u.Copies)
	}
	b.wantObject(place.EU, u.Key, sealed, 30)
	if _, err := os.Stat(filepath.Join(b.cfg.Dir, "half", bodyName)); err != nil {
		t.Errorf("the spool is gone before the US copy is there: %v", err)
	}
	b.storage.front.Cut("recordings-us", false)
	b.ledger.awaitState("half", StateReplicated)
	b.drain()
	b.wantObject(place.US, u.Key, sealed, 30)
	b.wantNoSpool("half")
}

// TestRegionThatHangsHoldsUpNoOther: one request to the US is stuck, and takes the only slot there is for one.
func TestRegionThatHangsHoldsUpNoOther(t *testing.T) {
	b := newBench(t)
	b.close()
	asked := make(chan struct{}, 100)
	hang := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path { // the probe is answered
		case "/recordings-us":
			return
		case "/recordings-eu":
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/recordings-us/"+probePrefix) {
			_, _ = io.WriteString(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
			return
		}
		_, _ = io.Copy(io.Discard, r.Body) // or the server does not notice that the client has gone
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(hang.Close)
	b.cfg.US.Endpoint, b.cfg.Concurrency = hang.URL, 1
	b.open()
	t.Cleanup(b.close) // before the server
	for _, spec := range []struct {
		id string
		p  place.Placement
	}{{"stuck", place.Replicated}, {"free", place.EUOnly}} {
		r := b.begin(spec.id, spec.p)
		if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
			t.Fatal(err)
		}
		b.seal(r)
		if spec.p == place.Replicated {
			<-asked
		}
	}
	b.ledger.awaitState("free", StateAvailable)
	b.ledger.awaitState("stuck", StateAvailable)
}

func TestLostAnswersAreSettledByWhatIsThere(t *testing.T) {
	b := newBench(t)
	for id, stream := range map[string][]byte{"small": film(t, 3, 1), "large": film(t, 20, 8)} {
		for _, op := range []string{"PutObject", "Create", "UploadPart", "Complete"} {
			b.storage.front.Lose(op, 1)
		}
		r := b.begin(id, place.EUOnly)
		if err := r.Ingest(t.Context(), play(stream)); err != nil {
			t.Fatal(err)
		}
		sealed := b.seal(r)
		b.drain()
		b.wantObject(place.EU, b.ledger.awaitState(id, StateAvailable).Key, sealed, -1)
	}
}

func TestForeignObjectIsNotOverwritten(t *testing.T) {
	b := newBench(t)
	key := "recordings/acme/session-taken/taken.webm"
	if err := b.rec.eu.put(t.Context(), key, strings.NewReader("theirs"), 6, md5Of("theirs")); err != nil {
		t.Fatal(err)
	}
	r := b.begin("taken", place.EUOnly)
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
		t.Fatal(err)
	}
	b.seal(r)
	u := b.ledger.awaitState("taken", StateQuarantined)
	if u.Cause != CauseConflict || string(b.object(place.EU, key)) != "theirs" {
		t.Errorf("cause %q", u.Cause)
	}
	<-r.Done()
	if _, err := os.Stat(filepath.Join(b.cfg.Dir, quarantineName, "taken.1", bodyName)); err != nil {
		t.Errorf("the spool was not moved aside: %v", err)
	}
}
