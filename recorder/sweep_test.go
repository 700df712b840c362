package recorder

import (
	"bytes"
	"context"
	"crypto/md5"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// books are Sweeps in memory, on top of what the ledger has.
type books struct {
	l  *ledger
	mu sync.Mutex // guards what follows
	// useless are recordings nothing can become of; due are copies, each handed out once.
	useless  map[string]bool
	due      []CheckedCopy
	unwanted map[string]bool
	answered func() // called before an answer is given
	findings []Finding

	asked, spokenAt int // how often whether a recording is abandoned; from which time on it is not, if from any
}

func (k *books) Useless(_ context.Context, _ place.Region, _, id string) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.useless[id], nil
}

func (k *books) CopiesToCheck(_ context.Context, region place.Region, bucket string, _, _ time.Duration, _ int) (list []CheckedCopy, _ error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.due = slices.DeleteFunc(k.due, func(c CheckedCopy) bool {
		if c.Region != region || c.Bucket != bucket {
			return false
		}
		list = append(list, c)
		return true
	})
	return list, nil
}

func (k *books) StillAbandoned(_ context.Context, c CheckedCopy) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	return k.spokenAt == 0 || k.asked < k.spokenAt, nil
}

func (k *books) Salvaged(ctx context.Context, c CheckedCopy, u RecordingUpdate) (bool, error) {
	if still, _ := k.StillAbandoned(ctx, c); !still {
		return false, nil
	}
	return true, k.l.RecordingChanged(ctx, u)
}

func (k *books) CopyFound(_ context.Context, c CheckedCopy, f Finding, etag string, _ time.Time, _ time.Duration) (bool, error) {
	k.mu.Lock()
	k.findings = append(k.findings, f)
	wanted := !k.unwanted[c.Of.ID]
	k.mu.Unlock()
	if f == FindingRepaired && wanted {
		k.l.mu.Lock()
		us := k.l.by[c.Of.ID]
		copies := slices.Clone(us[len(us)-1].Copies)
		for i := range copies {
			if copies[i].Region == c.Region {
				copies[i].ETag = etag
			}
		}
		us[len(us)-1].Copies = copies
		k.l.mu.Unlock()
	}
	if k.answered != nil {
		k.answered()
	}
	return wanted, nil
}

func (k *books) found() []Finding {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.findings)
}

// checks has a copy of a recording, as the ledger has it, looked at, and gives what was found.
func (b *bench) checks(k *books, id string, region place.Region, change ...func(*CheckedCopy)) []Finding {
	b.t.Helper()
	u, _ := b.ledger.last(id)
	c := CheckedCopy{Of: u, Region: region}
	for _, copied := range u.Copies {
		if copied.Region == region {
			c.Bucket, c.ETag = copied.Bucket, copied.ETag
		} else if copied.State == CopyVerified {
			c.Healthy = copied.ETag
		}
	}
	for _, f := range change {
		f(&c)
	}
	k.mu.Lock()
	k.due, k.findings = []CheckedCopy{c}, nil
	k.mu.Unlock()
	if err := b.rec.sweepCopies(b.t.Context(), b.at(region)); err != nil {
		b.t.Fatal(err)
	}
	return k.found()
}

func (b *bench) at(region place.Region) *store {
	if region == place.EU {
		return b.rec.eu.store
	}
	return b.rec.us.store
}

// uploads are those that the storage has.
func (b *bench) uploads(region place.Region) (keys []string) {
	b.t.Helper()
	all, err := b.at(region).uploads(b.t.Context(), "")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, u := range all {
		keys = append(keys, u.key)
	}
	slices.Sort(keys)
	return keys
}

