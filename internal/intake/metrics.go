package intake

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// metrics of intake. What happens per change is counted in plain fields and added
// to the counters with each commit.
type metrics struct {
	transactions  prometheus.Counter
	changes       *prometheus.CounterVec
	unmapped      prometheus.Counter
	events        *prometheus.CounterVec
	repeated      prometheus.Counter
	own           prometheus.Counter
	broken        prometheus.Counter
	truncates     prometheus.Counter
	filled        prometheus.Counter
	filling       prometheus.Gauge
	fillRows      *prometheus.GaugeVec
	fillEstimated *prometheus.GaugeVec
	timers        prometheus.Gauge
	fired         prometheus.Counter
	blocked       prometheus.Gauge
	durable       prometheus.Gauge
	commitTime    prometheus.Gauge
	batches       prometheus.Histogram
	open          prometheus.Gauge
	parts         prometheus.Counter

	pendingTransactions, pendingUnmapped int
	pendingChanges                       map[*wal.Relation]*[3]int
	lastRelation                         *wal.Relation
	lastChanges                          *[3]int
	pendingEvents                        map[event.Type]int
	lastCommit                           time.Time
}

func newMetrics(r prometheus.Registerer, types []event.Type) *metrics {
	m := &metrics{
		open:          prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_intake_large_transaction_changes", Help: "Changes taken in so far of a transaction that is too large for one commit; 0 when there is none."}),
		parts:         prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_intake_pieces_total", Help: "Parts of large transactions that were set aside, as their changes came and as their events were derived."}),
		transactions:  prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_intake_transactions_total", Help: "Transactions taken into the journal."}),
		changes:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "billhook_intake_changes_total", Help: "Row changes of mapped tables, by table and operation."}, []string{"table", "op"}),
		unmapped:      prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_intake_changes_ignored_total", Help: "Row changes that can make no event: of tables that are not mapped, or of rows whose key is not known."}),
		events:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "billhook_events_total", Help: "Events derived, by event type, also those that no handler wants."}, []string{"event"}),
		repeated:      prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_intake_transactions_repeated_total", Help: "Transactions that the server sent again and that were in the journal already."}),
		own:           prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_intake_transactions_own_total", Help: "Transactions that Billhook itself has made to write handlers' answers; they make no events."}),
		broken:        prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_intake_condition_errors_total", Help: "Rows for which a rule's condition could not be evaluated."}),
		truncates:     prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_intake_truncates_total", Help: "TRUNCATEs of mapped tables."}),
		filled:        prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_memory_filled_rows_total", Help: "Rows read from tables into memory."}),
		filling:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_memory_tables_to_fill", Help: "Mapped tables whose rows are not all in memory yet."}),
		fillRows:      prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "billhook_memory_fill_rows", Help: "Rows read so far of a table that is, or was, being filled into memory."}, []string{"table"}),
		fillEstimated: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "billhook_memory_fill_rows_estimated", Help: "About how many rows such a table has; 0 when that is not known."}, []string{"table"}),
		timers:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_timers_pending", Help: "Rows' moments at which an event by the clock, or of a threshold that settles, falls due."}),
		fired:         prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_timers_fired_total", Help: "Rows' moments that have come, whether or not they made an event."}),
		blocked:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_intake_blocked", Help: "1 while intake waits for room for the journal."}),
		durable:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_intake_durable_lsn_bytes", Help: "Position in the source's log that is durable in the journal."}),
		commitTime:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_intake_last_commit_timestamp_seconds", Help: "Commit time, by the source's clock, of the last transaction taken into the journal."}),
		batches:       prometheus.NewHistogram(prometheus.HistogramOpts{Name: "billhook_intake_batch_transactions", Help: "Transactions per commit of the journal.", Buckets: []float64{0, 1, 2, 5, 10, 50, 100, 500, 1000, 5000, 10000}}),

		pendingChanges: map[*wal.Relation]*[3]int{},
		pendingEvents:  map[event.Type]int{},
	}
	for _, t := range types {
		m.events.WithLabelValues(string(t))
	}
	if r != nil {
		r.MustRegister(m.transactions, m.changes, m.unmapped, m.events, m.repeated, m.own, m.broken, m.truncates,
			m.filled, m.filling, m.fillRows, m.fillEstimated, m.timers, m.fired, m.blocked, m.durable, m.commitTime, m.batches, m.open, m.parts)
	}
	return m
}

func (m *metrics) change(c *wal.Change, taken bool) {
	if !taken {
		m.pendingUnmapped++
		return
	}
	if c.Relation != m.lastRelation {
		n := m.pendingChanges[c.Relation]
		if n == nil {
			n = new([3]int)
			m.pendingChanges[c.Relation] = n
		}
		m.lastRelation, m.lastChanges = c.Relation, n
	}
	switch c.Op {
	case wal.Insert:
		m.lastChanges[0]++
	case wal.Update:
		m.lastChanges[1]++
	case wal.Delete:
		m.lastChanges[2]++
	}
}

func (m *metrics) event(t event.Type) { m.pendingEvents[t]++ }

func (m *metrics) transaction(commitTime time.Time) {
	m.pendingTransactions++
	m.lastCommit = commitTime
}

// flush adds what was counted since the last flush.
func (m *metrics) flush() {
	m.transactions.Add(float64(m.pendingTransactions))
	m.unmapped.Add(float64(m.pendingUnmapped))
	m.pendingTransactions, m.pendingUnmapped = 0, 0
	for rel, n := range m.pendingChanges {
		table := rel.Schema + "." + rel.Name
		m.changes.WithLabelValues(table, "insert").Add(float64(n[0]))
		m.changes.WithLabelValues(table, "update").Add(float64(n[1]))
		m.changes.WithLabelValues(table, "delete").Add(float64(n[2]))
	}
	clear(m.pendingChanges)
	m.lastRelation, m.lastChanges = nil, nil
	for t, n := range m.pendingEvents {
		m.events.WithLabelValues(string(t)).Add(float64(n))
	}
	clear(m.pendingEvents)
	if !m.lastCommit.IsZero() {
		m.commitTime.Set(float64(m.lastCommit.UnixMicro()) / 1e6)
	}
}
