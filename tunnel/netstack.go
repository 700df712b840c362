package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	stackNIC   = 1
	stackQueue = 4096 // packets on their way to WireGuard; a full queue drops, which TCP takes for congestion
)

// stackTUN is a tun.Device whose other side is a TCP stack in this process. The one in wireguard's tun/netstack hides
// its stack, and panics when it is closed while it sends.
type stackTUN struct {
	stack  *stack.Stack
	ep     *channel.Endpoint
	events chan tun.Event // never written: this package brings devices up itself
	ctx    context.Context
	cancel context.CancelFunc
	once   sync.Once
	mtu    int
	batch  int
}

var _ tun.Device = (*stackTUN)(nil)

func newStackTUN(addr netip.Addr, mtu int) (*stackTUN, error) {
	t := &stackTUN{
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, icmp.NewProtocol4},
			HandleLocal:        true,
		}),
		ep:     channel.New(stackQueue, uint32(mtu), ""),
		events: make(chan tun.Event),
		mtu:    mtu,
	}
	t.ctx, t.cancel = context.WithCancel(context.Background()) // the life of the device, ended by Close
	for _, err := range append(tuneTCP(t.stack),
		t.stack.CreateNIC(stackNIC, t.ep),
		t.stack.AddProtocolAddress(stackNIC, tcpip.ProtocolAddress{
			Protocol:          ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddrFromSlice(addr.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{}),
	) {
		if err != nil {
			_ = t.Close()
			return nil, fmt.Errorf("network stack: %s", err)
		}
	}
	t.stack.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: stackNIC})
	return t, nil
}

func (t *stackTUN) Name() (string, error)    { return BackendNetstack, nil }
func (t *stackTUN) File() *os.File           { return nil }
func (t *stackTUN) Events() <-chan tun.Event { return t.events }
func (t *stackTUN) MTU() (int, error)        { return t.mtu, nil }
func (t *stackTUN) BatchSize() int           { return t.batch }

// Read hands the stack's packets to WireGuard: it waits for one and takes along what else is there.
func (t *stackTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	for pkt := t.ep.ReadContext(t.ctx); pkt != nil; pkt = t.ep.Read() {
		size := 0
		for _, part := range pkt.AsSlices() {
			size += copy(bufs[n][offset+size:], part)
		}
		pkt.DecRef()
		sizes[n] = size
		if n++; n == len(bufs) {
			break
		}
	}
	if n == 0 {
		return 0, os.ErrClosed
	}
	return n, nil
}

// Write hands decrypted packets to the stack.
func (t *stackTUN) Write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		packet := b[offset:]
		if len(packet) == 0 {
			continue
		}
		if packet[0]>>4 != 4 {
			return i, syscall.EAFNOSUPPORT // the tunnel is IPv4 only
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
		t.ep.InjectInbound(header.IPv4ProtocolNumber, pkt)
		pkt.DecRef()
	}
	return len(bufs), nil
}

func (t *stackTUN) Close() error {
	t.once.Do(func() {
		t.cancel()
		t.stack.Close()
		t.stack.RemoveNIC(stackNIC)
		t.ep.Close()
		close(t.events)
	})
	return nil
}

// netstackDevice is wireguard-go on a stackTUN.
type netstackDevice struct {
	tun  *stackTUN
	dev  *device.Device
	bind *watchedBind
	addr netip.Addr
	*caller
}

