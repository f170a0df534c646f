package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/billhook/billhook/internal/app"
)

func configCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "config",
		Short: "Judge, show and compare the configuration files",
	}, "lint or show", configLintCommand(), configShowCommand(), configDiffCommand())
}

func configLintCommand() *cobra.Command {
	var f files
	var output string
	cmd := &cobra.Command{
		Use:   "lint",
		Short: "Judge both files by themselves, without database, scripts or secrets",
		Long: `Judge both files, and those that handlers.yaml includes, by themselves: keys, values,
events, conditions, templates. No database is asked, scripts and plugins need not be
there, and environment variables that are not set are taken for right ones, so that it
can run before a change is merged. billhook check looks at all the rest, where billhook
runs.

The exit code is 0 without a mistake, 1 with one.`,
		Example: "  billhook config lint --config billhook.yaml --handlers handlers.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			found, mistakes, err := app.Lint(app.Options{ConfigPath: f.config, HandlersPath: f.handlers})
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case output != "table":
				err = printData(out, output, map[string]any{"ok": len(mistakes) == 0, "found": found, "mistakes": append([]*app.Mistake{}, mistakes...)})
			case len(mistakes) == 0:
				_, err = fmt.Fprintf(out, "OK  %s: %s, %s of your own\nOK  %s: %s in %s\n", f.config, many(found.Tables, "table"), many(found.Events, "event"),
					f.handlers, many(found.Handlers, "handler"), many(found.Files, "file"))
			default:
				var b strings.Builder
				for _, m := range mistakes {
					b.WriteString(oneLine(m.Error()) + "\n")
				}
				fmt.Fprintf(&b, "FAIL  %s\n", many(len(mistakes), "mistake"))
				_, err = io.WriteString(out, b.String())
			}
			if err == nil && len(mistakes) > 0 {
				err = silentError{errors.New("mistakes")}
			}
			return err
		},
	}
	f.flags(cmd.Flags())
	outputFlag(cmd.Flags(), &output)
	return cmd
}

// many is a number of things.
func many(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func configShowCommand() *cobra.Command {
	var f files
	var output string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show both files as they take effect, with every default",
		Long: `Show both files as they take effect: presets merged, every default written out, what
handlers.yaml includes in one list. Secrets are named as the files name them (bearer_env,
secret_file), and masked where they stand in the files themselves.`,
		Example: "  billhook config show --config billhook.yaml --handlers handlers.yaml | less",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "yaml" && output != "json" {
				return usageError{fmt.Errorf("--output %s: want yaml or json", output)}
			}
			billhook, handlers, err := app.Effective(app.Options{ConfigPath: f.config, HandlersPath: f.handlers})
			if err != nil {
				return err
			}
			if output == "yaml" {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "# %s\n%s---\n# %s\n%s", f.config, billhook, f.handlers, handlers)
				return err
			}
			var all struct {
				Billhook any `json:"billhook"`
				Handlers any `json:"handlers"`
			}
			if err := errors.Join(yaml.Unmarshal(billhook, &all.Billhook), yaml.Unmarshal(handlers, &all.Handlers)); err != nil {
				return err
			}
			return printData(cmd.OutOrStdout(), output, all)
		},
	}
	f.flags(cmd.Flags())
	cmd.Flags().StringVar(&output, "output", "yaml", "yaml for people, json for scripts")
	return cmd
}

func configDiffCommand() *cobra.Command {
	var f files
	var at instance
	var output, from string
	var code bool
	cmd := &cobra.Command{
		Use:   "diff",
		Short: "Show what handlers.yaml would change",
		Long: `Show how the handlers in force in a running billhook differ from what its handlers.yaml
says now: nothing, as a rule, since the file takes effect when it is saved, unless it has
a mistake, which is told then.

With --from, compare another file with --handlers instead, and ask nobody: the version
before with the one that is to be merged.`,
		Example: `  billhook config diff
  billhook config diff --config billhook.yaml --from handlers.yaml.orig --handlers handlers.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			var answer struct {
				Changes []app.Change `json:"changes"`
			}
			var err error
			if from == "" {
				err = at.ask(cmd.Context(), http.MethodGet, "handlers/changes", nil, &answer)
			} else {
				answer.Changes, err = app.CompareHandlers(app.Options{ConfigPath: f.config, HandlersPath: f.handlers}, from)
			}
			if err != nil {
				return err
			}
			err = printChanges(cmd.OutOrStdout(), output, answer.Changes)
			if err == nil && code && len(answer.Changes) > 0 {
				err = silentError{errors.New("they differ")}
			}
			return err
		},
	}
	f.flags(cmd.Flags())
	at.flags(cmd.Flags())
	cmd.Flags().StringVar(&from, "from", "", "a file to compare with --handlers, instead of what is in force")
	cmd.Flags().BoolVar(&code, "exit-code", false, "exit with 1 when something differs")
	markTyped(cmd.Flags(), "from", "exit-code")
	outputFlag(cmd.Flags(), &output)
	return cmd
}

func printChanges(out io.Writer, output string, changes []app.Change) error {
	if output != "table" {
		return printData(out, output, map[string]any{"changes": append([]app.Change{}, changes...)})
	}
	if len(changes) == 0 {
		_, err := fmt.Fprintln(out, "no difference")
		return err
	}
	signs := map[string]string{"added": "+", "removed": "-", "changed": "~"}
	rows := make([][]string, len(changes))
	for i, c := range changes {
		rows[i] = []string{signs[c.Kind], fmt.Sprint(c.Handler), c.Name, c.What()}
	}
	return printRows(out, []string{"", "HANDLER", "NAME", "CHANGE"}, rows, tableWidth())
}

func logLevelCommand() *cobra.Command {
	var at instance
	var output string
	var d time.Duration
	cmd := &cobra.Command{
		Use:   "log-level [debug|info|warn|error]",
		Short: "Show or change what a running billhook logs",
		Long: `Show the least level that a running billhook logs, or change it, for a while or until it
is changed again or billhook is started anew. log.level in billhook.yaml is the usual one.`,
		Example:   "  billhook log-level debug --for 15m",
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: []string{"debug", "info", "warn", "error"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			var now struct {
				Level string     `json:"level"`
				Until *time.Time `json:"until,omitempty"`
			}
			method, body := http.MethodGet, any(nil)
			switch {
			case len(args) == 1:
				asked := map[string]string{"level": args[0]}
				if cmd.Flags().Changed("for") {
					asked["for"] = d.String()
				}
				method, body = http.MethodPut, asked
			case cmd.Flags().Changed("for"):
				return usageError{errors.New("--for: say which level, such as log-level debug --for 15m")}
			}
			if err := at.ask(cmd.Context(), method, "log", body, &now); err != nil {
				return err
			}
			if output != "table" {
				return printData(cmd.OutOrStdout(), output, now)
			}
			text := "the level is " + now.Level
			if now.Until != nil {
				text += " until " + local(now.Until)
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().DurationVar(&d, "for", 0, "for how long, such as 15m")
	markTyped(cmd.Flags(), "for")
	outputFlag(cmd.Flags(), &output)
	return cmd
}
