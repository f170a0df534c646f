package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

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
			if err := checkOutput(output); err != nil {
				return err
			}
			list, ended := app.Check(cmd.Context(), app.Options{ConfigPath: f.config, HandlersPath: f.handlers, Version: buildVersion(), Launcher: launcher()})
			var err error
			if output != "table" {
				err = encodeFindings(cmd.OutOrStdout(), output, list)
			} else {
				err = printFindings(cmd.OutOrStdout(), list, width(os.Stdout), terminal(os.Stdout))
			}
			switch {
			case err != nil:
				return fmt.Errorf("print the findings: %w", err)
			case ended != nil:
				return errors.New("stopped before everything was looked at")
			case slices.ContainsFunc(list, func(f doctor.Finding) bool { return f.Level == doctor.Fail }):
				return silentError{errors.New("a check failed")}
			}
			return nil
		},
	}
	f.flags(cmd.Flags())
	outputFlag(cmd.Flags(), &output)
	return cmd
}

// counts are how many findings there are of each level.
type counts struct {
	OK   int `json:"ok"`
	Warn int `json:"warn"`
	Fail int `json:"fail"`
	Skip int `json:"skip"`
}

func count(list []doctor.Finding) (c counts) {
	for _, f := range list {
		switch f.Level {
		case doctor.OK:
			c.OK++
		case doctor.Warn:
			c.Warn++
		case doctor.Fail:
			c.Fail++
		case doctor.Skip:
			c.Skip++
		}
	}
	return c
}

// String returns "12 OK, 1 warning, 2 failed, 3 not looked at".
func (c counts) String() string {
	s := fmt.Sprintf("%d OK, %d warnings, %d failed", c.OK, c.Warn, c.Fail)
	if c.Warn == 1 {
		s = fmt.Sprintf("%d OK, 1 warning, %d failed", c.OK, c.Fail)
	}
	if c.Skip > 0 {
		s += fmt.Sprintf(", %d not looked at", c.Skip)
	}
	return s
}

func encodeFindings(w io.Writer, output string, list []doctor.Finding) error {
	return printData(w, output, struct {
		Findings []doctor.Finding `json:"findings"`
		Counts   counts           `json:"counts"`
	}{list, count(list)})
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

// printFindings writes a row per finding, wrapped under itself, with its remedy
// below, and the counts at the end.
func printFindings(w io.Writer, list []doctor.Finding, columns int, color bool) error {
	colors := map[doctor.Level]string{doctor.OK: "32", doctor.Warn: "33", doctor.Fail: "31", doctor.Skip: "2"}
	widest := 0
	for _, f := range list {
		widest = max(widest, utf8.RuneCountInString(f.Check))
	}
	widest = min(widest, 38)
	indent := 6 + widest + 2
	narrow := columns-indent < 34 // then the text goes below the check
	if narrow {
		indent = 6
	}
	var b strings.Builder
	for _, f := range list {
		level := fmt.Sprintf("%-4s", f.Level)
		if color {
			level = "\x1b[" + colors[f.Level] + "m" + level + "\x1b[0m"
		}
		b.WriteString(level + "  " + f.Check)
		pad := "\n" + strings.Repeat(" ", indent)
		if room := widest - utf8.RuneCountInString(f.Check); narrow || room < 0 {
			b.WriteString(pad)
		} else {
			b.WriteString(strings.Repeat(" ", room+2))
		}
		b.WriteString(strings.Join(wrap(f.Text, columns-indent), pad))
		if f.Remedy != "" {
			b.WriteString(pad + "-> " + strings.Join(wrapRemedy(f.Remedy, columns-indent-3), pad+"   "))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "\n%s\n", strings.Join(wrap(count(list).String(), columns), "\n"))
	_, err := io.WriteString(w, b.String())
	return err
}

// wrap breaks text at blanks. A word that is longer than a line stays whole, so
// that it can be copied.
func wrap(text string, columns int) []string {
	return fill(strings.Fields(text), columns, "")
}

func fill(words []string, columns int, again string) []string {
	var lines []string
	line := ""
	for _, word := range words {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= columns:
			line += " " + word
		default:
			lines = append(lines, line)
			line = again + word
		}
	}
	return append(lines, line)
}

// wrapRemedy wraps each line by itself, in such a way that it means the same when
// it is copied: a comment goes on as a comment, and nothing in quotes is broken.
func wrapRemedy(text string, columns int) []string {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		words := unbroken(line)
		i := slices.IndexFunc(words, func(w string) bool { return w == "--" || w == "#" })
		if i < 0 {
			out = append(out, fill(words, room(line, columns), "")...)
			continue
		}
		again := words[i] + " "
		head := fill(words[:i], room(line, columns), "")
		tail := fill(words[i:], columns, again)
		last := head[len(head)-1]
		switch {
		case i == 0:
			out = append(out, tail...)
		case len(tail) == 1 && utf8.RuneCountInString(last)+1+utf8.RuneCountInString(tail[0]) <= columns:
			out = append(out, head[:len(head)-1]...)
			out = append(out, last+" "+tail[0])
		default:
			out = append(append(out, head...), tail...)
		}
	}
	return out
}

// room is how wide a line may be: what a shell or pg_hba.conf is given is one line.
func room(line string, columns int) int {
	first, _, _ := strings.Cut(line, " ")
	switch first {
	case "sudo", "chmod", "chown", "sed", "ss", "psql", "host":
		return math.MaxInt
	}
	return columns
}

// unbroken splits at blanks outside of quotes. A quote that is never closed is an
// apostrophe.
func unbroken(line string) []string {
	var words []string
	start, quoted := -1, byte(0)
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quoted != 0:
			if c == quoted {
				quoted = 0
			}
			continue
		case c == ' ':
			if start >= 0 {
				words = append(words, line[start:i])
				start = -1
			}
			continue
		case (c == '\'' || c == '"') && strings.IndexByte(line[i+1:], c) >= 0 && (start < 0 || !letter(line[i-1])):
			quoted = c
		}
		if start < 0 {
			start = i
		}
	}
	if start >= 0 {
		words = append(words, line[start:])
	}
	return words
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
