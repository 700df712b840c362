// Package pgcluster runs a private Postgres cluster from the system's binaries, reachable over a unix socket only.
// It is the database of devstack and of tests.
//
//	Start ── initdb (new folder) ── postgres as a child ── ready ── Stop (fast shutdown, then kill)
//
// A cluster is one folder. The folder is locked while a cluster runs in it, so that whatever is found running
// there under a free lock is a leftover of a killed owner and may be ended.
//
// Postgres refuses to run as root; as root the binaries run in a user namespace where root is nobody, and where
// namespaces are refused as the system user postgres.
//
// Out of scope: SQL and connections (package pgstore), tuning, backups, anything a production database needs.
package pgcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
)

const (
	readyLimit = 60 * time.Second      // crash recovery on a slow disk included
	stopLimit  = 20 * time.Second      // Stop's own limit when its context has none
	killLimit  = 10 * time.Second      // after SIGKILL
	pollEvery  = 10 * time.Millisecond // of postmaster.pid, which has no other way to be watched
	socketName = ".s.PGSQL.5432"
)

// Config says where a cluster lives.
type Config struct {
	// Dir holds the data, the socket, the lock and the log. It is made when missing.
	Dir string
	// LogFile receives what Postgres logs; "" is postgres.log in Dir.
	LogFile string
	// Settings are further ones of the server, each as name=value.
	Settings []string
	Log      *zap.Logger // nil logs nothing
}

// Cluster is a running Postgres.
type Cluster struct {
	bin    binaries
	dir    string
	data   string
	socket string // the folder of the unix socket
	log    *zap.Logger
	lock   *os.File
	proc   *process
	as     identity
}

// Start brings up the cluster of cfg.Dir, making it first when the folder is new, and returns when it takes connections.
// ctx bounds the start only. The caller must Stop the cluster.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	return startAs(ctx, cfg, chooseIdentity)
}

type chooser func(context.Context, binaries, string) (identity, error)

func startAs(ctx context.Context, cfg Config, choose chooser) (_ *Cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	c := &Cluster{log: cfg.Log}
	if c.log == nil {
		c.log = zap.NewNop()
	}
	if c.dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("postgres folder: %w", err)
	}
	c.data = filepath.Join(c.dir, "data")
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("postgres folder: %w", err)
	}
	if c.bin, err = findBinaries(); err != nil {
		return nil, err
	}
	if c.lock, err = lockDir(c.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.lock.Close()
		}
	}()
	if c.as, err = choose(ctx, c.bin, c.dir); err != nil {
		return nil, err
	}
	if err := c.initdb(ctx); err != nil {
		return nil, err
	}
	if err := c.clearStale(ctx); err != nil {
		return nil, err
	}
	if err := c.openSocketDir(); err != nil {
		return nil, err
	}
	if err := c.run(ctx, cfg); err != nil {
		return nil, errors.Join(err, c.closeSocketDir())
	}
	return c, nil
}

// DSN is the connection URL of a database of the cluster.
func (c *Cluster) DSN(db string) string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/" + db,
		RawQuery: url.Values{"host": {c.socket}, "port": {"5432"}, "sslmode": {"disable"}}.Encode()}
	return u.String()
}

// Done is closed when Postgres has ended, by Stop or by itself.
func (c *Cluster) Done() <-chan struct{} { return c.proc.done }

var databaseName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// CreateDatabase makes an empty database; one that is already there is left as it is.
func (c *Cluster) CreateDatabase(ctx context.Context, name string) error {
	if !databaseName.MatchString(name) {
		return fmt.Errorf("database name %q: use up to 63 of a-z, 0-9 and _", name)
	}
	found, err := c.psql(ctx, "postgres", "SELECT count(*) FROM pg_database WHERE datname = '"+name+"'")
	if err != nil || found == "1" {
		return err
	}
	_, err = c.psql(ctx, "postgres", `CREATE DATABASE "`+name+`" TEMPLATE template0`)
	return err
}

// CopyDatabase makes a database that has what another has, to which nobody may be connected. Small ones are copied fastest as files, which
// Postgres 15 can be told.
func (c *Cluster) CopyDatabase(ctx context.Context, name, of string) error {
	for _, n := range []string{name, of} {
		if !databaseName.MatchString(n) {
			return fmt.Errorf("database name %q: use up to 63 of a-z, 0-9 and _", n)
		}
	}
	_, err := c.psql(ctx, "postgres", `CREATE DATABASE "`+name+`" TEMPLATE "`+of+`" STRATEGY file_copy`)
	return err
}

// DropDatabase removes a database, ending the connections it still has.
func (c *Cluster) DropDatabase(ctx context.Context, name string) error {
	if !databaseName.MatchString(name) {
		return fmt.Errorf("database name %q: use up to 63 of a-z, 0-9 and _", name)
	}
	_, err := c.psql(ctx, "postgres", `DROP DATABASE IF EXISTS "`+name+`" WITH (FORCE)`)
	return err
}

// Run runs the statements of a script as the cluster's owner, all or none, and returns their unaligned output: for a
// benchmark that needs more rows than it could make through the store, or a look behind it.
func (c *Cluster) Run(ctx context.Context, db, script string) (string, error) {
	return c.psqlWith(ctx, db, strings.NewReader(script), "-1", "-f", "-")
}

