package pgcluster

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// The limit of sockaddr_un without its closing zero.
const socketPathLimit = 103

// Without /proc a leftover Postgres is left to Postgres' own check of postmaster.pid.
const runtimeKnowsOrphans = false

// identity is how Postgres' binaries run: as ourselves.
type identity struct{}

func chooseIdentity(context.Context, binaries, string) (identity, error) {
	if os.Geteuid() == 0 {
		return identity{}, errors.New("as root Postgres does not run: run as an ordinary user")
	}
	return identity{}, nil
}

func (identity) apply(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func (identity) own(string) error { return nil }

func orphans(string) []int { return nil }
