package tunneltest

import (
	"context"
	"crypto/ecdh"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	crowdNIC     = 1
	crowdSockets = 64
)

// CrowdConfig is the one gateway that a crowd talks to.
type CrowdConfig struct {
	Endpoint  string // host:port of its UDP socket
	PublicKey [32]byte
	MTU       int
}

// Crowd is many hosts in one process, cheap enough for tens of thousands: each has its own key, address and WireGuard session, and
// all share a few UDP sockets and one TCP stack. A device each, with its queues and workers, would fill the memory and take the
// processor from the gateway that is to be measured. To a gateway on loopback a crowd is hosts behind crowdSockets NATs, each with
// an IP address of its own: WireGuard under load takes 20 handshakes a second from one.
//
// Of WireGuard it speaks what a host that is never silent needs: handshakes that it begins itself, every two minutes, and data.
// It keeps no watch over its sessions.
type Crowd struct {
	conns   []*net.UDPConn
	gateway *ecdh.PublicKey
	remote  [32]byte // the gateway's public key
	stack   *stack.Stack
	ep      *channel.Endpoint
	running sync.WaitGroup
	cancel  context.CancelFunc

	mu      sync.RWMutex // guards what follows
	byAddr  map[[4]byte]*member
	members []*member // by the upper bits of a session's index
}

// OpenCrowd opens a crowd without hosts. Close it in the end.
func OpenCrowd(cfg CrowdConfig) (*Crowd, error) {
	to, err := net.ResolveUDPAddr("udp4", cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	c := &Crowd{remote: cfg.PublicKey, byAddr: map[[4]byte]*member{}}
	if c.gateway, err = ecdh.X25519().NewPublicKey(cfg.PublicKey[:]); err != nil {
		return nil, err
	}
	for i := range crowdSockets {
		var from *net.UDPAddr
		if to.IP.IsLoopback() {
			from = &net.UDPAddr{IP: net.IPv4(127, 0, 1, byte(1+i))}
		}
		conn, err := net.DialUDP("udp4", from, to)
		if err == nil {
			c.conns = append(c.conns, conn)
			err = errors.Join(conn.SetReadBuffer(socketBuffer), conn.SetWriteBuffer(socketBuffer))
		}
		if err != nil {
			return nil, errors.Join(err, c.hangUp())
		}
	}
	c.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	c.ep = channel.New(queueLimit, uint32(cfg.MTU), "")
	if err := c.stack.CreateNIC(crowdNIC, c.ep); err != nil {
		return nil, errors.Join(fmt.Errorf("tunneltest: network stack: %s", err), c.hangUp())
	}
	c.stack.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: crowdNIC})
	ctx, cancel := context.WithCancel(context.Background()) // the life of the crowd, ended by Close
	c.cancel = cancel
	c.running.Go(func() { c.send(ctx) })
	for _, conn := range c.conns {
		c.running.Go(func() { c.receive(conn) })
	}
	return c, nil
}

func (c *Crowd) hangUp() error {
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// Add adds a host and makes its first handshake.
func (c *Crowd) Add(ctx context.Context, private, preshared [32]byte, addr netip.Addr) error {
	key, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return err
	}
	m := &member{key: key, psk: preshared, up: make(chan struct{})}
	if m.static, err = key.ECDH(c.gateway); err != nil {
		return err
	}
	m.macs.Init(c.remote)
	if err := c.stack.AddProtocolAddress(crowdNIC, tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFromSlice(addr.AsSlice()).WithPrefix(),
	}, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("tunneltest: address %s: %s", addr, err)
	}
	c.mu.Lock()
	m.number = uint32(len(c.members))
	m.conn = c.conns[len(c.members)%len(c.conns)]
	c.members = append(c.members, m)
	c.byAddr[addr.As4()] = m
	c.mu.Unlock()
	return c.connect(ctx, m)
}

// Dial returns a dialler for the host with an address.
func (c *Crowd) Dial(from netip.Addr) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, err
		}
		conn, err := gonet.DialTCPWithBind(ctx, c.stack, full(from, 0), full(to.Addr(), to.Port()), ipv4.ProtocolNumber)
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
}

func full(a netip.Addr, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: crowdNIC, Addr: tcpip.AddrFromSlice(a.AsSlice()), Port: port}
}

// Close ends all hosts' connections, without a word to the gateway.
func (c *Crowd) Close() error {
	c.cancel()
	err := c.hangUp()
	c.running.Wait()
	c.stack.Close()
	c.stack.RemoveNIC(crowdNIC)
	c.ep.Close()
	c.stack.Wait()
	return err
}

// send encrypts what the stack sends, for whom it comes from.
func (c *Crowd) send(ctx context.Context) {
	packet, out := make([]byte, 0, 1<<16), make([]byte, 0, 1<<16)
	for {
		p := c.ep.ReadContext(ctx)
		if p == nil {
			return
		}
		packet = packet[:0]
		for _, part := range p.AsSlices() {
			packet = append(packet, part...)
		}
		p.DecRef()
		if len(packet) < header.IPv4MinimumSize {
			continue
		}
		c.mu.RLock()
		m := c.byAddr[[4]byte(packet[12:16])]
		c.mu.RUnlock()
		if m == nil {
			continue
		}
		var again bool
		if out, again = m.seal(out[:0], packet); len(out) > 0 {
			_, _ = m.conn.Write(out) // what is lost is sent again by TCP
		}
		if again {
			_ = c.initiate(m) // what fails is begun again with the next packet
		}
	}
}

// receive decrypts what the gateway sends.
func (c *Crowd) receive(conn *net.UDPConn) {
	b, plain := make([]byte, 1<<16), make([]byte, 0, 1<<16)
	for {
		n, err := conn.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 12 {
			continue // refused: the gateway restarts
		}
		kind := binary.LittleEndian.Uint32(b)
		at := 4
		switch kind {
		case kindResponse:
			at = 8
		case kindCookie, kindData:
		default:
			continue
		}
		index := binary.LittleEndian.Uint32(b[at:])
		c.mu.RLock()
		var m *member
		if i := int(index >> generationBits); i < len(c.members) {
			m = c.members[i]
		}
		c.mu.RUnlock()
		if m == nil {
			continue
		}
		switch kind {
		case kindResponse:
			m.answer(b[:n])
			continue
		case kindCookie:
			m.cookie(b[:n])
			continue
		}
		if plain = m.open(plain[:0], b[:n]); len(plain) < header.IPv4MinimumSize {
			continue
		}
		size := min(int(binary.BigEndian.Uint16(plain[2:])), len(plain)) // without the padding
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(plain[:size])})
		c.ep.InjectInbound(header.IPv4ProtocolNumber, p)
		p.DecRef()
	}
}
