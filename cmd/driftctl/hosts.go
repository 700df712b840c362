package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/driftstack/fleet/orchestrator/api"
)

// reasonWidth is how much of a reason fits a list; `hosts get` tells all of it.
const reasonWidth = 72

func hostColumns() table.Row {
	return table.Row{"HOST", "STATE", "ADDRESS", "DEVICES", "SESSIONS", "RTT", "SEEN", "REASON"}
}

// hostState is the state, and whether it takes new sessions.
func hostState(h api.Host) string {
	s := string(h.State)
	if h.Cordon != nil {
		s += ", " + string(h.Cordon.State)
	}
	if h.DampedUntil != nil {
		s += ", damped"
	}
	return s
}

// hostReason is why it is not up, or takes no new sessions.
func (p printer) hostReason(h api.Host) string {
	why := h.Reason
	if h.Cordon != nil {
		why = p.cordon(*h.Cordon) + ". " + why
	}
	return strings.TrimSuffix(why, ". ")
}

// cordon says who did it, when and why, and until when sessions have time.
func (p printer) cordon(c api.Cordon) string {
	said := string(c.State) + " by " + c.By + " " + p.since(&c.Since)
	if c.By == "" { // a device's, by its host
		said = string(c.State)
	}
	if c.Reason != "" {
		said += ": " + c.Reason
	}
	if c.State == api.Draining && c.Until != nil {
		if left := c.Until.Sub(p.now()); left > 0 {
			said += " (" + short(left) + " left)"
		} else {
			said += " (its time is up)"
		}
	}
	return said
}

func deviceState(d api.Device) string {
	if d.Cordon != nil {
		return d.State + ", " + string(d.Cordon.State)
	}
	return d.State
}

func deviceReason(d api.Device) string {
	if d.Cordon == nil {
		return d.Reason
	}
	said := d.Cordon.Reason
	if d.Cordon.By != "" { // its own, and not its host's
		said = strings.TrimSuffix("cordoned by "+d.Cordon.By+": "+said, ": ")
	}
	if d.Reason != "" {
		said += ". " + d.Reason
	}
	return said
}

func (p printer) hostRow(h api.Host) table.Row {
	return table.Row{h.Name, hostState(h), orDash(h.Address), h.Devices, h.Sessions, p.took(h.RoundTripUS), p.seen(h), cut(p.hostReason(h), reasonWidth)}
}

// host prints all that is known of a host: what matters first, then its links, then its devices.
func (p printer) host(h api.HostDetail) error {
	if p.json {
		return p.object(h)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %s\n", h.Name, hostState(h.Host))
	for _, why := range strings.Split(p.hostReason(h.Host), ". ") {
		if why != "" {
			fmt.Fprintf(&b, "  %s\n", why)
		}
	}
	b.WriteByte('\n')
	p.facts(&b, h)
	p.links(&b, h.Links)
	p.hostDevices(&b, h.DeviceList)
	_, err := io.WriteString(p.out, b.String())
	return err
}

func (p printer) facts(b *strings.Builder, h api.HostDetail) {
	w := columns(b)
	fact := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	key := h.PublicKey
	if key != "" && h.KeySince != nil {
		key += ", " + short(p.now().Sub(*h.KeySince)) + " old"
	}
	fact("address", h.Address)
	fact("key", key)
	fact("next key", h.NextPublicKey)
	if h.TokenExpiresAt != nil {
		if left := h.TokenExpiresAt.Sub(p.now()); left > 0 {
			fact("token", "valid for "+short(left))
		} else {
			fact("token", "expired "+p.since(h.TokenExpiresAt))
		}
	}
	if h.SeenAt != nil {
		fact("seen", p.seen(h.Host))
	}
	fact("sessions", fmt.Sprint(h.Sessions))
	fact("added", p.since(&h.CreatedAt))
	_ = w.Flush() // into a Builder
}

func (p printer) links(b *strings.Builder, links []api.HostLink) {
	if len(links) == 0 {
		return
	}
	b.WriteByte('\n')
	w := columns(b)
	fmt.Fprintln(w, "ORCHESTRATOR\tLINK\tRTT\tHEARD\tHANDSHAKE\tRECEIVED\tSENT\tMTU\tHOST END\tOUR END\tREPAIRS")
	for _, l := range links {
		state, rtt := "up", p.took(l.RoundTripUS)
		if !l.Up {
			state, rtt = "down", "-"
		}
		mtu := "-"
		if l.MTU > 0 {
			mtu = fmt.Sprint(l.MTU)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Orchestrator, state, rtt, p.heard(l), p.since(l.HandshakeAt),
			size(l.RxBytes), size(l.TxBytes), mtu, orDash(l.HostBackend), orDash(l.GatewayBackend), p.repairs(l))
	}
	_ = w.Flush()
}

// beating is the longest silence between two heartbeats that is none.
const beating = 2500 * time.Millisecond

// heard: reports are seconds apart, and a host that was heard until the last one is not a host of seconds ago.
func (p printer) heard(l api.HostLink) string {
	if l.Up && l.ReportedAt.Sub(l.HeardAt) <= beating {
		return "now"
	}
	return p.since(&l.HeardAt)
}

func (p printer) seen(h api.Host) string {
	if h.State == api.HostUp {
		return "now"
	}
	return p.since(h.SeenAt)
}

func (p printer) repairs(l api.HostLink) string {
	var parts []string
	for _, r := range []struct {
		n    int
		what string
	}{{l.Repairs.Handshake, "handshake"}, {l.Repairs.Socket, "socket"}, {l.Repairs.Resolve, "resolve"}, {l.Repairs.Device, "device"}} {
		if r.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", r.n, r.what))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	all := strings.Join(parts, ", ")
	if l.RepairedAt != nil {
		all += " (" + p.since(l.RepairedAt) + ")"
	}
	return all
}

func (p printer) hostDevices(b *strings.Builder, devices []api.Device) {
	if len(devices) == 0 {
		return
	}
	b.WriteByte('\n')
	w := columns(b)
	fmt.Fprintln(w, "DEVICE\tSTATE\tMODEL\tPLATFORM\tSESSION\tREASON")
	for _, d := range devices {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", d.Name, deviceState(d), orDash(d.Model), orDash(strings.TrimSpace(d.PlatformName+" "+d.PlatformVersion)), orDash(d.Session), orDash(deviceReason(d)))
	}
	_ = w.Flush()
}

func columns(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// cut shortens a text to so many characters.
func cut(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return strings.TrimRight(string(r[:width-1]), " ;,(") + "…"
	}
	return s
}

// since is how long ago a time was, as people say it.
func (p printer) since(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return short(p.now().Sub(*t)) + " ago"
}

// took is a duration of a message.
func (p printer) took(us int64) string {
	switch d := time.Duration(us) * time.Microsecond; {
	case d <= 0:
		return "-"
	case d < 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	default:
		return d.Round(10 * time.Millisecond).String()
	}
}

// short says a duration in one unit, in numbers of at most three digits: 90s, 45m, 30h, 12d.
func short(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", max(d/time.Second, 0))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/day)
	}
}

// size says a number of bytes in one unit.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if v < 10 {
		return fmt.Sprintf("%.1f %ciB", v, units[i])
	}
	return fmt.Sprintf("%.0f %ciB", v, units[i])
}
