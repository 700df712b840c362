package profilestate

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
)

// mostCounted bounds what Count looks at.
const mostCounted = 100_000

// Count counts sealed files of an account's profiles on the volume, or with "" of all, and their bytes. more: there are more than were counted.
func (s *Store) Count(ctx context.Context, account string) (files, bytes int64, more bool, err error) {
	folders := []string{idName(account)}
	if account == "" {
		if folders, err = s.folders(s.dir); err != nil {
			return 0, 0, false, err
		}
	}
	for _, folder := range folders {
		profiles, err := s.folders(filepath.Join(s.dir, folder))
		if err != nil {
			return files, bytes, false, err
		}
		for _, profile := range profiles {
			entries, err := s.disk.ReadDir(filepath.Join(s.dir, folder, profile))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return files, bytes, false, err
			}
			for _, e := range entries {
				if !strings.HasSuffix(e.Name(), sealedSuffix) {
					continue
				}
				if info, err := e.Info(); err == nil { // it was removed meanwhile
					files, bytes = files+1, bytes+info.Size()
				}
			}
			if files >= mostCounted || ctx.Err() != nil {
				return files, bytes, true, ctx.Err()
			}
		}
	}
	return files, bytes, false, nil
}

// folders are those in a folder; none where that is not there.
func (s *Store) folders(in string) (names []string, err error) {
	entries, err := s.disk.ReadDir(in)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}
