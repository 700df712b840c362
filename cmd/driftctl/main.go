// Command driftctl is the operators' and engineers' command line: it talks to an orchestrator over its HTTP API.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

type cli struct {
	URL          string `default:"http://127.0.0.1:8080" env:"DRIFTSTACK_URL" help:"Orchestrator."`
	ServiceToken string `env:"DRIFTSTACK_SERVICE_TOKEN" placeholder:"TOKEN" help:"Service token."`
	As           string `env:"DRIFTSTACK_OPERATOR" placeholder:"NAME" help:"Your name for the audit log; USER@MACHINE if it is not set."`
	JSON         bool   `name:"json" help:"Print JSON instead of tables: one object, or one a line where there are many."`

	Hosts struct {
		Add struct {
			Name string `arg:"" help:"Name of the host: lower-case letters, digits and dashes."`
		} `cmd:"" help:"Invite a driver host: print the command that joins it, with a token for one machine. Again, for a host that has not joined: another token."`
		Ls  struct{} `cmd:"" help:"List driver hosts: the state of each and why, its address, the round trip of a heartbeat, when it was last heard."`
		Get struct {
			Name string `arg:"" help:"Name of the host."`
		} `cmd:"" help:"Show all that is known of a driver host: its links to each orchestrator, what repaired them, its devices."`
		Rm struct {
			Name string `arg:"" help:"Name of the host."`
		} `cmd:"" aliases:"remove" help:"Remove a driver host: it is cut off at once, and the sessions on it end as host_lost. To let them end by themselves, drain it before."`
		Drain struct {
			Name     string        `arg:"" help:"Name of the host."`
			Deadline time.Duration `default:"10m" help:"How long sessions on it have to end by themselves, 1s to 24h; then they end as drained, and their profiles are saved. Again, with another deadline: that one counts."`
			Reason   string        `help:"Why; it is shown with the host and goes into the audit log."`
			Wait     bool          `help:"Wait until no session is on it any more, and show how far it is; status 0 says that it is drained. Ctrl-C stops the waiting, not the drain, and so do 5m without an answer."`
		} `cmd:"" help:"Take a driver host out of use: no new sessions, and those on it have until a deadline. hosts uncordon undoes it."`
		Cordon struct {
			Name   string `arg:"" help:"Name of the host."`
			Reason string `help:"Why; it is shown with the host and goes into the audit log."`
		} `cmd:"" help:"Keep new sessions off a driver host; those on it go on."`
		Uncordon struct {
			Name string `arg:"" help:"Name of the host."`
		} `cmd:"" help:"Let a driver host take sessions again: undoes a cordon or a drain."`
		Rotate struct {
			Name string `arg:"" help:"Name of the host."`
		} `cmd:"" help:"Replace a driver host's tunnel key and preshared key, within 15s if it is connected; its sessions go on. It is done by itself every 30 days."`
	} `cmd:"" help:"Driver hosts."`
	Gateways struct {
		Ls     struct{} `cmd:"" help:"List gateways: the address and key of each, how old the key is, and when the next one is used."`
		Rotate struct {
			Name   string        `arg:"" help:"Name of the orchestrator, as gateways ls shows it."`
			Within time.Duration `default:"168h" help:"When the new key is used, 1m to 720h. Hosts learn it when they connect to any gateway; one that does not until then, and has no other gateway, must be added again."`
		} `cmd:"" help:"Replace a gateway's tunnel key; sessions go on. It is done by itself every 90 days. Join tokens that are still open must be made anew once the key has changed."`
	} `cmd:"" help:"Gateways: the orchestrators' ends of the tunnels, one each."`
	Devices struct {
		Ls     struct{} `cmd:"" help:"List devices."`
		Cordon struct {
			Device string `arg:"" help:"HOST/DEVICE."`
			Reason string `help:"Why; it is shown with the device and goes into the audit log."`
		} `cmd:"" help:"Keep new sessions off a device; one on it goes on."`
		Uncordon struct {
			Device string `arg:"" help:"HOST/DEVICE."`
		} `cmd:"" help:"Let a device take sessions again."`
		Release struct {
			Device string `arg:"" help:"HOST/DEVICE."`
			Reason string `required:"" help:"Why; it goes into the audit log."`
		} `cmd:"" help:"Take a device from its session at once: the session ends as force_released and its profile is not saved; the device is free once its host says that it is clean. sessions cancel is the gentle way."`
	} `cmd:"" help:"Devices of the driver hosts."`
	Fleet struct{} `cmd:"" help:"Show the fleet as of one moment: hosts, devices and sessions by state, and who waits for a device."`
	Audit struct {
		Host   string `help:"Only what was done to this host and its devices."`
		Limit  int    `default:"50" help:"At most so many, 1 to 1000."`
		Before int64  `help:"Only older entries: the number that the page before ended with."`
	} `cmd:"" help:"List what operators did to hosts, devices and accounts, who and why, newest first."`
	Sessions struct {
		Ls struct {
			Account string   `help:"Only this account's."`
			State   string   `help:"Only in this state: queued, starting, running, finishing or ended."`
			Label   []string `sep:"none" placeholder:"KEY=VALUE" help:"Only with this label; repeatable."`
			Limit   int      `default:"50" help:"At most so many."`
		} `cmd:"" help:"List sessions, newest first."`
		Get struct {
			ID string `arg:""`
		} `cmd:"" help:"Show one session; of a queued one also where in the queue it is, and about how long it has to wait."`
		Explain explainCmd `cmd:"" help:"Say what would become of a session that is created now: on which device it would start, where it would be queued, or why it would be refused; and of each device what keeps it from taking it. Nothing is created."`
		Cancel  struct {
			ID string `arg:""`
		} `cmd:"" help:"End a session wherever it is; its profile is saved first."`
	} `cmd:"" help:"Sessions."`
	Logs struct {
		Session string `arg:"" help:"Session id."`
		Follow  bool   `short:"f" help:"Go on until the session has ended."`
		After   int64  `help:"Only events with a higher number."`
	} `cmd:"" help:"Print a session's log; it holds routes, statuses, sizes and durations, never a payload."`
	Recordings recordingsCmd `cmd:"" help:"Recordings of sessions' screens."`
	Profiles   profilesCmd   `cmd:"" help:"Profiles: saved cookies and localStorage, one generation a session."`
	Keys       keysCmd       `cmd:"" help:"Keys that profiles are sealed with."`
	Residency  residencyCmd  `cmd:"" help:"Show where customer data is, category by category, by what that is known, and how much of it there is."`
	Accounts   struct {
		Put struct {
			ID         string `arg:""`
			Recordings string `required:"" enum:"eu,replicated" help:"Where its recordings are kept: eu or replicated. From replicated to eu, the US copies of all its recordings are removed; accounts get says how many are left."`
			Reason     string `help:"Why; it goes into the audit log."`
		} `cmd:"" help:"Create or change an account."`
		Get struct {
			ID string `arg:""`
		} `cmd:"" help:"Show one account: where its recordings are kept, and how many US copies are still to be removed."`
		Quota quotaCmd `cmd:"" help:"Show what an account may have and has: sessions at once, queued, created within 60 s, and its weight in the queue. With flags, change those first."`

		ProfileExecution struct {
			ID      string `arg:""`
			Allowed string `arg:"" optional:"" enum:",any,eu" default:"" help:"Change it first: any, or eu for devices that are declared to be in a member state of the EU."`
			Reason  string `help:"Why; it goes into the audit log."`
		} `cmd:"" help:"Show where an account's sessions with a profile may run: any or eu."`
	} `cmd:"" help:"Accounts."`
}

