package orchestrator

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// counted stands in for a fleet with many sessions of many accounts.
type counted struct {
	HostStore
	SessionStore
	fleet api.Fleet
}

func (c *counted) Hosts(context.Context) ([]api.Host, error) {
	return []api.Host{{Name: "mac-1", State: api.HostUp}}, nil
}
func (c *counted) Fleet(context.Context) (api.Fleet, error)         { return c.fleet, nil }
func (*counted) AppendEvents(context.Context, []Event) error        { return nil }
func (*counted) Finish(context.Context, Event, string, int64) error { return nil }

func gathered(t *testing.T, o *Orchestrator) (series int, by map[string]*dto.MetricFamily) {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(o.Collector())
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	by = map[string]*dto.MetricFamily{}
	for _, f := range families {
		by[f.GetName()] = f
		series += len(f.GetMetric())
	}
	return series, by
}

// TestMetricsDoNotGrow: ten thousand sessions of as many accounts, which run down the whole line and end, leave as many series
// as there were before the first, and are all counted. Nobody is connected, so that each ends as host_lost.
func TestMetricsDoNotGrow(t *testing.T) {
	const sessions = 10_000
	store := &counted{fleet: api.Fleet{}}
	fleet := driverproxy.NewFleet(driverproxy.Config{Orchestrator: "eu-1", Epoch: "e"})
	o := New(Deps{ID: "eu-1", Sessions: store, Hosts: store, Fleet: fleet, Log: zap.NewNop(), LeaseTTL: time.Hour})
	go o.journal.run(context.Background())
	before, _ := gathered(t, o)
	for i := range sessions {
		c := Claim{Session: fmt.Sprintf("session-%d", i), Account: fmt.Sprintf("account-%d", i), Host: "mac-1", Device: "phone", Term: 1,
			Idle: time.Hour, Max: time.Hour, Command: time.Hour, Adopted: i%2 == 1, Waited: 20 * time.Second}
		newLive(c, o.journal, time.Now).emit(Event{Kind: EventCommand, Route: webdriver.RouteGetTitle, Status: 200 + 300*(i%2), Took: 30 * time.Millisecond})
		c.Adopted = false
		l := newLive(c, o.journal, time.Now)
		o.enter(l)
		o.run(t.Context(), l, time.Now())
		store.fleet.Queue.Accounts = append(store.fleet.Queue.Accounts, api.AccountQueue{Account: c.Account, Queued: 1})
	}
	o.journal.flush(t.Context())
	o.journal.close()
	after, by := gathered(t, o)
	if before != after {
		t.Errorf("%d series before, %d after %d sessions", before, after, sessions)
	}
	t.Logf("%d series", after)
	value := func(name, label string) (v float64) {
		t.Helper()
		for _, m := range by[name].GetMetric() {
			if label == "" || m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
		t.Errorf("%s has no %q", name, label)
		return 0
	}
	for _, c := range []struct {
		name, label string
		want        float64
	}{
		{"driftstack_sessions_ended_total", "host_lost", sessions}, {"driftstack_sessions_ended_total", "completed", 0},
		{"driftstack_sessions_taken_total", "claimed", sessions}, {"driftstack_session_queue_wait_seconds", "", sessions},
		{"driftstack_command_duration_seconds", "ok", sessions / 2}, {"driftstack_command_duration_seconds", "error", sessions / 2},
		{"driftstack_queue_accounts", "", sessions},
	} {
		if got := value(c.name, c.label); got != c.want {
			t.Errorf("%s{%s} is %v, want %v", c.name, c.label, got, c.want)
		}
	}
	if s := by["driftstack_session_queue_wait_seconds"].GetMetric()[0].GetHistogram().GetSampleSum(); s != 20*sessions {
		t.Errorf("sessions waited %v s", s)
	}
}

// TestMetricsAreNamedAsOthersAre, have every word of their tables from the start, and are in docs/operations.md as they say of
// themselves.
func TestMetricsAreNamedAsOthersAre(t *testing.T) {
	store := &counted{}
	o := New(Deps{ID: "eu-1", Sessions: store, Hosts: store, Fleet: driverproxy.NewFleet(driverproxy.Config{}), Log: zap.NewNop()})
	problems, err := testutil.CollectAndLint(o.Collector())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	_, by := gathered(t, o)
	for name, words := range map[string]int{
		"driftstack_sessions_ended_total": len(Endings()), "driftstack_sessions_taken_total": 2, "driftstack_command_duration_seconds": 2,
		"driftstack_sessions": len(api.ActiveStates()), "driftstack_devices": len(api.DeviceStates()), "driftstack_hosts_closed": len(api.ClosedStates()),
		"driftstack_host_state": len(api.HostStates()),
	} {
		if got := len(by[name].GetMetric()); got != words {
			t.Errorf("%s has %d series, want %d", name, got, words)
		}
	}

	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, want []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `driftstack_") {
			documented = append(documented, strings.TrimSpace(line))
		}
	}
	said := regexp.MustCompile(`fqName: "([^"]*)", help: "([^"]*)", constLabels: {}, variableLabels: {([^}]*)}`)
	descs := make(chan *prometheus.Desc, 100)
	o.Collector().Describe(descs)
	close(descs)
	for d := range descs {
		m := said.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("%s", d)
		}
		labels := ""
		if m[3] != "" {
			labels = "`" + strings.ReplaceAll(m[3], ",", "`, `") + "`"
		}
		want = append(want, fmt.Sprintf("| `%s` | %s | %s |", m[1], labels, m[2]))
	}
	slices.Sort(want)
	if !slices.Equal(documented, want) {
		t.Errorf("docs/operations.md must have this table:\n%s", strings.Join(want, "\n"))
	}
}
