package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/dispatch"
	"github.com/billhook/billhook/internal/doctor"
	"github.com/billhook/billhook/internal/handler/plugin"
)

// buildReceiver builds the plugin of the plugin kind's own tests into a folder that
// nobody else can write to.
func buildReceiver(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "receiver")
	if out, err := exec.Command("go", "build", "-o", path, "../handler/plugin/testdata/receiver").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// TestPlugins: what is wrong with a stanza refuses the file, at the place where it
// stands; what is wrong with a plugin holds up its own handler.
func TestPlugins(t *testing.T) {
	path := buildReceiver(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "handlers.yaml")
	o := Options{HandlersPath: file, Env: func(string) (string, bool) { return "", false }}
	o.plugins = &pluginHost{ctx: t.Context(), log: slog.New(slog.DiscardHandler), metrics: plugin.NewMetrics(prometheus.NewRegistry())}
	load := func(stanzas ...string) *config.Handlers {
		t.Helper()
		text := "version: 1\nhandlers:\n"
		for i, s := range stanzas {
			text += fmt.Sprintf("  - {id: %d, name: a, event: clients.create, %s}\n", i+1, strings.ReplaceAll(s, "$P", path))
		}
		h, err := config.ParseHandlers(file, []byte(text), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	closeAll := func(made []*dispatch.Handler) {
		for _, h := range made {
			if h.Call != nil {
				if err := h.Call.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	}

	const column = len("  - {id: 1, name: a, event: clients.create, plugin: ") + 1
	for _, c := range []struct{ stanza, place, want string }{
		{"plugin: {path: " + dir + "/nowhere}", "plugin", "plugin " + dir + "/nowhere does not exist: put it there"},
		{"plugin: {path: $P, config: {dir: " + dir + ", hunter2: 1}}", "plugin.config.hunter2", "the plugin receiver says: there is no such key here; correct it"},
		{"plugin: {path: $P, config: {dir: 5}}", "plugin.config.dir", "the plugin receiver says: it is a number, want text; correct it"},
		{"plugin: {path: $P}", "plugin.config", "the plugin receiver says: the key dir is missing"},
		{"plugin: {path: $P, config: {dir: " + dir + ", say: 'quotes hunter2', refuse: 'behaviour.Deaf', behaviour: {Deaf: true}}}", "plugin.config.behaviour.Deaf", "the plugin receiver says: it is refused: ***; correct it"},
	} {
		_, _, err := build(load(c.stanza), nil, nil, nil, o)
		if err == nil || !strings.Contains(err.Error(), "handlers[0]."+c.place+": "+c.want) || !strings.HasPrefix(err.Error(), file+":3:") {
			t.Errorf("%s:\n%v\nwant %s: %s", c.stanza, err, c.place, c.want)
		}
		if strings.Contains(strings.ReplaceAll(err.Error(), "config.hunter2", ""), "hunter2") {
			t.Errorf("a value is shown: %v", err)
		}
	}
	_, _, err := build(load("plugin: {path: $P, config: {dir: 5}}"), nil, nil, nil, o)
	if want := fmt.Sprintf("%s:3:%d: ", file, column+len("{path: "+path+", config: {dir: ")); !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v does not begin with %s", err, want)
	}

	bad := o
	bad.Env = func(string) (string, bool) { return "{", true }
	if _, _, err := build(load("plugin: {path: $P, config: {dir: "+dir+"}}"), nil, nil, nil, bad); err == nil || !strings.Contains(err.Error(), "handlers[0].plugin: BILLHOOK_PLUGIN_REATTACH is not what a plugin prints that was started with BILLHOOK_PLUGIN_DEBUG: ") {
		t.Error(err)
	}

	// Handlers whose plugins cannot be started are made, and so are those that are not to
	// be called.
	_, made, err := build(load(
		"plugin: {path: "+truePath(t)+"}",
		"plugin: {path: $P, checksum: 'sha256:"+strings.Repeat("0", 64)+"', config: {dir: "+dir+"}}",
		"plugin: {path: $P, config: {dir: "+dir+"}}",
		"status: disabled, plugin: {path: $P, config: {}}",
		"status: archived, plugin: {path: /nowhere}"), nil, nil, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"ended with exit code 0", "has the checksum sha256:", "", "refuses its configuration: the key dir is missing", "-"} {
		call, ok := made[i].Call.(*plugin.Handler)
		if ok && call.Status().Wanted != (made[i].Status == dispatch.Enabled) {
			t.Errorf("handler %d: %+v", i+1, call.Status())
		}
		if !ok {
			if want != "-" {
				t.Errorf("handler %d has no plugin", i+1)
			}
			continue
		}
		if err := call.Ready(t.Context()); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("handler %d: %v, want %q", i+1, err, want)
		}
	}
	closeAll(made)
}

func truePath(t *testing.T) string {
	t.Helper()
	path, err := filepath.EvalSymlinks("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPluginsReload: a process serves on through a reload unless it is concerned.
func TestPluginsReload(t *testing.T) {
	path := buildReceiver(t)
	dirs := []string{t.TempDir(), t.TempDir()}
	o := Options{HandlersPath: "handlers.yaml", Env: os.LookupEnv}
	o.plugins = &pluginHost{ctx: t.Context(), log: slog.New(slog.NewTextHandler(t.Output(), nil)), metrics: plugin.NewMetrics(prometheus.NewRegistry())}
	pids := func() (out [2]string) {
		for i, d := range dirs {
			b, err := os.ReadFile(filepath.Join(d, "pid"))
			if err != nil {
				t.Fatal(err)
			}
			out[i] = string(b)
		}
		return out
	}
	var force map[int]defined
	var old []*dispatch.Handler
	reload := func(more, extra string) {
		t.Helper()
		h, err := config.ParseHandlers("handlers.yaml", fmt.Appendf(nil, `version: 1
handlers:
  - {id: 1, name: a, event: "*", plugin: {path: %s, config: {dir: %s%s}}%s}
  - {id: 2, name: b, event: "*", plugin: {path: %[1]s, config: {dir: %[5]s}}}
`, path, dirs[0], extra, more, dirs[1]), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		now, made, err := build(h, force, nil, nil, o)
		if err != nil {
			t.Fatal(err)
		}
		// As the dispatcher does, the old ones are closed after the new ones are in force.
		for _, h := range old {
			if !contains(made, h) {
				if err := h.Call.Close(); err != nil {
					t.Error(err)
				}
			}
		}
		force, old = now, made
	}
	reload("", "")
	first := pids()
	reload("", "")
	if now := pids(); now != first {
		t.Errorf("nothing changed, and processes did: %v, were %v", now, first)
	}
	reload(", priority: 5", "")
	if now := pids(); now != first {
		t.Errorf("a priority changed, and processes did: %v, were %v", now, first)
	}
	reload(", priority: 5", ", say: hello")
	second := pids()
	if second[0] == first[0] || second[1] != first[1] {
		t.Errorf("one configuration changed: %v, were %v", second, first)
	}
	// The file of both is replaced, at first by one that is none.
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(content []byte) {
		t.Helper()
		err := os.WriteFile(path+".new", content, 0o755)
		if err == nil {
			err = os.Rename(path+".new", path)
		}
		if err != nil {
			t.Fatal(err)
		}
		reload(", priority: 5", ", say: hello")
	}
	replace([]byte("#!/bin/sh\nexit 1\n"))
	if now := pids(); now != second || !force[1].made.Call.(*plugin.Handler).Status().Up {
		t.Errorf("the file was replaced by a bad one: %v, were %v", now, second)
	}
	replace(b)
	if now := pids(); now[0] == second[0] || now[1] == second[1] {
		t.Errorf("the file was replaced: %v, were %v", now, second)
	}
	for _, h := range old {
		if err := h.Call.Close(); err != nil {
			t.Error(err)
		}
	}
}

func contains(list []*dispatch.Handler, h *dispatch.Handler) bool {
	for _, x := range list {
		if x == h {
			return true
		}
	}
	return false
}

// TestPluginsCheck: check starts plugins and says what keeps them from running; they
// are not made ready for calls.
func TestPluginsCheck(t *testing.T) {
	path := buildReceiver(t)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, c := range []struct {
		stanza string
		level  doctor.Level
		want   string
	}{
		{"plugin: {path: $P, config: {dir: " + dir + ", not_ready: 'no switch'}}", doctor.OK, "a: plugin " + path},
		{"plugin: {path: $P}", doctor.Fail, "handlers[0].plugin.config: the plugin receiver says: the key dir is missing"},
		{"plugin: {path: " + truePath(t) + "}", doctor.Fail, "ended with exit code 0"},
		{"status: disabled, plugin: {path: $P}", doctor.Warn, "disabled, and could not be made: "},
		{"plugin: {path: $P, checksum: 'sha256:" + strings.Repeat("0", 64) + "'}", doctor.Fail, "not sha256:0000"},
	} {
		file := filepath.Join(t.TempDir(), "handlers.yaml")
		text := "version: 1\nhandlers:\n  - {id: 1, name: a, event: clients.create, " + strings.ReplaceAll(c.stanza, "$P", path) + "}\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		list := handlerFindings(ctx, Options{HandlersPath: file, Env: os.LookupEnv}, nil, nil, nil)
		if len(list) != 2 || list[1].Level != c.level || !strings.Contains(list[1].Text, c.want) {
			t.Errorf("%s: %+v, want %v %s", c.stanza, list, c.level, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "pid")); err == nil {
		t.Error("a plugin was made ready for calls")
	}
}
