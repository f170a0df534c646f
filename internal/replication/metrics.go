package replication

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/internal/replication/catalog"
)

type metrics struct {
	up            prometheus.Gauge
	phase         *prometheus.GaugeVec
	reconnects    *prometheus.CounterVec
	receivedBytes prometheus.Counter
	chunks        prometheus.Counter
	statusUpdates prometheus.Counter
	receivedLSN   prometheus.Gauge
	confirmedLSN  prometheus.Gauge
	serverLSN     prometheus.Gauge
	lag           prometheus.Gauge
	lastReceived  prometheus.Gauge
	lastCommit    prometheus.Gauge
	clockSkew     prometheus.Gauge
	faults        *prometheus.GaugeVec

	slotRetained     prometheus.Gauge
	slotSafe         prometheus.Gauge
	slotStatus       *prometheus.GaugeVec
	slotConfirmed    prometheus.Gauge
	slotSpillBytes   prometheus.Gauge
	slotSpillTxns    prometheus.Gauge
	slotPolled       prometheus.Gauge
	slotPollFailures prometheus.Counter
}

// walStatuses are pg_replication_slots.wal_status, and "missing" for no slot.
func walStatuses() []string {
	return []string{"reserved", "extended", "unreserved", "lost", "missing"}
}

func newUp() prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "billhook", Subsystem: "replication", Name: "up",
		Help: "1 while changes are streamed, else 0.",
	})
}

func newPhase() *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "billhook", Subsystem: "replication", Name: "phase",
		Help: "1 for the phase the connection is in.",
	}, []string{"phase"})
}

// MeasureStandby registers the metrics of a process that has no Client since it waits for
// another to end: it is in the phase Standby.
func MeasureStandby(r prometheus.Registerer) {
	m := &metrics{up: newUp(), phase: newPhase()}
	r.MustRegister(m.up, m.phase)
	m.setPhase(Standby)
}

func newMetrics(r prometheus.Registerer) *metrics {
	if r == nil {
		r = prometheus.NewRegistry()
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "billhook", Subsystem: "replication", Name: name, Help: help})
		r.MustRegister(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "billhook", Subsystem: "replication", Name: name, Help: help})
		r.MustRegister(c)
		return c
	}
	m := &metrics{
		up:            newUp(),
		receivedBytes: counter("received_bytes_total", "Bytes read from the replication connection."),
		chunks:        counter("chunks_total", "Runs of replication frames passed on."),
		statusUpdates: counter("status_updates_total", "Standby status updates sent."),
		receivedLSN:   gauge("received_lsn_bytes", "End of the last transaction or keepalive received, as a WAL position."),
		confirmedLSN:  gauge("confirmed_lsn_bytes", "Position last confirmed to the server: durable here."),
		serverLSN:     gauge("server_lsn_bytes", "The server's WAL position when last asked or told."),
		lag:           gauge("lag_bytes", "WAL between what is confirmed and the server's position."),
		lastReceived:  gauge("last_received_timestamp_seconds", "When bytes last came from the server."),
		lastCommit:    gauge("last_commit_timestamp_seconds", "Commit time of the last transaction received, by the server's clock."),
		clockSkew:     gauge("clock_skew_seconds", "The server's clock minus ours, transit included."),

		slotRetained:     gauge("slot_retained_bytes", "WAL the slot keeps on the server."),
		slotSafe:         gauge("slot_safe_wal_bytes", "WAL that may yet be written before the slot is in danger; +Inf without a limit."),
		slotConfirmed:    gauge("slot_confirmed_lsn_bytes", "The slot's confirmed_flush_lsn."),
		slotSpillBytes:   gauge("slot_spill_bytes", "Bytes of large transactions the server has spilled to disk, since its statistics were reset."),
		slotSpillTxns:    gauge("slot_spill_transactions", "Transactions the server has spilled to disk, since its statistics were reset."),
		slotPolled:       gauge("slot_polled_timestamp_seconds", "When the slot's state was last read."),
		slotPollFailures: counter("slot_poll_failures_total", "Times the state of slot and publication could not be read."),

		phase: newPhase(),
		reconnects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "billhook", Subsystem: "replication", Name: "reconnects_total",
			Help: "Connections that failed or ended, by cause.",
		}, []string{"reason"}),
		faults: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "billhook", Subsystem: "replication", Name: "fault",
			Help: "1 while something keeps changes from coming, or soon will, although the connection is up.",
		}, []string{"fault"}),
		slotStatus: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "billhook", Subsystem: "replication", Name: "slot_wal_status",
			Help: "1 for the slot's wal_status.",
		}, []string{"wal_status"}),
	}
	r.MustRegister(m.up, m.phase, m.reconnects, m.faults, m.slotStatus)
	for _, p := range phases() {
		m.phase.WithLabelValues(p.String())
	}
	for _, reason := range reasons() {
		m.reconnects.WithLabelValues(string(reason))
	}
	for _, f := range faults() {
		m.faults.WithLabelValues(string(f))
	}
	for _, s := range walStatuses() {
		m.slotStatus.WithLabelValues(s)
	}
	return m
}

func (m *metrics) setPhase(p Phase) {
	for _, q := range phases() {
		m.phase.WithLabelValues(q.String()).Set(oneIf(p == q))
	}
	m.up.Set(oneIf(p == Streaming))
}

func (m *metrics) setSlot(s catalog.Slot, found bool, now time.Time) {
	status := s.WALStatus
	if !found {
		status = "missing"
	}
	for _, w := range walStatuses() {
		m.slotStatus.WithLabelValues(w).Set(oneIf(w == status))
	}
	m.slotPolled.Set(seconds(now))
	if !found {
		return
	}
	m.slotRetained.Set(float64(s.RetainedBytes))
	m.slotSafe.Set(s.SafeBytes)
	m.slotConfirmed.Set(float64(s.ConfirmedFlush))
	m.slotSpillBytes.Set(float64(s.SpillBytes))
	m.slotSpillTxns.Set(float64(s.SpillTransactions))
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
