package e2e

import (
	"encoding/json"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/billhook/billhook/internal/servertest"
)

// wire is what lies between Billhook and another program: a toxiproxy.
type wire struct {
	t     testing.TB
	proxy *toxiproxy.Proxy
}

// newWire makes a network that leads to an address, and is well.
func newWire(t testing.TB, upstream string) *wire {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	// A port that nobody is given while the network is down.
	w := &wire{t, toxiproxy.NewProxy(server, t.Name(), local(servertest.Port(t)), upstream)}
	w.up()
	t.Cleanup(w.down)
	return w
}

// local is the address of a port of this machine.
func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// address is where it begins.
func (w *wire) address() string { return w.proxy.Listen }

// port is that of the address.
func (w *wire) port() string {
	w.t.Helper()
	_, port, err := net.SplitHostPort(w.address())
	if err != nil {
		w.t.Fatal(err)
	}
	return port
}

// down cuts all connections and lets none through.
func (w *wire) down() { w.proxy.Stop() }

func (w *wire) up() {
	w.t.Helper()
	if err := w.proxy.Start(); err != nil {
		w.t.Fatal(err)
	}
}

// point makes it lead to another address, which cuts all connections.
func (w *wire) point(upstream string) {
	w.t.Helper()
	w.down()
	w.proxy.Upstream = upstream
	w.up()
}

// toxic is one way in which a network is not well, as toxiproxy has it.
type toxic struct {
	kind       string
	attributes map[string]any
}

// ill makes it unwell in both directions, for present and new connections, until heal.
func (w *wire) ill(toxics ...toxic) {
	w.t.Helper()
	for _, x := range toxics {
		for _, direction := range []string{"upstream", "downstream"} {
			text, err := json.Marshal(map[string]any{"type": x.kind, "stream": direction, "attributes": x.attributes})
			if err == nil {
				_, err = w.proxy.Toxics.AddToxicJson(strings.NewReader(string(text)))
			}
			if err != nil {
				w.t.Fatalf("%s: %v", x.kind, err)
			}
		}
	}
}

// heal ends all illnesses. What was swallowed is gone, and so are its connections.
func (w *wire) heal() { w.proxy.Toxics.ResetToxics(w.t.Context()) }

// How a network may be unwell.
var (
	// stalled carries nothing; what is sent waits.
	stalled = []toxic{{"latency", map[string]any{"latency": 3_600_000}}}
	// swallowing takes what is sent, says that it is there, and carries nothing.
	swallowing = []toxic{{"timeout", map[string]any{"timeout": 0}}}
	// resetting breaks a connection as soon as something is sent.
	resetting = []toxic{{"reset_peer", map[string]any{"timeout": 0}}}
	// slow is far away, narrow, and carries crumbs.
	slow = []toxic{
		{"latency", map[string]any{"latency": 80, "jitter": 60}},
		{"bandwidth", map[string]any{"rate": 30}}, // kB/s
		{"slicer", map[string]any{"average_size": 100, "size_variation": 90, "delay": 10}},
	}
)
