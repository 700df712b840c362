package profilestate

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
)

// Import makes a storageState the profile's next generation, while no session holds it.
// Errors: *LimitError, *FormatError, and as Commit.
func (s *Store) Import(ctx context.Context, ref Ref, data []byte) (Generation, error) {
	snapshot, err := Decode(data, s.limits)
	if err != nil {
		return Generation{}, err
	}
	for i, c := range snapshot.Cookies { // in canonical order, as for Decode
		if c.public() {
			return Generation{}, &FormatError{fmt.Sprintf("cookies[%d]", i), string(ReasonPublic)}
		}
	}
	if err := ref.check(); err != nil {
		return Generation{}, err
	}
	head, err := s.index.Head(ctx, ref)
	if err != nil {
		return Generation{}, fmt.Errorf("import into profile %s: %w", ref.Profile, err)
	}
	return s.Commit(ctx, ref, head, snapshot, Writer{Source: FromImport})
}

// Clone makes a generation of one profile the first of another, which has none yet, under that one's own key. Number 0 is the current
// generation; a profile without one is cloned as it is. Errors as Load and Commit.
func (s *Store) Clone(ctx context.Context, from Ref, number int64, to Ref, w Writer) (*Snapshot, Head, error) {
	if err := errors.Join(from.check(), to.check()); err != nil {
		return nil, Head{}, err
	}
	source, err := s.index.Head(ctx, from)
	if err != nil {
		return nil, Head{}, fmt.Errorf("clone profile %s: %w", from.Profile, err)
	}
	target, err := s.index.Head(ctx, to)
	if err != nil {
		return nil, Head{}, fmt.Errorf("clone profile %s: %w", from.Profile, err)
	}
	if number == 0 && source.Current.Number == 0 {
		return &Snapshot{}, target, nil
	}
	snapshot, err := s.Export(ctx, from, number)
	if err != nil {
		return nil, Head{}, fmt.Errorf("clone: %w", err)
	}
	w.Source = FromClone
	g, err := s.Commit(ctx, to, target, snapshot, w)
	if err != nil {
		return nil, Head{}, err
	}
	target.Current, target.Last = g, g.Number
	return snapshot, target, nil
}

// Promote makes a generation the current one, while no session holds the profile: a candidate, or an older one. It is opened first.
// Errors: ErrNoGeneration, ErrConflict, and as Load.
func (s *Store) Promote(ctx context.Context, ref Ref, number int64) error {
	if err := ref.check(); err != nil {
		return err
	}
	head, err := s.index.Head(ctx, ref)
	if err != nil {
		return fmt.Errorf("promote profile %s: %w", ref.Profile, err)
	}
	if err := s.promote(ctx, ref, head, number); err != nil {
		return fmt.Errorf("promote profile %s: %w", ref.Profile, err)
	}
	return nil
}

func (s *Store) promote(ctx context.Context, ref Ref, head Head, number int64) error {
	g, err := s.generation(ctx, ref, number)
	if err != nil {
		return err
	}
	if _, err := s.loadAt(ctx, ref, head, g); err != nil {
		return err
	}
	return s.index.MakeCurrent(ctx, ref, head, number)
}

// Rollback promotes the newest older generation that opens, and says which. ErrNoGeneration when there is none.
func (s *Store) Rollback(ctx context.Context, ref Ref) (int64, error) {
	if err := ref.check(); err != nil {
		return 0, err
	}
	head, err := s.index.Head(ctx, ref)
	if err != nil {
		return 0, fmt.Errorf("roll profile %s back: %w", ref.Profile, err)
	}
	key, err := s.keys.open(ctx, ref, head.Destroyed)
	if errors.Is(err, ErrNoKey) {
		err = ErrNoGeneration
	}
	if err != nil {
		return 0, fmt.Errorf("roll profile %s back: %w", ref.Profile, err)
	}
	number, err := s.lastGood(ctx, ref, head.Current.Number, key)
	if err == nil && number == 0 {
		err = ErrNoGeneration
	}
	if err == nil {
		err = s.index.MakeCurrent(ctx, ref, head, number)
	}
	if err != nil {
		return 0, fmt.Errorf("roll profile %s back: %w", ref.Profile, err)
	}
	return number, nil
}

// DeleteGeneration removes one that is not current. ErrNoGeneration, ErrCurrent.
func (s *Store) DeleteGeneration(ctx context.Context, ref Ref, number int64) error {
	g, err := s.generation(ctx, ref, number)
	if err == nil {
		err = s.index.Forget(ctx, ref, number)
	}
	if err != nil {
		return fmt.Errorf("delete generation %d of profile %s: %w", number, ref.Profile, err)
	}
	if g.Volume == s.volume {
		_ = s.disk.Remove(s.path(g.File)) // Sweep does it if this fails
	}
	return nil
}

// Delete removes a profile that no session holds: its key first, so that no copy of its files opens again, and then the files that
// are here. It may be repeated when it failed.
func (s *Store) Delete(ctx context.Context, ref Ref) error {
	if err := ref.check(); err != nil {
		return err
	}
	epoch, err := s.keys.accountEpoch(ctx, ref)
	if err == nil {
		err = s.index.DeleteProfile(ctx, ref, epoch)
	}
	if err == nil && epoch > 0 {
		err = s.keys.destroyProfile(ctx, ref, epoch, s.now())
	}
	if err != nil {
		return fmt.Errorf("delete profile %s: %w", ref.Profile, err)
	}
	folder := filepath.Join(s.dir, filepath.FromSlash(ref.folder()))
	entries, _ := s.disk.ReadDir(folder) // what is left, Sweep removes
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), sealedSuffix) || isReport(e.Name()) {
			_ = s.disk.Remove(s.path(path.Join(ref.folder(), e.Name())))
		}
	}
	return nil
}
