package main

import (
	"context"
	"errors"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/billhook/billhook/internal/app"
)

// files are the flags that name the configuration.
type files struct{ config, handlers string }

func (f *files) flags(set *pflag.FlagSet) {
	set.StringVar(&f.config, "config", "/etc/billhook/billhook.yaml", "the DBA's file: source, mapping, journal")
	set.StringVar(&f.handlers, "handlers", "/etc/billhook/handlers.yaml", "the operator's file: who is called")
}

func runCommand() *cobra.Command {
	var f files
	var standby bool
	var profile string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Follow the database and call the handlers",
		Long: `Follow the database and call the handlers, until SIGINT or SIGTERM.

handlers.yaml is loaded again when it changes and on SIGHUP; a file with a
mistake is refused with the reason, and the last good one stays in force.`,
		Example: "  billhook run --config billhook.yaml --handlers handlers.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			boundMemory()
			l, err := app.Load(app.Options{ConfigPath: f.config, HandlersPath: f.handlers, Version: buildVersion(), Launcher: launcher(), Standby: standby})
			if err != nil {
				return err
			}
			if profile != "" {
				stop, err := startProfile(profile)
				if err != nil {
					return err
				}
				defer stop()
			}
			a, err := app.New(cmd.Context(), l)
			if standby && errors.Is(err, context.Canceled) {
				return nil // it was asked to stop while it waited
			}
			if err != nil {
				return err
			}
			return a.Run(cmd.Context())
		},
	}
	f.flags(cmd.Flags())
	cmd.Flags().BoolVar(&standby, "standby", false, "when another instance has the journal or the slot, wait for it instead of ending")
	cmd.Flags().StringVar(&profile, "cpu-profile", "", "write a CPU profile to this file")
	_ = cmd.Flags().MarkHidden("cpu-profile") // the flag is there
	return cmd
}

// startProfile writes a CPU profile until stop is called.
func startProfile(path string) (stop func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close() // it is but a profile
	}, nil
}
