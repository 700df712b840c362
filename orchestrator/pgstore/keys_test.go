package pgstore_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/profilestate"
)

func openKeys(t *testing.T) *pgstore.Keys {
	t.Helper()
	k, err := pgstore.OpenKeys(t.Context(), postgres.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func accountKey(account string, epoch int64, of string) profilestate.AccountKey {
	return profilestate.AccountKey{Account: account, Epoch: epoch, Root: "r1", Wrapped: []byte(of)}
}

func profileKey(account, profile string, epoch int64, of string) profilestate.ProfileKey {
	return profilestate.ProfileKey{Ref: profilestate.Ref{Account: account, Profile: profile}, Epoch: epoch, Wrapped: []byte(of)}
}

func TestKeysHaveADatabaseOfTheirOwn(t *testing.T) {
	dsn := postgres.Database(t)
	s, err := pgstore.Open(t.Context(), dsn, "eu-1", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if k, err := pgstore.OpenKeys(t.Context(), dsn); err == nil {
		k.Close()
		t.Fatal("keys were kept in the main database")
	}
	dsn = postgres.Database(t)
	for range 2 {
		k, err := pgstore.OpenKeys(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		k.Close()
	}
	if s, err := pgstore.Open(t.Context(), dsn, "eu-1", zap.NewNop()); err == nil {
		s.Close()
		t.Fatal("the main database was made beside the keys")
	}
}

func TestFirstKeyOfAnEpochWins(t *testing.T) {
	k := openKeys(t)
	ctx := t.Context()
	if _, err := k.PutProfileKey(ctx, profileKey("a", "p", 1, "x")); !errors.Is(err, profilestate.ErrConflict) {
		t.Fatalf("a profile's key without an account's: %v", err)
	}
	for _, c := range []struct {
		epoch      int64
		mine, wins string
	}{{1, "first", "first"}, {1, "second", "first"}, {2, "third", "third"}, {1, "late", "third"}} {
		if won, err := k.PutAccountKey(ctx, accountKey("a", c.epoch, c.mine)); err != nil || string(won.Wrapped) != c.wins {
			t.Errorf("%s: %s, %v", c.mine, won.Wrapped, err)
		}
	}
	if _, err := k.PutProfileKey(ctx, profileKey("a", "p", 1, "x")); !errors.Is(err, profilestate.ErrConflict) {
		t.Errorf("a profile's key of an older epoch: %v", err)
	}
	for range 2 {
		for _, mine := range []string{"first", "second"} {
			if won, err := k.PutProfileKey(ctx, profileKey("a", "p", 2, mine)); err != nil || string(won.Wrapped) != "first" {
				t.Errorf("%s: %s, %v", mine, won.Wrapped, err)
			}
		}
	}
	w, err := k.Keys(ctx, profilestate.Ref{Account: "b", Profile: "p"})
	if err != nil || w.Account.Epoch != 0 || w.Profile.Epoch != 0 {
		t.Errorf("another account's: %+v, %v", w, err)
	}
}

func TestRewrapAndCount(t *testing.T) {
	k := openKeys(t)
	ctx := t.Context()
	for _, a := range []string{"a", "b", "c"} {
		if _, err := k.PutAccountKey(ctx, accountKey(a, 1, a)); err != nil {
			t.Fatal(err)
		}
	}
	again := func(w profilestate.AccountKey) (profilestate.AccountKey, error) {
		w.Root, w.Wrapped = "r2", append(w.Wrapped, '2')
		return w, nil
	}
	broken := errors.New("does not open")
	if n, err := k.Rewrap(ctx, "r2", 2, func(w profilestate.AccountKey) (profilestate.AccountKey, error) { return w, broken }); n != 0 || !errors.Is(err, broken) {
		t.Fatal(n, err)
	}
	for _, want := range []int{2, 1, 0} {
		if n, err := k.Rewrap(ctx, "r2", 2, again); n != want || err != nil {
			t.Fatalf("%d, %v; want %d", n, err, want)
		}
	}
	n, err := k.Count(ctx)
	if err != nil || len(n.AccountsByRoot) != 1 || n.AccountsByRoot["r2"] != 3 {
		t.Errorf("%+v, %v", n, err)
	}
	if w, err := k.Keys(ctx, profilestate.Ref{Account: "b"}); err != nil || string(w.Account.Wrapped) != "b2" {
		t.Errorf("%+v, %v", w, err)
	}
}

// TestRotationExcludesNewProfiles: a profile that gets its key while its account's is replaced has one that opens.
func TestRotationExcludesNewProfiles(t *testing.T) {
	k := openKeys(t)
	ctx := t.Context()
	if err := k.RotateAccount(ctx, "a", nil); !errors.Is(err, profilestate.ErrNoKey) {
		t.Fatal(err)
	}
	if _, err := k.PutAccountKey(ctx, accountKey("a", 1, "x")); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	rotated := make(chan struct{})
	err := k.RotateAccount(ctx, "a", func(was profilestate.AccountKey, list []profilestate.ProfileKey) (profilestate.AccountKey, []profilestate.ProfileKey, error) {
		group.Go(func() {
			_, err := k.PutProfileKey(context.Background(), profileKey("a", "p", 1, "of the old one"))
			select {
			case <-rotated:
			default:
				t.Error("it did not wait")
			}
			if !errors.Is(err, profilestate.ErrConflict) {
				t.Errorf("a key that nothing opens: %v", err)
			}
		})
		was.Epoch++
		defer close(rotated) // what the other waits for comes after
		return was, list, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	group.Wait()
}

func TestDestroyedKeysStayAway(t *testing.T) {
	k := openKeys(t)
	ctx := t.Context()
	for _, a := range []string{"a", "b"} {
		for _, err := range []error{
			second(k.PutAccountKey(ctx, accountKey(a, 2, a))), second(k.PutProfileKey(ctx, profileKey(a, "p", 2, "p"))), second(k.PutProfileKey(ctx, profileKey(a, "q", 2, "q"))),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	dump, err := k.Export(ctx)
	if err != nil || len(dump.Accounts) != 2 || len(dump.Profiles) != 4 {
		t.Fatalf("%+v, %v", dump, err)
	}
	lines := []profilestate.Destroyed{{Account: "a", Epoch: 2, At: time.Now()}, {Account: "b", Profile: "p", Epoch: 2, At: time.Now()}, {Account: "b", Epoch: 1, At: time.Now()}}
	for range 2 {
		if err := k.RecordDestroyed(ctx, lines); err != nil {
			t.Fatal(err)
		}
		if n, err := k.Import(ctx, dump); err != nil || n != 0 {
			t.Fatalf("%d keys came back, %v", n, err)
		}
	}
	after, err := k.Export(ctx)
	if err != nil || len(after.Accounts) != 1 || after.Accounts[0].Account != "b" || len(after.Profiles) != 1 || after.Profiles[0].Profile != "q" || len(after.Destroyed) != 3 {
		t.Errorf("%+v, %v", after, err)
	}
	empty := openKeys(t)
	if n, err := empty.Import(ctx, after); err != nil || n != 2 {
		t.Errorf("into an empty database: %d, %v", n, err)
	}
	if n, err := empty.Import(ctx, dump); err != nil || n != 0 {
		t.Errorf("an older backup brought back %d keys, %v", n, err)
	}
}
