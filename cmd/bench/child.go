package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster"
)

const (
	childReady = time.Minute
	childStop  = 30 * time.Second
)

// daemon is cmd/orchestrator, built and running as it is shipped, so that its process's share of the machine is an
// orchestrator's and nobody else's.
type daemon struct {
	cmd    *exec.Cmd
	url    string
	client *client.Client
	log    string
	done   chan error // holds how it ended
}

// startDaemon builds the orchestrator and starts it on databases of its own. Nothing is recorded, so its object storage need not be there.
func startDaemon(ctx context.Context, dir string, cluster *pgcluster.Cluster, database string) (*daemon, error) {
	keys := database + "_keys"
	if err := errors.Join(cluster.CreateDatabase(ctx, database), cluster.CreateDatabase(ctx, keys)); err != nil {
		return nil, err
	}
	bin := filepath.Join(dir, "orchestrator")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, "./cmd/orchestrator")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w: %s", err, out)
	}
	web, err1 := freePort("tcp")
	udp, err2 := freePort("udp")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	d := &daemon{log: filepath.Join(dir, "orchestrator.log"), done: make(chan error, 1)}
	out, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	d.cmd = exec.Command(bin, "--state-dir", filepath.Join(dir, "state"), "--location", "DE", "--development",
		"--http-addr", fmt.Sprintf("127.0.0.1:%d", web),
		"--tunnel-backend", "netstack", "--tunnel-listen-port", strconv.Itoa(udp), "--tunnel-endpoint", fmt.Sprintf("127.0.0.1:%d", udp),
		"--quota-concurrent", "1000000", "--quota-queued", "1000000", "--quota-creates-per-minute", "1000000", // one account has them all
		"--eu-s3-endpoint", "http://127.0.0.1:9", "--eu-s3-bucket", "bench", "--eu-s3-access-key", "none")
	d.cmd.Env = append(os.Environ(), "DRIFTSTACK_SERVICE_TOKEN="+benchToken, "DRIFTSTACK_DATABASE_URL="+cluster.DSN(database),
		"DRIFTSTACK_KEY_DATABASE_URL="+cluster.DSN(keys), "DRIFTSTACK_EU_S3_SECRET_KEY=none")
	d.cmd.Stdout, d.cmd.Stderr = out, out
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { d.done <- d.cmd.Wait() }()
	d.url = fmt.Sprintf("http://127.0.0.1:%d", web)
	if d.client, err = client.New(d.url, benchToken); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	if err := d.ready(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

func freePort(network string) (int, error) {
	if network == "udp" {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return 0, err
		}
		return c.LocalAddr().(*net.UDPAddr).Port, c.Close()
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func (d *daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, childReady)
	defer cancel()
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		_, err := d.client.Hosts(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-t.C:
		case ended := <-d.done:
			d.done <- ended
			return fmt.Errorf("the orchestrator ended: %w: %s", ended, d.tail())
		case <-ctx.Done():
			return fmt.Errorf("the orchestrator is not ready: %w: %s", err, d.tail())
		}
	}
}

// tail is the end of its log.
func (d *daemon) tail() []byte {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(b[max(0, len(b)-2000):])
}

func (d *daemon) stop() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // fails when it has ended already
	t := time.NewTimer(childStop)
	defer t.Stop()
	select {
	case err := <-d.done:
		return err
	case <-t.C:
		return errors.Join(fmt.Errorf("the orchestrator did not stop: %s", d.tail()), d.cmd.Process.Kill(), <-d.done)
	}
}

// cpu is the processor time it has used.
func (d *daemon) cpu() (time.Duration, error) { return processTime(d.cmd.Process.Pid) }
