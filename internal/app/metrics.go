package app

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reloadOK   prometheus.Gauge
	reloadTime prometheus.Gauge
	missed     prometheus.Gauge
	writeBack  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, version string) *metrics {
	m := &metrics{
		reloadOK:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_config_last_reload_successful", Help: "Whether the last attempt to load handlers.yaml succeeded."}),
		reloadTime: prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_config_last_reload_success_timestamp_seconds", Help: "When handlers.yaml was last loaded with success."}),
		missed:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_replication_changes_missed", Help: "1 while changes may have been missed that nobody has reconciled."}),
	}
	m.writeBack = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "billhook_writeback_total", Help: "Answers with columns to write back, by handler and by what became of them."}, []string{"handler", "result"})
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "billhook_build_info", Help: "A constant 1, labelled with what this is.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	info.Set(1)
	r.MustRegister(m.reloadOK, m.reloadTime, m.missed, m.writeBack, info)
	return m
}

func (m *metrics) reloaded(err error) {
	if err != nil {
		m.reloadOK.Set(0)
		return
	}
	m.reloadOK.Set(1)
	m.reloadTime.SetToCurrentTime()
}
