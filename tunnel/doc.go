// Package tunnel is the WireGuard link between orchestrators (gateways, in the EU) and driver hosts.
//
// # Addresses
//
// The tunnel network is 10.76.0.0/15. A gateway has a number 1..255 and the address 10.77.0.N. A host has a number
// n >= 256 and two addresses that differ only in their range, so that one unique column gives both:
//
//	10.77.(n>>8).(n&255)   the host's own address
//	10.76.(n>>8).(n&255)   its join address, of the tunnel that its join token opens
//
// A gateway accepts from a peer nothing but that peer's one address; a host routes nothing but the gateways' addresses
// into the tunnel. What a host may reach behind that is decided by [Gateway.Handler] and by the fleet listener, which binds to
// the tunnel address only.
//
// # Joining
//
//	operator                host                                     gateway
//	NewToken ── dsj1_… ──▶  own key and ML-KEM seed made, stored
//	                        tunnel up with the token's join key ───▶ peer {join public key, PSK, join address}
//	                        POST /fleet/v1/join {own public key, ──▶ Enroller.Redeem(join address, offer)
//	                              encapsulation key}
//	                        ◀── {host, address, ciphertext, ──────── peer {own public key, new PSK, own address}
//	                             confirmation}
//	                        answer stored; tunnel up with the own key
//
// The join private key and the first preshared key (PSK) are derived from the token's secret, the host's own PSK from
// that and an ML-KEM-768 exchange (kem.go says how). The database holds public keys and PSKs only, so a stolen copy of it
// cannot enrol a host, nor be one. A host that loses the answer, or dies at any point before it is stored, redeems again
// with the offer it stored first and gets the same answer; a redemption with another is refused.
//
// # Rotation
//
// A host's key and PSK, and a gateway's key, are replaced while connections live; rekey.go and rotate.go have the steps.
// A gateway announces its next key, by default a week before it uses it, and hosts hear of it from any gateway. A host
// that is connected to none from the announcement to the change has to be added again when that gateway is its only one.
//
// # Backends
//
// One small interface, wgDevice, has three makers: "kernel" (the kernel's WireGuard), "tun" (wireguard-go in this
// process on a TUN device, configured through its UAPI socket) and "netstack" (wireguard-go and a TCP stack in this
// process, no privilege needed). All are configured from the same wgtypes.Config; "auto" takes the first that this
// machine permits. Every call to a device is bounded, and a hung or vanished device is an error with a name.
//
// # Keeping a host's links
//
// A Link has a goroutine for each gateway, its keeper. Whatever is read from a gateway is a sign of life; the keeper also
// sends a pulse every 15 s, whose answer names the gateway's epoch and the gateways there are. Silence of 1.2 s on open
// connections, a dial or pulse without answer, or clocks that tell of sleep make it ask, and then climb a ladder until
// the gateway answers: new handshake, new UDP socket (first after sleep), endpoint resolved again, new device. What cannot
// have lived through it is closed at once, so that its owner dials anew; what may have must speak within two seconds.
// A wall clock that is set forward by 30 s or more cannot be told from sleep: sockets are closed and dialled anew once.
// A gateway that answers handshakes and nothing else is slow, or has a thousand hosts to let in again: its hosts give it
// more and more time instead of repairing what works (answers.go, pace.go).
// A device that is gone or hung is replaced by a new one. Packets of full size are sent to each gateway at the start, after
// each repair and every 30 s; where they vanish the MTU falls from 1280 to 1200, and where that fails dials are
// [ErrPathMTU] errors until it does not. 1280 is tried again after sleep, and once an hour. A gateway that is heard and does
// not answer pulses is busy, and not repaired.
//
// # Gateways
//
// A gateway holds its device to what its [PeerSource] says: a nudge that names a host compares and sends the peers of that
// host only, against the table as it was read back last ([Gateway.ReconcileHost]), and everything is read back after it and
// with each tick. A device that hangs, has vanished or is another one than was opened is opened again on the same port,
// with address, routes, rules, listeners and peers; [Gateway.Run] does not end for that.
//
// What a host sends reaches the fleet port of the gateway's address, and an echo. A gateway with a network interface has
// nftables rules for that (isolation_linux.go), in place before the interface is up and looked at with each tick; where
// they cannot be installed the backend is not available. A netstack gateway has nothing but its listeners. Sockets that
// Linux sends from use BBR where it is there, because over an ocean it moves ten times as much (congestion.go).
//
// # Out of scope
//
// Who may join and which number a host gets ([Enroller] and [PeerSource] are implemented by others), what is said over
// the link (package driverproxy), and health states.
package tunnel
