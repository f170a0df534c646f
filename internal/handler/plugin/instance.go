//go:build unix

package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/billhook/billhook/internal/handler/program"
	"github.com/billhook/billhook/plugins"
	"github.com/billhook/billhook/plugins/pluginpb"
	"github.com/billhook/billhook/plugins/schema"
)

// unwell is after how many answers that do not come a plugin is killed.
const unwell = 3

// instance is a plugin that runs.
type instance struct {
	keeper        *keeper
	client        *goplugin.Client
	conn          *grpc.ClientConn
	rpc           pluginpb.PluginClient
	health        grpc_health_v1.HealthClient
	process       *process  // nil if it was started by hand
	attached      *attached // or this
	name, version string
	since         time.Time
	why           atomic.Pointer[string] // the reason for which it was killed
}

// start starts the plugin and makes it ready for calls. Nothing stays after an error.
func (k *keeper) start(ctx context.Context) (_ *instance, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, k.opts.StartTimeout, fmt.Errorf("it was not ready within %s", k.opts.StartTimeout))
	defer cancel()
	k.out.forget()
	i := &instance{keeper: k, name: filepath.Base(k.opts.Path)}
	config := &goplugin.ClientConfig{
		HandshakeConfig:  plugins.Handshake(),
		VersionedPlugins: map[int]goplugin.PluginSet{plugins.ProtocolVersion: {}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		StartTimeout:     k.opts.StartTimeout,
		SkipHostEnv:      true,
		Logger:           hclog.NewNullLogger(), // what is of interest is told here
		SyncStdout:       k.out, SyncStderr: k.out,
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(plugins.MaxSize), grpc.MaxCallSendMsgSize(plugins.MaxSize)),
		},
	}
	var interrupt func()
	if r := k.opts.Reattach; r != nil {
		i.attached = newAttached()
		interrupt = func() {}
		if config.Reattach, err = i.attached.config(r); err != nil {
			return nil, err
		}
	} else {
		id, err := program.NewIdentity("", "")
		if err != nil {
			return nil, err
		}
		if err := program.CheckFile(kind, k.opts.Path, id); err != nil {
			return nil, err
		}
		file, err := stamp(k.opts.Path)
		if err != nil {
			return nil, err
		}
		k.file.Store(&file)
		if k.folder == nil {
			if k.folder, err = newFolder(k.opts.TempDir); err != nil {
				return nil, err
			}
		}
		i.process = newProcess(k.opts, id, k.out)
		interrupt = i.process.kill
		var certificate string
		if certificate, config.TLSConfig, err = mutual(); err != nil {
			return nil, err
		}
		config.UnixSocketConfig = &goplugin.UnixSocketConfig{TempDir: k.folder.path}
		config.RunnerFunc = func(_ hclog.Logger, cmd *exec.Cmd, _ string) (runner.Runner, error) {
			i.process.env = append(slices.Clone(cmd.Env), "PLUGIN_CLIENT_CERT="+certificate)
			return i.process, nil
		}
	}
	i.client = goplugin.NewClient(config)
	// Killing the process is what ends every wait below.
	stop := context.AfterFunc(ctx, interrupt)
	err = i.connect(ctx)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		err = i.explain(ctx, err)
		i.discard()
		return nil, err
	}
	i.since = time.Now()
	return i, nil
}

