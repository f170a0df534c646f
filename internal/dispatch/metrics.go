package dispatch

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
)

// metrics are counted as things happen; what can be read off the dispatcher's state
// is read when it is collected.
type metrics struct {
	d        *Dispatcher
	finished *prometheus.CounterVec
	attempts *prometheus.CounterVec
	duration *prometheus.HistogramVec
	latency  *prometheus.HistogramVec

	inflight, queued, retries, lanes, paused *prometheus.Desc
	breaker, failing, success                *prometheus.Desc
}

func newMetrics(reg prometheus.Registerer, d *Dispatcher) *metrics {
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"handler"})
	}
	m := &metrics{
		d: d,
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "billhook_executions_finished_total",
			Help: "Executions that came to their end, by handler and final status.",
		}, []string{"handler", "status"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "billhook_attempts_total",
			Help: "Attempts made, by handler, outcome (succeeded, failed, interrupted) and reason of failure.",
		}, []string{"handler", "outcome", "reason"}),
		duration: histogram("billhook_attempt_duration_seconds",
			"How long attempts took, whatever their outcome.",
			[]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}),
		latency: histogram("billhook_delivery_latency_seconds",
			"From the commit of the event's transaction to the recorded success of its execution.",
			[]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 43200, 86400}),
		inflight: prometheus.NewDesc("billhook_attempts_in_flight",
			"Attempts being made.", []string{"handler"}, nil),
		queued: prometheus.NewDesc("billhook_lanes_queued",
			"Lanes whose next execution could be attempted now and waits for its turn at the handler.", []string{"handler"}, nil),
		retries: prometheus.NewDesc("billhook_retries_scheduled",
			"Lanes whose next execution waits for the time of its next attempt.", []string{"handler"}, nil),
		lanes: prometheus.NewDesc("billhook_lanes_pending",
			"Lanes with pending executions.", nil, nil),
		paused: prometheus.NewDesc("billhook_dispatch_paused",
			"1 while no attempts are started because the journal does not take their outcomes.", nil, nil),
		breaker: prometheus.NewDesc("billhook_breaker_open",
			"1 while the handler's breaker is open: its executions wait until it answers.", []string{"handler"}, nil),
		failing: prometheus.NewDesc("billhook_handler_failing",
			"1 while the handler has failed for longer than failing_after, with no success.", []string{"handler"}, nil),
		success: prometheus.NewDesc("billhook_handler_last_success_timestamp_seconds",
			"When an attempt of the handler last succeeded, 0 if none has since the start.", []string{"handler"}, nil),
	}
	if reg != nil {
		reg.MustRegister(m.finished, m.attempts, m.duration, m.latency, m)
	}
	return m
}

// Describe is a prometheus.Collector's.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{m.inflight, m.queued, m.retries, m.lanes, m.paused, m.breaker, m.failing, m.success} {
		ch <- desc
	}
}

// Collect is a prometheus.Collector's.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	type row struct {
		id                        int
		inflight, queued, retries int
		open, failing             bool
		success                   time.Time
	}
	var rows []row
	m.d.mu.Lock()
	for id, g := range m.d.gates {
		if g.cur != nil {
			rows = append(rows, row{id, g.cur.inflight, g.queue.n, g.waiting, g.breaker.open, g.failing(), g.health.success})
		}
	}
	lanes, paused := len(m.d.lanes), m.d.trouble > 0
	m.d.mu.Unlock()

	for _, r := range rows {
		id := strconv.Itoa(r.id)
		gauge(m.inflight, float64(r.inflight), id)
		gauge(m.queued, float64(r.queued), id)
		gauge(m.retries, float64(r.retries), id)
		gauge(m.breaker, truth(r.open), id)
		gauge(m.failing, truth(r.failing), id)
		success := 0.0
		if !r.success.IsZero() {
			success = float64(r.success.UnixMicro()) / 1e6
		}
		gauge(m.success, success, id)
	}
	gauge(m.lanes, float64(lanes))
	gauge(m.paused, truth(paused))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// handlerMetrics are the counters of one handler. A nil one counts nothing: there is
// no handler with that id.
type handlerMetrics struct {
	final             map[journal.Status]prometheus.Counter
	succeeded, broken prometheus.Counter
	failed            map[handler.Reason]prometheus.Counter
	duration, latency prometheus.Observer
}

// handler makes the counters of a handler, all at zero.
func (m *metrics) handler(id int) *handlerMetrics {
	label := strconv.Itoa(id)
	h := &handlerMetrics{
		final:     map[journal.Status]prometheus.Counter{},
		succeeded: m.attempts.WithLabelValues(label, "succeeded", ""),
		broken:    m.attempts.WithLabelValues(label, "interrupted", ""),
		failed:    map[handler.Reason]prometheus.Counter{},
		duration:  m.duration.WithLabelValues(label),
		latency:   m.latency.WithLabelValues(label),
	}
	for _, s := range journal.Statuses() {
		if !s.Open() {
			h.final[s] = m.finished.WithLabelValues(label, s.String())
		}
	}
	for _, r := range handler.Reasons() {
		h.failed[r] = m.attempts.WithLabelValues(label, "failed", string(r))
	}
	return h
}

// forget drops the counters of a handler.
func (m *metrics) forget(id int) {
	labels := prometheus.Labels{"handler": strconv.Itoa(id)}
	m.finished.DeletePartialMatch(labels)
	m.attempts.DeletePartialMatch(labels)
	m.duration.DeletePartialMatch(labels)
	m.latency.DeletePartialMatch(labels)
}

// outcome counts what was recorded; latency is the time since the event's commit,
// which says nothing about a replay.
func (h *handlerMetrics) outcome(o *journal.Outcome, latency time.Duration, replay bool) {
	if h == nil {
		return
	}
	if a := o.Attempt; a != nil {
		h.duration.Observe(a.Duration.Seconds())
		if a.OK {
			h.succeeded.Inc()
		}
		if a.OK && !replay {
			h.latency.Observe(max(latency, 0).Seconds())
		}
		if !a.OK {
			h.failed[a.Reason].Inc()
		}
	}
	h.finished(o.Status, 1)
}

// finished counts executions that have the status now, if it is a final one.
func (h *handlerMetrics) finished(s journal.Status, n int) {
	if h == nil || s.Open() {
		return
	}
	h.final[s].Add(float64(n))
}

func (h *handlerMetrics) interrupted() {
	if h != nil {
		h.broken.Inc()
	}
}
