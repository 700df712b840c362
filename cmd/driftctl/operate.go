package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

// operator names who runs this, for the audit log.
func operator() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// splitDevice reads HOST/DEVICE, as sessions ls shows a device.
func splitDevice(s string) (host, device string, err error) {
	host, device, ok := strings.Cut(s, "/")
	if !ok || host == "" || device == "" {
		return "", "", fmt.Errorf("%q: write a device as HOST/DEVICE; `driftctl devices ls` lists them", s)
	}
	return host, device, nil
}

func (c *cli) operateHost(ctx context.Context, fleet *client.Client, p printer, command string) (err error) {
	var h api.Host
	said := "%s takes no new sessions; %s on it may go on. `driftctl hosts uncordon %s` undoes it.\n"
	if command == "hosts cordon <name>" {
		h, err = fleet.CordonHost(ctx, c.Hosts.Cordon.Name, c.Hosts.Cordon.Reason)
	} else {
		said = "%s takes sessions again; %s on it. `driftctl hosts get %s` shows it.\n"
		h, err = fleet.UncordonHost(ctx, c.Hosts.Uncordon.Name)
	}
	if err != nil {
		return err
	}
	if p.json {
		return p.object(h)
	}
	_, err = fmt.Fprintf(p.out, said, h.Name, count(h.Sessions), h.Name)
	return err
}

func (c *cli) operateDevice(ctx context.Context, fleet *client.Client, p printer, command string) error {
	arg := c.Devices.Cordon.Device + c.Devices.Uncordon.Device + c.Devices.Release.Device // one of them is set
	host, device, err := splitDevice(arg)
	if err != nil {
		return err
	}
	switch command {
	case "devices cordon <device>":
		return p.told(fleet.CordonDevice(ctx, host, device, c.Devices.Cordon.Reason),
			fmt.Sprintf("%s takes no new session; one on it may go on. `driftctl devices uncordon %s` undoes it.\n", arg, arg))
	case "devices uncordon <device>":
		return p.told(fleet.UncordonDevice(ctx, host, device), fmt.Sprintf("%s takes sessions again, unless its host is cordoned.\n", arg))
	}
	if strings.TrimSpace(c.Devices.Release.Reason) == "" {
		return errors.New("--reason: say why; it goes into the audit log")
	}
	r, err := fleet.ForceRelease(ctx, host, device, c.Devices.Release.Reason)
	if err != nil {
		return err
	}
	if p.json {
		return p.object(r)
	}
	_, err = fmt.Fprintf(p.out, "Session %s ends as force_released; its profile is not saved. %s is free once %s says that nothing of the session is left: `driftctl devices ls`.\n",
		r.Session, arg, host)
	return err
}

func (c *cli) audit(ctx context.Context, fleet *client.Client, p printer) error {
	l, err := fleet.Audit(ctx, c.Audit.Host, c.Audit.Limit, c.Audit.Before)
	if err == nil && l.Next != 0 && !p.json {
		defer fmt.Fprintf(p.out, "\nolder: --before %d\n", l.Next)
	}
	return list(p, err, auditColumns(), l.Entries, p.auditRow)
}

func auditColumns() table.Row { return table.Row{"WHEN", "WHO", "ACTION", "WHAT", "WHY", "DETAIL"} }

func (p printer) auditRow(e api.AuditEntry) table.Row {
	what := e.Host
	if e.Device != "" {
		what += "/" + e.Device
	}
	if e.Account != "" {
		what = "account " + e.Account
	}
	detail := e.Detail
	if e.Session != "" {
		detail = strings.TrimPrefix(detail+"; session "+e.Session, "; ")
	}
	return table.Row{e.At.UTC().Format("2006-01-02 15:04:05Z"), e.Actor, e.Action, what, orDash(e.Reason), orDash(detail)}
}

// fleet prints what there is and what it does.
func (p printer) fleet(f api.Fleet) error {
	if p.json {
		return p.object(f)
	}
	var b strings.Builder
	w := columns(&b)
	row := func(name string, total int, parts []string) {
		fmt.Fprintf(w, "%s\t%d\t%s\n", name, total, strings.Join(parts, ", "))
	}
	var hosts, devices, sessions []string
	total := map[string]int{}
	for _, s := range api.HostStates() {
		total["hosts"] += f.Hosts[string(s)]
		hosts = some(hosts, f.Hosts[string(s)], string(s))
	}
	for _, s := range api.ClosedStates() {
		hosts = some(hosts, f.Closed[s], s)
	}
	for _, s := range api.DeviceStates() {
		total["devices"] += f.Devices[s]
		devices = some(devices, f.Devices[s], s)
	}
	devices = some(devices, f.Devices["cordoned"], "cordoned")
	for _, s := range api.ActiveStates() {
		total["sessions"] += f.Sessions[string(s)]
		sessions = append(sessions, fmt.Sprintf("%d %s", f.Sessions[string(s)], s))
	}
	row("hosts", total["hosts"], hosts)
	row("devices", total["devices"], devices)
	row("sessions", total["sessions"], sessions)
	_ = w.Flush() // into a Builder
	if len(f.Queue.Accounts) > 0 {
		b.WriteByte('\n')
		w = columns(&b)
		fmt.Fprintln(w, "ACCOUNT\tQUEUED\tOLDEST\tACTIVE")
		for _, q := range f.Queue.Accounts {
			fmt.Fprintf(w, "%s\t%d\t%s\t%d\n", q.Account, q.Queued, short(time.Duration(q.OldestSeconds)*time.Second), q.Active)
		}
		_ = w.Flush()
		if f.Queue.More > 0 {
			fmt.Fprintf(&b, "and %d more accounts with shorter queues\n", f.Queue.More)
		}
	}
	_, err := io.WriteString(p.out, b.String())
	return err
}

func some(parts []string, n int, what string) []string {
	if n == 0 {
		return parts
	}
	return append(parts, fmt.Sprintf("%d %s", n, what))
}
