package app

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/backoff"
	"github.com/billhook/billhook/internal/dispatch"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/http"
	"github.com/billhook/billhook/internal/handler/plugin"
	"github.com/billhook/billhook/internal/handler/script"
	"github.com/billhook/billhook/internal/web"
)

// defined is a handler of the file and what was made of it.
type defined struct {
	config config.Handler // without its places in the file
	made   *dispatch.Handler
	// template is where the template stands in the file now, for errors that show
	// only when it is used.
	template *atomic.Pointer[config.Expr]
}

// build makes dispatch handlers of a loaded file. A handler whose definition is
// the same as before is the same pointer, so that dispatch leaves it alone. When
// anything is wrong nothing is made.
func build(h *config.Handlers, before map[int]defined, columns map[string]event.Columns, w *writeBack, o Options) (map[int]defined, []*dispatch.Handler, error) {
	p := &problems{}
	o.plugins = o.plugins.beside(before)
	now := make(map[int]defined, len(h.Handlers))
	var made []*dispatch.Handler
	var fresh []handler.Handler
	for i := range h.Handlers {
		c := h.Handlers[i]
		bare := c.WithoutPlaces()
		if old, ok := before[c.ID]; ok && reflect.DeepEqual(old.config, bare) && !replaced(old) {
			old.template.Store(&c.Template)
			now[c.ID] = old
			made = append(made, old.made)
			continue
		}
		template := &atomic.Pointer[config.Expr]{}
		d := p.handler(c, template, columns, w, o)
		if d.Call != nil {
			fresh = append(fresh, d.Call)
		}
		now[c.ID] = defined{bare, d, template}
		made = append(made, d)
	}
	p.plugins(h, now, o)
	if err := p.err(); err != nil {
		for _, f := range fresh {
			_ = f.Close() // nothing was called yet, so there is nothing to lose
		}
		return nil, nil, err
	}
	o.plugins.keep(now, made)
	return now, made, nil
}

// handler makes one. Its template is put into template, from which its place is taken
// when it is used; columns are those of the mapped entities, by entity. A nil w leaves
// write_back alone.
func (p *problems) handler(c config.Handler, template *atomic.Pointer[config.Expr], columns map[string]event.Columns, w *writeBack, o Options) *dispatch.Handler {
	at := c.At
	d := &dispatch.Handler{
		ID: c.ID, Name: c.Name, Kind: c.Kind(), Events: slices.Clone(c.Events), Priority: c.Priority,
		OnDead: c.OnDead, Latest: c.Collapse == config.Latest, FailingAfter: c.FailingAfter,
		Aside: !c.Blocking, Timeout: c.Timeout, MaxAge: c.Retry.MaxAge, Concurrency: c.Concurrency,
		Backoff: backoff.Schedule{
			Initial: c.Retry.Initial, Max: c.Retry.Max, Factor: c.Retry.Factor, Jitter: c.Retry.Jitter,
			List: c.Retry.Schedule, Attempts: c.Retry.Attempts,
		},
	}
	switch c.Status {
	case config.Disabled:
		d.Status = dispatch.Disabled
	case config.Archived:
		d.Status = dispatch.Archived
	}
	if c.OnFailure == config.Stop {
		d.OnFailure = dispatch.Stop
	}
	if c.Rate.Count > 0 {
		d.Rate = float64(c.Rate.Count) / c.Rate.Per.Seconds()
	}
	if c.Breaker != nil {
		d.Breaker = dispatch.Breaker{Failures: c.Breaker.Failures, Pause: c.Breaker.Pause, Max: c.Breaker.Max}
	}
	if len(c.WriteBack) > 0 && w != nil {
		w.judge(p, &c)
		d.WriteBack = w.handler(c)
	}
	if !c.When.IsZero() {
		cond, err := expr.CompileEvent(c.When.Text)
		if err != nil {
			p.expression(c.When, err)
		}
		d.When = func(e *event.Event) (bool, error) {
			doc, err := e.Document()
			if err != nil {
				return false, err
			}
			return cond.Event(doc.Event, doc.Data, doc.Changed)
		}
	}
	switch c.Format {
	case config.FormatProvisioning:
		d.Format = event.Provisioning(columns)
	case config.FormatCloudEvents:
		d.Format = event.CloudEvents
	case config.FormatTemplate:
		template.Store(&c.Template)
		place := func(line, column int) string { return template.Load().At(line, column).String() }
		f, err := event.Template(c.Template.Text, c.ContentType, place)
		if err != nil {
			pos := c.Template.Pos
			if at := (*event.TemplateError)(nil); errors.As(err, &at) {
				pos = c.Template.At(at.Line, at.Column)
			}
			p.add(pos, err.Error(), "correct the template")
		}
		d.Format = f
	}
	var call handler.Handler
	var err error
	kind := c.Kind()
	switch {
	case c.HTTP != nil:
		call, err = http.New(httpOptions(c, o.Version))
	case c.Script != nil:
		var so script.Options
		if so, err = scriptOptions(c, o.Launcher); err == nil {
			call, err = script.New(so)
		}
	case c.Plugin != nil:
		call, err = o.plugins.open(c, o)
	}
	if err != nil {
		if d.Status == dispatch.Archived {
			return d // it is never called, so it may point to what is gone
		}
		p.add(at(kind), err.Error(), "or set status: disabled until it is right")
		if d.Status == dispatch.Disabled {
			p.list = p.list[:len(p.list)-1] // it may be disabled for just that
		}
		return d
	}
	d.Call = call
	return d
}

