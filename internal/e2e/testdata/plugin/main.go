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
	Token plugins.Secret   `json:"token,omitempty"` // shown wherever it can be
}

func main() {
	plugins.Serve(plugins.Plugin[config]{Name: "noting", Version: "1", New: func(_ context.Context, c config, env plugins.Env) (plugins.Handler, error) {
		env.Logger.Info("hello")
		if token := c.Token.Reveal(); token != "" {
			env.Logger.Warn("a leak: "+token, "token", token)
			fmt.Println("a leak: " + token)
			fmt.Fprintln(os.Stderr, "a leak: "+token)
		}
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
			if token := c.Token.Reveal(); token != "" && d.Attempt == 1 {
				leak := plugins.Exchange{Head: []string{"a leak: " + token}, Body: []byte("a leak: " + token)}
				return plugins.Result{Reason: "a leak: " + token, Sent: leak, Received: leak}, fmt.Errorf("a leak: %s", token)
			}
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
