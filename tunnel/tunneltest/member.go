package tunneltest

import (
	"context"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
)

const (
	kindResponse = device.MessageResponseType
	kindCookie   = device.MessageCookieReplyType
	kindData     = device.MessageTransportType

	generationBits = 4                 // lower bits of a session's index: which handshake of its host
	handshakeAgain = 5 * time.Second   // as WireGuard repeats one that got no answer
	handshakeAge   = 120 * time.Second // of a session when the next is begun
)

// member is one host of a Crowd: a WireGuard peer that only ever begins handshakes, as the paper describes it,
// https://www.wireguard.com/papers/wireguard.pdf, section 5.4.
type member struct {
	number uint32
	conn   *net.UDPConn
	key    *ecdh.PrivateKey
	static []byte // shared by both static keys
	psk    [32]byte
	macs   device.CookieGenerator
	up     chan struct{} // closed with the first session

	mu         sync.Mutex // guards what follows
	generation uint32
	ephemeral  *ecdh.PrivateKey // of the handshake under way, or nil
	begun      time.Time        // when it was
	hash       [32]byte
	chain      [32]byte
	since      time.Time // of the present session
	out        cipher.AEAD
	remote     uint32 // the gateway's index
	counter    uint64
	in         [1 << generationBits]cipher.AEAD
}

func mixHash(h *[32]byte, data []byte) {
	*h = blake2s.Sum256(append(h[:len(h):len(h)], data...))
}

// connect makes the first handshake.
func (c *Crowd) connect(ctx context.Context, m *member) error {
	t := time.NewTicker(handshakeAgain)
	defer t.Stop()
	for {
		err := c.initiate(m) // refused while the gateway restarts
		select {
		case <-m.up:
			return nil
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("tunneltest: the gateway did not answer a handshake: %w", errors.Join(ctx.Err(), err))
		}
	}
}

func (c *Crowd) initiate(m *member) error {
	b, err := m.initiation(c.gateway, c.remote)
	if err != nil {
		return err
	}
	_, err = m.conn.Write(b)
	return err
}

// initiation begins a handshake.
func (m *member) initiation(gateway *ecdh.PublicKey, remote [32]byte) ([]byte, error) {
	ephemeral, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	shared, err := ephemeral.ECDH(gateway)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.generation = (m.generation + 1) % (1 << generationBits)
	m.ephemeral, m.begun = ephemeral, time.Now()
	m.hash, m.chain = device.InitialHash, device.InitialChainKey
	mixHash(&m.hash, remote[:])
	b := binary.LittleEndian.AppendUint32(nil, device.MessageInitiationType)
	b = binary.LittleEndian.AppendUint32(b, m.number<<generationBits|m.generation)
	b = append(b, ephemeral.PublicKey().Bytes()...)
	device.KDF1(&m.chain, m.chain[:], ephemeral.PublicKey().Bytes())
	mixHash(&m.hash, ephemeral.PublicKey().Bytes())
	now := tai64n.Now()
	for _, part := range []struct{ shared, plain []byte }{{shared, m.key.PublicKey().Bytes()}, {m.static, now[:]}} {
		var key [32]byte
		device.KDF2(&m.chain, &key, m.chain[:], part.shared)
		aead, err := chacha20poly1305.New(key[:])
		if err != nil {
			return nil, err
		}
		sealed := aead.Seal(nil, device.ZeroNonce[:], part.plain, m.hash[:])
		mixHash(&m.hash, sealed)
		b = append(b, sealed...)
	}
	b = append(b, make([]byte, 2*blake2s.Size128)...)
	m.macs.AddMacs(b)
	return b, nil
}

// answer ends the handshake under way: a new session. What does not fit is left alone, like a lost datagram.
func (m *member) answer(b []byte) {
	if len(b) != device.MessageResponseSize {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ephemeral == nil || binary.LittleEndian.Uint32(b[8:]) != m.number<<generationBits|m.generation {
		return
	}
	theirs, err := ecdh.X25519().NewPublicKey(b[12:44])
	if err != nil {
		return
	}
	hash, chain := m.hash, m.chain
	mixHash(&hash, b[12:44])
	device.KDF1(&chain, chain[:], b[12:44])
	for _, mine := range []*ecdh.PrivateKey{m.ephemeral, m.key} {
		shared, err := mine.ECDH(theirs)
		if err != nil {
			return
		}
		device.KDF1(&chain, chain[:], shared)
	}
	var tau, key, out, in [32]byte
	device.KDF3(&chain, &tau, &key, chain[:], m.psk[:])
	mixHash(&hash, tau[:])
	aead, err := chacha20poly1305.New(key[:])
	if err != nil {
		return
	}
	if _, err := aead.Open(nil, device.ZeroNonce[:], b[44:60], hash[:]); err != nil {
		return
	}
	device.KDF2(&out, &in, chain[:], nil)
	sender, err1 := chacha20poly1305.New(out[:])
	receiver, err2 := chacha20poly1305.New(in[:])
	if err1 != nil || err2 != nil {
		return
	}
	first := m.out == nil
	m.ephemeral, m.since = nil, time.Now()
	m.out, m.counter, m.remote = sender, 0, binary.LittleEndian.Uint32(b[4:])
	m.in[m.generation] = receiver
	if first {
		close(m.up)
	}
}

// cookie takes what a gateway under load wants to see in the next handshake.
func (m *member) cookie(b []byte) {
	if len(b) != device.MessageCookieReplySize {
		return
	}
	m.macs.ConsumeReply(&device.MessageCookieReply{
		Type: kindCookie, Receiver: binary.LittleEndian.Uint32(b[4:]), Nonce: [24]byte(b[8:32]), Cookie: [32]byte(b[32:64]),
	})
}

// seal appends packet as a message for the gateway, nothing when there is no session; again says that it is time for another.
func (m *member) seal(b, packet []byte) (_ []byte, again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.out == nil {
		return b, false
	}
	for len(packet)%16 != 0 {
		packet = append(packet, 0)
	}
	b = binary.LittleEndian.AppendUint32(b, kindData)
	b = binary.LittleEndian.AppendUint32(b, m.remote)
	b = binary.LittleEndian.AppendUint64(b, m.counter)
	b = m.out.Seal(b, nonce(m.counter), packet, nil)
	m.counter++
	now := time.Now()
	return b, now.Sub(m.since) > handshakeAge && now.Sub(m.begun) > handshakeAgain
}

// open appends what a message holds, nothing when it is not for a session of this host.
func (m *member) open(b, message []byte) []byte {
	if len(message) < device.MessageTransportSize {
		return b
	}
	index := binary.LittleEndian.Uint32(message[4:])
	m.mu.Lock()
	aead := m.in[index%(1<<generationBits)]
	m.mu.Unlock()
	if aead == nil {
		return b
	}
	plain, err := aead.Open(b, nonce(binary.LittleEndian.Uint64(message[8:])), message[16:], nil)
	if err != nil {
		return b
	}
	return plain
}

func nonce(counter uint64) []byte {
	var n [chacha20poly1305.NonceSize]byte
	binary.LittleEndian.PutUint64(n[4:], counter)
	return n[:]
}
