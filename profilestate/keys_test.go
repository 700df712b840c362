package profilestate

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/driftstack/fleet/orchestrator/place"
)

// TestWrappedKeysAreBound: a wrapped key opens in its own place only, whole.
func TestWrappedKeysAreBound(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "v")
	other, stranger := Ref{testRef.Account, "other"}, Ref{"acct_2", testRef.Profile}
	f.commit(t, other, "o")
	f.commit(t, stranger, "s")
	good := f.world.s
	refused := func(name string, change func(*worldState)) {
		t.Helper()
		f.world.s.AccountKeys, f.world.s.ProfileKeys = maps.Clone(good.AccountKeys), maps.Clone(good.ProfileKeys)
		defer func() { f.world.s = good }()
		change(&f.world.s)
		if s, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrKey) || s != nil {
			t.Errorf("%s: %v, %v", name, s, err)
		}
		if _, err := f.Store.keys.open(t.Context(), testRef, 0); !errors.Is(err, ErrKey) { // whether the file would open with it or not
			t.Errorf("%s: unwrapped, %v", name, err)
		}
	}
	profile := func(change func(*ProfileKey)) func(*worldState) {
		return func(s *worldState) {
			k := s.ProfileKeys[testRef.String()]
			k.Wrapped = bytes.Clone(k.Wrapped)
			change(&k)
			s.ProfileKeys[testRef.String()] = k
		}
	}
	account := func(change func(*AccountKey)) func(*worldState) {
		return func(s *worldState) {
			k := s.AccountKeys[testRef.Account]
			k.Wrapped = bytes.Clone(k.Wrapped)
			change(&k)
			s.AccountKeys[testRef.Account] = k
		}
	}
	refused("another profile's", profile(func(k *ProfileKey) { k.Wrapped = good.ProfileKeys[other.String()].Wrapped }))
	refused("another account's profile's", profile(func(k *ProfileKey) { k.Wrapped = good.ProfileKeys[stranger.String()].Wrapped }))
	refused("another account's", account(func(k *AccountKey) { k.Wrapped = good.AccountKeys[stranger.Account].Wrapped }))
	refused("both of another account", func(s *worldState) {
		account(func(k *AccountKey) { k.Wrapped = good.AccountKeys[stranger.Account].Wrapped })(s)
		profile(func(k *ProfileKey) { k.Wrapped = good.ProfileKeys[stranger.String()].Wrapped })(s)
	})
	refused("another epoch of both", func(s *worldState) {
		account(func(k *AccountKey) { k.Epoch++ })(s)
		profile(func(k *ProfileKey) { k.Epoch++ })(s)
	})
	refused("epochs that differ", profile(func(k *ProfileKey) { k.Epoch++ }))
	refused("no account key", func(s *worldState) { delete(s.AccountKeys, testRef.Account) })
	refused("no profile key", func(s *worldState) { delete(s.ProfileKeys, testRef.String()) })
	refused("an epoch of the root key that is not there", account(func(k *AccountKey) { k.Root = "00000000" }))
	for i := range good.ProfileKeys[testRef.String()].Wrapped {
		refused("a bit of the profile's", profile(func(k *ProfileKey) { k.Wrapped[i] ^= 1 }))
	}
	for i := range good.AccountKeys[testRef.Account].Wrapped {
		refused("a bit of the account's", account(func(k *AccountKey) { k.Wrapped[i] ^= 1 }))
	}
	elsewhere := *f.Store.keys
	elsewhere.region = place.US
	if _, err := elsewhere.open(t.Context(), testRef, 0); !errors.Is(err, ErrKey) {
		t.Errorf("another region's: %v", err)
	}
	stolen := newStore(t) // who has files and wrapped keys, and another root key
	for _, root := range stolen.root.epochs {
		stolen.root.epochs[f.root.latest] = root
	}
	keys, err := NewKeyring(germany(), stolen.root, f.world.keys(), f.world.index())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.open(t.Context(), testRef, 0); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
	if f.value(t, testRef) != "v" {
		t.Error("the profile does not open with its own key")
	}
}