// connect shakes hands with the plugin, asks what it is and gives it its
// configuration.
func (i *instance) connect(ctx context.Context) error {
	k := i.keeper
	protocol, err := i.client.Client()
	if err != nil {
		return err
	}
	g, ok := protocol.(*goplugin.GRPCClient)
	if !ok {
		return fmt.Errorf("it speaks %T, want grpc", protocol)
	}
	if i.attached != nil {
		i.attached.conn = g.Conn
	}
	i.conn = g.Conn
	i.rpc, i.health = pluginpb.NewPluginClient(g.Conn), grpc_health_v1.NewHealthClient(g.Conn)
	d, err := i.rpc.Describe(ctx, &pluginpb.DescribeRequest{})
	if err != nil {
		return refusal("asked what it is", err)
	}
	mask := k.mask.Load()
	if name := mask.Line(d.GetName(), 100); name != "" {
		i.name = name
	}
	i.version = mask.Line(d.GetVersion(), 100)
	k.name.Store(&i.name)
	var judge *schema.Schema
	if text := d.GetConfigSchema(); text != "" {
		if judge, err = schema.Parse(text); err != nil {
			return fmt.Errorf("asked what it is: %w", err)
		}
		if problems := judge.Judge(k.opts.Config); len(problems) > 0 {
			return &ConfigError{i.name, problems}
		}
		mask = configMask(judge, k.opts.Config, k.secrets)
		k.mask.Store(mask)
	}
	level := "info"
	switch log := k.opts.Logger; {
	case log.Enabled(ctx, slog.LevelDebug):
		level = "debug"
	case log.Enabled(ctx, slog.LevelInfo):
	case log.Enabled(ctx, slog.LevelWarn):
		level = "warn"
	default:
		level = "error"
	}
	r, err := i.rpc.Configure(ctx, &pluginpb.ConfigureRequest{
		Config: k.opts.Config, HandlerId: int64(k.opts.HandlerID), HandlerName: valid(k.opts.HandlerName),
		ConfigDir: k.opts.ConfigDir, LogLevel: level, CaptureLimit: int64(k.opts.CaptureLimit), OnlyCheck: k.opts.OnlyCheck,
	})
	if err != nil {
		return refusal("given its configuration", err)
	}
	if len(r.GetProblems()) > 0 {
		all := configMask(nil, k.opts.Config, r.GetSecrets()) // a plugin may quote what it refuses
		refused := &ConfigError{Plugin: i.name}
		for _, p := range r.GetProblems() {
			refused.Problems = append(refused.Problems, schema.Problem{Field: mask.Line(p.GetField(), 200), Text: all.Line(p.GetText(), 500)})
		}
		return refused
	}
	k.secrets = r.GetSecrets()
	k.mask.Store(configMask(judge, k.opts.Config, k.secrets))
	return nil
}

// refusal is the error of a call, without gRPC's own words around it.
func refusal(what string, err error) error {
	return &failure{what + ": " + status.Convert(err).Message(), err}
}

// explain says in an operator's words why a start has failed.
func (i *instance) explain(ctx context.Context, err error) error {
	k := i.keeper
	var refused *ConfigError
	if errors.As(err, &refused) {
		return refused
	}
	if p := i.process; p != nil {
		p.mu.Lock()
		failed, handshake := p.failed, p.refused
		p.mu.Unlock()
		switch {
		case failed != nil:
			return failed
		case handshake != nil:
			return handshake
		}
		if ctx.Err() == nil {
			// It may be on its way out.
			select {
			case <-p.exited:
			case <-time.After(drainTime):
			}
			if i.gone() {
				return fmt.Errorf("plugin %s %s", k.opts.Path, p.end())
			}
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
		if last := k.out.lastWords(); last != "" {
			err = fmt.Errorf("%w; its last words: %s", err, k.mask.Load().Line(last, 200))
		}
	}
	return &failure{"plugin " + k.opts.Path + ": " + k.mask.Load().Line(err.Error(), maxError), err}
}

// watch blocks until the plugin is gone, was killed or is not well, or ctx ends. It
// returns why.
func (i *instance) watch(ctx context.Context) (reason string) {
	tick := time.NewTicker(i.keeper.opts.HealthEvery)
	defer tick.Stop()
	for missed := 0; ; {
		select {
		case <-ctx.Done():
			return ""
		case <-i.exited():
			if why := i.why.Load(); why != nil {
				return *why
			}
			return restartCrash
		case <-tick.C:
		}
		err := i.well(ctx, i.keeper.opts.HealthTimeout)
		if err == nil || ctx.Err() != nil {
			missed = 0
			continue
		}
		if i.attached != nil && status.Code(err) == codes.DeadlineExceeded {
			continue // somebody looks at it
		}
		missed++
		if missed >= unwell || status.Code(err) == codes.Unavailable {
			i.kill(restartHealth)
			<-i.exited()
			return *i.why.Load()
		}
	}
}

func (i *instance) exited() <-chan struct{} {
	if i.process != nil {
		return i.process.exited
	}
	return i.attached.ended
}

func (i *instance) gone() bool {
	select {
	case <-i.exited():
		return true
	default:
		return false
	}
}

// well asks the plugin whether it is well. One that does not know the question is.
func (i *instance) well(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	r, err := i.health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: goplugin.GRPCServiceName})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil
	case err != nil:
		return err
	case r.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return fmt.Errorf("it says that it is %s", r.GetStatus())
	}
	return nil
}

