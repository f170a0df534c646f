package app

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/billhook/billhook/config"
)

// Editors write a file in several steps, and mounted volumes do not always tell:
// wait for quiet, and look by oneself now and then.
const (
	reloadQuiet = 300 * time.Millisecond
	reloadPoll  = 30 * time.Second
)

// reloadState is what became of the last reload.
type reloadState struct{ err error }

// reloadTries bounds how often files that change all the time are read at once.
const reloadTries = 5

// watch reloads handlers.yaml when it, or a file it names, changes, and on SIGHUP.
func (a *App) watch(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	// The folder is watched, not the file: editors replace it by renaming.
	changed := make(chan fsnotify.Event)
	attend := func() {}
	if w, err := fsnotify.NewWatcher(); err != nil {
		a.log.Warn("cannot watch handlers.yaml, looking every so often instead", "err", err, "every", reloadPoll)
	} else {
		defer w.Close()
		changed = w.Events
		tried := map[string]bool{}
		attend = func() {
			files, folders := a.files(a.loaded.Handlers)
			for _, f := range append(files, programs(a.loaded.Handlers)...) {
				folders = append(folders, filepath.Dir(f))
			}
			for _, dir := range folders {
				if tried[dir] {
					continue
				}
				err := w.Add(dir)
				tried[dir] = !errors.Is(err, fs.ErrNotExist) // a folder to include may come later
				if err != nil && tried[dir] {
					a.log.Warn("cannot watch a folder, looking every so often instead", "folder", dir, "err", err, "every", reloadPoll)
				}
			}
		}
	}
	attend()

	seen := a.fingerprint(a.loaded.Handlers)
	poll := time.NewTicker(reloadPoll)
	defer poll.Stop()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	for {
		forced := false
		var asked chan<- error
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			quiet.Reset(reloadQuiet)
			continue
		case <-hup:
			forced = true
		case asked = <-a.reloads:
			forced = true
		case <-quiet.C:
		case <-poll.C:
		}
		attend() // a folder to include may have come
		now := a.fingerprint(a.loaded.Handlers)
		if now == seen && !forced {
			continue
		}
		// Until what is in force is what the files are: one may have come or changed while
		// the others were read, and nothing would tell of it again.
		for range reloadTries {
			seen = now
			a.reloadHandlers(ctx)
			attend() // it may name other files now
			if now = a.fingerprint(a.loaded.Handlers); now == seen {
				break
			}
		}
		if asked != nil {
			asked <- a.reload.Load().err
		}
	}
}

// files are those that the handlers come from, as they are in force and as the files
// name them now, and the folders where more may appear.
func (a *App) files(h *config.Handlers) (files, folders []string) {
	files, folders = config.HandlersFiles(a.loaded.Options.HandlersPath, a.loaded.Options.Env)
	for _, f := range h.Files {
		if !slices.Contains(files, f) {
			files = append(files, f)
		}
	}
	return files, folders
}

// programs are the files of plugins.
func programs(h *config.Handlers) (paths []string) {
	for i := range h.Handlers {
		if c := &h.Handlers[i]; c.Plugin != nil && c.Status == config.Enabled {
			paths = append(paths, c.Plugin.Path)
		}
	}
	return paths
}

// fingerprint is a hash of the contents of every file that the handlers come from, and
// of what tells the files of plugins from others in their place.
func (a *App) fingerprint(h *config.Handlers) uint64 {
	sum := fnv.New64a()
	files, _ := a.files(h)
	for _, f := range files {
		b, err := os.ReadFile(f)
		fmt.Fprintf(sum, "%s %d %v\n", f, len(b), err)
		_, _ = sum.Write(b)
	}
	for _, f := range programs(h) {
		fmt.Fprintf(sum, "%s ", f)
		if info, err := os.Stat(f); err == nil {
			fmt.Fprintf(sum, "%d %s", info.Size(), info.ModTime())
		}
		_, _ = sum.Write([]byte("\n"))
	}
	return sum.Sum64()
}

// reloadHandlers loads the file with the loader of the start and puts it into
// force as a whole, or not at all.
func (a *App) reloadHandlers(ctx context.Context) {
	h, err := a.loadHandlers(nil)
	if err == nil {
		err = a.writable(ctx, h)
	}
	if err == nil {
		var d map[int]defined
		changes, compareErr := config.Compare(a.loaded.Handlers, h)
		o := a.loaded.Options
		o.plugins = o.plugins.during(ctx)
		d, made, buildErr := build(h, a.defined, columnsOf(a.loaded.Mapping), a.writes, o)
		if err = buildErr; err == nil {
			unchanged := 0
			for id, x := range d {
				if old, ok := a.defined[id]; ok && old.made == x.made {
					unchanged++
				}
			}
			a.use(h, d, made)
			a.loaded.Handlers = h
			a.log.Info("handlers reloaded", "handlers", len(made), "unchanged", unchanged, "changes", summary(changes))
			a.tellChanges(changes, compareErr)
		}
	}
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			a.log.Error("handlers.yaml was refused, the last good one stays in force", "err", strings.TrimSuffix(line, "\n"))
		}
	}
	a.reload.Store(&reloadState{err})
	a.metrics.reloaded(err)
}

// writable asks the database about columns that answers may change now and might not
// before. While it is away, what is amiss shows when the first of them is to be written.
func (a *App) writable(ctx context.Context, h *config.Handlers) error {
	before := a.writes.needs(a.loaded.Handlers)
	fresh := slices.DeleteFunc(a.writes.needs(h), func(n need) bool {
		return slices.ContainsFunc(before, func(b need) bool { return b.column == n.column && slices.Equal(b.tables, n.tables) })
	})
	if len(fresh) == 0 {
		return nil
	}
	source, err := a.look(ctx)
	if err != nil {
		a.log.Warn("the database cannot be asked whether answers may be written back", "err", err)
		return nil
	}
	p := &problems{}
	p.lacking(fresh, source)
	return p.err()
}

// maxTold bounds the lines that a reload writes.
const maxTold = 50

// tellChanges logs each change that a reload brought.
func (a *App) tellChanges(changes []config.Change, err error) {
	if err != nil {
		a.log.Warn("it cannot be said what has changed", "err", err)
	}
	for i, c := range changes {
		if i == maxTold {
			a.log.Info("more has changed", "changes", len(changes)-maxTold)
			return
		}
		if c.Kind != config.Changed {
			a.log.Info("handler "+c.Kind, "handler", c.Handler, "name", c.Name)
			continue
		}
		a.log.Info("handler changed", "handler", c.Handler, "field", c.Field, "before", short(c.Before), "after", short(c.After))
	}
}

func short(text string) string {
	const most = 200
	if r := []rune(text); len(r) > most {
		return string(r[:most]) + "…"
	}
	return text
}

// summary tells changes in a few words, as "+3 ~1 -2".
func summary(changes []config.Change) string {
	var parts []string
	for _, c := range changes {
		part := fmt.Sprintf("%s%d", map[string]string{config.Added: "+", config.Removed: "-", config.Changed: "~"}[c.Kind], c.Handler)
		if c.Field == "status" {
			part += " " + c.Before + "->" + c.After
			if n := len(parts); n > 0 && parts[n-1] == fmt.Sprintf("~%d", c.Handler) {
				parts = parts[:n-1]
			}
		} else if slices.ContainsFunc(parts, func(p string) bool { return p == part || strings.HasPrefix(p, part+" ") }) {
			continue
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " ")
}
