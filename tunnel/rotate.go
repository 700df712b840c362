package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
)

// A gateway's key is replaced in four steps. A gateway that dies after any of them goes on with the next:
//
//	1 the next key is made and stored        KeyFile.next
//	2 it is announced, with a time           hosts learn it with their pulses, from any gateway, and store it
//	3 at that time KeyFile.next becomes KeyFile
//	4 the device takes it, and it is announced as the key
//
// Hosts change their peer at the same time, each by its own clock since it learned the time; one that is early or late,
// or was away meanwhile, tries both keys. A host that was away from step 2 to step 4, and has no other gateway to
// learn from, cannot find this one any more: by schedule a week lies between the two.

// Announcer keeps what everyone is to know of the gateways.
type Announcer interface {
	// Announce says that this gateway runs. It is repeated every few seconds.
	Announce(ctx context.Context, a Announcement) (Orders, error)
}

// Announcement is what a gateway says of itself.
type Announcement struct {
	Gateway GatewayInfo
	Every   time.Duration // a key older than this is due to be replaced
}

// Orders answer an announcement.
type Orders struct {
	Rotate bool          // make a next key
	NextIn time.Duration // until the announced next key is to be used
}

// KeeperConfig configures Keep.
type KeeperConfig struct {
	Announcer Announcer
	Endpoint  string // of this gateway, as hosts reach it
	FleetPort uint16
	RotateAge time.Duration   // age at which the gateway's key is replaced
	Every     time.Duration   // between announcements, default 10 s
	Wake      <-chan struct{} // announce now; may be nil
}

// Info is the gateway as hosts are told of it.
func (g *Gateway) Info(endpoint string, fleetPort uint16) GatewayInfo {
	return GatewayInfo{Endpoint: endpoint, PublicKey: g.PublicKey(), Addr: g.Addr(), FleetPort: fleetPort}
}

// Keep announces the gateway and replaces its key when that is due, until ctx ends. Trouble is logged and tried again.
func (g *Gateway) Keep(ctx context.Context, c KeeperConfig) {
	c.Every = orDefault(c.Every, 10*time.Second)
	last := ""
	for {
		wait, err := g.Announce(ctx, c)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && err.Error() != last:
			last = err.Error()
			g.cfg.Log.Error("this gateway is not announced; new hosts do not hear of it", zap.Error(err))
		case err == nil && last != "":
			last = ""
			g.cfg.Log.Info("this gateway is announced again")
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-c.Wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// promise is when hosts turn to a next key. It can come sooner, and never later: once they were told, the gateway keeps to
// it without its Announcer.
type promise struct {
	key Key
	at  time.Time
}

// promisedIn is the time until hosts turn to a next key; ok is false while they were not told when.
func (g *Gateway) promisedIn(next PrivateKey) (_ time.Duration, ok bool) {
	if next.IsZero() || g.promised.key != next.Public() {
		return 0, false
	}
	return g.promised.at.Sub(g.cfg.Now()), true
}

// Announce announces the gateway once, does what is due, and says in what time to come again. One call at a time.
func (g *Gateway) Announce(ctx context.Context, c KeeperConfig) (time.Duration, error) {
	every := orDefault(c.Every, 10*time.Second)
	for range 4 { // each round ends a step; after a key was made, announced and taken nothing is left to do
		next, err := g.nextKey()
		if err != nil {
			return every, err
		}
		limit, wait := announceLimit, every
		if in, ok := g.promisedIn(next); ok && in <= 0 {
			if err := g.replaceKey(ctx, next); err != nil {
				return every, err
			}
			continue
		} else if ok {
			limit, wait = min(limit, max(in, time.Second)), min(wait, in)
		}
		a := Announcement{Gateway: g.Info(c.Endpoint, c.FleetPort), Every: c.RotateAge}
		if !next.IsZero() {
			a.Gateway.NextPublicKey = next.Public()
		}
		orders, err := announce(ctx, c.Announcer, a, limit)
		switch {
		case err != nil:
			return wait, err
		case next.IsZero() && !orders.Rotate:
			return every, nil
		case next.IsZero():
			if _, err := loadOrCreateKey(g.nextFile()); err != nil {
				return every, err
			}
			g.cfg.Log.Info("the gateway has a next key")
		case orders.NextIn > 0:
			g.promised = promise{next.Public(), g.cfg.Now().Add(orders.NextIn)}
			return min(every, orders.NextIn), nil
		default:
			if err := g.replaceKey(ctx, next); err != nil {
				return every, err
			}
		}
	}
	return every, errors.New("tunnel: the gateway's key is due again as soon as it is replaced: is its age limit set too low?")
}

const announceLimit = 10 * time.Second

func announce(ctx context.Context, to Announcer, a Announcement, limit time.Duration) (Orders, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	o, err := to.Announce(ctx, a)
	if err != nil {
		return Orders{}, fmt.Errorf("tunnel: announce gateway %s: %w", a.Gateway.Addr, err)
	}
	return o, nil
}

func (g *Gateway) nextFile() string { return g.cfg.KeyFile + ".next" }

// nextKey is the key that follows, or none.
func (g *Gateway) nextKey() (PrivateKey, error) {
	b, err := readSecret(g.nextFile())
	if errors.Is(err, fs.ErrNotExist) {
		return PrivateKey{}, nil
	}
	if err != nil {
		return PrivateKey{}, err
	}
	return parsePrivate(g.nextFile(), b)
}

// replaceKey makes the next key the key: on disk first, so that a gateway that dies meanwhile comes back with it.
func (g *Gateway) replaceKey(ctx context.Context, next PrivateKey) error {
	if err := renameSecret(g.nextFile(), g.cfg.KeyFile); err != nil {
		return err
	}
	g.cfg.Log.Info("the gateway takes its next key", zap.Stringer("key", next.Public()))
	return g.switchKey(ctx, next)
}

// renameSecret puts one file in the place of another, for good.
func renameSecret(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("tunnel: %w", err)
	}
	if err := syncDir(filepath.Dir(to)); err != nil {
		return fmt.Errorf("tunnel: %w", err)
	}
	return nil
}
