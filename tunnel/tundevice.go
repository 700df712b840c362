package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// ctlDevice is a network interface of the operating system, configured through wgctrl.
type ctlDevice struct {
	ifaceConfig
	ctl    *wgctrl.Client
	ended  <-chan struct{}
	ends   ends
	rules  *isolation // nil: hosts' devices
	sender *sender
	*caller
}

// ifaceConfig is what an interface of the operating system was given.
type ifaceConfig struct {
	iface  string
	index  int // 0 until it is configured
	addr   netip.Addr
	routes []netip.Prefix
}

// ends are the ways to end a device.
type ends struct {
	release func() error // in order, and takes the interface down
	abandon func()       // frees the name and the ports without asking the device
}

func newCtlDevice(cfg deviceConfig, iface string, ended <-chan struct{}, ends ends) (*ctlDevice, error) {
	ctl, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("wgctrl: %w", err)
	}
	return &ctlDevice{
		ifaceConfig: ifaceConfig{iface: iface, addr: cfg.Addr, routes: cfg.Routes}, ctl: ctl, ended: ended, ends: ends,
		sender: &sender{device: iface, algorithm: congestion, log: cfg.Log}, caller: newCaller(iface, ended),
	}, nil
}

// start gives the device its key and port, then the interface its rules, and only then its address and routes: at no
// moment it is up without the rules.
func (d *ctlDevice) start(ctx context.Context, cfg deviceConfig) (err error) {
	config := keyConfig(cfg.Key)
	config.ListenPort = &cfg.Port
	if err := d.apply(ctx, config); err != nil {
		return err
	}
	if cfg.Isolate {
		cfg.Interface = d.iface
		if d.rules, err = isolate(ctx, cfg); err != nil {
			return err
		}
		defer func() {
			if err != nil && !cfg.Ours {
				err = errors.Join(err, d.unisolate())
			}
		}()
	}
	if err := notPermitted(configureInterface(ctx, d.iface, cfg)); err != nil {
		return err
	}
	link, err := net.InterfaceByName(d.iface)
	if err != nil {
		return fmt.Errorf("interface %s: %w", d.iface, err)
	}
	d.index = link.Index
	return nil
}

// check implements wgDevice.
func (d *ctlDevice) check(ctx context.Context) error {
	_, err := call(ctx, d.caller, "check", func() (struct{}, error) { return struct{}{}, d.ifaceConfig.check() })
	if err != nil || d.rules == nil {
		return err
	}
	return d.rules.check(ctx)
}

// noInterface tells that error of the net package from others.
func noInterface(err error) bool { return strings.Contains(err.Error(), "no such network interface") }

// check compares the interface with what it was given.
func (c ifaceConfig) check() error {
	link, err := net.InterfaceByName(c.iface)
	switch {
	case err != nil && noInterface(err):
		return fmt.Errorf("%w: %w", ErrDeviceGone, err)
	case err != nil:
		return err
	case link.Index != c.index:
		return fmt.Errorf("%w: its index is %d instead of %d", ErrDeviceAlien, link.Index, c.index)
	case link.Flags&net.FlagUp == 0:
		return fmt.Errorf("%w: it was brought down", ErrDeviceAlien)
	}
	addrs, err := link.Addrs()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, ok := a.(*net.IPNet)
		return ok && p.IP.Equal(c.addr.AsSlice())
	}) {
		return fmt.Errorf("%w: it has lost its address %s", ErrDeviceAlien, c.addr)
	}
	return checkRoutes(link.Index, c.routes)
}

// unisolate takes the rules away. That is not part of close: the device that follows has the same.
func (d *ctlDevice) unisolate() error {
	if d.rules == nil {
		return nil
	}
	return d.rules.remove(context.Background())
}

func (d *ctlDevice) abandon() { d.ends.abandon() }

func (d *ctlDevice) name() string          { return d.iface }
func (d *ctlDevice) gone() <-chan struct{} { return d.ended }

func (d *ctlDevice) apply(ctx context.Context, cfg wgtypes.Config) error {
	if err := checkConfig(cfg); err != nil {
		return fmt.Errorf("tunnel: configure %s: %w", d.iface, err)
	}
	_, err := call(ctx, d.caller, "configure", func() (struct{}, error) {
		return struct{}{}, vanished(d.ctl.ConfigureDevice(d.iface, cfg))
	})
	return err
}

func (d *ctlDevice) read(ctx context.Context) (*wgtypes.Device, error) {
	return call(ctx, d.caller, "read", func() (*wgtypes.Device, error) {
		dev, err := d.ctl.Device(d.iface) // not Devices: one stale socket of anyone breaks that
		if err != nil {
			return nil, vanished(err)
		}
		dev.PrivateKey = wgtypes.Key{} // wgctrl returns it; nobody here needs it
		return dev, nil
	})
}

