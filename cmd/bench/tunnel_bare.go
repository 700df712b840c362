package main

import (
	"context"
	"crypto/ecdh"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/tunnel"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

// bareGateway is this program's other self: what is measured is a process of its own.
const bareGateway = "bare-gateway"

// bareConfig is what the bare gateway reads from its input. It ends with that.
type bareConfig struct {
	Private []byte   `json:"private_key"`
	Port    int      `json:"port"`
	MTU     int      `json:"mtu"`
	Peers   []string `json:"peers"` // lines of WireGuard's configuration protocol
}

// bareGatewayMain is wireguard-go on its own tun/netstack with a websocket that echoes: the least that answers a heartbeat of every host
// once a second on the path that commands take.
func bareGatewayMain(in io.Reader) error {
	d := json.NewDecoder(in)
	var cfg bareConfig
	if err := d.Decode(&cfg); err != nil {
		return err
	}
	key, err := ecdh.X25519().NewPrivateKey(cfg.Private)
	if err != nil {
		return err
	}
	b, err := tunneltest.OpenBareWith(netip.MustParseAddr(bareAddr), cfg.MTU, key)
	if err != nil {
		return err
	}
	if err := b.Set(fmt.Sprintf("listen_port=%d\n%s", cfg.Port, strings.Join(cfg.Peers, ""))); err != nil {
		return err
	}
	l, err := b.Listen(tunnelFleet)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	go func() { _, _ = io.Copy(io.Discard, in); os.Exit(0) }() // the device has no clean end: see Bare.Close
	return (&http.Server{Handler: echoHandler(), ReadHeaderTimeout: 10 * time.Second}).Serve(l)
}

const bareAddr = "10.99.0.1"

// idleBare is the share of a core that a bare gateway takes with n hosts which send it an echo a second, on the same marks of the
// clock as heartbeats.
func (t *tunnelBench) idleBare(ctx context.Context, n int) (_ float64, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	key, err := tunnel.NewPrivateKey()
	if err != nil {
		return 0, err
	}
	members, err := newMembers(n)
	if err != nil {
		return 0, err
	}
	cfg := bareConfig{Private: key[:], MTU: tunnelMTU}
	for _, m := range members {
		cfg.Peers = append(cfg.Peers, fmt.Sprintf("public_key=%s\npreshared_key=%x\nallowed_ip=%s/32\n", hex.EncodeToString(m.public), m.psk, m.addr))
	}
	if cfg.Port, err = freePort("udp"); err != nil {
		return 0, err
	}
	cmd := exec.Command(os.Args[0], bareGateway)
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	u.add(func() error { return errors.Join(in.Close(), cmd.Wait()) })
	if err := json.NewEncoder(in).Encode(cfg); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		return 0, fmt.Errorf("the bare gateway did not start: %w", err)
	}
	crowd, err := tunneltest.OpenCrowd(tunneltest.CrowdConfig{Endpoint: fmt.Sprintf("127.0.0.1:%d", cfg.Port), PublicKey: key.Public(), MTU: tunnelMTU})
	if err != nil {
		return 0, err
	}
	u.add(crowd.Close)
	var up sync.WaitGroup // hosts whose first echo came back
	up.Add(n)
	err = openHosts(ctx, &u, crowd, members, func(ctx context.Context, e enrolled) error { return echoHost(ctx, crowd, e, up.Done) })
	if err != nil {
		return 0, err
	}
	if err := waitFor(ctx, &up, idleUp); err != nil {
		return 0, err
	}
	return share(ctx, func() (time.Duration, error) { return processTime(cmd.Process.Pid) })
}

// waitFor waits for a group, within a limit.
func waitFor(ctx context.Context, g *sync.WaitGroup, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan struct{})
	go func() { g.Wait(); close(done) }() // where it takes longer, it ends with the program
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("not every host has connected: %w", ctx.Err())
	}
}

// echoHost is the life of a host of the bare gateway. An echo that fails ends the measurement with an error.
func echoHost(ctx context.Context, crowd *tunneltest.Crowd, e enrolled, up func()) error {
	first := sync.OnceFunc(up)
	defer first()
	endpoint := &socket.Endpoint{}
	c, err := endpoint.Dial(ctx, crowd.Dial(e.addr), fmt.Sprintf("ws://%s:%d%s", bareAddr, tunnelFleet, echoPath), socket.Session(1<<20))
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, c.Close)()
	beat := make([]byte, echoSize)
	for {
		if err := c.WriteBinary(ctx, beat); err != nil {
			break
		}
		if _, err := c.ReadBinary(); err != nil {
			break
		}
		first()
		now := time.Now()
		next := time.NewTimer(now.Truncate(time.Second).Add(time.Second + e.mark).Sub(now))
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			return nil
		}
	}
	if ctx.Err() == nil {
		return fmt.Errorf("%s: the bare gateway is gone", e.name)
	}
	return nil
}
