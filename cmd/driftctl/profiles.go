package main

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

type profilesCmd struct {
	Ls struct {
		Account string `help:"Only this account's."`
	} `cmd:"" help:"List profiles."`
	Get struct {
		ID string `arg:"" help:"Profile id."`
	} `cmd:"" help:"Show one profile."`
	Set struct {
		ID          string  `arg:"" help:"Profile id."`
		Name        *string `help:"New name."`
		Archetype   *string `help:"New archetype."`
		Description *string `help:"New description."`
	} `cmd:"" help:"Change what a profile is called."`
	Generations struct {
		ID string `arg:"" help:"Profile id."`
	} `cmd:"" help:"List a profile's saved states, newest first."`
	Report struct {
		Session string `arg:"" help:"Session id."`
		Limit   int    `default:"1000" help:"How many items are listed, those first that are not as they were saved."`
	} `cmd:"" help:"Show what became of each item of the profile in a session that runs. It names cookies and origins, which are the customer's."`
	Promote struct {
		ID     string `arg:"" help:"Profile id."`
		Number int64  `arg:"" help:"Generation, as generations shows it."`
	} `cmd:"" help:"Make a generation the current one: a candidate, or an older one."`
	Rollback struct {
		ID string `arg:"" help:"Profile id."`
	} `cmd:"" help:"Go back to the newest older generation that opens."`
	Clone struct {
		ID         string `arg:"" help:"Profile id."`
		Name       string `required:"" help:"Name of the new profile."`
		Generation int64  `help:"Generation to begin with; default: the current one."`
	} `cmd:"" help:"Create a profile with the state of another."`
	Rm struct {
		ID         string `arg:"" help:"Profile id."`
		Generation int64  `help:"Remove this generation only; it must not be the current one."`
	} `cmd:"" aliases:"remove" help:"Delete a profile for ever: its key is destroyed, its files removed."`
	Import struct {
		ID   string `arg:"" help:"Profile id."`
		File string `arg:"" default:"-" help:"storageState as Playwright writes it; - is standard input."`
	} `cmd:"" help:"Make a Playwright storageState the profile's next generation."`
	Export struct {
		ID         string `arg:"" help:"Profile id."`
		File       string `arg:"" default:"-" help:"Where to write it, for its owner only; - is standard output."`
		Generation int64  `help:"Which one; default: the current one."`
	} `cmd:"" help:"Write a generation as Playwright's storageState. It logs in whoever has it."`
}

func (c *profilesCmd) run(ctx context.Context, command string, fleet *client.Client, p printer) error {
	switch command {
	case "ls":
		v, err := fleet.Profiles(ctx, c.Ls.Account)
		return list(p, err, profileColumns(), v, profileRow)
	case "get <id>":
		v, err := fleet.Profile(ctx, c.Get.ID)
		return p.objectOr(v, err)
	case "set <id>":
		v, err := fleet.ChangeProfile(ctx, c.Set.ID, api.ChangeProfile{Name: c.Set.Name, Archetype: c.Set.Archetype, Description: c.Set.Description})
		return p.objectOr(v, err)
	case "generations <id>":
		v, err := fleet.Generations(ctx, c.Generations.ID)
		return list(p, err, generationColumns(), v, p.generationRow)
	case "report <session>":
		v, err := fleet.ProfileReport(ctx, c.Report.Session, c.Report.Limit)
		return p.objectOr(v, err)
	case "promote <id> <number>":
		v, err := fleet.PromoteGeneration(ctx, c.Promote.ID, c.Promote.Number)
		return p.objectOr(v, err)
	case "rollback <id>":
		v, err := fleet.RollbackProfile(ctx, c.Rollback.ID)
		return p.objectOr(v, err)
	case "clone <id>":
		v, err := fleet.CloneProfile(ctx, c.Clone.ID, api.CloneProfile{Name: c.Clone.Name, Generation: c.Clone.Generation})
		return p.objectOr(v, err)
	case "rm <id>":
		if c.Rm.Generation != 0 {
			return fleet.DeleteGeneration(ctx, c.Rm.ID, c.Rm.Generation)
		}
		return fleet.DeleteProfile(ctx, c.Rm.ID)
	case "import <id>", "import <id> <file>":
		b, err := readInput(c.Import.File)
		if err != nil {
			return err
		}
		v, err := fleet.ImportProfile(ctx, c.Import.ID, bytes.NewReader(b))
		return p.objectOr(v, err)
	case "export <id>", "export <id> <file>":
		var b bytes.Buffer
		if err := fleet.ExportProfile(ctx, c.Export.ID, c.Export.Generation, &b); err != nil {
			return err
		}
		return p.writeOutput(c.Export.File, b.Bytes())
	}
	return fmt.Errorf("command %q has no implementation", "profiles "+command)
}

func profileColumns() table.Row {
	return table.Row{"PROFILE", "ACCOUNT", "NAME", "GENERATION", "BYTES", "HELD BY"}
}

func profileRow(f api.Profile) table.Row {
	at := fmt.Sprint(f.Generation)
	if f.Damaged {
		at += " damaged: roll back"
	}
	if f.Candidates > 0 {
		at += fmt.Sprintf(", %d candidate", f.Candidates)
	}
	return table.Row{f.ID, f.Account, f.Name, at, f.Bytes, f.HeldBy}
}

func generationColumns() table.Row {
	return table.Row{"GENERATION", "STATE", "FROM", "AFTER", "BYTES", "SAVED", "REASON"}
}

func (p printer) generationRow(g api.Generation) table.Row {
	state, from := g.State, g.Source
	if g.Current {
		state = "current"
		if g.State == "quarantined" {
			state = "current, quarantined"
		}
	}
	if g.Session != "" {
		from += " " + g.Session
	}
	after := "-"
	if g.Previous != 0 {
		after = fmt.Sprint(g.Previous)
	}
	return table.Row{g.Number, state, from, after, g.Bytes, p.since(&g.CreatedAt), g.Reason}
}

// readInput reads a file, or standard input for -.
func readInput(path string) ([]byte, error) {
	if path == "-" {
		path = "/dev/stdin"
	}
	return os.ReadFile(path)
}

// writeOutput writes a new file that only its owner can read, or to the output for -.
func (p printer) writeOutput(path string, b []byte) error {
	if path == "-" {
		_, err := p.out.Write(b)
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
