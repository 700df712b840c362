package main

import (
	"context"
	"fmt"
	"strings"

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
