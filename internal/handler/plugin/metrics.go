//go:build unix

package plugin

import (
	"cmp"
	"slices"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// The reasons for which a plugin is started again.
const (
	restartCrash  = "crash"  // it ended by itself
	restartHang   = "hang"   // it did not end a call that was given up
	restartHealth = "health" // it did not say that it is well
	restartStart  = "start"  // it could not be started
)

// Metrics tells how all plugins fare. It is a prometheus.Collector that knows the
// handlers that there are, so that none is told of that is gone.
type Metrics struct {
	mu       sync.Mutex // guards what follows
	live     map[int][]*keeper
	restarts map[restart]float64
	dropped  map[int]float64

	up, info, restartsTotal, droppedTotal *prometheus.Desc
}

type restart struct {
	handler int
	reason  string
}

// NewMetrics returns metrics that are registered with r.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		live: map[int][]*keeper{}, restarts: map[restart]float64{}, dropped: map[int]float64{},
		up:            prometheus.NewDesc("billhook_plugin_up", "Whether the plugin of a handler runs.", []string{"handler"}, nil),
		info:          prometheus.NewDesc("billhook_plugin_info", "A constant 1, labelled with the plugin that runs for a handler.", []string{"handler", "name", "version"}, nil),
		restartsTotal: prometheus.NewDesc("billhook_plugin_restarts_total", "Times that the plugin of a handler was started again, by reason.", []string{"handler", "reason"}, nil),
		droppedTotal:  prometheus.NewDesc("billhook_plugin_log_lines_dropped_total", "Lines that the plugin of a handler wrote faster than they are kept.", []string{"handler"}, nil),
	}
	if r != nil {
		r.MustRegister(m)
	}
	return m
}

// Describe is for the registry.
func (m *Metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.up, m.info, m.restartsTotal, m.droppedTotal} {
		to <- d
	}
}

// Collect is for the registry.
func (m *Metrics) Collect(to chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, list := range m.live {
		k := list[len(list)-1]
		label := strconv.Itoa(id)
		up := 0.0
		if i := k.running(); i != nil {
			up = 1
			to <- prometheus.MustNewConstMetric(m.info, prometheus.GaugeValue, 1, label, i.name, i.version)
		}
		to <- prometheus.MustNewConstMetric(m.up, prometheus.GaugeValue, up, label)
		for _, reason := range []string{restartCrash, restartHang, restartHealth, restartStart} {
			to <- prometheus.MustNewConstMetric(m.restartsTotal, prometheus.CounterValue, m.restarts[restart{id, reason}], label, reason)
		}
		to <- prometheus.MustNewConstMetric(m.droppedTotal, prometheus.CounterValue, m.dropped[id], label)
	}
}

func (m *Metrics) add(k *keeper) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live[k.opts.HandlerID] = append(m.live[k.opts.HandlerID], k)
}

func (m *Metrics) remove(k *keeper) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	id := k.opts.HandlerID
	m.live[id] = slices.DeleteFunc(m.live[id], func(x *keeper) bool { return x == k })
	if len(m.live[id]) == 0 {
		delete(m.live, id)
	}
}

func (m *Metrics) restarted(handler int, reason string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restarts[restart{handler, cmp.Or(reason, restartCrash)}]++
}

func (m *Metrics) droppedLine(handler int) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropped[handler]++
}
