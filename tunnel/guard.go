package tunnel

import (
	"net/http"
	"net/netip"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// routes are the handlers of a fleet listener.
type routes struct {
	join                http.Handler // of join addresses
	pulse, probe, rekey http.Handler // of own addresses, like fleet, which has every other path
	fleet               http.Handler
}

// guard is the one place that says who reaches what, by the address that WireGuard binds to the caller's key: a join
// address reaches its one path, a host's own address all paths but that. Everything else is refused with 403 or 404.
func guard(to routes) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, ok := remote(r)
		switch {
		case ok && IsJoin(from):
			if r.URL.Path != wire.PathJoin {
				refuse(w, http.StatusForbidden, "only-join", "A join tunnel can only redeem its token, at "+wire.PathJoin+".")
				return
			}
			to.join.ServeHTTP(w, r)
		case ok && IsHost(from):
			to.own(r.URL.Path).ServeHTTP(w, r)
		default:
			refuse(w, http.StatusForbidden, "not-a-host", "Only driver hosts are served here, through their tunnel.")
		}
	})
}

// own is the handler of a path for a host that has joined.
func (to routes) own(path string) http.Handler {
	switch path {
	case wire.PathPulse:
		return to.pulse
	case wire.PathProbe:
		return to.probe
	case wire.PathRekey:
		return to.rekey
	case wire.PathJoin:
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			refuse(w, http.StatusNotFound, "joined-already", "This host has joined.")
		})
	}
	return to.fleet
}

// post refuses every method but POST.
func post(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			refuse(w, http.StatusMethodNotAllowed, "method", "Use POST.")
			return
		}
		h(w, r)
	})
}

func remote(r *http.Request) (netip.Addr, bool) {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	return a.Addr().Unmap(), err == nil
}
