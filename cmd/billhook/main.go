// Command billhook turns row changes of a billing database into calls of
// handlers. See the README.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	_ "time/tzdata" // source.time_zone, where the machine has no zones

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/billhook/billhook/internal/handler/script"
)

// version is set when a release is built.
var version = ""

// Exit codes.
const (
	exitOK    = 0
	exitFail  = 1 // something went wrong, or a check failed
	exitUsage = 2 // the command line makes no sense
)

// usageError is a mistake in the command line.
type usageError struct{ error }

func main() {
	if os.Args[0] == script.LaunchName {
		os.Exit(script.Launch(os.Args))
	}
	keepDescriptors()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	// The first signal asks to stop, a second one ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	defer stop()

	root := rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var quiet silentError
	if !errors.As(err, &quiet) {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintln(os.Stderr, "billhook: "+strings.TrimSuffix(line, "\n"))
		}
	}
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFail
}

// silentError has been told already.
type silentError struct{ error }

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "billhook",
		Short: "Turn changes of a billing database into calls of handlers",
		Long: `Billhook follows a Postgres billing database by logical replication, derives
business events (a client was created, a balance reached zero, a package was
activated) and calls the handlers that handlers.yaml names: HTTP endpoints,
scripts and plugins. It runs beside the database and changes nothing in it.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return usageError{errors.New("a command is needed, such as run or check")}
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd.Flags()) },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddCommand(initCommand(), sqlCommand(), checkCommand(), configCommand(), testCommand(), runCommand(), uninstallCommand(), statusCommand(), handlersCommand(), eventsCommand(), executionsCommand(), replaysCommand(), backfillCommand(), reconcileCommand(), journalCommand(), logLevelCommand(), versionCommand(), manCommand(), demoCommand())
	finish(root)
	return root
}

// finish has a command and those below it tell mistakes as such, and name the
// environment variables of their flags.
func finish(c *cobra.Command) {
	args := c.Args
	c.Args = func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
		}
		return nil
	}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Annotations[typed] == nil {
			f.Usage += " [$" + variable(f.Name) + "]"
		}
	})
	for _, below := range c.Commands() {
		finish(below)
	}
}

// typed marks flags that the environment does not set: what selects executions. A
// script that Billhook runs has BILLHOOK_HANDLER and others in its environment.
const typed = "typed"

// markTyped marks flags as typed.
func markTyped(fs *pflag.FlagSet, names ...string) {
	for _, name := range names {
		_ = fs.SetAnnotation(name, typed, []string{}) // it is there
	}
}

// group is a command that does nothing by itself. hint says which of those below are
// wanted most.
func group(cmd *cobra.Command, hint string, below ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		_ = cmd.Help()
		return usageError{errors.New("a command is needed, such as " + hint)}
	}
	cmd.AddCommand(below...)
	return cmd
}

// variable is the environment variable of a flag: BILLHOOK_CONFIG of --config.
func variable(flag string) string {
	return "BILLHOOK_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnvironment sets every flag that was not given and whose variable is set.
func fromEnvironment(flags *pflag.FlagSet) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		value, ok := os.LookupEnv(variable(f.Name))
		if f.Changed || !ok || f.Name == "help" || f.Annotations[typed] != nil {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			errs = append(errs, usageError{fmt.Errorf("environment variable %s: %w", variable(f.Name), err)})
		}
	})
	return errors.Join(errs...)
}

// buildVersion is the version of a release, or the commit it was built of.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "dev-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return "dev"
}
