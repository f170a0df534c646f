package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/dispatch"
	"github.com/billhook/billhook/internal/handler/plugin"
	"github.com/billhook/billhook/plugins"
)

// pluginHost is what plugins are started with. A nil one starts them to be judged.
type pluginHost struct {
	ctx     context.Context // of the start or reload that it is made for
	log     *slog.Logger
	metrics *plugin.Metrics
	before  map[int]defined // handlers in force, whose processes may serve on
}

// during returns a host for one start or reload.
func (h *pluginHost) during(ctx context.Context) *pluginHost {
	c := *h
	c.ctx = ctx
	return &c
}

// beside returns a host that lets the processes of handlers in force serve on.
func (h *pluginHost) beside(before map[int]defined) *pluginHost {
	if h == nil {
		return nil
	}
	c := *h
	c.before = before
	return &c
}

// open begins to start the plugin of a handler, or takes on the one that runs. That of a
// handler that is not enabled is started when somebody tries it.
func (h *pluginHost) open(c config.Handler, o Options) (*plugin.Handler, error) {
	po, err := pluginOptions(c, o)
	if err != nil {
		return nil, err
	}
	po.Lazy = c.Status != config.Enabled
	if h == nil {
		po.OnlyCheck = true
		return plugin.New(po)
	}
	if po.Reattach, err = reattach(c.ID, o.Env); err != nil {
		return nil, err
	}
	if old, ok := h.before[c.ID]; ok {
		if running, ok := old.made.Call.(*plugin.Handler); ok {
			if again, ok := running.Again(po); ok {
				return again, nil
			}
		}
	}
	po.Logger, po.Metrics = h.log, h.metrics
	return plugin.New(po)
}

func pluginOptions(c config.Handler, o Options) (plugin.Options, error) {
	path, err := filepath.Abs(c.Plugin.Path)
	if err != nil {
		return plugin.Options{}, fmt.Errorf("find plugin %s: %w", c.Plugin.Path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(o.HandlersPath))
	if err != nil {
		return plugin.Options{}, fmt.Errorf("find the folder of %s: %w", o.HandlersPath, err)
	}
	return plugin.Options{
		Path: path, Args: texts(c.Plugin.Args), Checksum: strings.TrimPrefix(c.Plugin.Checksum, "sha256:"),
		Config: c.Plugin.Config.Reveal(), ConfigDir: dir, HandlerID: c.ID, HandlerName: c.Name,
		Timeout: c.Timeout, CaptureLimit: capture(c.Capture),
	}, nil
}

// reattach is where the plugin of a handler runs that was started by hand, for a
// debugger; nil if none was.
func reattach(id int, env config.Lookup) (*plugins.Reattach, error) {
	text, ok := env(plugins.ReattachVariable)
	if !ok {
		return nil, nil
	}
	var all map[string]plugins.Reattach
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, fmt.Errorf("%s is not what a plugin prints that was started with %s: %w", plugins.ReattachVariable, plugins.DebugVariable, err)
	}
	r, ok := all[strconv.Itoa(id)]
	if !ok {
		return nil, nil
	}
	return &r, nil
}

// replaced reports whether the plugin of a handler is another file now.
func replaced(d defined) bool {
	h, ok := d.made.Call.(*plugin.Handler)
	return ok && h.Changed()
}

// keep leaves those plugins in force that run well and whose file was replaced by one
// that cannot be started.
func (h *pluginHost) keep(now map[int]defined, made []*dispatch.Handler) {
	if h == nil {
		return
	}
	for i, d := range made {
		old, ok := h.before[d.ID]
		if !ok || old.made == d || !reflect.DeepEqual(old.config, now[d.ID].config) {
			continue
		}
		fresh, ok := d.Call.(*plugin.Handler)
		running, was := old.made.Call.(*plugin.Handler)
		if !ok || !was || !running.Status().Up {
			continue
		}
		err := fresh.Ready(h.ctx)
		if err == nil {
			continue
		}
		h.log.Error("the file of a plugin was replaced by one that cannot be started; the process of the one before serves on", "handler", d.ID, "err", err)
		_ = fresh.Close() // it was never called
		now[d.ID], made[i] = old, old.made
	}
}

// plugins waits until the plugins of handlers were started. What one says of its
// configuration is a mistake in the file. That one cannot be started is not: it holds
// up its own handler, and is told of in the log.
func (p *problems) plugins(h *config.Handlers, made map[int]defined, o Options) {
	ctx := context.Background()
	if o.plugins != nil {
		ctx = o.plugins.ctx
	}
	for i := range h.Handlers {
		c := &h.Handlers[i]
		call, ok := made[c.ID].made.Call.(*plugin.Handler)
		if !ok || c.Status != config.Enabled {
			continue
		}
		p.refused(c, call.Ready(ctx))
	}
}

// refused adds what a plugin says of its configuration, each at its place.
func (p *problems) refused(c *config.Handler, err error) {
	var refused *plugin.ConfigError
	if !errors.As(err, &refused) {
		return
	}
	for _, problem := range refused.Problems {
		at := "plugin.config"
		switch {
		case strings.HasPrefix(problem.Field, "["):
			at += problem.Field
		case problem.Field != "":
			at += "." + problem.Field
		}
		pos := c.At(at)
		pos.Field = c.Pos.Field + "." + at
		p.add(pos, fmt.Sprintf("the plugin %s says: %s", refused.Plugin, problem.Text), "correct it")
	}
}

// judge adds whatever keeps a plugin from being started.
func (p *problems) judge(ctx context.Context, c *config.Handler, call *plugin.Handler) {
	err := call.Ready(ctx)
	var refused *plugin.ConfigError
	if err == nil || errors.As(err, &refused) {
		p.refused(c, err)
		return
	}
	p.add(c.At("plugin"), err.Error(), "or set status: disabled until it is right")
}
