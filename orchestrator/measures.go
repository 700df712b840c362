package orchestrator

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// measures counts and times what this orchestrator's sessions do. Labels are words of fixed tables, and every one is there from
// the start, as zero. Commands are counted by who stores their events, off their path.
type measures struct {
	taken    *prometheus.CounterVec   // how
	ended    *prometheus.CounterVec   // reason
	waited   prometheus.Histogram     // for a device
	started  prometheus.Histogram     // from its creation until it ran
	commands *prometheus.HistogramVec // result
}

const (
	takenClaimed = "claimed"
	takenAdopted = "adopted"
	commandOK    = "ok"
	commandError = "error"
)

func newMeasures() *measures {
	histogram := func(name, help string, buckets ...float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: "driftstack_" + name, Help: help, Buckets: buckets}
	}
	m := &measures{
		taken: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "driftstack_sessions_taken_total",
			Help: "Sessions that this orchestrator took: claimed from the queue, or adopted while they ran."}, []string{"how"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "driftstack_sessions_ended_total",
			Help: "Sessions that this orchestrator ended, by reason; those that were cancelled while they were queued are not counted."}, []string{"reason"}),
		waited: prometheus.NewHistogram(histogram("session_queue_wait_seconds", "From a session's creation until it was claimed for a device, by the database's clock.",
			.01, .05, .1, .5, 1, 5, 15, 60, 300, 900, 3600)),
		started: prometheus.NewHistogram(histogram("session_create_to_running_seconds", "From a session's creation until it took commands.",
			.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900)),
		commands: prometheus.NewHistogramVec(histogram("command_duration_seconds", "From when a command came until its answer was there; a batch is one. Errors are answers with a status of 400 and above.",
			.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300), []string{"result"}),
	}
	for r := range Endings() {
		m.ended.WithLabelValues(string(r))
	}
	for _, how := range []string{takenClaimed, takenAdopted} {
		m.taken.WithLabelValues(how)
	}
	for _, result := range []string{commandOK, commandError} {
		m.commands.WithLabelValues(result)
	}
	return m
}

func (m *measures) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.taken, m.ended, m.waited, m.started, m.commands}
}

// take counts a session that was claimed or adopted.
func (m *measures) take(c Claim) {
	if c.Adopted {
		m.taken.WithLabelValues(takenAdopted).Inc()
		return
	}
	m.taken.WithLabelValues(takenClaimed).Inc()
	m.waited.Observe(c.Waited.Seconds())
}

// ran notes how long a session took to run that was claimed so long ago.
func (m *measures) ran(c Claim, ago time.Duration) {
	m.started.Observe((c.Waited + ago).Seconds())
}

func (m *measures) end(r Reason) { m.ended.WithLabelValues(string(r)).Inc() }

// stored counts events that are stored.
func (m *measures) stored(events []Event) {
	for _, e := range events {
		if e.Kind != EventCommand {
			continue
		}
		result := commandOK
		if e.Status >= 400 {
			result = commandError
		}
		m.commands.WithLabelValues(result).Observe(e.Took.Seconds())
	}
}
