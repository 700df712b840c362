package tunneltest

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"
)

// TestCrowd: hosts of a crowd, more than a group holds, reach a wireguard-go gateway as themselves, also with their next session.
func TestCrowd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := OpenBareWith(netip.MustParseAddr("10.99.0.1"), 1280, key)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := gateway.Close(); err != nil {
			t.Error(err)
		}
	}()
	port, err := gateway.port()
	if err != nil {
		t.Fatal(err)
	}
	l, err := gateway.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	crowd, err := OpenCrowd(CrowdConfig{Endpoint: fmt.Sprintf("127.0.0.1:%d", port), PublicKey: [32]byte(key.PublicKey().Bytes()), MTU: 1280})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := crowd.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i := range groupSize + 2 {
		host, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		psk := [32]byte{1, byte(i)}
		addr := netip.AddrFrom4([4]byte{10, 99, 1, byte(i)})
		if err := gateway.Set(fmt.Sprintf("public_key=%x\npreshared_key=%s\nallowed_ip=%s/32\n", host.PublicKey().Bytes(), hex.EncodeToString(psk[:]), addr)); err != nil {
			t.Fatal(err)
		}
		if err := crowd.Add(ctx, [32]byte(host.Bytes()), psk, addr); err != nil {
			t.Fatal(err)
		}
		c, err := crowd.Dial(addr)(ctx, "tcp", "10.99.0.1:1")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		if from := netip.MustParseAddrPort(far.RemoteAddr().String()).Addr(); from != addr {
			t.Fatalf("the gateway saw %s, not %s", from, addr)
		}
		for range 2 {
			if _, err := far.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Fatalf("%q, %v", got, err)
			}
			m := crowd.of[addr].byAddr[addr.As4()]
			m.mu.Lock()
			m.since = m.since.Add(-2 * handshakeAge) // the next packet begins another handshake
			m.begun = m.since
			m.mu.Unlock()
		}
	}
}
