package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

type keysCmd struct {
	Status struct{} `cmd:"" help:"Count keys by the epoch of the root key that wraps them."`
	Rotate struct {
		Account string `help:"Give this account a new key, and its profiles new data keys for generations to come."`
	} `cmd:"" help:"Begin a new epoch of the root key and wrap every account's key with it. No sealed file is touched."`
	Retire struct {
		Epoch string `arg:"" help:"As status shows it."`
	} `cmd:"" help:"Remove an epoch of the root key that wraps no account's key; backups of its time open never again."`
	Destroy struct {
		Account string `arg:"" help:"Account id."`
		Confirm string `placeholder:"ACCOUNT" help:"The account id again."`
	} `cmd:"" help:"Destroy an account's key: every copy of every profile of it is unreadable, for ever."`
	Backup struct {
		File string `arg:"" help:"Where to write it; it must not exist."`
		Days int    `default:"30" help:"How long it can be restored, 1 to 90."`
	} `cmd:"" help:"Write a sealed backup of the wrapped keys. It needs the root key to be of any use: keep them apart."`
	Restore struct {
		File string `arg:"" help:"A backup."`
	} `cmd:"" help:"Add the keys of a backup that are missing, except those that were destroyed."`
}

func (c *keysCmd) run(ctx context.Context, command string, fleet *client.Client, p printer) error {
	switch command {
	case "status":
		v, err := fleet.KeyStatus(ctx)
		if err != nil {
			return err
		}
		return p.keyStatus(v)
	case "rotate":
		v, err := fleet.RotateKeys(ctx, c.Rotate.Account)
		if err != nil || p.json {
			return p.objectOr(v, err)
		}
		return p.told(nil, keysRotated(c.Rotate.Account, v))
	case "retire <epoch>":
		return fleet.RetireRoot(ctx, c.Retire.Epoch)
	case "destroy <account>":
		if c.Destroy.Confirm != c.Destroy.Account {
			return errors.New("this cannot be undone: repeat the account with --confirm")
		}
		return p.told(fleet.DestroyAccountKey(ctx, c.Destroy.Account), fmt.Sprintf("The key of %s is destroyed: no copy of its profiles opens any more.\n", c.Destroy.Account))
	case "backup <file>":
		var b bytes.Buffer
		if err := fleet.BackupKeys(ctx, c.Backup.Days, &b); err != nil {
			return err
		}
		return p.writeOutput(c.Backup.File, b.Bytes())
	case "restore <file>":
		b, err := readInput(c.Restore.File)
		if err != nil {
			return err
		}
		n, err := fleet.RestoreKeys(ctx, bytes.NewReader(b))
		return p.told(err, fmt.Sprintf("%d keys were missing and are back.\n", n))
	}
	return fmt.Errorf("command %q has no implementation", "keys "+command)
}

func keysRotated(account string, v api.KeysRotated) string {
	if account != "" {
		return fmt.Sprintf("%s has a new key, and its %d profiles have new data keys for generations to come. What was sealed before opens as before.\n", account, v.Profiles)
	}
	begun := "Epoch " + v.RootEpoch + " of the root key was begun and wraps"
	if !v.NewRoot {
		begun = "The root key is not a file of the orchestrator, so no epoch was begun; its newest, " + v.RootEpoch + ", wraps"
	}
	return fmt.Sprintf("%s every account's key now; %d were wrapped anew. Copy the root key to where its backup is. `driftctl keys retire` removes an older epoch.\n", begun, v.Accounts)
}

func (p printer) keyStatus(v api.KeyStatus) error {
	if p.json {
		return p.object(v)
	}
	err := list(p, nil, table.Row{"ROOT EPOCH", "STATE", "ACCOUNT KEYS"}, v.Roots, func(r api.RootEpoch) table.Row {
		state := "opens"
		switch {
		case r.Missing:
			state = "MISSING: restore it"
		case r.Current:
			state = "wraps and opens"
		case r.Accounts == 0:
			state = "opens old backups only; may be retired"
		}
		return table.Row{r.Epoch, state, r.Accounts}
	})
	if err == nil {
		_, err = fmt.Fprintf(p.out, "\n%d profiles have keys; %d accounts or profiles had theirs destroyed.\n", v.Profiles, v.Destroyed)
	}
	return err
}
