package wire

import "time"

// Sizes of ML-KEM-768, FIPS 203 table 3.
const (
	EncapsulationKeySize = 1184
	CiphertextSize       = 1088
)

// Join redeems a join token: it arrives over the tunnel that the token opened.
type Join struct {
	PublicKey        string `json:"public_key"`        // the host's own, base64
	EncapsulationKey []byte `json:"encapsulation_key"` // ML-KEM-768; the preshared key of the host's tunnel comes out of it and of the token
}

// Joined is the answer: from now on the host's own key is accepted.
type Joined struct {
	Host       string `json:"host"`
	Address    string `json:"address"`    // the host's own address in the tunnel
	Ciphertext []byte `json:"ciphertext"` // ML-KEM-768, for the encapsulation key of the join

	// Confirmation is derived from the preshared key that comes out of it: a host that derives another has not joined.
	Confirmation []byte `json:"confirmation"`
}

// Rekey offers a host's next key, over its own tunnel. The same offer again gets the same answer.
type Rekey struct {
	PublicKey        string `json:"public_key"`
	EncapsulationKey []byte `json:"encapsulation_key"`
	Replaces         string `json:"replaces"` // the public key that the host uses as it asks
}

// Rekeyed says that this gateway takes the next key from now on, beside the present one until its first handshake.
type Rekeyed struct {
	Ciphertext   []byte `json:"ciphertext"`
	Confirmation []byte `json:"confirmation"`
}

// Pulse is what a host says of its end of the link to a gateway. It is asked again every few seconds.
type Pulse struct {
	Backend   string        `json:"backend"`
	MTU       int           `json:"mtu"`
	RoundTrip time.Duration `json:"round_trip_ns,omitempty"` // of the pulse before, on an open connection
	Repairs   Repairs       `json:"repairs"`
	Reason    string        `json:"reason,omitempty"` // what is not as it should be, in words
}

// Repairs counts what a host has done to get its link back, since its agent started.
type Repairs struct {
	Handshake int `json:"handshake"` // new handshake
	Socket    int `json:"socket"`    // new UDP socket
	Resolve   int `json:"resolve"`   // endpoint looked up again, its next address taken
	Device    int `json:"device"`    // new device
}

// Beat answers a pulse.
type Beat struct {
	Orchestrator string    `json:"orchestrator"`
	Epoch        string    `json:"epoch"`            // changes with each start of the orchestrator
	Gateways     []Gateway `json:"gateways"`         // all the host is to hold a tunnel to, this one included
	Rotate       bool      `json:"rotate,omitempty"` // the host is to make a new key, see Rekey
}

// Gateway is an orchestrator's end of the tunnels.
type Gateway struct {
	Endpoint  string `json:"endpoint"`   // host:port of its UDP socket
	PublicKey string `json:"public_key"` // base64
	Address   string `json:"address"`    // in the tunnel
	FleetPort uint16 `json:"fleet_port"` // of its fleet listener, in the tunnel

	// NextPublicKey takes the place of PublicKey in NextIn, or at a time not yet known while NextIn is 0.
	NextPublicKey string        `json:"next_public_key,omitempty"`
	NextIn        time.Duration `json:"next_in_ns,omitempty"`
}