// TestRotation: every generation stays readable, no file changes, and what is new is sealed with what is new.
func TestRotation(t *testing.T) {
	f := newStore(t)
	one := f.commit(t, testRef, "one")
	before, err := os.ReadFile(f.path(one.File))
	if err != nil {
		t.Fatal(err)
	}
	head, err := parseHeader(before)
	if err != nil {
		t.Fatal(err)
	}
	was := f.world.s.AccountKeys[testRef.Account]
	r, err := f.Store.keys.Rotate(t.Context())
	if err != nil || !r.NewRoot || r.Rewraps != 1 || r.Root == was.Root {
		t.Fatalf("%+v, %v", r, err)
	}
	if now := f.world.s.AccountKeys[testRef.Account]; now.Root != r.Root || bytes.Equal(now.Wrapped, was.Wrapped) || now.Epoch != was.Epoch {
		t.Fatal("the account's key was not wrapped anew")
	}
	if f.value(t, testRef) != "one" {
		t.Fatal("unreadable after a rotation of the root key")
	}
	if n, err := f.Store.keys.RotateAccount(t.Context(), testRef.Account); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if f.value(t, testRef) != "one" {
		t.Fatal("unreadable after a rotation of the account's key")
	}
	two := f.commit(t, testRef, "two")
	file, err := os.ReadFile(f.path(two.File))
	if err != nil {
		t.Fatal(err)
	}
	if h, err := parseHeader(file); err != nil || h.epoch == head.epoch {
		t.Errorf("the new generation is sealed with the old data key: %v", err)
	}
	if after, err := os.ReadFile(f.path(one.File)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a rotation changed a sealed file: %v", err)
	}
	if s, err := f.Export(t.Context(), testRef, 1); err != nil || valueOf(s) != "one" {
		t.Errorf("the generation before: %v, %v", s, err)
	}

	// Another process with the same file, which knows nothing of it.
	stale, err := ReadRootKey(f.root.path)
	if err != nil {
		t.Fatal(err)
	}
	if r, err = f.Store.keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := NewKeyring(germany(), stale, f.world.keys(), f.world.index())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := elsewhere.open(t.Context(), testRef, 0); err != nil {
		t.Errorf("the other process: %v", err)
	}
	status, err := elsewhere.Status(t.Context())
	if err != nil || len(status.Roots) != 3 || status.Roots[2] != (RootStatus{Epoch: r.Root, Wraps: true, Accounts: 1}) || status.Profiles != 1 {
		t.Errorf("%+v, %v", status, err)
	}

	// What an epoch wraps no more, it may be removed for.
	var inUse *InUseError
	if err := f.Store.keys.Retire(t.Context(), r.Root); !errors.As(err, &inUse) {
		t.Errorf("the epoch that wraps was retired: %v", err)
	}
	if err := f.Store.keys.Retire(t.Context(), "nonsense"); !errors.As(err, &inUse) {
		t.Error(err)
	}
	for _, e := range status.Roots[:2] {
		if err := f.Store.keys.Retire(t.Context(), e.Epoch); err != nil {
			t.Error(err)
		}
	}
	if status, err = f.Store.keys.Status(t.Context()); err != nil || len(status.Roots) != 1 || f.value(t, testRef) != "two" {
		t.Errorf("%+v, %v", status, err)
	}
	f.world.s.AccountKeys[testRef.Account] = was // out of some old log
	if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrKey) {
		t.Errorf("a retired epoch opens: %v", err)
	}
}

// TestRetireAsksAgain: an epoch that came into use while it was being removed is put back.
func TestRetireAsksAgain(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "one")
	old := f.root.latest
	was := f.world.s.AccountKeys[testRef.Account]
	if _, err := f.Store.keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked := 0
	err := f.root.remove(old, func() error {
		asked++
		f.world.s.AccountKeys[testRef.Account] = was
		return &InUseError{old, "test"}
	})
	var inUse *InUseError
	if !errors.As(err, &inUse) || asked != 1 || f.value(t, testRef) != "one" {
		t.Errorf("%v, asked %d times", err, asked)
	}
}