// upload begins one as somebody else does, with parts of the smallest size.
func (b *bench) upload(key string, parts ...[]byte) (id string) {
	b.t.Helper()
	id, err := b.rec.eu.create(b.t.Context(), key)
	for i, p := range parts {
		sum := md5.Sum(p)
		if _, partErr := b.rec.eu.part(b.t.Context(), key, id, int32(i+1), bytes.NewReader(p), int64(len(p)), sum[:]); partErr != nil {
			err = partErr
		}
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

// forget rewrites a spool's log without the records that drop says.
func (b *bench) forget(id string, drop func(record) bool) {
	b.t.Helper()
	path := filepath.Join(b.cfg.Dir, id, logName)
	f, err := os.Open(path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	var kept []byte
	dropped := 0
	if _, err := readLog(f, func(r record) error {
		if drop(r) {
			dropped++
			return nil
		}
		raw, err := encodeRecord(r)
		kept = append(kept, raw...)
		return err
	}); err != nil || dropped == 0 {
		b.t.Fatalf("%d records dropped, %v", dropped, err)
	}
	if err := os.WriteFile(path, kept, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// TestUploadIsResumedByItsParts: what a process that died had sent is not sent again, whatever of it the log does not say; and what the log says and the
// storage has not, is.
func TestUploadIsResumedByItsParts(t *testing.T) {
	stream := film(t, 20, 8)
	for name, tt := range map[string]struct {
		spoil   func(b *bench)
		creates int // over both lives, each of which has one for its probe
		resent  int // parts, beside the first, that are sent twice
	}{
		"killed after a part was logged":     {func(*bench) {}, 1, 0},
		"killed before a part was logged":    {func(b *bench) { b.forget("left", func(r record) bool { return r.Part != nil && r.Part.Number > 1 }) }, 1, 0},
		"killed before an upload was logged": {func(b *bench) { b.forget("left", func(r record) bool { return r.Part != nil || r.Upload != nil }) }, 1, 0},
		"a part is another one": {func(b *bench) {
			key := "recordings/acme/session-left/left.webm"
			u, err := b.rec.eu.newestUpload(b.t.Context(), key)
			sum := md5.Sum(make([]byte, minPartSize))
			if err == nil {
				_, err = b.rec.eu.part(b.t.Context(), key, u.id, 2, bytes.NewReader(make([]byte, minPartSize)), minPartSize, sum[:])
			}
			if err != nil {
				b.t.Fatal(err)
			}
		}, 1, 2}, // the spoiling counts
		"the upload has vanished": {func(b *bench) {
			key := "recordings/acme/session-left/left.webm"
			u, err := b.rec.eu.newestUpload(b.t.Context(), key)
			if err == nil {
				err = b.rec.eu.abort(b.t.Context(), key, u.id)
			}
			if err != nil {
				b.t.Fatal(err)
			}
		}, 2, -1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			r := b.begin("left", place.EUOnly)
			src := play(stream)
			src.lost, src.end = errLost, nil
			_ = r.Ingest(t.Context(), src)
			early := int(r.ready / minPartSize)
			b.waitFor("parts", func() bool { return len(r.view(b.rec.eu.store).parts) == early })
			b.close()
			tt.spoil(b)
			b.open()
			b.drain()
			u := b.ledger.awaitState("left", StateAvailable)
			b.wantObject(place.EU, u.Key, Sealed{Bytes: u.Bytes, SHA256: u.SHA256, Duration: u.Duration}, -1)
			if n := b.storage.front.Calls("recordings-eu", "Create") - 2; n != tt.creates {
				t.Errorf("%d uploads were begun, want %d", n, tt.creates)
			}
			want := int((u.Bytes+minPartSize-1)/minPartSize) + 1 + tt.resent
			if n := b.storage.front.Calls("recordings-eu", "UploadPart"); n != want && tt.resent >= 0 {
				t.Errorf("%d parts were sent, want %d", n, want)
			}
			if left := b.uploads(place.EU); left != nil {
				t.Errorf("left in the storage: %v", left)
			}
		})
	}
}

// TestAbandonedUploads: those that nothing can become of go, whoever began them; those that somebody may work on stay.
func TestAbandonedUploads(t *testing.T) {
	b := newBench(t)
	b.close()
	k := &books{l: b.ledger, useless: map[string]bool{"superseded": true, "verified": true}}
	b.cfg.Sweeps = k
	b.open()
	live := b.begin("live", place.EUOnly)
	src := play(film(t, 20, 8))
	src.end, src.lost, src.hold = nil, errLost, make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- live.Ingest(context.Background(), src) }()
	defer func() { close(src.hold); <-ended }()
	b.waitFor("a part", func() bool { return b.storage.front.Calls("recordings-eu", "UploadPart") >= 1 })
	key := func(id string) string { return "recordings/acme/session-" + id + "/" + id + ".webm" }
	foreign := []string{"backups/a", "recordings/acme/notes.txt", "recordings/a/b/c/d.webm"}
	for _, f := range foreign {
		b.upload(f)
	}
	for _, id := range []string{"superseded", "verified", "theirs", "live"} { // theirs: another orchestrator's; live: begun by an earlier life, and never logged
		b.upload(key(id))
	}
	// One that is being begun in this moment is not taken for one that nobody logged.
	live.unlogged(b.rec.eu.store, true)
	if err := b.rec.sweepUploads(t.Context(), b.rec.eu.store); err != nil {
		t.Fatal(err)
	}
	want := append([]string{key("live"), key("live"), key("theirs")}, foreign...)
	slices.Sort(want)
	if got := b.uploads(place.EU); !slices.Equal(got, want) {
		t.Errorf("left: %v, want %v", got, want)
	}
	live.unlogged(b.rec.eu.store, false)
	if err := b.rec.sweepUploads(t.Context(), b.rec.eu.store); err != nil {
		t.Fatal(err)
	}
	want = slices.Delete(want, slices.Index(want, key("live")), slices.Index(want, key("live"))+1)
	if got := b.uploads(place.EU); !slices.Equal(got, want) {
		t.Errorf("left: %v, want %v", got, want)
	}
	id := live.view(b.rec.eu.store).uploadID
	if _, err := b.rec.eu.parts(t.Context(), live.Key(), id); id == "" || err != nil {
		t.Errorf("the upload that goes on is gone: %q, %v", id, err)
	}
	if n := b.rec.Counters()[place.EU].Aborted; n != 3 {
		t.Errorf("%d counted", n)
	}
}

// TestWhatRemainsIsKept: of a recording whose spool is lost the parts that arrived make a partial one, that plays.
func TestWhatRemainsIsKept(t *testing.T) {
	b := newBench(t)
	b.close()
	k := &books{l: b.ledger}
	b.cfg.Sweeps = k
	b.open()
	stream := film(t, 20, 8)
	r := b.begin("lost", place.EUOnly)
	src := play(stream)
	src.lost, src.end = errLost, nil
	_ = r.Ingest(t.Context(), src)
	early := int(r.ready / minPartSize)
	b.waitFor("parts", func() bool { return len(r.view(b.rec.eu.store).parts) == early })
	b.close()
	if err := os.RemoveAll(filepath.Join(b.cfg.Dir, "lost")); err != nil {
		t.Fatal(err)
	}
	b.open()
	// The answer is lost, and its storage is away when the object is looked at: it goes on from there.
	b.storage.front.Lose("Complete", 1)
	abandoned := func(c *CheckedCopy) { c.Abandoned, c.Elsewhere = time.Now(), false }
	b.checks(k, "lost", place.EU, abandoned)
	u := b.ledger.awaitState("lost", StateAvailable)
	if !u.Partial || u.Cause != CauseSpoolLost || u.Bytes != int64(early)*minPartSize || len(u.Copies) != 1 || u.Copies[0].State != CopyVerified {
		t.Errorf("journal has %+v", u)
	}
	got := b.object(place.EU, u.Key)
	if body := stream[index(t, stream).Start:]; !bytes.Equal(got[headSize:], body[:len(got)-headSize]) {
		t.Error("the object is not what was recorded")
	}
	path := filepath.Join(t.TempDir(), "film.webm")
	if err := os.WriteFile(path, got, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0", path).Output()
	if frames, parseErr := strconv.Atoi(strings.TrimSpace(string(out))); err != nil || parseErr != nil || int64(frames) < index(t, got).Frames || frames == 0 {
		t.Errorf("it does not play: %s %v", out, err)
	}
	if left := b.uploads(place.EU); left != nil {
		t.Errorf("left in the storage: %v", left)
	}
	// Killed between the object and the journal: what is there is told.
	b.ledger.mu.Lock()
	b.ledger.by["lost"] = b.ledger.by["lost"][:1]
	b.ledger.mu.Unlock()
	b.checks(k, "lost", place.EU, abandoned)
	if again := b.ledger.awaitState("lost", StateAvailable); again.SHA256 != u.SHA256 {
		t.Errorf("journal has %+v, had %+v", again, u)
	}
	// One of which nothing arrived is lost, and that is said; but not when it is seen for the first time.
	b.ledger.mu.Lock()
	none := u
	none.ID, none.Key, none.State, none.Copies = "none", "recordings/acme/session-none/none.webm", StateSealed, []Copy{{Region: place.EU, Bucket: "recordings-eu"}}
	b.ledger.by["none"] = []RecordingUpdate{none}
	b.ledger.mu.Unlock()
	b.checks(k, "none", place.EU, abandoned, func(c *CheckedCopy) { c.Noticed = true })
	if u, _ := b.ledger.last("none"); u.State != StateSealed {
		t.Errorf("noticed: %+v", u)
	}
	b.checks(k, "none", place.EU, abandoned)
	if u, _ := b.ledger.last("none"); u.State != StateLost || u.Cause != CauseSpoolLost || u.Partial || u.Bytes != 0 || !u.State.Final(place.EUOnly) || len(u.Copies) != 0 {
		t.Errorf("of nothing there is %+v", u)
	}
	if c := b.rec.Counters()[place.EU]; c.Lost != 1 || c.Completed != 2 {
		t.Errorf("counted: %+v", c)
	}
}

// TestSalvageIsFenced: whoever has the spool of a recording that seemed abandoned is asked for before its upload is ended, and before anything is said of
// it; and what he had stored whole is no part.
func TestSalvageIsFenced(t *testing.T) {
	b := newBench(t)
	b.close()
	k := &books{l: b.ledger}
	b.cfg.Sweeps = k
	b.open()
	piece := bytes.Repeat([]byte{1}, minPartSize)
	before := RecordingUpdate{ID: "late", Session: "session-late", Account: "acme", Placement: place.EUOnly, State: StateRecording,
		Key: "recordings/acme/session-late/late.webm", Copies: []Copy{{Region: place.EU, Bucket: "recordings-eu", State: CopyUploading}}}
	b.ledger.by["late"] = []RecordingUpdate{before}
	b.upload(before.Key, piece)
	abandoned := func(c *CheckedCopy) { c.Abandoned = time.Now() }
	for at, what := range map[int]string{1: "before the upload is ended", 2: "before it is published"} {
		k.asked, k.spokenAt = 0, at
		b.checks(k, "late", place.EU, abandoned)
		if u, _ := b.ledger.last("late"); u.State != StateRecording || k.asked != at {
			t.Errorf("he spoke %s: %+v, asked %d times", what, u, k.asked)
		}
		if at == 1 && (len(b.uploads(place.EU)) != 1 || b.object(place.EU, before.Key) != nil) {
			t.Error("the upload that he goes on with is ended")
		}
		if at == 2 {
			if err := b.rec.eu.remove(t.Context(), before.Key); err != nil {
				t.Fatal(err)
			}
			b.upload(before.Key, piece)
		}
	}
	k.asked, k.spokenAt = 0, 1
	none := before
	none.Key = "recordings/acme/session-late/none.webm"
	b.ledger.by["late"] = []RecordingUpdate{none}
	b.checks(k, "late", place.EU, abandoned)
	if u, _ := b.ledger.last("late"); u.State == StateLost {
		t.Errorf("he spoke, and it is lost: %+v", u)
	}

	if c := b.rec.Counters()[place.EU]; c.Completed != 0 || c.Lost != 0 {
		t.Errorf("counted, and not so: %+v", c)
	}

	// It was stored whole, and then nobody was left to say so.
	k.spokenAt = 0
	r := b.begin("whole", place.EUOnly)
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
		t.Fatal(err)
	}
	sealed := b.seal(r)
	b.drain()
	b.ledger.mu.Lock()
	b.ledger.by["whole"] = slices.DeleteFunc(b.ledger.by["whole"], func(u RecordingUpdate) bool { return u.State == StateAvailable })
	b.ledger.mu.Unlock()
	b.checks(k, "whole", place.EU, abandoned)
	if u, _ := b.ledger.last("whole"); u.State != StateAvailable || u.Partial || u.Cause != CauseNone || u.SHA256 != sealed.SHA256 || u.Copies[0].ETag == "" {
		t.Errorf("journal has %+v", u)
	}
}

// TestSalvageFromTheOtherRegion: what the US alone has of a recording, or more of, is kept there, and put into the EU.
func TestSalvageFromTheOtherRegion(t *testing.T) {
	t.Run("the EU has nothing", func(t *testing.T) { salvageFromTheUS(t, nil) })
	t.Run("the EU has less", func(t *testing.T) { salvageFromTheUS(t, make([]byte, minPartSize)) })
}

func salvageFromTheUS(t *testing.T, inTheEU []byte) {
	b := newBench(t)
	b.close()
	k := &books{l: b.ledger}
	b.cfg.Sweeps = k
	b.open()
	b.storage.front.Cut("recordings-eu", true)
	r := b.begin("lost", place.Replicated)
	src := play(film(t, 20, 8))
	src.lost, src.end = errLost, nil
	_ = r.Ingest(t.Context(), src)
	early := int(r.ready / minPartSize)
	b.waitFor("parts", func() bool { return len(r.view(b.rec.us.store).parts) == early })
	b.close()
	if err := os.RemoveAll(filepath.Join(b.cfg.Dir, "lost")); err != nil {
		t.Fatal(err)
	}
	b.storage.front.Cut("recordings-eu", false)
	b.open()
	if inTheEU != nil {
		b.upload(r.Key(), inTheEU)
	}
	b.checks(k, "lost", place.EU, func(c *CheckedCopy) { c.Abandoned, c.Elsewhere = time.Now(), true })
	u := b.ledger.awaitState("lost", StateUploading)
	if !u.Partial || len(u.Copies) != 1 || u.Copies[0].Region != place.US || u.Copies[0].State != CopyVerified {
		t.Fatalf("journal has %+v", u)
	}
	var got []Finding
	b.waitFor("the EU's", func() bool {
		got = b.checks(k, "lost", place.EU, func(c *CheckedCopy) { c.Bucket = "recordings-eu" })
		return slices.Contains(got, FindingRepaired)
	})
	if in := b.object(place.EU, u.Key); int64(len(in)) != u.Bytes || !bytes.Equal(in, b.object(place.US, u.Key)) {
		t.Errorf("%d bytes in the EU, %d recorded", len(in), u.Bytes)
	}
}

// TestRepairFromWhatIsToBeRemoved: the account was changed to eu while the EU's copy was damaged: it is put back from the one in the US, which is not
// removed before.
func TestRepairFromWhatIsToBeRemoved(t *testing.T) {
	b := newBench(t)
	b.close()
	k := &books{l: b.ledger}
	b.cfg.Sweeps = k
	b.open()
	u, sealed := b.replicated("last", 3, 1)
	eu := u.Copies[0].ETag
	spoil := func() {
		t.Helper()
		if err := b.rec.eu.remove(t.Context(), u.Key); err != nil {
			t.Fatal(err)
		}
		b.waitFor("another object", func() bool {
			return b.rec.eu.put(t.Context(), u.Key, strings.NewReader("other"), 5, md5Of("other")) == nil
		})
	}
	b.cfg.Removals = &unwanted{gone: map[string]bool{}}
	b.rec.cfg.Removals = b.cfg.Removals
	remove := func(etag string) error {
		return b.rec.removeCopy(t.Context(), b.rec.us.store, StoredCopy{Recording: "last", Region: place.US, Bucket: "recordings-us", Key: u.Key, EU: etag})
	}
	spoil()
	if err := remove(eu); err == nil || b.object(place.US, u.Key) == nil {
		t.Fatalf("the last copy is removed: %v", err)
	}
	b.waitFor("the repair", func() bool {
		return slices.Contains(b.checks(k, "last", place.EU, func(c *CheckedCopy) { c.Of.Placement = place.EUOnly }), FindingRepaired)
	})
	b.wantObject(place.EU, u.Key, sealed, 30)
	repaired, _ := b.ledger.last("last")
	if err := remove(repaired.Copies[0].ETag); err != nil || b.object(place.US, u.Key) != nil {
		t.Errorf("it is not removed once the EU has one: %v", err)
	}
	if err := remove(""); err != nil { // of one that nothing was stored of
		t.Error(err)
	}
}

// replicated records something of n seconds in both regions.
func (b *bench) replicated(id string, seconds, mbit int) (RecordingUpdate, Sealed) {
	b.t.Helper()
	r := b.begin(id, place.Replicated)
	if err := r.Ingest(b.t.Context(), play(film(b.t, seconds, mbit))); err != nil {
		b.t.Fatal(err)
	}
	sealed := b.seal(r)
	b.drain()
	return b.ledger.awaitState(id, StateReplicated), sealed
}

// TestRepair: a copy that was deleted or altered behind our back is put back from the one in the other region, with the same checksum.
func TestRepair(t *testing.T) {
	b := newBench(t)
	b.close()
	k := &books{l: b.ledger}
	b.cfg.Sweeps = k
	b.open()
	for name, film := range map[string][2]int{"small": {3, 1}, "large": {20, 8}} {
		u, sealed := b.replicated(name, film[0], film[1])
		for _, region := range []place.Region{place.EU, place.US} {
			if got := b.checks(k, name, region); !slices.Equal(got, []Finding{FindingSound}) {
				t.Fatalf("%s in %s, untouched: %v", name, region, got)
			}
			if err := b.at(region).remove(t.Context(), u.Key); err != nil {
				t.Fatal(err)
			}
			repaired := func(from Finding) {
				t.Helper()
				var got []Finding
				b.waitFor("the repair", func() bool { // an object may be written once a second
					got = b.checks(k, name, region)
					return slices.Contains(got, FindingRepaired)
				})
				if !slices.Equal(got, []Finding{from, from, FindingRepaired}) {
					t.Errorf("%s in %s: %v", name, region, got)
				}
				b.wantObject(region, u.Key, sealed, -1)
			}
			repaired(FindingMissing)
			if err := b.at(region).remove(t.Context(), u.Key); err != nil {
				t.Fatal(err)
			}
			b.waitFor("another object", func() bool {
				return b.at(region).put(t.Context(), u.Key, strings.NewReader("other"), 5, md5Of("other")) == nil
			})
			repaired(FindingAltered)
			if left := b.uploads(region); left != nil {
				t.Errorf("left in the storage: %v", left)
			}
		}
	}
	if c := b.rec.Counters()[place.US]; c.Repaired != 4 || c.Damaged < 4 || c.Checked < 6 || !c.Proven {
		t.Errorf("counted: %+v", c)
	}
}

// TestRepairFromTheSpool: while a region waits for its copy, the spool is what the other one's is put back from.
func TestRepairFromTheSpool(t *testing.T) {
	b := newBench(t)
	b.close()
	k := &books{l: b.ledger}
	b.cfg.Sweeps = k
	b.open()
	b.storage.front.Cut("recordings-us", true)
	r := b.begin("half", place.Replicated)
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
		t.Fatal(err)
	}
	sealed := b.seal(r)
	u := b.ledger.awaitState("half", StateAvailable)
	if err := b.rec.eu.remove(t.Context(), u.Key); err != nil {
		t.Fatal(err)
	}
	if got := b.checks(k, "half", place.US); got != nil {
		t.Errorf("a copy that is on its way is looked at: %v", got)
	}
	b.waitFor("the repair", func() bool { return slices.Contains(b.checks(k, "half", place.EU), FindingRepaired) })
	b.wantObject(place.EU, u.Key, sealed, 30)
	b.storage.front.Cut("recordings-us", false)
	b.drain()
	b.wantObject(place.US, b.ledger.awaitState("half", StateReplicated).Key, sealed, 30)
}

// TestRepairLeavesAlone: what is not to be there is not put there, and nothing that is not the recording is.
func TestRepairLeavesAlone(t *testing.T) {
	b := newBench(t)
	b.close()
	k := &books{l: b.ledger}
	b.cfg.Sweeps, b.cfg.Removals = k, &unwanted{gone: map[string]bool{}}
	b.open()
	gone := func(id string) RecordingUpdate {
		u, _ := b.replicated(id, 3, 1)
		if err := b.rec.us.remove(t.Context(), u.Key); err != nil {
			t.Fatal(err)
		}
		return u
	}
	absent := func(u RecordingUpdate) {
		t.Helper()
		if b.object(place.US, u.Key) != nil {
			t.Errorf("%s is in the US", u.ID)
		}
		if left := b.uploads(place.US); left != nil {
			t.Errorf("left in the storage: %v", left)
		}
	}
	removed := gone("removed")
	k.unwanted = map[string]bool{"removed": true}
	b.checks(k, "removed", place.US)
	absent(removed)

	// Its account is changed to eu while the repair is under way: the repair finds the removal, or the removal finds the upload.
	for _, at := range []int{1, 2} { // of the journal's answers: before the upload is begun, and after
		u := gone("late" + strconv.Itoa(at))
		asked := 0
		k.answered = func() {
			if asked++; asked != at {
				return
			}
			k.mu.Lock()
			k.unwanted[u.ID] = true
			k.mu.Unlock()
			if err := b.rec.removeCopy(t.Context(), b.rec.us.store, StoredCopy{Recording: u.ID, Region: place.US, Bucket: "recordings-us", Key: u.Key, EU: u.Copies[0].ETag}); err != nil {
				t.Error(err)
			}
		}
		b.checks(k, u.ID, place.US)
		k.answered = nil
		if asked != 2 {
			t.Errorf("the journal was asked %d times", asked)
		}
		absent(u)
	}

	// An EU-only recording has no US copy, whatever the journal says.
	euOnly := gone("eu-only")
	b.checks(k, "eu-only", place.US, func(c *CheckedCopy) { c.Of.Placement = place.EUOnly })
	absent(euOnly)
	if got := k.found(); got != nil {
		t.Errorf("of an EU-only recording: %v", got)
	}

	// What it would be repaired from is not what was recorded.
	other := gone("other")
	b.checks(k, "other", place.US, func(c *CheckedCopy) { c.Of.SHA256 = strings.Repeat("0", 64) })
	absent(other)
}