// kill ends the plugin at once, for a reason, and does not wait. It reports whether this
// was the first reason.
func (i *instance) kill(reason string) bool {
	first := i.why.CompareAndSwap(nil, &reason)
	if i.process != nil {
		i.process.kill()
	} else {
		i.attached.end()
	}
	return first
}

// settle waits until a call that was given up has ended, and kills the plugin if it
// does not.
func (i *instance) settle(call int64) {
	if i.attached != nil {
		return // somebody looks at it
	}
	ctx, cancel := context.WithTimeout(context.Background(), i.keeper.opts.KillGrace)
	defer cancel()
	_, err := i.rpc.Await(ctx, &pluginpb.AwaitRequest{Call: call})
	if status.Code(err) == codes.Unimplemented {
		err = i.well(ctx, i.keeper.opts.KillGrace)
	}
	if err == nil {
		return
	}
	if i.gone() {
		return
	}
	if i.kill(restartHang) {
		i.keeper.log.Warn("a plugin did not end a call that was given up, and is killed", "plugin", i.name, "after", i.keeper.opts.KillGrace)
	}
	<-i.exited()
}

// discard ends the plugin: politely if it runs, within KillGrace. Nothing of it stays.
func (i *instance) discard() {
	if i.attached != nil {
		i.attached.end()
		i.client.Kill()
		return
	}
	timer := time.AfterFunc(i.keeper.opts.KillGrace, i.process.kill)
	if i.conn != nil && !i.gone() {
		// go-plugin asks the same, but does not tell what came of it.
		err := i.conn.Invoke(context.Background(), "/plugin.GRPCController/Shutdown", &emptypb.Empty{}, &emptypb.Empty{})
		if status.Code(err) == codes.Unimplemented {
			i.process.signal(unix.SIGTERM)
		}
	}
	i.client.Kill()
	timer.Stop()
	if started := i.process.started(); started {
		<-i.process.exited
	}
	i.keeper.folder.empty()
}

// started reports whether there is, or was, a process.
func (p *process) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid != 0 || p.state != nil
}

// attached is a plugin that was started by hand. It is neither started nor ended here.
type attached struct {
	conn  *grpc.ClientConn
	ended chan struct{}
	done  atomic.Bool
}

func newAttached() *attached { return &attached{ended: make(chan struct{})} }

// end lets go of the plugin.
func (a *attached) end() {
	if !a.done.CompareAndSwap(false, true) {
		return
	}
	if a.conn != nil {
		_ = a.conn.Close()
	}
	close(a.ended)
}

// config is where the plugin is, for go-plugin.
func (a *attached) config(r *plugins.Reattach) (*goplugin.ReattachConfig, error) {
	var addr net.Addr
	var err error
	switch r.Addr.Network {
	case "unix":
		addr, err = net.ResolveUnixAddr("unix", r.Addr.String)
	case "tcp":
		addr, err = net.ResolveTCPAddr("tcp", r.Addr.String)
	default:
		err = fmt.Errorf("%s: the network %q is neither unix nor tcp", plugins.ReattachVariable, r.Addr.Network)
	}
	if err != nil {
		return nil, err
	}
	if r.ProtocolVersion != plugins.ProtocolVersion {
		return nil, fmt.Errorf("the plugin to debug speaks version %d of the plugin protocol, this Billhook version %d: build it anew", r.ProtocolVersion, plugins.ProtocolVersion)
	}
	return &goplugin.ReattachConfig{
		Protocol: goplugin.ProtocolGRPC, ProtocolVersion: r.ProtocolVersion, Addr: addr, Test: true,
		ReattachFunc: func() (runner.AttachedRunner, error) { return a, nil },
	}, nil
}

// Wait blocks until end, for go-plugin.
func (a *attached) Wait(context.Context) error {
	<-a.ended
	return nil
}

// Kill does nothing: whoever started the plugin ends it.
func (a *attached) Kill(context.Context) error { return nil }

// ID is for go-plugin.
func (a *attached) ID() string { return "debug" }

// PluginToHost is for go-plugin.
func (a *attached) PluginToHost(network, address string) (string, string, error) {
	return network, address, nil
}

// HostToPlugin is for go-plugin.
func (a *attached) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}
