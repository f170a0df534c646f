package replay

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	open       prometheus.Gauge
	executions prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		open:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_replays_open", Help: "Replays that have not ended."}),
		executions: prometheus.NewCounter(prometheus.CounterOpts{Name: "billhook_replay_executions_total", Help: "Executions that replays have made."}),
	}
	if r != nil {
		r.MustRegister(m.open, m.executions)
	}
	return m
}

// count shows how many have not ended.
func (r *Replays) count() { r.metrics.open.Set(float64(r.open())) }
