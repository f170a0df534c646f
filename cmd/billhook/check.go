package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/billhook/billhook/internal/app"
	"github.com/billhook/billhook/internal/doctor"
)

func checkCommand() *cobra.Command {
	var f files
	var output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Look at the files, the database and this machine, and print the remedies",
		Long: `Look at the files, the database and this machine: what must be so, what had
better be so, and what to do where it is not. Nothing is changed anywhere.

The exit code is 0 when nothing failed; warnings do not fail.`,
		Example: "  billhook check --config billhook.yaml --handlers handlers.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("--output %s: want table or json", output)}
			}
			findings := app.Check(cmd.Context(), app.Options{ConfigPath: f.config, HandlersPath: f.handlers, Version: buildVersion()})
			var err error
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetEscapeHTML(false)
				e.SetIndent("", "  ")
				err = e.Encode(map[string]any{"findings": findings})
			} else {
				err = printFindings(cmd.OutOrStdout(), findings, width(os.Stdout), terminal(os.Stdout))
			}
			if err != nil {
				return err
			}
			for _, f := range findings {
				if f.Level == doctor.Fail {
					return silentError{errors.New("a check failed")}
				}
			}
			return nil
		},
	}
	f.flags(cmd.Flags())
	cmd.Flags().StringVar(&output, "output", "table", "table for people, json for scripts")
	return cmd
}

// width is how many columns the terminal has, or $COLUMNS says; a file has 100.
func width(f *os.File) int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return max(n, 40)
	}
	if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 0 {
		return max(int(ws.Col), 40)
	}
	return 100
}

// printFindings writes one line per finding, wrapped under itself, with its remedy
// below, and the counts at the end.
func printFindings(w io.Writer, list []doctor.Finding, columns int, color bool) error {
	colors := map[doctor.Level]string{doctor.OK: "32", doctor.Warn: "33", doctor.Fail: "31", doctor.Skip: "2"}
	widest := 0
	for _, f := range list {
		widest = max(widest, len(f.Check))
	}
	widest = min(widest, 36)
	indent := 6 + widest + 2
	if columns-indent < 30 {
		indent = 6
	}
	var b strings.Builder
	counts := map[doctor.Level]int{}
	for _, f := range list {
		counts[f.Level]++
		level := fmt.Sprintf("%-4s", f.Level)
		if color {
			level = "\x1b[" + colors[f.Level] + "m" + level + "\x1b[0m"
		}
		fmt.Fprintf(&b, "%s  ", level)
		text := wrap(f.Text, columns-indent)
		if indent == 6 || len(f.Check) > widest {
			fmt.Fprintf(&b, "%s\n%s", f.Check, strings.Repeat(" ", indent))
		} else {
			fmt.Fprintf(&b, "%-*s  ", widest, f.Check)
		}
		pad := "\n" + strings.Repeat(" ", indent)
		b.WriteString(strings.Join(text, pad))
		if f.Remedy != "" {
			b.WriteString(pad + "-> " + strings.Join(wrap(f.Remedy, columns-indent-3), pad+"   "))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "\n%d OK, %d warnings, %d failed", counts[doctor.OK], counts[doctor.Warn], counts[doctor.Fail])
	if n := counts[doctor.Skip]; n > 0 {
		fmt.Fprintf(&b, ", %d not looked at", n)
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

// wrap breaks text at blanks. A word that is longer than a line stays whole, so
// that it can be copied.
func wrap(text string, columns int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) <= columns:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}
