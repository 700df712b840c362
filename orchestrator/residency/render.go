package residency

import (
	"fmt"
	"strings"
	"time"
)

//go:generate sh -c "go run ../../cmd/driftctl residency --markdown data-residency > ../../docs/data-residency.md"
//go:generate sh -c "go run ../../cmd/driftctl residency --markdown sub-processors > ../../docs/sub-processors.md"

const generated = "<!-- Printed from the register in orchestrator/residency by `go generate ./orchestrator/residency`; a test keeps them equal. -->\n"

// DataResidency is docs/data-residency.md.
func DataResidency() string {
	var b strings.Builder
	b.WriteString(generated + `
# Data residency

What is kept where, who may be connected to, and what that is known by. This is printed from the table that the orchestrator is checked with at its start:
an endpoint that is not where its row has to be keeps it from starting. ` + "`driftctl residency`" + ` prints the same of a running system, with what is there, and
` + "`driftctl residency --verify`" + ` goes and looks.

## Categories

| Category | What it is | Store | Where | Kept | Had by |
|---|---|---|---|---|---|
`)
	for _, c := range Register() {
		fmt.Fprintf(&b, "| **%s** | %s | %s: %s; %s | %s | %s | %s |\n", c.Title, c.Holds, c.Store.Processor, c.Store.Kind, c.Store.Protection, places(c.Places), c.kept(), c.Keeper)
	}
	b.WriteString("\nNothing of a category is anywhere else. What the orchestrator keeps of the rows of the API server is in the account row alone.\n\n## What leaves the EU\n\n")
	for _, c := range Register() {
		for _, a := range c.Places {
			if a.Basis != InsideEU {
				fmt.Fprintf(&b, "- **%s** (%s), of %s: %s; %s.\n", c.Title, c.Store.Processor, a.For, region(a), a.Basis)
			}
		}
	}
	b.WriteString("\n## Where the promises contradict one another\n\n")
	for _, c := range Contradictions() {
		fmt.Fprintf(&b, "- *%s* And: *%s*\n  **The rule that is followed:** %s\n", c.Says, c.ButAlso, c.Rule)
	}
	b.WriteString("\n## What of the program belongs to what\n\n| Category | Tables | Settings | Files | Hosts | Cache keys |\n|---|---|---|---|---|---|\n")
	for _, c := range Register() {
		o := owned(c.Name)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", c.Name, code(o.tables), code(o.settings), code(o.files), code(o.hosts), code(o.keys))
	}
	b.WriteString("\nA table in several rows has columns of each; which is which is in `orchestrator/residency/owned.go`. Nothing of a customer is in:\n\n")
	for _, s := range Schema() {
		if s.Category == None {
			fmt.Fprintf(&b, "- `%s`%s: %s\n", s.Table, part(s), s.Why)
		}
	}
	return b.String()
}

// SubProcessors is docs/sub-processors.md.
func SubProcessors() string {
	var b strings.Builder
	b.WriteString(generated + "\n# Sub-processors\n\n| Processor | Where | For what | Basis of a transfer | Categories |\n|---|---|---|---|---|\n")
	for _, p := range Processors() {
		var of []string
		for _, c := range Register() {
			if c.Store.Processor == p.Name {
				of = append(of, c.Title)
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", p.Name, p.Country, p.Purpose, p.Transfer, strings.Join(of, ", "))
	}
	b.WriteString("\nA customer's own language model provider (BYOK) is the customer's processor, not ours.\n")
	return b.String()
}

func places(list []Allowance) string {
	var all []string
	for _, a := range list {
		s := region(a)
		if a.For != Everyone {
			s += " (" + string(a.For) + ")"
		}
		all = append(all, s)
	}
	return strings.Join(all, "; ")
}

func region(a Allowance) string {
	if a.Basis == Customers {
		return "where the customer's provider is"
	}
	return strings.ToUpper(string(a.Region))
}

// kept says how long, and whether that is a promise that nothing in this program keeps.
func (c Category) kept() string {
	s := c.Retention.From
	if c.Retention.For > 0 {
		s = duration(c.Retention.For) + " from " + s
	}
	if !c.Retention.Today && c.Keeper != APIServer {
		s += " (promised; this program does not see to it yet)"
	}
	return s
}

func duration(d time.Duration) string {
	if d%day == 0 {
		return fmt.Sprintf("%d days", d/day)
	}
	return fmt.Sprintf("%d minutes", d/time.Minute)
}

// things are what belongs to a category, each once.
type things struct{ tables, settings, files, hosts, keys []string }

func owned(c Name) (o things) {
	for _, s := range Schema() {
		if s.Category == c {
			o.tables = append(o.tables, map[Database]string{Main: "", Keys: "keys: "}[s.Database]+s.Table)
		}
	}
	for _, s := range Settings() {
		if s.Category == c {
			o.settings = append(o.settings, "--"+s.Flag)
		}
	}
	for _, f := range Files() {
		if f.Category == c {
			o.files = append(o.files, f.Name)
		}
	}
	for _, h := range Hosts() {
		if h.Category == c {
			o.hosts = append(o.hosts, h.Pattern)
		}
	}
	for _, k := range CacheKeys() {
		if k.Category == c {
			o.keys = append(o.keys, k.Prefix+"*")
		}
	}
	return o
}

// part says which columns a line is of, where its table has others.
func part(of Columns) string {
	for _, s := range Schema() {
		if s.Database == of.Database && s.Table == of.Table && s.Category != of.Category {
			return " (but for what is in a row above)"
		}
	}
	if of.Database == Keys {
		return " (of the key database)"
	}
	return ""
}

func code(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return "`" + strings.Join(list, "`, `") + "`"
}
