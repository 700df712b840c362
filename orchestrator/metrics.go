package orchestrator

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/recorder"
	"github.com/driftstack/fleet/tunnel"
)

// scrapeLimit bounds what a scrape asks the database.
const scrapeLimit = 5 * time.Second

// saidLately is how long what a host says of its tunnel counts as true: it says it four times as often.
const saidLately = time.Minute

// Metrics serves Prometheus; docs/operations.md lists what there is. Labels are names of hosts and words of fixed tables: there is
// nothing of a customer in them, and no more of them than hosts. The states are the fleet's, of all orchestrators; links, bytes,
// repairs, commands and endings are this one's.
func (o *Orchestrator) Metrics() http.Handler {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(o.Collector(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 2 * scrapeLimit})
}

// Collector reads snapshots at each scrape; nothing is counted for it in between.
func (o *Orchestrator) Collector() prometheus.Collector { return newCollector(o) }

type collector struct {
	o *Orchestrator

	database, sessions                                  *prometheus.Desc
	fleet, oldest, waiting, devices, cordoned, closed   *prometheus.Desc
	state                                               *prometheus.Desc
	roundTrip, heartbeat, handshake, mtu                *prometheus.Desc
	received, sent, repairs                             *prometheus.Desc
	info, peers, reconcile, failures, restores, isolate *prometheus.Desc
	storage, checked, damaged, repaired, uploads, lost  *prometheus.Desc
	spoolFree, spoolRoom                                *prometheus.Desc
}