func main() {
	var c cli
	k := kong.Parse(&c, kong.Name("driftctl"), kong.Description("Operates Driftstack's fleet and reads session logs."), kong.UsageOnError())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := c.run(ctx, k.Command(), os.Stdout)
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "driftctl:", err)
		os.Exit(1)
	}
}

func (c *cli) run(ctx context.Context, command string, out io.Writer) error {
	if c.Residency.Markdown != "" {
		return c.Residency.document(out)
	}
	if c.ServiceToken == "" {
		return errors.New("no service token: set DRIFTSTACK_SERVICE_TOKEN, or pass --service-token")
	}
	fleet, err := client.New(c.URL, c.ServiceToken)
	if err != nil {
		return err
	}
	fleet = fleet.As(cmp.Or(c.As, operator()))
	p := printer{out: out, json: c.JSON, now: time.Now}
	switch command {
	case "hosts add <name>":
		t, err := fleet.InviteHost(ctx, c.Hosts.Add.Name)
		if err != nil {
			return err
		}
		if c.JSON {
			return p.object(t)
		}
		_, err = fmt.Fprintf(out, "On %s, before %s, run this once, with the phone's own udid:\n\n  DRIFTSTACK_JOIN=%s \\\n    driverhost --state-dir /var/lib/driftstack --device \"name=phone-1,kind=safaridriver,model=iPhone 15,udid=…\"\n\nThe token works for one machine; keep it to yourself. Later starts need none.\n",
			t.Name, t.ExpiresAt.Local().Format("15:04 MST"), t.Token)
		return err
	case "hosts ls":
		v, err := fleet.Hosts(ctx)
		return list(p, err, hostColumns(), v, p.hostRow)
	case "hosts get <name>":
		v, err := fleet.Host(ctx, c.Hosts.Get.Name)
		if err != nil {
			return err
		}
		return p.host(v)
	case "hosts rm <name>":
		return fleet.RemoveHost(ctx, c.Hosts.Rm.Name)
	case "hosts drain <name>":
		return c.drain(ctx, fleet, p)
	case "hosts cordon <name>", "hosts uncordon <name>":
		return c.operateHost(ctx, fleet, p, command)
	case "devices cordon <device>", "devices uncordon <device>", "devices release <device>":
		return c.operateDevice(ctx, fleet, p, command)
	case "residency":
		return c.Residency.run(ctx, fleet, p)
	case "fleet":
		v, err := fleet.Fleet(ctx)
		if err != nil {
			return err
		}
		return p.fleet(v)
	case "audit":
		return c.audit(ctx, fleet, p)
	case "hosts rotate <name>":
		return p.told(fleet.RotateHost(ctx, c.Hosts.Rotate.Name), rotatedHost(c.Hosts.Rotate.Name))
	case "gateways ls":
		v, err := fleet.Gateways(ctx)
		return list(p, err, gatewayColumns(), v, p.gatewayRow)
	case "gateways rotate <name>":
		name, within := c.Gateways.Rotate.Name, c.Gateways.Rotate.Within
		if err := checkWithin(within); err != nil {
			return err
		}
		return p.told(fleet.RotateGateway(ctx, name, within), rotatedGateway(name, within))
	case "devices ls":
		v, err := fleet.Devices(ctx)
		return list(p, err, table.Row{"HOST", "DEVICE", "KIND", "MODEL", "PLATFORM", "STATE", "SESSION", "REASON"}, v, func(d api.Device) table.Row {
			return table.Row{d.Host, d.Name, d.Kind, d.Model, d.PlatformName + " " + d.PlatformVersion, deviceState(d), d.Session, deviceReason(d)}
		})
	case "sessions ls":
		q := url.Values{"limit": {strconv.Itoa(c.Sessions.Ls.Limit)}}
		set(q, "account", c.Sessions.Ls.Account)
		set(q, "state", c.Sessions.Ls.State)
		q["label"] = c.Sessions.Ls.Label
		v, err := fleet.Sessions(ctx, q)
		return list(p, err, table.Row{"SESSION", "ACCOUNT", "STATE", "REASON", "DEVICE", "CREATED", "RAN"}, v.Sessions, func(s api.Session) table.Row {
			return table.Row{s.ID, s.Account, s.State, s.Reason, device(s), ago(&s.CreatedAt), ran(s)}
		})
	case "sessions get <id>":
		v, err := fleet.Session(ctx, c.Sessions.Get.ID)
		if err == nil && v.Queue != nil && !p.json {
			defer fmt.Fprintf(out, "\nqueued: %s\n", queuePlace(v.Queue))
		}
		return p.objectOr(v, err)
	case "sessions explain":
		return c.Sessions.Explain.run(ctx, fleet, p)
	case "sessions cancel <id>":
		v, err := fleet.Cancel(ctx, c.Sessions.Cancel.ID)
		return p.objectOr(v, err)
	case "logs <session>":
		return c.logs(ctx, fleet, p)
	case "accounts quota <id>":
		return c.Accounts.Quota.run(ctx, fleet, p)
	case "accounts profile-execution <id>":
		v, err := fleet.ProfileExecution(ctx, c.Accounts.ProfileExecution.ID)
		return p.objectOr(v, err)
	case "accounts profile-execution <id> <allowed>":
		v, err := fleet.PutProfileExecution(ctx, c.Accounts.ProfileExecution.ID,
			api.PutProfileExecution{ProfileExecution: api.Execution(c.Accounts.ProfileExecution.Allowed), Reason: c.Accounts.ProfileExecution.Reason})
		return p.objectOr(v, err)
	case "accounts put <id>":
		v, err := fleet.PutAccount(ctx, c.Accounts.Put.ID, api.PutAccount{Recordings: c.Accounts.Put.Recordings, Reason: c.Accounts.Put.Reason})
		return p.objectOr(v, err)
	case "accounts get <id>":
		v, err := fleet.Account(ctx, c.Accounts.Get.ID)
		return p.objectOr(v, err)
	}
	if noun, rest, _ := strings.Cut(command, " "); noun == "profiles" {
		return c.Profiles.run(ctx, rest, fleet, p)
	} else if noun == "recordings" {
		return c.Recordings.run(ctx, rest, fleet, p)
	} else if noun == "keys" {
		return c.Keys.run(ctx, rest, fleet, p)
	}
	return fmt.Errorf("command %q has no implementation", command)
}

