package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/residency"
)

type residencyCmd struct {
	Account  string `help:"Only what there is of this account, and where it may be."`
	Verify   bool   `help:"Go and look: probe the storage, list what is in it in every region, compare the databases' columns with the register. Status 1 says that something is not as it has to be."`
	Markdown string `enum:",data-residency,sub-processors" default:"" placeholder:"DOCUMENT" help:"Print a document of the register instead, without an orchestrator: data-residency or sub-processors."`
}

// document prints one that needs no orchestrator.
func (c *residencyCmd) document(out io.Writer) error {
	text := residency.DataResidency()
	if c.Markdown == "sub-processors" {
		text = residency.SubProcessors()
	}
	_, err := io.WriteString(out, text)
	return err
}

func (c *residencyCmd) run(ctx context.Context, fleet *client.Client, p printer) error {
	v, err := fleet.Residency(ctx, c.Account, c.Verify)
	if err != nil {
		return err
	}
	if p.json {
		err = p.object(v)
	} else {
		err = p.residency(v)
	}
	if err == nil && len(v.Problems) > 0 {
		err = errors.New("not everything is where it has to be: " + strings.Join(v.Problems, "; "))
	}
	return err
}

func (p printer) residency(v api.Residency) error {
	whose := "all accounts"
	if v.Account != "" {
		whose = "account " + v.Account
	}
	how := "as the databases know it; --verify looks"
	if v.Verified {
		how = "verified"
	}
	if _, err := fmt.Fprintf(p.out, "%s, %s, %s; orchestrator in %s (declared, not verified)\n\n", whose, v.At.UTC().Format("2006-01-02 15:04:05 MST"), how, v.Location); err != nil {
		return err
	}
	var rows []table.Row
	for _, c := range v.Categories {
		rows = append(rows, p.categoryRows(c)...)
	}
	if err := list(p, nil, table.Row{"CATEGORY", "MAY BE IN", "IS IN", "HOST", "KNOWN", "HOLDS", "CHECKED"}, rows, func(r table.Row) table.Row { return r }); err != nil {
		return err
	}
	var b strings.Builder
	for _, c := range v.Contradictions {
		fmt.Fprintf(&b, "\n“%s” and “%s”\n  → %s\n", c.Says, c.ButAlso, c.Rule)
	}
	for _, s := range v.Problems {
		fmt.Fprintf(&b, "\nPROBLEM: %s\n", s)
	}
	_, err := io.WriteString(p.out, b.String())
	return err
}

// categoryRows is a row for each place of a category; one that is nowhere has one as well.
func (p printer) categoryRows(c api.ResidencyCategory) (rows []table.Row) {
	var may []string
	for _, a := range c.Allowed {
		may = append(may, strings.ToUpper(a.Region))
	}
	name, where := c.Name, strings.Join(may, ", ")
	for _, at := range c.Places {
		in := strings.ToUpper(at.Region)
		if at.Country != "" {
			in += " (" + at.Country + ")"
		}
		checked := ""
		if at.CheckedAt != nil {
			checked = p.since(at.CheckedAt)
		}
		rows = append(rows, table.Row{name, where, in, at.Host, at.Known, holdings(at.Holds), checked})
		name, where = "", ""
	}
	if len(rows) == 0 {
		rows = append(rows, table.Row{name, where, "-", "", c.Absent, "", ""})
	}
	return rows
}

func holdings(list []api.ResidencyHolding) string {
	var all []string
	for _, h := range list {
		s := strconv.FormatInt(h.Count, 10)
		if h.More {
			s += "+"
		}
		s += " " + h.What
		if h.Bytes > 0 {
			s += fmt.Sprintf(" (%d bytes)", h.Bytes)
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}
