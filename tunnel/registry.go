package tunnel

import (
	"context"
	"net/netip"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// Peer is one key that a gateway accepts, with the one address it may send from: a host's own key, the key that follows
// it, or the join key of a host that may still redeem its token. A host may have all three at once.
type Peer struct {
	Host         string // enrolled name; the peers of one host are changed together
	Name         string // for people, in errors and logs
	PublicKey    Key
	PresharedKey PresharedKey
	Addr         netip.Addr // a host's own or join address
	Next         bool       // follows the host's own key: it gets the address with its first handshake, and nothing before
}

// PeerSource knows all peers a gateway should have.
type PeerSource interface {
	Peers(ctx context.Context) ([]Peer, error)
	// PeersOf are the peers of one host, none for a host that is not known.
	PeersOf(ctx context.Context, host string) ([]Peer, error)
	// Promote makes next its host's own key, for good: it has made a handshake. Promoting again what was promoted, and
	// what is gone, is no error.
	Promote(ctx context.Context, next Key) error
}

// Enroller knows hosts by their tokens and keys. WireGuard has proved that a request comes from who has the token, or the
// key, that its address belongs to. All gateways are told of what changes.
type Enroller interface {
	// Redeem redeems the join token of joinAddr. The first offer redeems; the same again gets the same answer, until the
	// token expires or later; another gets ErrTokenUsed, and one through a token that another has superseded ErrTokenUnknown. A key that any other peer has is refused (ErrKeyTaken).
	Redeem(ctx context.Context, joinAddr netip.Addr, o Offer) (wire.Joined, error)
	// Rekey takes the next key of the host whose own address is hostAddr. The same offer again gets the same answer, after
	// Promote as well; a key that any other peer has is refused (ErrKeyTaken), and one that replaces a key which is not
	// the host's (ErrRekeyStale).
	Rekey(ctx context.Context, hostAddr netip.Addr, o Offer) (wire.Rekeyed, error)
}

// Beats says what a gateway answers a pulse with. It is asked once every few seconds for every host, so the answer comes
// out of memory.
type Beats interface {
	Beat(ctx context.Context, hostAddr netip.Addr) (wire.Beat, error)
}