func httpOptions(c config.Handler, version string) http.Options {
	h := c.HTTP
	o := http.Options{
		URL: h.URL, Method: h.Method, BearerToken: h.Bearer.Reveal(), Proxy: h.Proxy.Reveal(),
		ConnectTimeout: h.ConnectTimeout, Timeout: c.Timeout,
		Success: texts(h.Statuses.Success), Retry: texts(h.Statuses.Retry), Permanent: texts(h.Statuses.Permanent),
		CaptureLimit: capture(c.Capture), IdleConnections: c.Concurrency, Version: version,
	}
	if !h.SecretURL.IsZero() {
		o.URL, o.SecretURL = h.SecretURL.Reveal(), true
	}
	names := make([]string, 0, len(h.Headers))
	for name := range h.Headers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		o.Headers = append(o.Headers, http.Header{Name: name, Value: h.Headers[name].Reveal(), Secret: true})
	}
	if h.Basic != nil {
		o.Username, o.Password = h.Basic.Username, h.Basic.Password.Reveal()
	}
	for _, s := range h.Secrets {
		o.SigningSecrets = append(o.SigningSecrets, s.Value.Reveal())
	}
	if t := h.TLS; t != nil {
		o.TLS = http.TLS{
			CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile, ServerName: t.ServerName,
			MinVersion: t.MinVersion, InsecureSkipVerify: t.InsecureSkipVerify,
		}
	}
	for _, a := range h.Deny {
		o.Addresses.Deny = append(o.Addresses.Deny, a.String())
	}
	for _, a := range h.Allow {
		o.Addresses.Allow = append(o.Addresses.Allow, a.String())
	}
	return o
}

// capture is a limit as handlers take it: nothing is negative there, not zero.
func capture(n config.ByteSize) int {
	if n == 0 {
		return -1
	}
	return int(n)
}

func scriptOptions(c config.Handler, launcher string) (script.Options, error) {
	s := c.Script
	path, err := filepath.Abs(s.Path)
	if err != nil {
		return script.Options{}, fmt.Errorf("find script %s: %w", s.Path, err)
	}
	o := script.Options{
		Path: path, Dir: s.Workdir, User: s.User, Group: s.Group, Timeout: c.Timeout, KillGrace: s.KillGrace,
		Success: texts(s.ExitCodes.Success), Retry: texts(s.ExitCodes.Retry), Permanent: texts(s.ExitCodes.Permanent),
		CaptureLimit: capture(c.Capture), Launcher: launcher,
		Limits: script.Limits{
			OpenFiles: int64(s.Limits.OpenFiles), Processes: int64(s.Limits.Processes),
			AddressSpace: int64(s.Limits.AddressSpace), FileSize: int64(s.Limits.FileSize), CPU: s.Limits.CPU,
		},
	}
	for _, a := range s.Args {
		o.Args = append(o.Args, string(a))
	}
	names := make([]string, 0, len(s.Env))
	for name := range s.Env {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		o.Env = append(o.Env, script.Var{Name: name, Value: s.Env[name].Reveal(), Secret: true})
	}
	for _, name := range s.EnvPass {
		if v, ok := os.LookupEnv(name); ok {
			o.Env = append(o.Env, script.Var{Name: name, Value: v})
		}
	}
	return o, nil
}

func texts[T ~string](in []T) []string {
	var out []string
	for _, v := range in {
		out = append(out, string(v))
	}
	return out
}

// shown is the handlers as the faces show them.
func shown(h *config.Handlers) []web.Handler {
	var out []web.Handler
	for i := range h.Handlers {
		c := &h.Handlers[i]
		out = append(out, web.Handler{
			ID: c.ID, Name: c.Name, Events: c.Events, Priority: c.Priority, Status: string(c.Status), Kind: c.Kind(), Target: targetOf(c),
		})
	}
	slices.SortFunc(out, func(a, b web.Handler) int { return a.ID - b.ID })
	return out
}

// faring is the handlers in force with how they fare.
func (a *App) faring() []web.Handler {
	rows := slices.Clone(*a.shown.Load())
	health := a.dispatcher.Health()
	moment := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	running := map[int]*plugin.Handler{}
	for _, h := range *a.handlers.Load() {
		if p, ok := h.Call.(*plugin.Handler); ok {
			running[h.ID] = p
		}
	}
	for i := range rows {
		if p, ok := running[rows[i].ID]; ok && p.Status().Wanted {
			s := p.Status()
			rows[i].Plugin = &web.Plugin{Up: s.Up, Name: s.Name, Version: s.Version, Since: moment(s.Since)}
			if s.Err != nil {
				rows[i].Plugin.Error = s.Err.Error()
			}
		}
		h, ok := health[rows[i].ID]
		if !ok {
			continue
		}
		rows[i].Health = &web.Health{
			Failing: h.Failing, FailingSince: moment(h.FailingSince), LastSuccess: moment(h.LastSuccess),
			LastFailure: moment(h.LastFailure), LastError: h.LastError, RestingUntil: moment(h.OpenUntil),
		}
	}
	return rows
}

func targetOf(c *config.Handler) string {
	switch {
	case c.HTTP != nil && !c.HTTP.SecretURL.IsZero():
		return "(secret URL)"
	case c.HTTP != nil:
		u, err := url.Parse(c.HTTP.URL)
		if err != nil {
			return "(url of handler " + strconv.Itoa(c.ID) + ")"
		}
		u.User, u.RawQuery = nil, ""
		return u.String()
	case c.Script != nil:
		return c.Script.Path
	case c.Plugin != nil:
		return c.Plugin.Path
	}
	return ""
}
