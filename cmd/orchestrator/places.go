package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/outbound"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/orchestrator/residency"
	"github.com/driftstack/fleet/profilestate"
	"github.com/driftstack/fleet/recorder"
	"github.com/driftstack/fleet/tunnel"
)

// places is what the configuration says of where things are, once it was held against the register.
type places struct {
	standing       []residency.Standing
	database, keys pgstore.Place
	peers          residency.InEU
}

// site is what is declared. refused is told of connections that are not made.
func (c *config) site(refused func(outbound.Refusal)) residency.Site {
	return residency.Site{Location: c.Location, Own: c.OwnNetwork, Development: c.Development, Tunnel: tunnel.Network(), Refused: refused}
}

// places holds each endpoint against its row of the register; the error names all that is wrong.
func (c *config) places(site residency.Site) (p places, err error) {
	var errs []error
	stands := func(at residency.Standing, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		p.standing = append(p.standing, at)
	}
	if err := site.Validate(); err != nil {
		return p, err // all that follows would follow from it
	}
	errs = append(errs, site.CheckEnvironment(os.Environ()))
	for _, d := range []struct {
		category residency.Name
		setting  string
		dsn      string
		to       *pgstore.Place
	}{{residency.Sessions, "--database-url", c.DatabaseURL, &p.database}, {residency.ProfileState, "--key-database-url", c.KeyDatabaseURL, &p.keys}} {
		servers, err := pgstore.Servers(d.dsn)
		if err != nil {
			errs = append(errs, &residency.BreachError{Category: d.category, Setting: d.setting, Problem: "it cannot be read as a database URL (what is wrong is not printed: it may be the password)", Mend: "Use postgres://USER:PASSWORD@HOST/NAME?sslmode=verify-full."})
			continue
		}
		at, way, err := site.CheckPostgres(d.category, d.setting, servers)
		stands(at, err)
		if err == nil {
			*d.to = pgstore.Place{DSN: d.dsn, Way: way}
		}
	}
	if c.PeerURL != "" {
		stands(site.CheckPeer("--peer-url", c.PeerURL))
	}
	p.peers = site.Peers()
	declared := func(category residency.Name, setting, where string) {
		stands(residency.Standing{Category: category, Setting: setting, Host: where, Region: place.EU, Country: c.Location.Country(), Known: residency.DeclaredOnly}, nil)
	}
	declared(residency.ProfileState, "--state-dir", c.StateDir)
	stored := func(setting string, region place.Region, host string, local bool) {
		at := residency.Standing{Category: residency.Recordings, Setting: setting, Host: host, Region: region, Known: residency.ByRegion}
		if local { // in development it stands in for what is there
			at.Known = residency.DeclaredOnly
		}
		stands(at, nil)
	}
	stored("--eu-s3-account", place.EU, recorder.EUTarget{Target: c.EU.target()}.Host(), c.EU.Endpoint != "")
	if us := c.us(); us != nil {
		stored("--us-s3-account", place.US, us.Host(), us.Endpoint != "")
	}
	return p, errors.Join(errs...)
}

// tell says in the log where everything stands, and how that is known.
func (p places) tell(log *zap.Logger) {
	for _, s := range p.standing {
		log.Info("place", zap.String("category", string(s.Category)), zap.String("setting", s.Setting), zap.String("host", s.Host),
			zap.String("region", string(s.Region)), zap.String("country", s.Country), zap.String("known", string(s.Known)))
	}
}

// reporter tells of what runs.
func (p places) reporter(cfg config, store *pgstore.Store, keys *pgstore.Keys, rec *recorder.Recorder, profiles *profilestate.Store) *residency.Reporter {
	return &residency.Reporter{Site: cfg.site(nil), Standing: p.standing, Sources: residency.Sources{
		Main: store, KeyDatabase: keys, Placement: store.Placement, Copies: store.Copies, Now: time.Now,
		Look: func(ctx context.Context, account string) (all []residency.Bucket, err error) {
			found, err := rec.Look(ctx, account)
			for _, f := range found {
				all = append(all, residency.Bucket(f))
			}
			return all, err
		},
		Sealed: func(ctx context.Context, account string) (residency.Holding, error) {
			files, bytes, more, err := profiles.Count(ctx, account)
			return residency.Holding{What: "sealed files", Count: files, More: more, Bytes: bytes}, err
		},
	}}
}

// refusals puts connections that were not made into the log and the audit log: one line for each category and host within refusedEvery, however often it was tried.
type refusals struct {
	log   *zap.Logger
	queue chan outbound.Refusal

	mu   sync.Mutex // guards told
	told map[[2]string]time.Time
	now  func() time.Time
}

const (
	refusedEvery = 10 * time.Minute
	mostRefusals = 1024 // that are remembered, and that wait to be written
)

func newRefusals(log *zap.Logger) *refusals {
	return &refusals{log: log, queue: make(chan outbound.Refusal, mostRefusals), told: map[[2]string]time.Time{}, now: time.Now}
}

// add is for outbound.Pin.Refused: it does not block.
func (r *refusals) add(v outbound.Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key, now := [2]string{v.Category, v.To}, r.now()
	if last, ok := r.told[key]; ok && now.Sub(last) < refusedEvery {
		return
	}
	if len(r.told) >= mostRefusals {
		clear(r.told)
	}
	r.told[key] = now
	r.log.Error("connection refused by the register", zap.String("category", v.Category), zap.String("to", v.To), zap.String("why", v.Why))
	select {
	case r.queue <- v:
	default: // the log has it
	}
}

// run writes into the audit log until ctx ends.
func (r *refusals) run(ctx context.Context, audit func(context.Context, outbound.Refusal) error) {
	for {
		select {
		case v := <-r.queue:
			if err := audit(ctx, v); err != nil && ctx.Err() == nil {
				r.log.Error("a refused connection is not in the audit log", zap.Error(err))
			}
		case <-ctx.Done():
			return
		}
	}
}
