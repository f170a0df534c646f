package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/billhook/billhook/internal/app"
	"github.com/billhook/billhook/internal/demo"
)

func demoCommand() *cobra.Command {
	o := demo.Options{}
	var verbose bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show Billhook at work on a throwaway database",
		Long: `Start a throwaway Postgres on loopback with a billing schema, traffic, an HTTP
server that plays the CRM, a script that plays the switch, and Billhook between
them. At the end what arrived is compared with a ledger that triggers in the
database kept; the exit code is 0 only if they agree. Nothing is left behind.`,
		Example: "  billhook demo --for 20s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("seed") {
				o.Seed = uint64(time.Now().UnixNano())
			}
			o.Out = os.Stdout
			o.Color = terminal(os.Stdout)
			o.Attach = func(ctx context.Context, c demo.AttachConfig) (*demo.Attached, error) {
				return attach(ctx, c, verbose)
			}
			return demo.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.For, "for", 0, "how long traffic runs; 0 until interrupted")
	f.IntVar(&o.Clients, "clients", 200, "clients that are there from the start")
	f.Float64Var(&o.Rate, "rate", 25, "transactions per second")
	f.IntVar(&o.Sessions, "sessions", 4, "sessions of the billing application")
	f.Uint64Var(&o.Seed, "seed", 0, "seed of the traffic's chance (default: another one each time)")
	f.BoolVar(&verbose, "verbose", false, "show Billhook's own log too")
	return cmd
}

// attach starts Billhook in this process, as the run command does, and returns when
// it is ready.
func attach(ctx context.Context, c demo.AttachConfig, verbose bool) (*demo.Attached, error) {
	// The demo's own journal and address stand in for those of the file.
	b, err := os.ReadFile(c.Config)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(c.Dir, "billhook.yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	if verbose {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	l, err := app.Load(app.Options{
		ConfigPath: file, HandlersPath: c.Handlers, Version: buildVersion(), Launcher: launcher(), Logger: log,
		Env: func(name string) (string, bool) {
			if v, ok := c.Env[name]; ok {
				return v, true
			}
			return os.LookupEnv(name)
		},
	})
	if err != nil {
		return nil, err
	}
	l.Config.Journal.Path = filepath.Join(c.Dir, "journal")
	l.Config.HTTP.Listen = c.Listen
	edit := true
	l.Config.HTTP.EditHandlers = &edit // nobody else's file
	a, err := app.New(ctx, l)
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	failed := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := a.Run(running); err != nil {
			failed <- err
		}
	}()
	attached := &demo.Attached{
		Console: "http://" + a.Address().String() + "/",
		Failed:  failed,
		Executions: func(context.Context) ([]demo.ExecutionCount, error) {
			var out []demo.ExecutionCount
			for k, n := range a.Counts() {
				out = append(out, demo.ExecutionCount{Handler: k.Handler, Status: k.Status.String(), N: n})
			}
			return out, nil
		},
		Stop: func(ctx context.Context) error {
			stop()
			select {
			case <-ended:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		},
	}
	if err := ready(ctx, a, failed); err != nil {
		stop()
		<-ended
		return nil, err
	}
	return attached, nil
}

// ready waits until every check of /readyz holds.
func ready(ctx context.Context, a *app.App, failed <-chan error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var wrong []string
		for _, c := range a.Ready() {
			if !c.OK {
				wrong = append(wrong, c.Name+": "+c.Text)
			}
		}
		if len(wrong) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), fmt.Errorf("billhook is not ready: %s", strings.Join(wrong, "; ")))
		}
	}
}
