package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/profilestate"
)

// openProfiles opens the sealed profiles and their keys. A database that came out of a backup forgets again what was destroyed
// since, before anything is served.
func openProfiles(ctx context.Context, cfg config, store *pgstore.Store, wrapped *pgstore.Keys) (*profilestate.Store, *profilestate.Keyring, error) {
	root, err := openRootKey(ctx, cfg, wrapped)
	if err != nil {
		return nil, nil, err
	}
	keys, err := profilestate.NewKeyring(cfg.Location, root, wrapped, store)
	if err != nil {
		return nil, nil, err
	}
	if err := keys.Reconcile(ctx); err != nil {
		return nil, nil, err
	}
	profiles, err := profilestate.Open(profilestate.Config{
		Dir: filepath.Join(cfg.StateDir, "profiles"), At: cfg.Location, Keys: keys, Index: store,
		Limits: profilestate.Limits{Bytes: cfg.ProfileMaxBytes, Origins: cfg.ProfileMaxOrigins}, Keep: cfg.ProfileGenerations,
	})
	return profiles, keys, err
}

// openRootKey reads the root key. Its file is made at the first start only: once a key depends on it, a missing file is a
// lost volume, and making another would hide that.
func openRootKey(ctx context.Context, cfg config, wrapped *pgstore.Keys) (*profilestate.RootKey, error) {
	if cfg.ProfileRootKey != "" {
		root, err := profilestate.ParseRootKey(cfg.ProfileRootKey)
		if err != nil {
			return nil, fmt.Errorf("--profile-root-key: %w", err)
		}
		return root, nil
	}
	path := filepath.Join(cfg.StateDir, "profile-root.key")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		n, err := wrapped.Count(ctx)
		if err != nil {
			return nil, err
		}
		if len(n.AccountsByRoot) > 0 {
			return nil, fmt.Errorf("%s is missing and profiles are sealed with it: restore it from its backup, or correct --state-dir", path)
		}
		if err := profilestate.CreateRootKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return profilestate.ReadRootKey(path)
}