// Pgbench runs a script of pgbench, which comes with the server, as the cluster's owner and returns its report.
func (c *Cluster) Pgbench(ctx context.Context, db, script string, args ...string) (string, error) {
	server, err := filepath.EvalSymlinks(c.bin.postgres)
	if err != nil {
		return "", fmt.Errorf("pgbench: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(server), "pgbench"), append(args, "-n", "-f", "/dev/stdin", c.DSN(db))...)
	cmd.Env, cmd.Stdin = environ(), strings.NewReader(script)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("pgbench: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}

// Stop shuts Postgres down (clients are cut off, data is flushed) and returns when no process of it is left. When ctx
// ends first Postgres is killed, which loses nothing that was committed. Stopping twice is harmless.
func (c *Cluster) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	c.proc.signal(syscall.SIGINT)
	var err error
	select {
	case <-c.proc.done:
	case <-ctx.Done():
		err = fmt.Errorf("postgres did not stop in time and was killed: %w", context.Cause(ctx))
		c.proc.signal(syscall.SIGKILL)
		<-c.proc.done
	}
	return errors.Join(err, c.waitOrphans(context.WithoutCancel(ctx)), c.closeSocketDir(), c.unlock())
}

func (c *Cluster) unlock() error {
	if err := c.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// initdb makes the data folder under another name first, so that an interrupted initdb is never taken for a cluster.
func (c *Cluster) initdb(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(c.data, "PG_VERSION")); err == nil {
		return c.as.own(c.data)
	}
	fresh := c.data + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("postgres folder: %w", err)
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return fmt.Errorf("postgres folder: %w", err)
	}
	if err := c.as.own(fresh); err != nil {
		return err
	}
	// -N: the files are not worth anything before the first start, which syncs what it writes.
	cmd := exec.CommandContext(ctx, c.bin.initdb, "-D", fresh, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "-N")
	cmd.Dir, cmd.Env = "/", environ() // not the folder: the right to enter it may come only with exec
	c.as.apply(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, bytes.TrimSpace(out))
	}
	if err := os.Rename(fresh, c.data); err != nil {
		return fmt.Errorf("postgres folder: %w", err)
	}
	return nil
}

func (c *Cluster) run(ctx context.Context, cfg Config) error {
	logFile := cfg.LogFile
	if logFile == "" {
		logFile = filepath.Join(c.dir, "postgres.log")
	}
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("postgres log: %w", err)
	}
	defer out.Close()
	before, err := out.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("postgres log: %w", err)
	}
	cmd := exec.Command(c.bin.postgres, "-D", c.data, "-k", c.socket, "-p", "5432",
		"-c", "listen_addresses=", "-c", "unix_socket_permissions=0700", "-c", "max_connections=200",
		"-c", "timezone=UTC", "-c", "log_timezone=UTC")
	for _, setting := range cfg.Settings {
		cmd.Args = append(cmd.Args, "-c", setting)
	}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", environ(), out, out
	c.as.apply(cmd)
	if c.proc, err = startProcess(cmd); err != nil {
		return fmt.Errorf("start %s: %w", c.bin.postgres, err)
	}
	if err := c.waitReady(ctx); err != nil {
		c.proc.signal(syscall.SIGKILL)
		<-c.proc.done
		return errors.Join(fmt.Errorf("%w; end of %s:\n%s", err, logFile, tail(logFile, before)), c.waitOrphans(context.WithoutCancel(ctx)))
	}
	c.log.Info("postgres is up", zap.String("socket", c.socket), zap.Int("pid", c.proc.pid))
	return nil
}

// waitReady watches the last line of postmaster.pid, as pg_ctl does.
func (c *Cluster) waitReady(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if pid, status := c.pidFile(); status == "ready" && pid != 0 {
			return nil
		}
		select {
		case <-c.proc.done:
			return fmt.Errorf("postgres ended while starting: %w", c.proc.err)
		case <-ctx.Done():
			return fmt.Errorf("postgres was not ready in time: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// pidFile reads the process id and the status out of postmaster.pid; zero values when it is absent or cut short.
func (c *Cluster) pidFile() (pid int, status string) {
	raw, err := os.ReadFile(filepath.Join(c.data, "postmaster.pid"))
	if err != nil {
		return 0, ""
	}
	lines := strings.Split(string(raw), "\n")
	pid, _ = strconv.Atoi(strings.TrimSpace(lines[0]))
	if len(lines) > 7 {
		status = strings.TrimSpace(lines[7])
	}
	return pid, status
}

// clearStale makes a folder startable whose owner was killed: the lock is ours, so a Postgres that still works in the
// folder has no owner. A pid file that names a process of somebody else (the number was reused) is removed, because
// Postgres would believe it.
func (c *Cluster) clearStale(ctx context.Context) error {
	for _, pid := range orphans(c.data) {
		c.log.Info("ending a postgres left behind by a killed owner", zap.Int("pid", pid))
		if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end leftover postgres %d: %w", pid, err)
		}
	}
	if err := c.waitOrphans(ctx); err != nil {
		return err
	}
	if runtimeKnowsOrphans {
		if err := os.Remove(filepath.Join(c.data, "postmaster.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("postgres folder: %w", err)
		}
	}
	return nil
}

// waitOrphans returns when no process works in the data folder; backends of a killed postmaster end by themselves
// within moments, those that do not are killed.
func (c *Cluster) waitOrphans(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	deadline := time.Now().Add(killLimit / 2)
	for {
		left := orphans(c.data)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			for _, pid := range left {
				_ = syscall.Kill(pid, syscall.SIGKILL) // gone meanwhile is as good
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("postgres processes %v in %s do not end", left, c.data)
		case <-tick.C:
		}
	}
}

// psql runs one statement and returns its unaligned output.
func (c *Cluster) psql(ctx context.Context, db, statement string) (string, error) {
	return c.psqlWith(ctx, db, nil, "-c", statement)
}

func (c *Cluster) psqlWith(ctx context.Context, db string, stdin io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin.psql, append([]string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", c.DSN(db)}, args...)...)
	cmd.Env, cmd.Stdin = environ(), stdin
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}