func openNetstack(ctx context.Context, cfg deviceConfig) (wgDevice, error) {
	t, err := newStackTUN(cfg.Addr, cfg.MTU)
	if err != nil {
		return nil, err
	}
	bind, batch := conn.NewDefaultBind(), conn.IdealBatchSize
	if cfg.Small {
		bind, batch = &smallBind{}, 1
	}
	t.batch = batch
	watched := &watchedBind{Bind: bind, tell: cfg.Answered}
	dev := device.NewDevice(t, watched, wgLogger(cfg.Log))
	d := &netstackDevice{tun: t, dev: dev, bind: watched, addr: cfg.Addr, caller: newCaller(BackendNetstack+" "+cfg.Addr.String(), dev.Wait())}
	key := wgtypes.Key(cfg.Key)
	if err = d.apply(ctx, wgtypes.Config{PrivateKey: &key, ListenPort: &cfg.Port}); err == nil {
		err = up(ctx, d.caller, dev, cfg.Port)
	}
	if err != nil {
		_ = d.close()
		return nil, err
	}
	return d, nil
}

// up opens the UDP socket.
func up(ctx context.Context, c *caller, dev *device.Device, port int) error {
	_, err := call(ctx, c, "bring up", func() (struct{}, error) { return struct{}{}, dev.Up() })
	if err != nil {
		return fmt.Errorf("UDP port %d: %w", port, err)
	}
	return nil
}

func (d *netstackDevice) name() string          { return d.device }
func (d *netstackDevice) gone() <-chan struct{} { return d.dev.Wait() }

func (d *netstackDevice) apply(ctx context.Context, cfg wgtypes.Config) error {
	text, err := encodeUAPI(cfg)
	if err != nil {
		return fmt.Errorf("tunnel: configure %s: %w", d.device, err)
	}
	_, err = call(ctx, d.caller, "configure", func() (struct{}, error) { return struct{}{}, d.dev.IpcSet(text) })
	return err
}

func (d *netstackDevice) read(ctx context.Context) (*wgtypes.Device, error) {
	return call(ctx, d.caller, "read", func() (*wgtypes.Device, error) {
		s, err := d.dev.IpcGet()
		if err != nil {
			return nil, err
		}
		return decodeUAPI(d.device, s)
	})
}

// check has nothing to look at: nobody else can reach this device.
func (d *netstackDevice) check(context.Context) error { return nil }

// abandon frees the UDP port and ends the stack, and with it its connections.
func (d *netstackDevice) abandon() {
	_ = d.bind.Close()
	_ = d.tun.Close()
}

func (d *netstackDevice) listen(_ context.Context, port uint16) (net.Listener, error) {
	l, err := gonet.ListenTCP(d.tun.stack, fullAddress(netip.AddrPortFrom(d.addr, port)), ipv4.ProtocolNumber)
	if err != nil {
		return nil, err
	}
	return &stackListener{TCPListener: l}, nil
}

func (d *netstackDevice) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := gonet.DialContextTCP(ctx, d.tun.stack, fullAddress(to), ipv4.ProtocolNumber)
	if err != nil { // never a *gonet.TCPConn that is nil inside the interface
		var op *net.OpError
		if errors.As(err, &op) && op.Err.Error() == (&tcpip.ErrConnectionRefused{}).String() {
			op.Err = syscall.ECONNREFUSED // gonet has errors of its own
		}
		return nil, err
	}
	return c, nil
}

// setMTU does not tell WireGuard, which only pads up to the MTU.
func (d *netstackDevice) setMTU(_ context.Context, mtu int) error {
	d.tun.ep.SetMTU(uint32(mtu))
	return nil
}

func (d *netstackDevice) close() error {
	_, err := call(context.Background(), newCaller(d.device, nil), "close", func() (struct{}, error) {
		closeDevice(d.dev, d.bind)
		// Endpoints end by themselves once aborted; this only makes sure that nothing runs after close.
		d.tun.stack.Wait()
		return struct{}{}, nil
	})
	return err
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: stackNIC, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// stackListener makes gonet's listener behave like the net package's: Close ends Accept, with net.ErrClosed.
type stackListener struct {
	*gonet.TCPListener
	mu     sync.Mutex
	closed bool
}

func (l *stackListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err == nil {
		return c, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		err = net.ErrClosed
	}
	return nil, err
}

func (l *stackListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	l.Shutdown()
	return l.TCPListener.Close()
}
