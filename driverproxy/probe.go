package driverproxy

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
)

const (
	probeTries = 3                // probes without an answer until a host's devices are not used
	retell     = 10 * time.Minute // so often the Directory is told of devices that have not changed: another replica may have told otherwise
)

// known is what is known of a host's devices. hostConn.mu guards it.
type known struct {
	names  []string               // as in hello
	said   map[string]wire.Device // by the host
	told   map[string]wire.Device // to the Directory, or about to be
	retold time.Time              // when all were

	probed   time.Time // when the last probe was sent
	sent     uint64    // probes
	answered uint64    // the newest that was

	doubted map[string]uint64 // devices to be told of anew, and the probe whose answer, or a later one's, says how they are
}

func newKnown(devices []wire.Device, now time.Time) known {
	k := known{said: map[string]wire.Device{}, told: map[string]wire.Device{}, doubted: map[string]uint64{}, retold: now, probed: now}
	for _, d := range devices {
		k.names = append(k.names, d.Name)
		k.said[d.Name], k.told[d.Name] = d, d
	}
	return k
}

// device is what the Directory is to be told: a device of a host that answers no probes is not used, whatever the host said last.
func (k *known) device(name string) wire.Device {
	d := k.said[name]
	if d.State == wire.DeviceReady && k.sent-k.answered >= probeTries {
		d.State, d.Reason = wire.DeviceQuarantined, "its host does not answer probes: if it stays, restart driverhost there"
	}
	return d
}

// probe asks the host for its devices when that is due: with a heartbeat that has come, so that hosts spread by themselves and a
// probe costs no timer. What a host with heartbeats does not answer is not a matter of the tunnel.
func (f *Fleet) probe(h *hostConn) error {
	now := f.cfg.Now()
	h.mu.Lock()
	if now.Sub(h.known.probed) < f.cfg.ProbeEvery {
		h.mu.Unlock()
		return nil
	}
	unanswered := h.known.sent - h.known.answered
	h.tellLocked(now)
	h.known.sent++
	h.known.probed = now
	m := wire.Control{Probe: &wire.Probe{Seq: h.known.sent}}
	h.mu.Unlock()
	if unanswered == probeTries {
		f.cfg.Log.Warn("the host does not answer probes", zap.String("host", h.name))
	}
	return h.send(context.Background(), m)
}

// Recheck has the Directory told how a device is as soon as its host has said so anew, also when that is what it was told last:
// whoever keeps what the Directory was told has changed it since. It does not wait; a host that is not connected tells all when it is.
func (f *Fleet) Recheck(host, device string) {
	f.mu.Lock()
	h := f.hosts[host]
	f.mu.Unlock()
	if h != nil {
		h.doubt(device)
	}
}

// doubt has the host probed with the next heartbeat, unless a probe is on its way: what answers that may be older than the doubt,
// and its answer brings the next.
func (h *hostConn) doubt(device string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, listed := h.known.said[device]; !listed {
		return
	}
	h.known.doubted[device] = h.known.sent + 1
	if h.known.sent == h.known.answered {
		h.known.probed = time.Time{}
	}
}

// resolve: what is said of the device now is told, whatever was told before.
func (k *known) resolve(device string) {
	delete(k.doubted, device)
	delete(k.told, device)
}

var errUnlisted = errors.New("driverproxy: the host reports a device that its hello did not list")

// changed takes in what a host says of one of its devices.
func (h *hostConn) changed(d wire.Device, now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, listed := h.known.said[d.Name]; !listed {
		return errUnlisted
	}
	h.known.said[d.Name] = d
	if _, doubted := h.known.doubted[d.Name]; doubted {
		h.known.resolve(d.Name)
	}
	h.tellLocked(now)
	return nil
}

// probed takes in the answer to a probe.
func (h *hostConn) probed(p wire.Probed, now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.Seq > h.known.sent {
		return errors.New("driverproxy: the host answers a probe that was not sent")
	}
	for _, found := range p.Devices {
		d, listed := h.known.said[found.Name]
		if !listed {
			return errUnlisted
		}
		d.State, d.Reason = found.State, found.Reason
		h.known.said[found.Name] = d
	}
	h.known.answered = max(h.known.answered, p.Seq)
	for name, by := range h.known.doubted {
		if p.Seq >= by {
			h.known.resolve(name)
		} else if h.known.sent == h.known.answered {
			h.known.probed = time.Time{} // the next heartbeat brings its probe
		}
	}
	h.tellLocked(now)
	return nil
}

// tellLocked has the Directory told of devices that have changed, and now and then of all.
func (h *hostConn) tellLocked(now time.Time) {
	all := now.Sub(h.known.retold) >= retell
	if all {
		h.known.retold = now
	}
	for _, name := range h.known.names {
		d, told := h.known.device(name), h.known.told[name]
		if !all && d.State == told.State && (d.Reason == told.Reason || d.State == wire.DeviceBusy) {
			continue
		}
		h.known.told[name] = d
		h.dirty[name] = d
		poke(h.wake)
	}
}
