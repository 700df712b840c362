package profilestate

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// Config is what a Store works with. Dir, At, Keys and Index are required.
type Config struct {
	Dir    string           // sealed files; a volume that is
	At     place.EULocation // here: state is kept nowhere outside the EU
	Keys   *Keyring
	Index  Index
	Limits Limits // zero: DefaultLimits
	Keep   int    // good generations of a profile that Sweep leaves; 0: DefaultKeep
	Now    func() time.Time

	disk disk // nil: the real one
}

// DefaultKeep is how many good generations of a profile are kept.
const DefaultKeep = 10

// Store keeps the sealed generations of all profiles. Several processes may share its folder. It is safe for
// concurrent use.
type Store struct {
	dir    string
	volume string
	region place.Region
	keys   *Keyring
	index  Index
	limits Limits
	keep   int
	now    func() time.Time
	disk   disk

	scratch scratch
}

// Open checks the configuration and creates the folder.
func Open(c Config) (*Store, error) {
	if c.At.Country() == "" {
		return nil, errors.New("profile store: where it is was not declared, and profile state is kept in the EU only")
	}
	if c.Dir == "" || c.Keys == nil || c.Index == nil {
		return nil, errors.New("profile store: Dir, Keys and Index are all needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Keep <= 0 {
		c.Keep = DefaultKeep
	}
	if c.disk == nil {
		c.disk = osDisk{}
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("profile store: %w", err)
	}
	volume, err := volumeID(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("profile store: %w", err)
	}
	return &Store{dir: filepath.Clean(c.Dir), volume: volume, region: place.EU, keys: c.Keys, index: c.Index, limits: c.Limits.orDefault(),
		keep: c.Keep, now: c.Now, disk: c.disk}, nil
}

// Volume is the id of the store's folder: stores with the same one share their files.
func (s *Store) Volume() string { return s.volume }

// volumeID reads or makes the id of a store's folder. A file that is missing on another volume is not damaged: a folder that is not
// mounted must not look like one from which everything was removed.
func volumeID(dir string) (string, error) {
	path := filepath.Join(dir, "volume")
	f, err := os.CreateTemp(dir, ".volume-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(randomName() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if err := syncFolder(dir); err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(text)); err != nil || len(id) == 16 {
		return id, err
	}
	return "", fmt.Errorf("%s does not hold the id of a volume", path)
}

// Load opens the current generation. A profile without one has an empty Snapshot and a Head without one.
// Errors: ErrTampered (a *DamageError), ErrVolume, ErrKey, and those of the Index and the KeyStore.
func (s *Store) Load(ctx context.Context, ref Ref) (*Snapshot, Head, error) {
	if err := ref.check(); err != nil {
		return nil, Head{}, err
	}
	head, err := s.index.Head(ctx, ref)
	if err != nil {
		return nil, Head{}, fmt.Errorf("load profile %s: %w", ref.Profile, err)
	}
	if head.Current.Number == 0 {
		return &Snapshot{}, head, nil
	}
	snapshot, err := s.loadAt(ctx, ref, head, head.Current)
	if err != nil {
		return nil, head, fmt.Errorf("load profile %s: %w", ref.Profile, err)
	}
	return snapshot, head, nil
}

// Export opens any generation; number 0 is the current one. ErrNoGeneration, and errors as Load.
func (s *Store) Export(ctx context.Context, ref Ref, number int64) (*Snapshot, error) {
	if err := ref.check(); err != nil {
		return nil, err
	}
	head, err := s.index.Head(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("export profile %s: %w", ref.Profile, err)
	}
	if number == 0 {
		number = head.Current.Number
	}
	g, err := s.generation(ctx, ref, number)
	if err != nil {
		return nil, fmt.Errorf("export profile %s: %w", ref.Profile, err)
	}
	snapshot, err := s.loadAt(ctx, ref, head, g)
	if err != nil {
		return nil, fmt.Errorf("export profile %s: %w", ref.Profile, err)
	}
	return snapshot, nil
}

func (s *Store) generation(ctx context.Context, ref Ref, number int64) (Generation, error) {
	list, err := s.index.Generations(ctx, ref)
	if err != nil {
		return Generation{}, err
	}
	for _, g := range list {
		if g.Number == number {
			return g, nil
		}
	}
	return Generation{}, ErrNoGeneration
}

// loadAt opens a generation; one that is damaged is quarantined, and the error says which one could take its place.
func (s *Store) loadAt(ctx context.Context, ref Ref, head Head, g Generation) (*Snapshot, error) {
	key, err := s.keys.open(ctx, ref, head.Destroyed)
	if err != nil {
		return nil, err
	}
	var damage *DamageError
	snapshot, err := s.open(ref, g, key)
	if !errors.As(err, &damage) {
		return snapshot, err
	}
	if g.State != Quarantined {
		if err := s.index.Quarantine(ctx, ref, g.Number, damage.Reason.Error()); err != nil {
			return nil, errors.Join(damage, err)
		}
	}
	damage.Offer, err = s.lastGood(ctx, ref, g.Number, key)
	return nil, errors.Join(damage, err)
}

// lastGood is the newest generation before number that opens.
func (s *Store) lastGood(ctx context.Context, ref Ref, number int64, key dataKey) (int64, error) {
	list, err := s.index.Generations(ctx, ref)
	if err != nil {
		return 0, err
	}
	for _, g := range list {
		if g.Number >= number || g.State != Good {
			continue
		}
		if _, err := s.open(ref, g, key); err == nil {
			return g.Number, nil
		}
	}
	return 0, nil
}

// open reads and opens a file. What is wrong with the file is a *DamageError; what is wrong with the disk is not.
func (s *Store) open(ref Ref, g Generation, key dataKey) (*Snapshot, error) {
	damaged := func(why error) error {
		return &DamageError{Ref: ref, Generation: g.Number, File: g.File, Reason: why}
	}
	if g.State == Quarantined {
		return nil, damaged(errors.New(g.Reason))
	}
	if g.Volume != s.volume {
		return nil, fmt.Errorf("%w: generation %d is on volume %s and this is %s", ErrVolume, g.Number, g.Volume, s.volume)
	}
	if !strings.HasPrefix(g.File, ref.folder()+"/") || !filepath.IsLocal(filepath.FromSlash(g.File)) {
		return nil, damaged(errors.New("the index names a file outside the profile's folder"))
	}
	file, err := s.read(g)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged(err)
	}
	if err != nil {
		return nil, err
	}
	defer s.scratch.give(file)
	want := header{region: s.region, ref: ref, generation: g.Number, term: g.Term}
	plaintext := s.scratch.take(openedSize(file.Len()))
	defer s.scratch.wipe(plaintext)
	err = unseal(plaintext, key, g, want, file.Bytes())
	if errors.Is(err, ErrKey) {
		return nil, err
	}
	if err != nil {
		return nil, damaged(err)
	}
	// The limits are for what comes in: what was once accepted stays readable when they are lowered.
	snapshot, err := Decode(plaintext.Bytes(), Limits{Bytes: max(plaintext.Len(), 1), Origins: plaintext.Len() + 1})
	if err != nil {
		return nil, damaged(err)
	}
	return snapshot, nil
}

