package backfill

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	open       prometheus.Gauge
	rows       prometheus.Counter
	executions prometheus.Counter
	again      prometheus.Counter
	broken     prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		open:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_backfills_open", Help: "Backfills that have not ended."}),
		rows:       prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_backfill_rows_total", Help: "Rows that backfills have read."}),
		executions: prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_backfill_executions_total", Help: "Executions that backfills have made, or counted in a dry run."}),
		again:      prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_backfill_rows_again_total", Help: "Rows that backfills had to read again, because they changed meanwhile."}),
		broken:     prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_backfill_condition_errors_total", Help: "Rows of backfills for which a condition could not be evaluated."}),
	}
	if r != nil {
		r.MustRegister(m.open, m.rows, m.executions, m.again, m.broken)
	}
	return m
}

// count shows how many have not ended.
func (b *Backfills) count() {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, s := range b.list {
		if !s.Status.State.Ended() {
			n++
		}
	}
	b.metrics.open.Set(float64(n))
}
