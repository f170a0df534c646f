package plugins

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	goplugin "github.com/hashicorp/go-plugin"
)

// ReattachVariable is the environment variable that makes Billhook use plugins that
// run already instead of starting them: a JSON object of handler ids and what
// DebugVariable made a plugin print. It is for debugging.
const ReattachVariable = "BILLHOOK_PLUGIN_REATTACH"

// Reattach says where a plugin runs that was started by hand.
type Reattach struct {
	Protocol        string `json:"Protocol"`
	ProtocolVersion int    `json:"ProtocolVersion"`
	Pid             int    `json:"Pid"`
	Test            bool   `json:"Test"`
	Addr            struct {
		Network string `json:"Network"`
		String  string `json:"String"`
	} `json:"Addr"`
}

// serveDebug serves for a debugger: not started by Billhook, without certificates, and
// until it is interrupted.
func serveDebug(config *goplugin.ServeConfig, handlerID string, out io.Writer) {
	if _, err := strconv.Atoi(handlerID); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "%s: want the id of the handler that will use the plugin\n", DebugVariable)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	attach := make(chan *goplugin.ReattachConfig, 1)
	done := make(chan struct{})
	config.Test = &goplugin.ServeTestConfig{Context: ctx, ReattachConfigCh: attach, CloseCh: done}
	go goplugin.Serve(config)
	select {
	case a := <-attach:
		r := Reattach{Protocol: string(a.Protocol), ProtocolVersion: a.ProtocolVersion, Pid: a.Pid, Test: a.Test}
		r.Addr.Network, r.Addr.String = a.Addr.Network(), a.Addr.String()
		if text, err := json.Marshal(map[string]Reattach{handlerID: r}); err == nil {
			_, _ = fmt.Fprintf(out, "The plugin runs. Start Billhook with:\n\n%s='%s'\n\n", ReattachVariable, text)
		}
	case <-done:
	}
	<-done
}
