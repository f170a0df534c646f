package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/handler/plugin"
	"github.com/billhook/billhook/internal/web"
)

// setStatus changes the status of one handler in handlers.yaml, and returns when it is
// in force. What cannot be done is a *web.RefusedError.
func (a *App) setStatus(ctx context.Context, id int, status string) error {
	a.editing.Lock()
	defer a.editing.Unlock()
	h, err := a.loadHandlers(nil)
	if err != nil {
		return refused("handlers.yaml has a mistake, which must be corrected first: %v", firstLine(err))
	}
	i := slices.IndexFunc(h.Handlers, func(c config.Handler) bool { return c.ID == id })
	if i < 0 {
		return refused("handlers.yaml has no handler %d", id)
	}
	f, err := openHandlers(h.Handlers[i].Pos.File) // it may be included
	if err != nil {
		return err
	}
	after, err := config.SetStatus(f.name, f.text, id, config.Status(status))
	if err != nil {
		return refused("%v", err)
	}
	c := change{handlersFile: f, after: after}
	if c.handlers, err = a.loadHandlers(map[string][]byte{f.name: after}); err == nil {
		// Judged here, where the place in the file is still told.
		err = a.canBe(ctx, c.handlers, id)
	}
	if err != nil {
		return refused("handler %d cannot be %s: %v", id, status, firstLine(err))
	}
	return a.put(ctx, []change{c})
}

// canBe judges a handler of files that may not be written yet, by making it.
func (a *App) canBe(ctx context.Context, h *config.Handlers, id int) error {
	p := &problems{}
	for _, c := range h.Handlers {
		if c.ID != id || c.Status != config.Enabled {
			continue
		}
		o := a.loaded.Options
		o.plugins = nil // it is only to be judged
		d := p.handler(c, &atomic.Pointer[config.Expr]{}, nil, a.writes, o)
		if d.Call != nil {
			if call, ok := d.Call.(*plugin.Handler); ok {
				p.judge(ctx, &c, call)
			}
			_ = d.Call.Close() // it was never called
		}
	}
	return p.err()
}

func refused(format string, args ...any) error {
	return &web.RefusedError{Text: fmt.Sprintf(format, args...)}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// loadHandlers loads the files as they are, or as they would be with other texts.
func (a *App) loadHandlers(texts map[string][]byte) (*config.Handlers, error) {
	return config.LoadHandlersAs(a.loaded.Options.HandlersPath, texts, a.loaded.Options.Env, a.loaded.Config)
}

// replaceFile puts after in the place of a file that holds before, as a whole, with its
// owner and mode.
func replaceFile(path string, before, after []byte) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".handlers-*.yaml")
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return refused("billhook may not write %s (%v); change the file yourself, or let billhook's user write its folder", path, errors.Unwrap(err))
	}
	if err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(after); err == nil {
		err = f.Chmod(info.Mode().Perm())
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && err == nil && (int(s.Uid) != os.Geteuid() || int(s.Gid) != os.Getegid()) {
		if cerr := f.Chown(int(s.Uid), int(s.Gid)); cerr != nil {
			return refused("billhook cannot keep the owner of %s (%v); change the file yourself", path, errors.Unwrap(cerr))
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	// As late as can be: somebody may have saved it in an editor.
	if now, rerr := os.ReadFile(path); rerr != nil || string(now) != string(before) {
		return refused("%s has been changed by somebody else meanwhile; look at it and try again", path)
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder makes a rename in a folder durable.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("change a file in %s: %w", path, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("change a file in %s: %w", path, err)
	}
	return nil
}

// reloadNow has the file loaded and returns why it is not in force.
func (a *App) reloadNow(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case a.reloads <- done:
	case <-ctx.Done():
		return fmt.Errorf("handlers.yaml is written and not yet loaded: %w", context.Cause(ctx))
	}
	select {
	case err := <-done:
		if err != nil {
			return refused("handlers.yaml was refused: %v", firstLine(err))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("handlers.yaml is written and not yet loaded: %w", context.Cause(ctx))
	}
}
