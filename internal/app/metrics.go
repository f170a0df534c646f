package app

import (
	"runtime"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

type metrics struct {
	reloadOK   prometheus.Gauge
	reloadTime prometheus.Gauge
	missed     prometheus.Gauge
	findings   *prometheus.GaugeVec
	writeBack  *prometheus.CounterVec
}

// newRegistry is a registry with what every process of Billhook shows.
func newRegistry(version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "billhook_build_info", Help: "A constant 1, labelled with what this is.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	info.Set(1)
	r.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		reloadOK:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_config_last_reload_successful", Help: "Whether the last attempt to load handlers.yaml succeeded."}),
		reloadTime: prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_config_last_reload_success_timestamp_seconds", Help: "When handlers.yaml was last loaded with success."}),
		missed:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_replication_changes_missed", Help: "1 while changes may have been missed that nobody has reconciled."}),
	}
	m.findings = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "billhook_check_findings", Help: "What was found when the database and the machine were last looked at, by level."}, []string{"level"})
	m.writeBack = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "billhook_writeback_total", Help: "Answers with columns to write back, by handler and by what became of them."}, []string{"handler", "result"})
	for _, level := range []string{"ok", "warn", "fail", "skip"} {
		m.findings.WithLabelValues(level) // so that the series are there before the first look
	}
	r.MustRegister(m.reloadOK, m.reloadTime, m.missed, m.findings, m.writeBack)
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

// diagnosed notes how many findings there were of each level.
func (m *metrics) diagnosed(counts map[string]int) {
	for level, n := range counts {
		m.findings.WithLabelValues(strings.ToLower(level)).Set(float64(n))
	}
}
