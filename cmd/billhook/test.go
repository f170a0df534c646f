package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/billhook/billhook/internal/app"
	"github.com/billhook/billhook/internal/ruletest"
)

func testCommand() *cobra.Command {
	var f files
	var output, only string
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Run unit tests of the mapping and the handlers",
		Long: `Run files of unit tests, each of which says which rows there are, what changes, and
which events and handlers must follow. What decides is what decides in production. No
database is asked, no handler is called, and scripts need not be there, so that tests
can run wherever the files are edited.

The exit code is 0 when all tests pass, 1 when one fails, 2 for a mistake in a file.`,
		Example: "  billhook test --config billhook.yaml --handlers handlers.yaml rules.test.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			results, err := app.TestRules(app.Options{ConfigPath: f.config, HandlersPath: f.handlers}, args, only)
			if err != nil {
				return usageError{err}
			}
			failed := 0
			for _, r := range results {
				if len(r.Failures) > 0 {
					failed++
				}
			}
			if output != "table" {
				err = printData(cmd.OutOrStdout(), output, map[string]any{"tests": results, "failed": failed})
			} else {
				err = printTests(cmd.OutOrStdout(), results, failed)
			}
			if err == nil && failed > 0 {
				err = silentError{errors.New("tests failed")}
			}
			return err
		},
	}
	f.flags(cmd.Flags())
	cmd.Flags().StringVar(&only, "run", "", "only tests whose name contains this")
	markTyped(cmd.Flags(), "run")
	outputFlag(cmd.Flags(), &output)
	return cmd
}

func printTests(out io.Writer, results []ruletest.Result, failed int) error {
	var b strings.Builder
	for _, r := range results {
		if len(r.Failures) == 0 {
			continue
		}
		fmt.Fprintf(&b, "FAIL  %s (%s)\n", oneLine(r.Name), oneLine(r.At))
		for _, f := range r.Failures {
			fmt.Fprintf(&b, "      %s\n", oneLine(f))
		}
	}
	state := "OK"
	if failed > 0 {
		state = "FAIL"
	}
	fmt.Fprintf(&b, "%s  %d tests, %d failed\n", state, len(results), failed)
	_, err := io.WriteString(out, b.String())
	return err
}
