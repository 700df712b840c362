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
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// ctlDevice is a network interface of the operating system, configured through wgctrl.
type ctlDevice struct {
	iface   string
	addr    netip.Addr
	ctl     *wgctrl.Client
	ended   <-chan struct{}
	release func() error // takes the interface down
	*caller
}

func newCtlDevice(iface string, addr netip.Addr, ended <-chan struct{}, release func() error) (*ctlDevice, error) {
	ctl, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("wgctrl: %w", err)
	}
	return &ctlDevice{iface: iface, addr: addr, ctl: ctl, ended: ended, release: release, caller: newCaller(iface, ended)}, nil
}

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
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp4", netip.AddrPortFrom(d.addr, port).String())
}

func (d *ctlDevice) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	nd := net.Dialer{LocalAddr: &net.TCPAddr{IP: d.addr.AsSlice()}} // the address the gateway accepts from us
	return nd.DialContext(ctx, "tcp4", to.String())
}

func (d *ctlDevice) setMTU(ctx context.Context, mtu int) error {
	_, err := call(ctx, d.caller, "set the MTU of", func() (struct{}, error) {
		return struct{}{}, vanished(setInterfaceMTU(ctx, d.iface, mtu))
	})
	return err
}

func (d *ctlDevice) close() error {
	_, err := call(context.Background(), newCaller(d.iface, nil), "close", func() (struct{}, error) {
		return struct{}{}, d.release()
	})
	return errors.Join(err, d.settle(), d.ctl.Close())
}

// openTUN runs wireguard-go on a TUN device.
func openTUN(ctx context.Context, cfg deviceConfig) (_ wgDevice, err error) {
	want, err := checkTUN(cfg.Interface)
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
	dev := device.NewDevice(t, conn.NewDefaultBind(), wgLogger(cfg.Log.Named(iface)))
	socket, err := serveUAPI(iface, dev)
	if err != nil {
		dev.Close()
		return nil, notPermitted(err)
	}
	release := func() error { dev.Close(); return socket.close() }
	d, err := newCtlDevice(iface, cfg.Addr, dev.Wait(), release)
	if err != nil {
		return nil, errors.Join(err, release())
	}
	key := wgtypes.Key(cfg.Key)
	if err = d.apply(ctx, wgtypes.Config{PrivateKey: &key, ListenPort: &cfg.Port}); err == nil {
		err = notPermitted(configureInterface(ctx, iface, cfg))
	}
	if err == nil {
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

func (s *uapiSocket) close() error {
	err := s.l.Close()
	s.mu.Lock()
	open := s.open
	s.open = nil
	for c := range open {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.conns.Wait()
	return err
}
