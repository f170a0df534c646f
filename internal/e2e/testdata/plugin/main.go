// Command plugin is called in the tests of whole installations: it notes in a file
// when a call begins and when it is done, and takes its time between the two.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/billhook/billhook/plugins"
)

type config struct {
	Dir   string           `json:"dir" jsonschema:"required"`
	Take  plugins.Duration `json:"take,omitempty"`
	Child bool             `json:"child,omitempty"` // start a process that would stay
}

func main() {
	plugins.Serve(plugins.Plugin[config]{Name: "noting", Version: "1", New: func(_ context.Context, c config, env plugins.Env) (plugins.Handler, error) {
		env.Logger.Info("hello")
		note := func(format string, args ...any) error {
			f, err := os.OpenFile(filepath.Join(c.Dir, "notes"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = fmt.Fprintf(f, format+"\n", args...)
			return err
		}
		if err := note("pid %d", os.Getpid()); err != nil {
			return nil, err
		}
		if c.Child {
			cmd := exec.Command("/bin/sleep", "1000")
			if err := cmd.Start(); err != nil {
				return nil, err
			}
			if err := note("pid %d", cmd.Process.Pid); err != nil {
				return nil, err
			}
		}
		return plugins.HandlerFunc(func(ctx context.Context, d *plugins.Delivery) (plugins.Result, error) {
			if err := note("begin %s %s", d.EventID, d.ObjectID); err != nil {
				return plugins.Result{}, err
			}
			select {
			case <-ctx.Done():
				return plugins.Result{}, ctx.Err()
			case <-time.After(c.Take.Std()):
			}
			return plugins.Result{}, note("done %s %s", d.EventID, d.ObjectID)
		}), nil
	}})
}
