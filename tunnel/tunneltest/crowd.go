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
	crowdNIC  = 1
	groupSize = 50
)

// CrowdConfig is the one gateway that a crowd talks to.
type CrowdConfig struct {
	Endpoint  string // host:port of its UDP socket
	PublicKey [32]byte
	MTU       int
}

// Crowd is many hosts in one process, cheap enough for tens of thousands: each has its own key, address and WireGuard session, and
// every groupSize of them share a UDP socket and a TCP stack. A device each, with its queues and workers, would fill the memory and
// take the processor from the gateway that is to be measured. To a gateway on loopback a group is hosts behind one NAT.
//
// Of WireGuard it speaks what a host that is never silent needs: handshakes that it begins itself, every two minutes, and data.
// It keeps no watch over its sessions.
type Crowd struct {
	to      *net.UDPAddr
	mtu     int
	gateway *ecdh.PublicKey
	remote  [32]byte // the gateway's public key

	mu     sync.Mutex // guards what follows
	groups []*group
	of     map[netip.Addr]*group
}

// group is hosts that share a socket, because WireGuard under load takes 20 handshakes a second from one IP address, and a
// stack, which compares every packet's sender with all its addresses.
type group struct {
	conn    *net.UDPConn
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
	gateway, err := ecdh.X25519().NewPublicKey(cfg.PublicKey[:])
	if err != nil {
		return nil, err
	}
	return &Crowd{to: to, mtu: cfg.MTU, gateway: gateway, remote: cfg.PublicKey, of: map[netip.Addr]*group{}}, nil
}

// openGroup opens the n-th group, on loopback with an IP address of its own.
func (c *Crowd) openGroup(n int) (*group, error) {
	var from *net.UDPAddr
	if c.to.IP.IsLoopback() {
		from = &net.UDPAddr{IP: net.IPv4(127, 0, byte(1+n/250), byte(1+n%250))}
	}
	conn, err := net.DialUDP("udp4", from, c.to)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(conn.SetReadBuffer(socketBuffer), conn.SetWriteBuffer(socketBuffer)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	g := &group{conn: conn, byAddr: map[[4]byte]*member{}, ep: channel.New(queueLimit, uint32(c.mtu), "")}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	if err := g.stack.CreateNIC(crowdNIC, g.ep); err != nil {
		return nil, errors.Join(fmt.Errorf("tunneltest: network stack: %s", err), conn.Close())
	}
	g.stack.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: crowdNIC})
	ctx, cancel := context.WithCancel(context.Background()) // the life of the group, ended by close
	g.cancel = cancel
	g.running.Go(func() { g.send(ctx, c) })
	g.running.Go(g.receive)
	return g, nil
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
	if err := c.settle(m, addr); err != nil {
		return err
	}
	return c.connect(ctx, m)
}

// settle gives a host its place in a group.
func (c *Crowd) settle(m *member, addr netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.of)%groupSize == 0 {
		g, err := c.openGroup(len(c.groups))
		if err != nil {
			return err
		}
		c.groups = append(c.groups, g)
	}
	g := c.groups[len(c.groups)-1]
	if err := g.stack.AddProtocolAddress(crowdNIC, tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFromSlice(addr.AsSlice()).WithPrefix(),
	}, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("tunneltest: address %s: %s", addr, err)
	}
	c.of[addr] = g
	g.mu.Lock()
	defer g.mu.Unlock()
	m.conn, m.number = g.conn, uint32(len(g.members))
	g.members = append(g.members, m)
	g.byAddr[addr.As4()] = m
	return nil
}

// Dial returns a dialler for the host with an address.
func (c *Crowd) Dial(from netip.Addr) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		g := c.of[from]
		c.mu.Unlock()
		if g == nil {
			return nil, fmt.Errorf("tunneltest: no host has the address %s", from)
		}
		conn, err := gonet.DialTCPWithBind(ctx, g.stack, full(from, 0), full(to.Addr(), to.Port()), ipv4.ProtocolNumber)
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
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, g := range c.groups {
		errs = append(errs, g.close())
	}
	c.groups = nil
	return errors.Join(errs...)
}

func (g *group) close() error {
	g.cancel()
	err := g.conn.Close()
	g.running.Wait()
	g.stack.Close()
	g.stack.RemoveNIC(crowdNIC)
	g.ep.Close()
	g.stack.Wait()
	return err
}

// send encrypts what the stack sends, for whom it comes from.
func (g *group) send(ctx context.Context, c *Crowd) {
	packet, out := make([]byte, 0, 1<<16), make([]byte, 0, 1<<16)
	for {
		p := g.ep.ReadContext(ctx)
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
		g.mu.RLock()
		m := g.byAddr[[4]byte(packet[12:16])]
		g.mu.RUnlock()
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
func (g *group) receive() {
	b, plain := make([]byte, 1<<16), make([]byte, 0, 1<<16)
	for {
		n, err := g.conn.Read(b)
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
		g.mu.RLock()
		var m *member
		if i := int(index >> generationBits); i < len(g.members) {
			m = g.members[i]
		}
		g.mu.RUnlock()
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
		g.ep.InjectInbound(header.IPv4ProtocolNumber, p)
		p.DecRef()
	}
}
