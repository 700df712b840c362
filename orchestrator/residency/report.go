package residency

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/place"
)

// Holding is how much of something there is.
type Holding struct {
	What  string
	Count int64
	More  bool // counting stopped
	Bytes int64
}

// Asked is what a database says of itself.
type Asked struct {
	Address  string // of its server; empty over a unix socket
	Version  string
	Standbys []string // addresses that it streams to
}

// Copies are recordings' copies in a region, as the database knows them.
type Copies struct {
	Region  place.Region
	Count   int64
	Bytes   int64
	Going   int64 // of them, those that are being removed
	Checked *time.Time
}

// Bucket is what is in an object storage.
type Bucket struct {
	Region  place.Region
	Objects int64
	Bytes   int64
	More    bool
}

// Sources are what the report asks.
type Sources struct {
	// Rows counts rows by table, up to most in each; of an account, or of all with "".
	Main, KeyDatabase interface {
		Rows(ctx context.Context, account string, most int) (map[string]int64, error)
		Asked(ctx context.Context) (Asked, error)
		Columns(ctx context.Context) ([]Column, error)
	}
	// Placement fails for an account that there is not.
	Placement func(ctx context.Context, account string) (place.Placement, error)
	Copies    func(ctx context.Context, account string) ([]Copies, error)
	// Look probes and lists the storage of each region; what it found before an error counts.
	Look func(ctx context.Context, account string) ([]Bucket, error)
	// Sealed counts files of profiles on the volume.
	Sealed func(ctx context.Context, account string) (Holding, error)
	Now    func() time.Time
}

// Reporter tells of the running system.
type Reporter struct {
	Site     Site
	Standing []Standing
	Sources  Sources
}

const (
	mostRows     = 100_000 // counted of each table
	mostVerified = 1_000_000
)

// Report is the register with what there is; of an account, what there may be of it. With verify the stores are asked. Whatever cannot be looked at is a problem in the report; the error is of
// the account alone.
func (r *Reporter) Report(ctx context.Context, account string, verify bool) (api.Residency, error) {
	b := building{Reporter: r, account: account, verify: verify, placement: place.Replicated,
		v: api.Residency{Account: account, At: r.Sources.Now(), Location: r.Site.Location.Country(), Verified: verify, Problems: []string{}}}
	if account != "" {
		var err error
		if b.placement, err = r.Sources.Placement(ctx, account); err != nil {
			return api.Residency{}, err
		}
	}
	for _, c := range Register() {
		b.v.Categories = append(b.v.Categories, b.category(c))
	}
	b.databases(ctx)
	b.recordings(ctx)
	b.profiles(ctx)
	for _, p := range Processors() {
		b.v.Processors = append(b.v.Processors, api.ResidencyProcessor{Name: p.Name, Country: p.Country, Purpose: p.Purpose, Basis: string(p.Transfer)})
	}
	for _, c := range Contradictions() {
		b.v.Contradictions = append(b.v.Contradictions, api.ResidencyContradiction{Says: c.Says, ButAlso: c.ButAlso, Rule: c.Rule})
	}
	return b.v, nil
}

// building is a report that is being made.
type building struct {
	*Reporter
	account   string
	verify    bool
	placement place.Placement
	v         api.Residency
}

func (b *building) problem(format string, args ...any) {
	b.v.Problems = append(b.v.Problems, fmt.Sprintf(format, args...))
}

// row is the report's of a category.
func (b *building) row(c Name) *api.ResidencyCategory {
	i := slices.IndexFunc(b.v.Categories, func(v api.ResidencyCategory) bool { return v.Name == string(c) })
	return &b.v.Categories[i]
}

func (b *building) category(c Category) api.ResidencyCategory {
	v := api.ResidencyCategory{Name: string(c.Name), Title: c.Title, Holds: c.Holds, Store: string(c.Store.Kind), Processor: c.Store.Processor, Protection: c.Store.Protection,
		Keeper: string(c.Keeper), Retention: c.kept(), Allowed: []api.ResidencyAllowance{}, Places: []api.ResidencyPlace{}, Absent: absent(c)}
	for _, a := range c.Places {
		if a.For == IfReplicated && b.placement != place.Replicated {
			continue
		}
		v.Allowed = append(v.Allowed, api.ResidencyAllowance{Region: string(a.Region), For: string(a.For), Basis: string(a.Basis)})
	}
	return v
}

// absent says why a category has no place of this program's.
func absent(c Category) string {
	switch {
	case c.Keeper == APIServer:
		return "the API server's: nothing in this program connects there"
	case c.Name == Execution:
		return "where the driver hosts are: driftctl devices ls"
	case c.Name == Cache:
		return "not configured"
	}
	return "nothing of it yet"
}

// at is where a setting stands, as a place of the report.
func (b *building) at(setting string) (p api.ResidencyPlace, ok bool) {
	for _, s := range b.Standing {
		if s.Setting == setting {
			return api.ResidencyPlace{Setting: s.Setting, Host: s.Host, Region: string(s.Region), Country: s.Country, Known: string(s.Known), Holds: []api.ResidencyHolding{}}, true
		}
	}
	return p, false
}

func (b *building) add(c Name, p api.ResidencyPlace) {
	row := b.row(c)
	row.Places, row.Absent = append(row.Places, p), ""
}

