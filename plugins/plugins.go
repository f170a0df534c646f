// Package plugins is what a plugin of Billhook is made with: a program that Billhook
// starts and gives events to.
//
//	type Config struct {
//		Server string         `json:"server" jsonschema:"required,description=host:port of the switch"`
//		Secret plugins.Secret `json:"secret" jsonschema:"required"`
//	}
//
//	func main() {
//		plugins.Serve(plugins.Plugin[Config]{Name: "switch", Version: "1.0.0", New: newSwitch})
//	}
//
// The operator writes the configuration under plugin.config in handlers.yaml; New gets
// it decoded and judged. Handle is then called for each attempt to deliver an event.
//
// It promises that Handle is given each event at least once and with the same
// Delivery.EventID each time, that a panic in Handle is a failed attempt and not the
// end of the process, and that the process ends when Billhook does, even when that is
// killed. A plugin must not write to its own standard input and need not read it;
// what it prints becomes log lines of Billhook's.
//
// It keeps nothing between starts, and makes no attempt by itself: when and how often
// an event is tried again is the operator's choice. docs/plugins.md shows a whole
// plugin and how to try one out. Start with Plugin, Handler and Delivery.
package plugins

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/billhook/billhook/plugins/pluginpb"
)

// ProtocolVersion is the version of the protocol that this package speaks. Billhook
// and a plugin work together when both know the same one.
const ProtocolVersion = 1

// MaxSize is the size in bytes of the largest request or response.
const MaxSize = 64 << 20

// Handshake returns what go-plugin needs to tell a plugin of Billhook's from other
// programs. It protects from mistakes, not from attacks.
func Handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{
		ProtocolVersion:  ProtocolVersion,
		MagicCookieKey:   "BILLHOOK_PLUGIN",
		MagicCookieValue: "6d0d1a4f-handler",
	}
}

// DebugVariable is the environment variable that makes a plugin run by itself, for a
// debugger: its value is the id of the handler that will use it. The plugin prints
// with which variable Billhook is then to be started.
const DebugVariable = "BILLHOOK_PLUGIN_DEBUG"

// Plugin says what a program is as a plugin. C is the type of its configuration, as
// DecodeConfig reads it; struct{} for none.
type Plugin[C any] struct {
	Name    string // such as radius-disconnect
	Version string // such as 1.2.0

	// New makes the Handler of a configuration. It is called once after a start,
	// before any event. An error that Field made says that the configuration is wrong;
	// any other makes Billhook start the plugin again later. ctx ends when that takes
	// too long.
	New func(ctx context.Context, config C, env Env) (Handler, error)
}

// Env is what a plugin finds beside its configuration.
type Env struct {
	// Logger's lines become lines of Billhook's log, with their level.
	Logger *slog.Logger
	// HandlerID and HandlerName are those of handlers.yaml. Each handler has a process
	// of its own.
	HandlerID   int
	HandlerName string
}

// Handler makes attempts. It may have a method Close() error, which is called when
// the plugin is told to end, after the last Handle has returned.
type Handler interface {
	// Handle makes one attempt to deliver d. It is called from many goroutines at once.
	// The context has the attempt's deadline, and ends when Billhook no longer waits;
	// Handle must then return soon, or the process is killed.
	//
	// A nil error is success. An error that Permanent made is not tried again. Any
	// other error is, by the handler's schedule or after the delay that RetryAfter put
	// in it. The Result is kept for both.
	Handle(ctx context.Context, d *Delivery) (Result, error)
}

// HandlerFunc is a Handler that is a function.
type HandlerFunc func(ctx context.Context, d *Delivery) (Result, error)

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, d *Delivery) (Result, error) { return f(ctx, d) }

// Serve is all of a plugin's main function: it serves p until Billhook says that it
// is enough. When the program was not started by Billhook it says what it is, or
// prints the JSON Schema of its configuration if its argument is -schema.
//
// It writes what goes wrong to standard error. It panics when p is incomplete, or
// when C cannot be described as JSON.
func Serve[C any](p Plugin[C]) {
	if p.Name == "" || p.New == nil {
		panic("plugins.Serve: a Plugin needs Name and New")
	}
	schema, err := schemaOf[C]()
	if err != nil {
		panic("plugins.Serve: " + err.Error())
	}
	stderr := os.Stderr // go-plugin puts another in its place
	level := &slog.LevelVar{}
	s := &server{
		describe: &pluginpb.DescribeResponse{Name: p.Name, Version: p.Version, ConfigSchema: schema},
		make: func(ctx context.Context, r *pluginpb.ConfigureRequest, env Env) (Handler, []string, error) {
			c, secrets, err := decode[C](r.GetConfig(), r.GetConfigDir(), false)
			if err != nil || r.GetOnlyCheck() {
				return nil, secrets, err
			}
			h, err := p.New(ctx, c, env)
			return h, secrets, err
		},
		level: level, log: slog.New(newLogHandler(stderr, level)),
	}
	// Billhook says over gRPC that it is enough; whoever else does sends a signal.
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	handshake := Handshake()
	config := &goplugin.ServeConfig{
		HandshakeConfig: handshake,
		VersionedPlugins: map[int]goplugin.PluginSet{
			ProtocolVersion: {"handler": &served{server: s}},
		},
		GRPCServer: func(o []grpc.ServerOption) *grpc.Server {
			g := grpc.NewServer(append(o, grpc.MaxRecvMsgSize(MaxSize), grpc.MaxSendMsgSize(MaxSize))...)
			go func() {
				<-told
				g.Stop()
			}()
			return g
		},
		// go-plugin has little to say that is of interest.
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: stderr, JSONFormat: true}),
	}
	switch debug, ok := os.LookupEnv(DebugVariable); {
	case ok:
		s.log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		serveDebug(config, debug, os.Stdout)
	case os.Getenv(handshake.MagicCookieKey) == handshake.MagicCookieValue:
		go lifeline(os.Stdin)
		goplugin.Serve(config)
	case len(os.Args) == 2 && (os.Args[1] == "-schema" || os.Args[1] == "--schema"):
		fmt.Println(schema)
		return
	default:
		_, _ = io.WriteString(stderr, about(p.Name, p.Version))
		return
	}
	s.close()
}

func about(name, version string) string {
	return fmt.Sprintf(`%s %s is a plugin of Billhook, which starts it: name it in handlers.yaml.

  - id: 1
    name: ...
    event: ...
    plugin:
      path: %s
      config: {}      # the schema of it: %[3]s -schema

To run it in a debugger: set %s to the handler's id.
`, name, version, os.Args[0], DebugVariable)
}

// lifeline ends the process when standard input does: Billhook holds the other end
// and writes nothing, so that is when Billhook is gone, in whichever way.
func lifeline(stdin io.Reader) {
	_, _ = io.Copy(io.Discard, stdin)
	die()
}

// served is a server as go-plugin wants it.
type served struct {
	goplugin.NetRPCUnsupportedPlugin
	server *server
}

func (p *served) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	pluginpb.RegisterPluginServer(g, p.server)
	return nil
}

// GRPCClient is for Billhook's side, which makes its own.
func (p *served) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return pluginpb.NewPluginClient(c), nil
}