// read lends what is in a file, to be given back.
func (s *Store) read(g Generation) (*bytes.Buffer, error) {
	f, err := s.disk.Open(s.path(g.File))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// The index says how long it is; a file that was made endless is not read to its end, and memory is made for what is there.
	n := max(min(info.Size(), g.Bytes+1), 0)
	file := s.scratch.take(openedSize(int(n)))
	if _, err := file.ReadFrom(io.LimitReader(f, n)); err != nil {
		s.scratch.give(file)
		return nil, err
	}
	return file, nil
}

// Commit seals a snapshot as the generation after head and publishes it. On any error the one before is still current,
// unless the error wraps ErrConflict or is about the Index itself being out of reach.
// Errors: *LimitError, *FormatError, ErrKey, ErrConflict, ErrFenced.
func (s *Store) Commit(ctx context.Context, ref Ref, head Head, snapshot *Snapshot, w Writer) (Generation, error) {
	g, err := s.commit(ctx, ref, head, snapshot, w)
	if err != nil {
		return Generation{}, fmt.Errorf("commit profile %s: %w", ref.Profile, err)
	}
	return g, nil
}

func (s *Store) commit(ctx context.Context, ref Ref, head Head, snapshot *Snapshot, w Writer) (Generation, error) {
	if err := ref.check(); err != nil {
		return Generation{}, err
	}
	if w.Term < 0 || head.Last < head.Current.Number || head.Current.Number < 0 {
		return Generation{}, errors.New("term and generations are never negative")
	}
	plaintext, err := snapshot.Encode(s.limits)
	if err != nil {
		return Generation{}, err
	}
	defer clear(plaintext)
	key, err := s.keys.openOrCreate(ctx, ref, head.Destroyed)
	if err != nil {
		return Generation{}, err
	}
	h := header{region: s.region, ref: ref, generation: head.Last + 1, epoch: key.epoch, term: w.Term, previous: head.Current.Digest}
	sealed := s.scratch.take(sealedSize(len(plaintext)))
	defer s.scratch.give(sealed)
	if err := seal(sealed, key, h, plaintext); err != nil {
		return Generation{}, err
	}
	file := sealed.Bytes()
	next := Generation{
		Number: h.generation, Volume: s.volume, Digest: digest(file), Bytes: int64(len(file)), Term: w.Term, Session: w.Session,
		Previous: head.Current.Number, Source: w.Source, State: Good, At: s.now().UTC(),
		File: fmt.Sprintf("%s/%d-%d-%s.sealed", ref.folder(), h.generation, w.Term, randomName()),
	}
	if w.Source == "" {
		next.Source = FromSession
	}
	if w.Candidate != "" {
		next.State, next.Reason = Candidate, w.Candidate
	}
	if head.Current.Volume != s.volume { // a profile that has a generation here has a folder
		if err := s.makeFolder(filepath.Dir(s.path(next.File))); err != nil {
			return Generation{}, err
		}
	}
	f, err := s.create(next.File, file)
	if err != nil {
		return Generation{}, err
	}
	defer f.Close()                                                     // and with it the lock that keeps Sweep away until the generation is published
	return s.publish(ctx, w, ref, head, next, func(g Generation) bool { // a session's attempt of before, whose answer was lost
		if w.Session == "" || g.Session != w.Session || g.Term != w.Term {
			return false
		}
		was, err := s.open(ref, g, key)
		if err != nil {
			return false
		}
		b, err := was.Export()
		return err == nil && bytes.Equal(b, plaintext)
	})
}

