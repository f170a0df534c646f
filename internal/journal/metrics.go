package journal

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reg     prometheus.Registerer
	watched *collector

	commit  *prometheus.HistogramVec // seconds, by kind
	events  prometheus.Histogram     // per commit of intake
	bytes   prometheus.Counter
	errors  *prometheus.CounterVec
	stopped prometheus.Gauge
	dropped prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		reg: reg,
		commit: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                            "billhook_journal_commit_duration_seconds",
			Help:                            "Time from a commit to its durability: of intake, or of what attempts and people changed.",
			Buckets:                         []float64{.0002, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"kind"}),
		events: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:                            "billhook_journal_batch_events",
			Help:                            "Events in one commit of intake.",
			Buckets:                         []float64{0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "billhook_journal_written_bytes_total",
			Help: "Bytes committed, before compression and compaction.",
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "billhook_journal_errors_total",
			Help: "Failures of the disk: write stops the journal, no_space is a write that waits, background is a flush or compaction that is tried again, refused is a commit below the reserve.",
		}, []string{"kind"}),
		stopped: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "billhook_journal_stopped",
			Help: "1 when a failed write has stopped the journal.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "billhook_journal_dropped_executions_total",
			Help: "Executions that retention has dropped.",
		}),
	}
	for _, k := range []string{"intake", "record", "status", "merge"} {
		m.commit.WithLabelValues(k)
	}
	for _, k := range []string{"write", "no_space", "background", "refused"} {
		m.errors.WithLabelValues(k)
	}
	return m
}

// Size is how many bytes the store takes on the disk.
func (j *Journal) Size() uint64 {
	if err := j.enter(); err != nil {
		return 0
	}
	defer j.leave()
	return j.db.Metrics().DiskSpaceUsage()
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.commit, m.events, m.bytes, m.errors, m.stopped, m.dropped}
}

// watch registers the metrics of an open journal; unwatch takes them out, so
// that a journal can be closed and opened again in one process.
func (m *metrics) watch(j *Journal) {
	if m.reg == nil {
		return
	}
	m.watched = newCollector(j)
	for _, c := range append(m.all(), m.watched) {
		m.reg.MustRegister(c)
	}
}

func (m *metrics) unwatch() {
	if m.reg == nil {
		return
	}
	for _, c := range append(m.all(), m.watched) {
		m.reg.Unregister(c)
	}
}

// collector asks the journal when it is asked itself.
type collector struct {
	j                                              *Journal
	executions, oldest, size, free, debt, compacts *prometheus.Desc
}

func newCollector(j *Journal) *collector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &collector{
		j:          j,
		executions: d("billhook_executions", "Executions in the journal.", "handler", "status"),
		oldest:     d("billhook_oldest_pending_timestamp_seconds", "When the oldest pending execution was journaled; 0 when none is pending."),
		size:       d("billhook_journal_size_bytes", "Size of the journal on the disk."),
		free:       d("billhook_journal_free_bytes", "Free space on the journal's disk."),
		debt:       d("billhook_journal_compaction_debt_bytes", "Bytes that are still to be compacted."),
		compacts:   d("billhook_journal_compactions_total", "Compactions since the journal was opened."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.executions, c.oldest, c.size, c.free, c.debt, c.compacts} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	j := c.j
	if j.enter() != nil {
		return
	}
	defer j.leave()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	handlers := make(map[int]bool)
	counts := j.Counts()
	for hs := range counts {
		handlers[hs.Handler] = true
	}
	for h := range handlers {
		for _, s := range Statuses() {
			gauge(c.executions, float64(counts[HandlerStatus{h, s}]), strconv.Itoa(h), s.String())
		}
	}
	oldest := 0.0
	if t, ok := j.oldestPending(); ok {
		oldest = float64(t.UnixMicro()) / 1e6
	}
	gauge(c.oldest, oldest)
	if free, ok := j.disk.free(j.o.Path); ok {
		gauge(c.free, float64(free))
	}
	m := j.db.Metrics()
	gauge(c.size, float64(m.DiskSpaceUsage()))
	gauge(c.debt, float64(m.Compact.EstimatedDebt))
	ch <- prometheus.MustNewConstMetric(c.compacts, prometheus.CounterValue, float64(m.Compact.Count))
}