// databases gives each category its tables' rows. A category without a table is in no database.
func (b *building) databases(ctx context.Context) {
	most := mostRows
	if b.verify {
		most = mostVerified
	}
	for _, d := range []struct {
		db      Database
		setting string
	}{{Main, "--database-url"}, {Keys, "--key-database-url"}} {
		source := b.Sources.Main
		if d.db == Keys {
			source = b.Sources.KeyDatabase
		}
		standing, ok := b.at(d.setting)
		if !ok {
			continue
		}
		rows, err := source.Rows(ctx, b.account, most)
		if err != nil {
			b.problem("%s: it cannot be counted: %v", d.setting, err)
			continue
		}
		if b.verify {
			standing.Evidence = b.ask(ctx, d.setting, source)
			b.orphans(ctx, d.db, d.setting, source)
		}
		now := b.Sources.Now()
		standing.CheckedAt = &now
		for _, c := range Register() {
			p := standing
			p.Holds = []api.ResidencyHolding{}
			for _, s := range Schema() {
				n, counted := rows[s.Table]
				if s.Database != d.db || s.Category != c.Name || !counted && b.account != "" {
					continue
				}
				p.Holds = append(p.Holds, api.ResidencyHolding{What: s.Table, Count: min(n, int64(most)), More: n > int64(most)})
			}
			if len(p.Holds) > 0 {
				b.add(c.Name, p)
			}
		}
	}
}

// ask is what a database says of itself. One that sends itself elsewhere is a problem, unless that is in networks of ours.
func (b *building) ask(ctx context.Context, setting string, source interface {
	Asked(ctx context.Context) (Asked, error)
}) (evidence []string) {
	a, err := source.Asked(ctx)
	if err != nil {
		b.problem("%s: it does not say where it is: %v", setting, err)
		return nil
	}
	evidence = append(evidence, a.Version)
	if a.Address != "" {
		evidence = append(evidence, "its server's address is "+a.Address)
	}
	for _, to := range a.Standbys {
		evidence = append(evidence, "it streams to "+to)
		addr, err := netip.ParseAddr(to)
		if err != nil || !slices.ContainsFunc(b.Site.networks(), func(n netip.Prefix) bool { return n.Contains(addr.Unmap()) }) {
			b.problem("%s: it streams to %s, of which nobody has declared that it is in the EU: end that, or declare its network with --own-network", setting, to)
		}
	}
	return evidence
}

func (b *building) orphans(ctx context.Context, db Database, setting string, source interface {
	Columns(ctx context.Context) ([]Column, error)
}) {
	live, err := source.Columns(ctx)
	if err != nil {
		b.problem("%s: its columns cannot be read: %v", setting, err)
		return
	}
	if found := Orphans(db, Schema(), live); len(found) > 0 {
		b.problem("%s: %s", setting, strings.Join(found, ", "))
	}
}

// recordings gives the objects: as the database knows them, and as they are listed.
func (b *building) recordings(ctx context.Context) {
	copies, err := b.Sources.Copies(ctx, b.account)
	if err != nil {
		b.problem("recordings: their copies cannot be counted: %v", err)
	}
	var found []Bucket
	if b.verify {
		if found, err = b.Sources.Look(ctx, b.account); err != nil {
			b.problem("recordings: %v", err)
		}
	}
	for setting, region := range map[string]place.Region{"--eu-s3-account": place.EU, "--us-s3-account": place.US} {
		p, ok := b.at(setting)
		if !ok {
			continue
		}
		var going int64
		for _, c := range copies {
			if c.Region == region {
				p.Holds, p.CheckedAt, going = append(p.Holds, api.ResidencyHolding{What: "copies", Count: c.Count, Bytes: c.Bytes}), c.Checked, c.Going
			}
		}
		for _, f := range found {
			if f.Region == region {
				now := b.Sources.Now()
				p.Holds, p.CheckedAt = append(p.Holds, api.ResidencyHolding{What: "objects listed", Count: f.Objects, More: f.More, Bytes: f.Bytes}), &now
				b.misplaced(f, going)
			}
		}
		if region == place.EU || b.placement == place.Replicated || len(p.Holds) > 0 {
			b.add(Recordings, p)
		}
	}
	slices.SortFunc(b.row(Recordings).Places, func(x, y api.ResidencyPlace) int { return strings.Compare(x.Region, y.Region) })
}

// misplaced says of what was listed in a region whether it may be there.
func (b *building) misplaced(f Bucket, going int64) {
	if f.Region == place.US && b.account != "" && b.placement != place.Replicated && f.Objects > going {
		b.problem("recordings: %d objects of account %s are in the US, where nothing of it may be, and %d of them are being removed", f.Objects, b.account, going)
	}
}

// profiles gives the sealed files.
func (b *building) profiles(ctx context.Context) {
	p, ok := b.at("--state-dir")
	if !ok {
		return
	}
	n, err := b.Sources.Sealed(ctx, b.account)
	if err != nil {
		b.problem("profile_state: its files cannot be counted: %v", err)
		return
	}
	now := b.Sources.Now()
	p.Holds, p.CheckedAt = append(p.Holds, api.ResidencyHolding{What: n.What, Count: n.Count, More: n.More, Bytes: n.Bytes}), &now
	b.add(ProfileState, p)
}