// publish decides the fate of a file that is safely on disk.
func (s *Store) publish(ctx context.Context, w Writer, ref Ref, head Head, next Generation, same func(Generation) bool) (Generation, error) {
	err := s.index.Publish(ctx, w, ref, head, next)
	if err == nil {
		return next, nil
	}
	// The answer may have been lost after the swap was made: of this attempt, or of one before.
	there, ok := s.published(ctx, ref, next, same)
	refused := errors.Is(err, ErrConflict) || errors.Is(err, ErrFenced) || errors.Is(err, ErrKeyDestroyed)
	if refused && (!ok || there.File != next.File) {
		_ = s.disk.Remove(s.path(next.File)) // Sweep does it if this fails
	}
	if ok {
		return there, nil
	}
	return Generation{}, err
}

const publishCheck = 5 * time.Second

// published is the generation of that number if it is this one, or the same.
func (s *Store) published(ctx context.Context, ref Ref, next Generation, same func(Generation) bool) (Generation, bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishCheck)
	defer cancel()
	g, err := s.generation(ctx, ref, next.Number)
	return g, err == nil && (g.File == next.File || same(g))
}

// create writes a new file that survives a power cut, and returns it open and locked.
func (s *Store) create(name string, data []byte) (_ diskFile, err error) {
	path := s.path(name)
	f, err := s.disk.Create(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = s.disk.Remove(path)
		}
	}()
	if locked, err := f.TryLock(); err != nil || !locked {
		return nil, fmt.Errorf("lock %s: taken by another process (%w)", name, err)
	}
	if _, err := f.Write(data); err != nil {
		return nil, err
	}
	if err := s.disk.SyncNew(f, filepath.Dir(path)); err != nil {
		return nil, err
	}
	// Had this process slept between create and lock for longer than Sweep waits, the name would be gone now.
	if _, err := s.disk.Stat(path); err != nil {
		return nil, err
	}
	return f, nil
}

// makeFolder creates a profile's folder and its account's, and makes their names durable: also when they are there already, because
// who made them may have died before.
func (s *Store) makeFolder(folder string) error {
	for _, at := range []string{filepath.Dir(folder), folder} {
		if err := s.disk.Mkdir(at); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := s.disk.SyncDir(filepath.Dir(at)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

func randomName() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
