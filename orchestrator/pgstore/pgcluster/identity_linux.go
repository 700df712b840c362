package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// The limit of sockaddr_un without its closing zero.
const socketPathLimit = 107

const runtimeKnowsOrphans = true

// nobody is who root is inside the user namespace; any number but 0 would do.
const nobody = 65534

// CAP_DAC_OVERRIDE of linux/capability.h, which package syscall does not name.
const capDACOverride = 1

// identity is how Postgres' binaries run: as ourselves, as root renamed by a user namespace, or as another user.
type identity struct {
	attr syscall.SysProcAttr
	uid  int // owner of the cluster's files, as seen from outside
	gid  int
	root bool
}

// chooseIdentity finds the first way that works here. Postgres accepts every user but root.
func chooseIdentity(ctx context.Context, b binaries, dir string) (identity, error) {
	if os.Geteuid() != 0 {
		return identity{}, nil
	}
	renamed := identity{root: true, attr: syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: 0, Size: 1}},
	}}
	errRenamed := renamed.try(ctx, b, dir)
	if errRenamed == nil {
		return renamed, nil
	}
	other, err := systemUser()
	if err == nil {
		if err = other.try(ctx, b, dir); err == nil {
			return other, nil
		}
	}
	return identity{}, fmt.Errorf("as root Postgres does not run, and neither way around it works here: "+
		"in a user namespace: %w; as the system user postgres: %w. Run as an ordinary user", errRenamed, err)
}

// systemUser is the user that Debian's postgresql-common makes. It keeps the right to enter folders that only root may,
// because a checkout is often below /root.
func systemUser() (identity, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return identity{}, err
	}
	uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
	gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(errUID, errGID); err != nil {
		return identity{}, err
	}
	return identity{root: true, uid: int(uid), gid: int(gid), attr: syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
		AmbientCaps: []uintptr{capDACOverride},
	}}, nil
}

// try runs a binary from within the folder, which fails when either cannot be entered.
func (i identity) try(ctx context.Context, b binaries, dir string) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `cd "$1" && exec "$2" --version`, "sh", dir, b.postgres)
	cmd.Dir, cmd.Env = "/", environ()
	i.apply(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w %s", err, out)
	}
	return nil
}

// apply makes cmd run so, in its own process group, and shut down when this process dies.
func (i identity) apply(cmd *exec.Cmd) {
	attr := i.attr
	attr.Setpgid = true
	attr.Pdeathsig = syscall.SIGINT
	cmd.SysProcAttr = &attr
}

// own hands a folder of the cluster to the identity, should another one have been used before.
func (i identity) own(dir string) error {
	if !i.root {
		return nil
	}
	if st, err := os.Stat(dir); err == nil && int(st.Sys().(*syscall.Stat_t).Uid) == i.uid {
		return nil
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, i.uid, i.gid)
	})
	if err != nil {
		return fmt.Errorf("postgres folder: %w", err)
	}
	return nil
}

// orphans lists the processes that work in the data folder: Postgres changes into it, backends too.
func orphans(data string) []int {
	real, err := filepath.EvalSymlinks(data)
	if err != nil {
		return nil
	}
	found, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	var pids []int
	for _, p := range found {
		cwd, err := os.Readlink(filepath.Join(p, "cwd"))
		if err != nil || cwd != real {
			continue
		}
		name, err := os.ReadFile(filepath.Join(p, "comm"))
		if err != nil || strings.TrimSpace(string(name)) != "postgres" {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(p)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