func set(q url.Values, name, value string) {
	if value != "" {
		q.Set(name, value)
	}
}

func (c *cli) logs(ctx context.Context, fleet *client.Client, p printer) error {
	if c.Logs.Follow {
		return fleet.Follow(ctx, c.Logs.Session, c.Logs.After, p.event)
	}
	after := c.Logs.After
	for {
		page, err := fleet.Events(ctx, c.Logs.Session, after)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, e := range page {
			if err := p.event(e); err != nil {
				return err
			}
			after = e.Seq
		}
	}
}

// printer writes for people, or JSON for programs.
type printer struct {
	out  io.Writer
	json bool
	now  func() time.Time
}

func (p printer) object(v any) error {
	e := json.NewEncoder(p.out)
	if !p.json {
		e.SetIndent("", "  ")
	}
	return e.Encode(v)
}

func (p printer) objectOr(v any, err error) error {
	if err != nil {
		return err
	}
	return p.object(v)
}

func list[T any](p printer, err error, head table.Row, rows []T, row func(T) table.Row) error {
	if err != nil {
		return err
	}
	if p.json {
		for _, r := range rows {
			if err := p.object(r); err != nil {
				return err
			}
		}
		return nil
	}
	t := table.NewWriter()
	t.SetOutputMirror(p.out)
	t.SetStyle(table.StyleLight)
	t.Style().Options = table.OptionsNoBordersAndSeparators
	t.AppendHeader(head)
	for _, r := range rows {
		t.AppendRow(row(r))
	}
	t.Render()
	return nil
}

