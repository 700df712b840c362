package profilestate

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// Config is what a Store works with. Dir, Region, Root, Keys and Index are required.
type Config struct {
	Dir    string       // sealed files; an EU volume
	Region place.Region // must be place.EU: state is not kept anywhere else
	Root   *RootKey
	Keys   KeyStore
	Index  Index
	Limits Limits // zero: DefaultLimits
	Now    func() time.Time
}

// Store keeps the sealed generations of all profiles. Several processes may share its folder. It is safe for
// concurrent use.
type Store struct {
	dir    string
	region place.Region
	keys   keyring
	index  Index
	limits Limits
	now    func() time.Time
}

// Open checks the configuration and creates the folder.
func Open(c Config) (*Store, error) {
	if c.Region != place.EU {
		return nil, fmt.Errorf("profile store in region %q: profile state is kept in %q only", c.Region, place.EU)
	}
	if c.Dir == "" || c.Root == nil || c.Keys == nil || c.Index == nil {
		return nil, errors.New("profile store: Dir, Root, Keys and Index are all needed")
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("profile store: %w", err)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Store{
		dir: c.Dir, region: c.Region, index: c.Index, limits: c.Limits.orDefault(), now: c.Now,
		keys: keyring{root: c.Root, store: c.Keys, region: c.Region},
	}, nil
}

// Load opens the current generation. A profile without one has an empty Snapshot and the zero Generation.
// Errors: ErrTampered (a *DamageError), ErrKey, and those of the Index and the KeyStore.
func (s *Store) Load(ctx context.Context, ref Ref) (*Snapshot, Generation, error) {
	if err := ref.check(); err != nil {
		return nil, Generation{}, err
	}
	g, err := s.index.Current(ctx, ref)
	if err != nil {
		return nil, Generation{}, fmt.Errorf("load profile %s: %w", ref.Profile, err)
	}
	if g == (Generation{}) {
		return &Snapshot{}, g, nil
	}
	key, err := s.keys.open(ctx, ref)
	if err != nil {
		return nil, g, fmt.Errorf("load profile %s: %w", ref.Profile, err)
	}
	snapshot, err := s.open(ref, g, key)
	if err != nil {
		if errors.Is(err, ErrKey) {
			return nil, g, fmt.Errorf("load profile %s: %w", ref.Profile, err)
		}
		return nil, g, &DamageError{Ref: ref, Generation: g.Number, File: g.File, Reason: err}
	}
	return snapshot, g, nil
}

func (s *Store) open(ref Ref, g Generation, key dataKey) (*Snapshot, error) {
	if !strings.HasPrefix(g.File, ref.folder()+"/") || !filepath.IsLocal(filepath.FromSlash(g.File)) {
		return nil, errors.New("the index names a file outside the profile's folder")
	}
	f, err := os.Open(s.path(g.File))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// The index says how long it is; a file that was made endless is not read to its end.
	file, err := io.ReadAll(io.LimitReader(f, g.Bytes+1))
	if err != nil {
		return nil, err
	}
	want := header{region: s.region, ref: ref, generation: g.Number, term: g.Term}
	plaintext, err := unseal(key, g, want, file)
	if err != nil {
		return nil, err
	}
	// The limits are for what comes in: what was once accepted stays readable when they are lowered.
	return Decode(plaintext, Limits{Bytes: max(len(plaintext), 1), Origins: len(plaintext) + 1})
}

// Commit seals a snapshot as the generation after prev and publishes it. On any error prev is still the current one,
// unless the error wraps ErrConflict or is about the Index itself being out of reach.
// Errors: *LimitError, *FormatError, ErrKey, ErrConflict, ErrFenced.
func (s *Store) Commit(ctx context.Context, ref Ref, prev Generation, snapshot *Snapshot, session string, term int64) (Generation, error) {
	g, err := s.commit(ctx, ref, prev, snapshot, session, term)
	if err != nil {
		return Generation{}, fmt.Errorf("commit profile %s: %w", ref.Profile, err)
	}
	return g, nil
}

func (s *Store) commit(ctx context.Context, ref Ref, prev Generation, snapshot *Snapshot, session string, term int64) (Generation, error) {
	if err := ref.check(); err != nil {
		return Generation{}, err
	}
	if term < 0 || prev.Number < 0 {
		return Generation{}, errors.New("term and generation are never negative")
	}
	plaintext, err := snapshot.Encode(s.limits)
	if err != nil {
		return Generation{}, err
	}
	key, err := s.keys.openOrCreate(ctx, ref)
	if err != nil {
		return Generation{}, err
	}
	h := header{region: s.region, ref: ref, generation: prev.Number + 1, epoch: key.epoch, term: term, previous: prev.SHA256}
	file, err := seal(key, h, plaintext)
	if err != nil {
		return Generation{}, err
	}
	next := Generation{
		Number: h.generation, SHA256: sha256.Sum256(file), Bytes: int64(len(file)), Term: term,
		File: fmt.Sprintf("%s/%d-%d-%s.sealed", ref.folder(), h.generation, term, randomName()),
	}
	f, err := s.create(next.File, file)
	if err != nil {
		return Generation{}, err
	}
	defer f.Close() // and with it the lock that keeps Sweep away until the generation is published
	return s.publish(ctx, ref, prev, next, session, term)
}

// publish decides the fate of a file that is safely on disk.
func (s *Store) publish(ctx context.Context, ref Ref, prev, next Generation, session string, term int64) (Generation, error) {
	err := s.index.Publish(ctx, session, term, ref, prev, next)
	if err == nil {
		return next, nil
	}
	if errors.Is(err, ErrConflict) || errors.Is(err, ErrFenced) {
		_ = os.Remove(s.path(next.File)) // Sweep does it if this fails
		return Generation{}, err
	}
	// The answer may have been lost after the swap was made, so the file stays; ask once which of the two it was.
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishCheck)
	defer cancel()
	if now, again := s.index.Current(ask, ref); again == nil && now == next {
		return next, nil
	}
	return Generation{}, err
}

const publishCheck = 5 * time.Second

// create writes a new file that survives a power cut, and returns it open and locked.
func (s *Store) create(name string, data []byte) (_ *os.File, err error) {
	path := s.path(name)
	if err := s.makeFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(path)
		}
	}()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if _, err := f.Write(data); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	// Had this process slept between create and lock for longer than Sweep waits, the name would be gone now.
	if _, err := os.Lstat(path); err != nil {
		return nil, err
	}
	return f, nil
}

// makeFolder creates a profile's folder, and makes the names of new folders durable too.
func (s *Store) makeFolder(folder string) error {
	if _, err := os.Stat(folder); err == nil {
		return nil
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	for at := filepath.Dir(folder); ; at = filepath.Dir(at) {
		if err := syncFolder(at); err != nil {
			return err
		}
		if at == filepath.Clean(s.dir) || len(at) <= len(filepath.Clean(s.dir)) {
			return nil
		}
	}
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func randomName() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
