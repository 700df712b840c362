package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/httpapi"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

// joinReplicas tells the other orchestrators of this one, and says which they are. Among several, each must be reached by the others.
func joinReplicas(ctx context.Context, store *pgstore.Store, self orchestrator.Replica, log *zap.Logger) ([]orchestrator.Replica, error) {
	others, err := store.AnnounceReplica(ctx, self)
	if err != nil {
		return nil, err
	}
	if len(others) > 0 && self.URL == "" {
		var names []string
		for _, o := range others {
			names = append(names, o.Name)
		}
		_ = store.WithdrawReplica(context.WithoutCancel(ctx), self.ID) // it is forgotten anyway
		return nil, fmt.Errorf("--peer-url is missing, and other orchestrators run (%s): say where they reach this one", strings.Join(names, ", "))
	}
	for _, o := range others {
		if o.Volume != self.Volume {
			log.Warn("another orchestrator has a volume of its own for --state-dir: sessions with a profile are run by the one that has the profile, and recordings end as partial where a session moves to the other",
				zap.String("orchestrator", o.Name))
		}
	}
	return others, nil
}

// volumeOf is the mark of the volume that the state folder is on, which the first orchestrator that starts on it makes: those with the same mark
// share it.
func volumeOf(dir string) (string, error) {
	path := filepath.Join(dir, "volume-id")
	b, err := os.ReadFile(path)
	if err == nil && len(bytes.TrimSpace(b)) > 0 {
		return string(bytes.TrimSpace(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("--state-dir: %w", err)
	}
	made, err := os.CreateTemp(dir, "volume-id.*")
	if err != nil {
		return "", fmt.Errorf("--state-dir: %w", err)
	}
	defer os.Remove(made.Name())
	_, err = made.WriteString(uuid.NewString() + "\n")
	if err = errors.Join(err, made.Sync(), made.Close()); err != nil {
		return "", fmt.Errorf("--state-dir: %w", err)
	}
	// A link is made once, however many start at the same time, and never half written.
	if err := os.Link(made.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("--state-dir: %w", err)
	}
	if b, err = os.ReadFile(path); err != nil || len(bytes.TrimSpace(b)) == 0 {
		return "", fmt.Errorf("--state-dir: %s cannot be read, or is empty: restore it, or delete it where no other orchestrator has the volume: %w", path, err)
	}
	return string(bytes.TrimSpace(b)), nil
}

// probeReplicas looks whether --peer-url leads to this process, and whether the others are where they say. That one of them is not
// keeps nothing from starting: it may be on its way down.
func probeReplicas(ctx context.Context, peers *httpapi.Peers, self orchestrator.Replica, others []orchestrator.Replica, log *zap.Logger) error {
	if self.URL != "" {
		if err := peers.Probe(ctx, self); err != nil {
			return fmt.Errorf("--peer-url: %w", err)
		}
	}
	for _, o := range others {
		if o.URL == "" {
			log.Warn("another orchestrator has no --peer-url: its sessions can be reached through it alone", zap.String("orchestrator", o.Name))
		} else if err := peers.Probe(ctx, o); err != nil && ctx.Err() == nil {
			log.Warn("another orchestrator cannot be reached: its sessions can be reached through it alone", zap.String("orchestrator", o.Name), zap.Error(err))
		}
	}
	return nil
}