// vanished gives a name to the errors of a device that is not there any more.
func vanished(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: %w", ErrDeviceGone, err)
	}
	return err
}

func (d *ctlDevice) listen(ctx context.Context, port uint16) (net.Listener, error) {
	lc := net.ListenConfig{Control: d.sender.control}
	return lc.Listen(ctx, "tcp4", netip.AddrPortFrom(d.addr, port).String())
}

func (d *ctlDevice) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	nd := net.Dialer{
		LocalAddr: &net.TCPAddr{IP: d.addr.AsSlice()}, // the address the gateway accepts from us
		Control:   d.bound,
	}
	return nd.DialContext(ctx, "tcp4", to.String())
}

// bound is for sockets that are dialled: a network that hands out routes to the gateways' addresses, by DHCP for
// example, must not get what is meant for the tunnel.
func (d *ctlDevice) bound(network, address string, c syscall.RawConn) error {
	var err error
	if ctl := c.Control(func(fd uintptr) { err = bindTo(fd, d.iface, d.index) }); ctl != nil || err != nil {
		return errors.Join(ctl, err)
	}
	return d.sender.control(network, address, c)
}

func (d *ctlDevice) setMTU(ctx context.Context, mtu int) error {
	_, err := call(ctx, d.caller, "set the MTU of", func() (struct{}, error) {
		return struct{}{}, vanished(setInterfaceMTU(ctx, d.iface, mtu))
	})
	return err
}

func (d *ctlDevice) close() error {
	_, err := call(context.Background(), newCaller(d.iface, nil), "close", func() (struct{}, error) {
		return struct{}{}, d.ends.release()
	})
	return errors.Join(err, d.settle(), d.ctl.Close())
}

// openTUN runs wireguard-go on a TUN device.
func openTUN(ctx context.Context, cfg deviceConfig) (_ wgDevice, err error) {
	want, err := checkTUN(cfg.Interface, cfg.Ours)
	if err != nil {
		return nil, err
	}
	t, err := tun.CreateTUN(want, cfg.MTU)
	if err != nil {
		return nil, notPermitted(fmt.Errorf("make TUN device %s: %w", want, err))
	}
	iface, err := t.Name()
	if err != nil {
		_ = t.Close()
		return nil, fmt.Errorf("TUN device: %w", err)
	}
	bind := &watchedBind{Bind: conn.NewDefaultBind(), tell: cfg.Answered}
	dev := device.NewDevice(t, bind, wgLogger(cfg.Log.Named(iface)))
	socket, err := serveUAPI(iface, dev)
	if err != nil {
		dev.Close()
		return nil, notPermitted(err)
	}
	d, err := newCtlDevice(cfg, iface, dev.Wait(), ends{
		release: func() error { closeDevice(dev, bind); return socket.close() },
		abandon: func() { _, _, _ = socket.hangUp(), bind.Close(), t.Close() },
	})
	if err != nil {
		dev.Close()
		return nil, errors.Join(err, socket.close())
	}
	if err = d.start(ctx, cfg); err == nil {
		err = up(ctx, d.caller, dev, cfg.Port)
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// notPermitted says of errors that come from missing privilege that the backend is not available.
func notPermitted(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: %w: run as root, or use the netstack backend", ErrBackend, err)
	}
	return err
}

// uapiSocket is the socket through which wgctrl finds a wireguard-go device.
type uapiSocket struct {
	l     net.Listener
	conns sync.WaitGroup

	mu   sync.Mutex
	open map[net.Conn]bool // nil once closed
}

func serveUAPI(iface string, dev *device.Device) (*uapiSocket, error) {
	f, err := ipc.UAPIOpen(iface)
	if err != nil {
		return nil, fmt.Errorf("UAPI socket of %s: %w", iface, err)
	}
	defer f.Close() // FileListener has its own copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("UAPI socket of %s: %w", iface, err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(true)
	}
	s := &uapiSocket{l: l, open: map[net.Conn]bool{}}
	s.conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			if !s.add(c) {
				_ = c.Close()
				return
			}
			s.conns.Go(func() {
				dev.IpcHandle(c) // closes c
				s.mu.Lock()
				defer s.mu.Unlock()
				delete(s.open, c)
			})
		}
	})
	return s, nil
}

func (s *uapiSocket) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return false
	}
	s.open[c] = true
	return true
}

// hangUp ends the socket and removes its file, without waiting for the device.
func (s *uapiSocket) hangUp() error {
	err := s.l.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		_ = c.Close()
	}
	s.open = nil
	return err
}

func (s *uapiSocket) close() error {
	err := s.hangUp()
	if errors.Is(err, net.ErrClosed) {
		err = nil // abandoned before
	}
	s.conns.Wait()
	return err
}