// TestOneChangesTheRootKey: of two who rotate, or rotate and retire, at once, none loses the other's epoch.
func TestOneChangesTheRootKey(t *testing.T) {
	f := newStore(t)
	var begun sync.WaitGroup
	made := make(chan string, 64)
	for range 8 { // processes
		k, err := ReadRootKey(f.root.path)
		if err != nil {
			t.Fatal(err)
		}
		begun.Go(func() {
			for range 4 {
				switch _, err := k.advance(); {
				case err == nil:
					made <- k.all()[len(k.all())-1]
				case !errors.Is(err, ErrRootBusy):
					t.Error(err)
				}
			}
		})
	}
	begun.Wait()
	close(made)
	if err := f.root.reload(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for epoch := range made {
		if n++; !slices.Contains(f.root.all(), epoch) {
			t.Errorf("epoch %s was begun, and is lost", epoch)
		}
	}
	if n == 0 {
		t.Error("nobody could rotate")
	}

	other, err := ReadRootKey(f.root.path)
	if err != nil {
		t.Fatal(err)
	}
	var meanwhile error
	if err := f.root.remove(f.root.all()[0], func() error { _, meanwhile = other.advance(); return nil }); err != nil || !errors.Is(meanwhile, ErrRootBusy) {
		t.Errorf("rotated while an epoch was retired: %v; %v", meanwhile, err)
	}
	if _, err := other.advance(); err != nil {
		t.Errorf("afterwards: %v", err)
	}

	// What is locked is open for writing: on NFS nothing else can be.
	lock, err := os.OpenFile(f.root.path+lockSuffix, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if info, err := lock.Stat(); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v (%v)", info.Mode(), err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if _, err := other.advance(); !errors.Is(err, ErrRootBusy) {
		t.Errorf("rotated although another has the lock: %v", err)
	}
}

// TestDestroyedAccount: no copy of the keys, from wherever it is brought back, opens a copy of the files.
func TestDestroyedAccount(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "secret")
	bystander := Ref{"acct_2", "p"}
	f.commit(t, bystander, "fine")
	if _, err := f.Store.keys.RotateAccount(t.Context(), testRef.Account); err != nil {
		t.Fatal(err)
	}
	f.commit(t, testRef, "secret two")
	var backup bytes.Buffer
	if err := f.Store.keys.Backup(t.Context(), &backup, f.clock, time.Hour); err != nil {
		t.Fatal(err)
	}
	copied := worldState{AccountKeys: maps.Clone(f.world.s.AccountKeys), ProfileKeys: maps.Clone(f.world.s.ProfileKeys)}

	if had, err := f.Store.keys.DestroyAccount(t.Context(), testRef.Account, f.clock); err != nil || !had {
		t.Fatal(had, err)
	}
	dead := func(name string) {
		t.Helper()
		for n := int64(0); n <= 2; n++ {
			if s, err := f.Export(t.Context(), testRef, n); !errors.Is(err, ErrKeyDestroyed) || s != nil {
				t.Errorf("%s: generation %d: %v, %v", name, n, s, err)
			}
		}
		if now := f.head(t, testRef).Current; now.State != Good {
			t.Errorf("%s: a destroyed key was taken for damage", name)
		}
		if f.value(t, bystander) != "fine" {
			t.Errorf("%s: another account lost its keys", name)
		}
	}
	dead("destroyed")
	if len(f.world.s.AccountKeys) != 1 || len(f.world.s.ProfileKeys) != 1 {
		t.Error("the wrapped keys are still there")
	}
	if n, err := f.Store.keys.Restore(t.Context(), bytes.NewReader(backup.Bytes()), f.clock); err != nil || n != 0 {
		t.Errorf("a backup brought back %d keys, %v", n, err)
	}
	dead("backup restored")
	// The key database as it was before, its ledger included, put back by somebody who knows nothing of us.
	resurrect := func() {
		f.world.s.AccountKeys, f.world.s.ProfileKeys = maps.Clone(copied.AccountKeys), maps.Clone(copied.ProfileKeys)
		f.world.s.KeyLedger = make(map[string]Destroyed)
	}
	resurrect()
	dead("key database restored")
	if err := f.Store.keys.Reconcile(t.Context()); err != nil || len(f.world.s.AccountKeys) != 1 || len(f.world.s.KeyLedger) != 1 {
		t.Errorf("at the next start the keys are still there: %v", err)
	}
	// The main database as it was before: the key database's ledger remembers.
	f.world.s.AccountKeys, f.world.s.ProfileKeys, f.world.s.Ledger = maps.Clone(copied.AccountKeys), maps.Clone(copied.ProfileKeys), make(map[string]Destroyed)
	dead("main database restored")
	if err := f.Store.keys.Reconcile(t.Context()); err != nil || len(f.world.s.Ledger) != 1 {
		t.Error(err)
	}
	resurrect()
	if _, err := f.Store.keys.RotateAccount(t.Context(), testRef.Account); !errors.Is(err, ErrNoKey) {
		t.Errorf("a rotation gave a destroyed key a number that no ledger has: %v", err)
	}
	// The account goes on, with a key of its own.
	resurrect()
	f.commit(t, testRef, "new life")
	if f.value(t, testRef) != "new life" || f.world.s.AccountKeys[testRef.Account].Epoch != 3 {
		t.Errorf("epoch %d", f.world.s.AccountKeys[testRef.Account].Epoch)
	}
	if s, err := f.Export(t.Context(), testRef, 1); !errors.Is(err, ErrKey) || s != nil {
		t.Errorf("the old generation: %v, %v", s, err)
	}
	if had, err := f.Store.keys.DestroyAccount(t.Context(), "nobody", f.clock); had || err != nil {
		t.Error(had, err)
	}
}