func newCollector(o *Orchestrator) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("driftstack_"+name, help, labels, nil)
	}
	return &collector{
		o:         o,
		database:  desc("database_up", "Whether the database answered this scrape; without it the figures of the fleet are absent."),
		sessions:  desc("orchestrator_sessions", "Sessions that this orchestrator has now: starting, running or finishing."),
		fleet:     desc("sessions", "Sessions of the whole fleet that have not ended.", "state"),
		oldest:    desc("queue_oldest_wait_seconds", "How long the oldest queued session has waited; 0 when none waits."),
		waiting:   desc("queue_accounts", "Accounts that have queued sessions."),
		devices:   desc("devices", "Devices of the whole fleet.", "state"),
		cordoned:  desc("devices_cordoned", "Devices that operators keep new sessions off, themselves or by their host; each is in one of the states as well."),
		closed:    desc("hosts_closed", "Hosts that take no new sessions although they were not removed.", "why"),
		state:     desc("host_state", "1 for the state that the host is in, over all orchestrators; 0 for the others.", "host", "state"),
		roundTrip: desc("host_heartbeat_round_trip_seconds", "Round trip of the last heartbeat between the host and this orchestrator, on the path of commands.", "host"),
		heartbeat: desc("host_last_heartbeat_timestamp_seconds", "When this orchestrator last heard a heartbeat of the connected host.", "host"),
		handshake: desc("host_last_handshake_timestamp_seconds", "Last WireGuard handshake of the host with this orchestrator; it says nothing about health.", "host"),
		mtu:       desc("host_mtu_bytes", "MTU of the host's tunnel to this orchestrator, while the host says it; below 1280 its path loses larger packets.", "host"),
		received:  desc("host_received_bytes_total", "Bytes received from the host through its tunnel.", "host"),
		sent:      desc("host_sent_bytes_total", "Bytes sent to the host through its tunnel.", "host"),
		repairs:   desc("host_repairs_total", "What the host did to get its tunnel to this orchestrator back, since its agent started.", "host", "rung"),
		info:      desc("gateway_info", "WireGuard backend of this orchestrator; the value is 1.", "backend"),
		peers:     desc("gateway_peers", "Peers on the tunnel device when it was last read."),
		reconcile: desc("gateway_reconcile_duration_seconds", "How long it took to make the tunnel device's peers what the database says."),
		failures:  desc("gateway_reconcile_errors_total", "Reconciliations that left something wrong; the log says what."),
		restores:  desc("gateway_restores_total", "Times that the tunnel device was lost and opened again."),
		isolate:   desc("gateway_isolation_repairs_total", "Times that the rules that keep hosts apart were not what they should be; someone else changes them."),
		storage:   desc("storage_proven", "1 once the bucket was seen where it has to be, since this orchestrator started; nothing is uploaded to it before.", "region"),
		spoolFree: desc("spool_free_bytes", "Bytes that are free on the volume of the recording spools."),
		spoolRoom: desc("spool_room", "1 for what follows from that: enough; low, no recording is begun; none, hosts hold what they record as well.", "room"),
		checked:   desc("recording_copies_checked_total", "Copies of recordings that this orchestrator compared with what they should be.", "region"),
		damaged:   desc("recording_copies_damaged_total", "Copies that it found missing or altered, each time it looked.", "region"),
		repaired:  desc("recording_copies_repaired_total", "Copies that it put back.", "region"),
		uploads:   desc("recording_uploads_abandoned_total", "Uploads that nobody went on with: aborted, or completed as a partial recording.", "region", "end"),
		lost:      desc("recordings_lost_total", "Recordings that this orchestrator found to be lost: their spool is gone, and nothing of them had been uploaded."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.database, c.sessions, c.fleet, c.oldest, c.waiting, c.devices, c.cordoned, c.closed, c.state,
		c.roundTrip, c.heartbeat, c.handshake, c.mtu, c.received, c.sent, c.repairs, c.info, c.peers, c.reconcile, c.failures, c.restores, c.isolate,
		c.storage, c.spoolFree, c.spoolRoom, c.checked, c.damaged, c.repaired, c.uploads, c.lost} {
		out <- d
	}
	for _, m := range c.o.measures.collectors() {
		m.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	c.o.mu.Lock()
	running := len(c.o.live)
	c.o.mu.Unlock()
	gauge(out, c.sessions, float64(running))
	for _, m := range c.o.measures.collectors() {
		m.Collect(out)
	}
	c.states(out)
	c.links(out)
	c.recordings(out)
	if c.o.deps.Tunnel != nil {
		gauge(out, c.info, 1, c.o.deps.Tunnel.Backend())
		c.gateway(out, c.o.deps.Tunnel.Counters())
	}
}

// states leaves the hosts out while the database is away: what is exported is true, or absent.
func (c *collector) states(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	hosts, err := c.o.deps.Hosts.Hosts(ctx)
	var fleet api.Fleet
	if err == nil {
		fleet, err = c.o.deps.Hosts.Fleet(ctx)
	}
	if err != nil {
		c.o.log.Warn("metrics without the fleet's states", zap.Error(err))
		gauge(out, c.database, 0)
		return
	}
	gauge(out, c.database, 1)
	c.counts(out, fleet)
	for _, h := range hosts {
		for _, s := range api.HostStates() {
			is := 0.0
			if s == h.State {
				is = 1
			}
			gauge(out, c.state, is, h.Name, string(s))
		}
	}
}

// counts has a value for every state there is.
func (c *collector) counts(out chan<- prometheus.Metric, f api.Fleet) {
	for _, s := range api.ActiveStates() {
		gauge(out, c.fleet, float64(f.Sessions[string(s)]), string(s))
	}
	for _, s := range api.DeviceStates() {
		gauge(out, c.devices, float64(f.Devices[s]), s)
	}
	for _, why := range api.ClosedStates() {
		gauge(out, c.closed, float64(f.Closed[why]), why)
	}
	gauge(out, c.cordoned, float64(f.Devices["cordoned"]))
	gauge(out, c.oldest, float64(f.Queue.OldestSeconds))
	gauge(out, c.waiting, float64(len(f.Queue.Accounts)+f.Queue.More))
}

func (c *collector) links(out chan<- prometheus.Metric) {
	for _, l := range c.o.deps.Fleet.Links() {
		if l.RoundTrip > 0 {
			gauge(out, c.roundTrip, l.RoundTrip.Seconds(), l.Host)
		}
		gauge(out, c.heartbeat, unix(l.Heard), l.Host)
	}
	c.o.health.mu.Lock()
	tunnels := c.o.health.tunnel // replaced as a whole, never changed
	c.o.health.mu.Unlock()
	now := c.o.deps.Now()
	for host, t := range tunnels {
		counter(out, c.received, float64(t.RxBytes), host)
		counter(out, c.sent, float64(t.TxBytes), host)
		if !t.Handshake.IsZero() {
			gauge(out, c.handshake, unix(t.Handshake), host)
		}
		if t.PulsedAt.IsZero() {
			continue
		}
		if t.Pulse.MTU > 0 && now.Sub(t.PulsedAt) < saidLately {
			gauge(out, c.mtu, float64(t.Pulse.MTU), host)
		}
		counter(out, c.repairs, float64(t.Pulse.Repairs.Handshake), host, "handshake")
		counter(out, c.repairs, float64(t.Pulse.Repairs.Socket), host, "socket")
		counter(out, c.repairs, float64(t.Pulse.Repairs.Resolve), host, "resolve")
		counter(out, c.repairs, float64(t.Pulse.Repairs.Device), host, "device")
	}
}

func (c *collector) recordings(out chan<- prometheus.Metric) {
	if c.o.deps.Recorder == nil {
		return
	}
	free, room := c.o.deps.Recorder.Room()
	gauge(out, c.spoolFree, float64(free))
	for _, r := range []recorder.Room{recorder.RoomEnough, recorder.RoomLow, recorder.RoomNone} {
		is := 0.0
		if r == room {
			is = 1
		}
		gauge(out, c.spoolRoom, is, r.String())
	}
	var lost int64
	for r, n := range c.o.deps.Recorder.Counters() {
		lost += n.Lost
		region, proven := string(r), 0.0
		if n.Proven {
			proven = 1
		}
		gauge(out, c.storage, proven, region)
		counter(out, c.checked, float64(n.Checked), region)
		counter(out, c.damaged, float64(n.Damaged), region)
		counter(out, c.repaired, float64(n.Repaired), region)
		counter(out, c.uploads, float64(n.Aborted), region, "aborted")
		counter(out, c.uploads, float64(n.Completed), region, "completed")
	}
	counter(out, c.lost, float64(lost))
}

func (c *collector) gateway(out chan<- prometheus.Metric, n tunnel.Counters) {
	gauge(out, c.peers, float64(n.Peers))
	out <- prometheus.MustNewConstHistogram(c.reconcile, n.Reconciled, n.ReconcileTime.Seconds(), n.ReconcileBuckets)
	counter(out, c.failures, float64(n.ReconcileErrors))
	counter(out, c.restores, float64(n.Restores))
	counter(out, c.isolate, float64(n.IsolationRepairs))
}

func gauge(out chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func counter(out chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
