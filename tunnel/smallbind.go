package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
)

// smallBind is the UDP socket of a tunnel that carries a few small messages and ends: the one that wireguard-go has sets
// buffers of 16 MiB aside for the batches it reads.
type smallBind struct {
	mu     sync.Mutex // guards what follows
	v4, v6 *net.UDPConn
}

var _ conn.Bind = (*smallBind)(nil)

// Open implements conn.Bind.
func (b *smallBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.v4 != nil || b.v6 != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	var err4, err6 error
	b.v4, err4 = net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)})
	b.v6, err6 = net.ListenUDP("udp6", &net.UDPAddr{Port: int(port)})
	var fns []conn.ReceiveFunc
	var actual uint16
	for _, c := range []*net.UDPConn{b.v6, b.v4} {
		if c != nil {
			fns = append(fns, receiveOne(c))
			actual = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		}
	}
	if len(fns) == 0 {
		return nil, 0, errors.Join(err4, err6)
	}
	return fns, actual, nil // a machine may have one of the two only
}

func receiveOne(c *net.UDPConn) conn.ReceiveFunc {
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, from, err := c.ReadFromUDPAddrPort(packets[0])
		if err != nil {
			return 0, err
		}
		sizes[0], eps[0] = n, &conn.StdNetEndpoint{AddrPort: from}
		return 1, nil
	}
}

// Close implements conn.Bind.
func (b *smallBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, c := range []*net.UDPConn{b.v4, b.v6} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	b.v4, b.v6 = nil, nil
	return errors.Join(errs...)
}

// Send implements conn.Bind.
func (b *smallBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	to, ok := ep.(*conn.StdNetEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	b.mu.Lock()
	c := b.v6
	if to.Addr().Is4() {
		c = b.v4
	}
	b.mu.Unlock()
	if c == nil {
		return syscall.EAFNOSUPPORT
	}
	for _, buf := range bufs {
		if _, err := c.WriteToUDPAddrPort(buf, to.AddrPort); err != nil {
			return err
		}
	}
	return nil
}

// ParseEndpoint implements conn.Bind.
func (b *smallBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &conn.StdNetEndpoint{AddrPort: a}, nil
}

// SetMark implements conn.Bind: nobody sets one.
func (b *smallBind) SetMark(uint32) error { return nil }

// BatchSize implements conn.Bind.
func (b *smallBind) BatchSize() int { return 1 }