func TestDeletedProfile(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "secret")
	beside := Ref{testRef.Account, "beside"}
	f.commit(t, beside, "fine")
	copied := maps.Clone(f.world.s.ProfileKeys)
	if err := f.Delete(t.Context(), testRef); !errors.Is(err, errHeld) {
		t.Fatal(err)
	}
	f.world.hold(testRef, "", 0)
	if err := f.Delete(t.Context(), testRef); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, errNoProfile) {
		t.Error(err)
	}
	if n := len(f.files(t)); n != 1 {
		t.Errorf("%d files", n)
	}
	f.world.s.ProfileKeys, f.world.s.KeyLedger = copied, make(map[string]Destroyed)
	if err := f.Store.keys.Reconcile(t.Context()); err != nil || len(f.world.s.ProfileKeys) != 1 || f.value(t, beside) != "fine" {
		t.Errorf("its key came back: %v", err)
	}
}

func TestBackup(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "v")
	var b bytes.Buffer
	if err := f.Store.keys.Backup(t.Context(), &b, f.clock, time.Hour); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	restore := func(b []byte, at time.Time) error {
		_, err := f.Store.keys.Restore(t.Context(), bytes.NewReader(b), at)
		return err
	}
	for name, bad := range map[string][]byte{
		"empty": {}, "cut": good[:len(good)-1], "extended": append(bytes.Clone(good), 0), "only a head": good[:60],
		"a later expiry": bytes.Replace(good, []byte(`"expires_at":"20`), []byte(`"expires_at":"21`), 1),
	} {
		if err := restore(bad, f.clock); !errors.Is(err, ErrBackup) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range good {
		if err := restore(flip(good, i), f.clock); !errors.Is(err, ErrBackup) && !errors.Is(err, ErrKey) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	if err := restore(good, f.clock.Add(time.Hour)); !errors.Is(err, ErrBackup) || !strings.Contains(err.Error(), "expired") {
		t.Error(err)
	}
	keys := f.world.s.AccountKeys
	f.world.s.AccountKeys, f.world.s.ProfileKeys = make(map[string]AccountKey), make(map[string]ProfileKey)
	if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrKey) {
		t.Fatal(err)
	}
	if n, err := f.Store.keys.Restore(t.Context(), bytes.NewReader(good), f.clock); n != 2 || err != nil || f.value(t, testRef) != "v" {
		t.Fatalf("%d keys, %v", n, err)
	}
	if n, err := f.Store.keys.Restore(t.Context(), bytes.NewReader(good), f.clock); n != 0 || err != nil {
		t.Errorf("again: %d keys, %v", n, err)
	}
	root := keys[testRef.Account].Root
	if _, err := f.Store.keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.Store.keys.Retire(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	if err := restore(good, f.clock); !errors.Is(err, ErrKey) {
		t.Errorf("a backup outlived its epoch of the root key: %v", err)
	}
}

// service stands in for a key management service: keys by URI, which never leave it.
type service struct {
	keys  map[string]tink.AEAD
	calls []string
}

func (s *service) Supported(uri string) bool { return strings.HasPrefix(uri, "test-kms://") }

func (s *service) GetAEAD(uri string) (tink.AEAD, error) {
	if s.keys[uri] == nil {
		return nil, errors.New("no such key")
	}
	return remote{s, uri}, nil
}

type remote struct {
	s   *service
	uri string
}

func (r remote) Encrypt(p, ad []byte) ([]byte, error) {
	r.s.calls = append(r.s.calls, "encrypt "+r.uri)
	return r.s.keys[r.uri].Encrypt(p, ad)
}

func (r remote) Decrypt(c, ad []byte) ([]byte, error) {
	r.s.calls = append(r.s.calls, "decrypt "+r.uri)
	return r.s.keys[r.uri].Decrypt(c, ad)
}

func TestRootKeyInAService(t *testing.T) {
	s := &service{keys: make(map[string]tink.AEAD)}
	for _, uri := range []string{"test-kms://eu/1", "test-kms://eu/2"} {
		h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
		if err != nil {
			t.Fatal(err)
		}
		if s.keys[uri], err = aead.New(h); err != nil {
			t.Fatal(err)
		}
	}
	for _, uris := range [][]string{{}, {"other://x"}, {"test-kms://eu/3"}} {
		if _, err := RootKeyFromKMS(s, uris...); err == nil {
			t.Errorf("%v was taken", uris)
		}
	}
	with := func(f *fixture, uris ...string) {
		root, err := RootKeyFromKMS(s, uris...)
		if err != nil {
			t.Fatal(err)
		}
		if f.Store.keys, err = NewKeyring(germany(), root, f.world.keys(), f.world.index()); err != nil {
			t.Fatal(err)
		}
	}
	f := newStore(t)
	with(f, "test-kms://eu/1")
	f.commit(t, testRef, "v")
	with(f, "test-kms://eu/1", "test-kms://eu/2")
	if f.value(t, testRef) != "v" {
		t.Fatal("unreadable with a second epoch")
	}
	if r, err := f.Store.keys.Rotate(t.Context()); err != nil || r.NewRoot || r.Root != "test-kms://eu/2" || r.Rewraps != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	var inUse *InUseError
	if err := f.Store.keys.Retire(t.Context(), "test-kms://eu/1"); !errors.As(err, &inUse) {
		t.Error(err)
	}
	with(f, "test-kms://eu/2")
	if f.value(t, testRef) != "v" || !slices.Contains(s.calls, "encrypt test-kms://eu/2") {
		t.Errorf("calls: %v", s.calls)
	}
	with(f, "test-kms://eu/1")
	if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
}

// TestRootKeyInTheEnvironment: what is rotated there is rotated by whoever sets it.
func TestRootKeyInTheEnvironment(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "v")
	text, err := os.ReadFile(filepath.Join(filepath.Dir(f.dir), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := ParseRootKey(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if f.Store.keys, err = NewKeyring(germany(), root, f.world.keys(), f.world.index()); err != nil {
		t.Fatal(err)
	}
	if r, err := f.Store.keys.Rotate(t.Context()); err != nil || r.NewRoot || r.Rewraps != 0 || f.value(t, testRef) != "v" {
		t.Errorf("%+v, %v", r, err)
	}
}
