package pgstore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// Wants and shapes are found by digests of what they are; see the tables of these names. Both are remembered, because nearly all
// sessions want the same and nearly all news of a device leave its shape.
const (
	rememberMost = 10_000
	// rememberFor is far below how long a want is kept that nothing needs (tidyWants).
	rememberFor = time.Hour
)

// remembered is row ids by digest, for rememberFor.
type remembered struct {
	mu   sync.Mutex
	rows map[[sha256.Size]byte]row // guarded by mu
}

type row struct {
	id int64
	at time.Time
}

// get is the id that was put, or what ask says.
func (r *remembered) get(digest [sha256.Size]byte, ask func() (int64, error)) (int64, error) {
	r.mu.Lock()
	known, ok := r.rows[digest]
	r.mu.Unlock()
	if ok && time.Since(known.at) < rememberFor {
		return known.id, nil
	}
	at := time.Now()
	id, err := ask()
	if err != nil {
		return 0, unavailable(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rows == nil || len(r.rows) >= rememberMost {
		r.rows = map[[sha256.Size]byte]row{}
	}
	r.rows[digest] = row{id, at}
	return id, nil
}

// forget makes get ask for an id again.
func (r *remembered) forget(id int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.rows, func(_ [sha256.Size]byte, known row) bool { return known.id == id })
}

// wanted is a row of wants without its identity.
type wanted struct {
	Kind, Model, Host, Platform string
	Least, Below                []int32
	Browser                     string
	BiDi                        bool
	Labels                      map[string]string
	Country                     string
	Countries                   []string `json:",omitempty"` // none: any
}

// wantedOf takes the range of versions for one that has been checked.
func wantedOf(w api.DeviceWant, browser string, bidi bool) (wanted, error) {
	r, err := orchestrator.ParseVersionRange(w.OSVersion)
	if err != nil {
		return wanted{}, &orchestrator.InvalidError{Field: "device.os_version", Problem: err.Error()}
	}
	v := wanted{Kind: w.Kind, Model: w.Model, Host: w.Host, Platform: strings.ToLower(w.Platform), Browser: browser, BiDi: bidi,
		Labels: object(w.Labels), Country: strings.ToUpper(w.Country)}
	if r.Least != nil {
		v.Least = r.Least[:]
	}
	if r.Below != nil {
		v.Below = r.Below[:]
	}
	return v, nil
}

// args are the columns in wantRow's order.
func (w wanted) args() []any {
	return []any{w.Kind, w.Model, w.Host, w.Platform, w.Least, w.Below, w.Browser, w.BiDi, w.Labels, w.Country, append([]string{}, w.Countries...)}
}

// row is a row of wants under an id, as JSON has it.
func (w wanted) row(id int) map[string]any {
	return map[string]any{"id": id, "kind": w.Kind, "model": w.Model, "host": w.Host, "platform": w.Platform, "least": w.Least, "below": w.Below,
		"browser": w.Browser, "bidi": w.BiDi, "labels": w.Labels, "country": w.Country, "countries": append([]string{}, w.Countries...)}
}

// wantRow is $1 to $11 as a row of wants, for misfits.
const wantRow = `ROW (0, '', $1, $2, $3, $4, $5::integer[], $6::integer[], $7, $8, $9::jsonb, $10, now(), $11::text[])::wants`

const putWantSQL = `
INSERT INTO wants (kind, model, host, platform, least, below, browser, bidi, labels, country, countries, digest)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (digest) DO UPDATE SET used_at = now() RETURNING id`

// wantGone is violated by a session whose want was forgotten between its being looked up and the session's being queued: see tidyWants.
const wantGone = "lanes_want_fkey"

// want is the id of what a session wants.
func (s *Store) want(ctx context.Context, w wanted) (int64, error) {
	digest, err := digestOf(w)
	if err != nil {
		return 0, err
	}
	return s.wants.get(digest, func() (id int64, err error) {
		err = s.pool.QueryRow(ctx, putWantSQL, append(w.args(), digest[:])...).Scan(&id)
		return id, err
	})
}

// shape is the id of what a device is matched by.
func (s *Store) shape(ctx context.Context, d wire.Device) (int64, error) {
	d.Browser, d.Country, d.Labels = cmp.Or(d.Browser, "safari"), strings.ToUpper(d.Country), object(d.Labels)
	d.Name, d.State, d.Reason = "", "", ""
	digest, err := digestOf(d)
	if err != nil {
		return 0, err
	}
	var version []int32
	if v, ok := orchestrator.ParseVersion(d.PlatformVersion); ok {
		version = v[:]
	}
	return s.shapes.get(digest, func() (id int64, err error) {
		err = s.pool.QueryRow(ctx, `
			INSERT INTO shapes (digest, kind, model, platform_name, platform_version, version, browser, bidi, labels, country)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
			ON CONFLICT (digest) DO UPDATE SET kind = excluded.kind RETURNING id`,
			digest[:], d.Kind, d.Model, d.PlatformName, d.PlatformVersion, version, d.Browser, d.BiDi, d.Labels, d.Country).Scan(&id)
		return id, err
	})
}

func digestOf(v any) ([sha256.Size]byte, error) {
	b, err := json.Marshal(v)
	return sha256.Sum256(b), err
}