// event prints one line of a log: when, what, and the numbers that are set.
func (p printer) event(e api.Event) error {
	if p.json {
		return p.object(e)
	}
	line := fmt.Sprintf("%s %4d  %-18s", e.At.Local().Format("15:04:05.000"), e.Seq, e.Kind)
	add := func(on bool, format string, args ...any) {
		if on {
			line += " " + fmt.Sprintf(format, args...)
		}
	}
	add(e.Route != "", "%s", e.Route)
	add(e.Status != 0, "%d", e.Status)
	add(e.Reason != "", "%s", e.Reason)
	add(e.TookUS != 0, "%s", round(time.Duration(e.TookUS)*time.Microsecond))
	add(e.DriverUS != 0, "(driver %s)", round(time.Duration(e.DriverUS)*time.Microsecond))
	add(e.Generation != 0, "generation %d", e.Generation)
	add(e.Restored != 0, "restored %d", e.Restored)
	add(e.Altered != 0, "altered %d", e.Altered)
	add(e.Dropped != 0, "dropped %d", e.Dropped)
	add(e.Captured != 0, "captured %d", e.Captured)
	add(e.Kept != 0, "kept %d", e.Kept)
	add(e.Removed != 0, "removed %d", e.Removed)
	add(e.BytesIn != 0 || e.BytesOut != 0, "in %d out %d bytes", e.BytesIn, e.BytesOut)
	add(e.Partial, "partial")
	_, err := fmt.Fprintln(p.out, line)
	return err
}

func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}

func ago(t *time.Time) string {
	if t == nil {
		return ""
	}
	return short(time.Since(*t)) + " ago"
}

func device(s api.Session) string {
	if s.Host == "" {
		return ""
	}
	return s.Host + "/" + s.Device
}

func ran(s api.Session) string {
	if s.RunningAt == nil {
		return ""
	}
	end := time.Now()
	if s.EndedAt != nil {
		end = *s.EndedAt
	}
	return end.Sub(*s.RunningAt).Round(100 * time.Millisecond).String()
}
