package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/plugin"
	"github.com/billhook/billhook/internal/handler/script"
	"github.com/billhook/billhook/plugins"
	"github.com/billhook/billhook/plugins/pluginpb"
)

// Programs: handlers of the kinds script and plugin, called as the dispatcher calls
// them. The peer of a script is os/exec, which starts the same file with the same
// payload and reads what it prints. The peer of a plugin is go-plugin alone on both
// sides: its Serve with a gRPC server that returns an empty response, and its client
// with one call of the generated code. All run in this process, in turns.

const benchScript = "#!/bin/sh\ncat >/dev/null\necho done\n"

// programs prints the rows.
func (b *bench) programs(ctx context.Context, table *tabwriter.Writer) error {
	e := oldEvent(1)
	d := handler.Delivery{Event: e, HandlerID: 1, Name: "Update", Attempt: 1, Body: e.AppendPayload(nil), ContentType: "application/json"}
	attempt := func(h handler.Handler) func(context.Context) error {
		return func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			_, err := h.Handle(ctx, &d)
			return err
		}
	}

	path := filepath.Join(b.dir, "script")
	if err := os.WriteFile(path, []byte(benchScript), 0o755); err != nil {
		return err
	}
	scripts, err := script.New(script.Options{Path: path})
	if err != nil {
		return err
	}
	defer scripts.Close()
	bareScript := func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, path)
		cmd.Stdin = bytes.NewReader(d.Body)
		out, err := cmd.Output()
		if err == nil && len(out) == 0 {
			err = errors.New("no output")
		}
		return err
	}
	fmt.Printf("runs of a script with %d bytes of payload\n", len(d.Body))
	if err := b.rows(ctx, table, "runs/s", max(b.changes/500, 200), []int{1, 4}, []contender{{"os/exec", bareScript}, {"the handler", attempt(scripts)}}); err != nil {
		return err
	}

	// This program is the plugin, too, in a copy that nobody else can write to.
	path = filepath.Join(b.dir, "plugin")
	if err := copySelf(path); err != nil {
		return err
	}
	h, err := plugin.New(plugin.Options{Path: path, Args: []string{"-serve", "plugins"}})
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Ready(ctx); err != nil {
		return err
	}
	bare := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: plugins.Handshake(), Plugins: goplugin.PluginSet{"handler": barePlugin{}}, AutoMTLS: true,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC}, Cmd: exec.Command(path, "-serve", "go-plugin"), Logger: hclog.NewNullLogger(),
	})
	defer bare.Kill()
	protocol, err := bare.Client()
	if err != nil {
		return err
	}
	raw, err := protocol.Dispense("handler")
	if err != nil {
		return err
	}
	client := raw.(pluginpb.PluginClient)
	bareCall := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err := client.Handle(ctx, &pluginpb.HandleRequest{EventId: "1", Payload: d.Body})
		return err
	}
	fmt.Printf("calls of a plugin with %d bytes of payload\n", len(d.Body))
	return b.rows(ctx, table, "calls/s", max(b.changes/20, 2000), []int{1, 16}, []contender{{"go-plugin, unary call", bareCall}, {"the handler", attempt(h)}})
}

// contender is something that is called; the first of several is the peer.
type contender struct {
	name string
	call func(context.Context) error
}

// rows calls each contender n times, so many at a time, in turns.
func (b *bench) rows(ctx context.Context, table *tabwriter.Writer, unit string, n int, concurrency []int, all []contender) error {
	fmt.Fprintf(table, "\tat a time\t%s\tratio\t\n", unit)
	for _, c := range concurrency {
		results := make([][]result, len(all))
		for range b.runs {
			for i, x := range all {
				took, err := calls(ctx, x.call, n, c)
				if err != nil {
					return fmt.Errorf("%s: %w", x.name, err)
				}
				results[i] = append(results[i], result{seconds: took.Seconds() / float64(n)})
			}
		}
		peer := median(results[0])
		for i, x := range all {
			r := median(results[i])
			fmt.Fprintf(table, "%s\t%d\t%.0f\t%.2f\t\n", x.name, c, 1/r.seconds, peer.seconds/r.seconds)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

func calls(ctx context.Context, call func(context.Context) error, n, concurrency int) (time.Duration, error) {
	var left atomic.Int64
	left.Store(int64(n))
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for range concurrency {
		g.Go(func() error {
			for left.Add(-1) >= 0 {
				if err := call(ctx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return time.Since(begin), err
}

func copySelf(to string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	from, err := os.Open(self)
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// serve is this program as a plugin.
func serve(kind string) {
	if kind == "plugins" {
		plugins.Serve(plugins.Plugin[struct{}]{Name: "bench", Version: "1", New: func(context.Context, struct{}, plugins.Env) (plugins.Handler, error) {
			return plugins.HandlerFunc(func(context.Context, *plugins.Delivery) (plugins.Result, error) { return plugins.Result{}, nil }), nil
		}})
		return
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: plugins.Handshake(), Plugins: goplugin.PluginSet{"handler": barePlugin{}}, GRPCServer: goplugin.DefaultGRPCServer,
	})
}

// barePlugin is go-plugin's view of a plugin that does nothing.
type barePlugin struct {
	goplugin.NetRPCUnsupportedPlugin
	pluginpb.UnimplementedPluginServer
}

func (p barePlugin) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	pluginpb.RegisterPluginServer(g, p)
	return nil
}

func (barePlugin) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return pluginpb.NewPluginClient(c), nil
}

func (barePlugin) Handle(context.Context, *pluginpb.HandleRequest) (*pluginpb.HandleResponse, error) {
	return &pluginpb.HandleResponse{}, nil
}
