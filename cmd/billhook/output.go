package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"
)

// outputFlag adds --output, checkOutput judges it.
func outputFlag(fs *pflag.FlagSet, output *string) {
	fs.StringVar(output, "output", "table", "table for people, json or yaml for scripts")
}

func checkOutput(output string) error {
	if output != "table" && output != "json" && output != "yaml" {
		return usageError{fmt.Errorf("--output %s: want table, json or yaml", output)}
	}
	return nil
}

// printData writes v for scripts: as JSON, or as YAML with the same names.
func printData(w io.Writer, output string, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	if output != "yaml" {
		_, err := w.Write(b.Bytes())
		return err
	}
	d := json.NewDecoder(&b)
	d.UseNumber()
	n, err := yamlOf(d)
	if err != nil {
		return err
	}
	y := yaml.NewEncoder(w)
	y.SetIndent(2)
	return errors.Join(y.Encode(n), y.Close())
}

// yamlOf reads a JSON value; names keep their order and numbers their digits.
func yamlOf(d *json.Decoder) (*yaml.Node, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	n := &yaml.Node{Kind: yaml.ScalarNode}
	switch t := t.(type) {
	case json.Delim:
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		if t == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
		}
		for d.More() { // names and values by turns
			below, err := yamlOf(d)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, below)
		}
		_, err = d.Token() // its end
	case string:
		n.Tag, n.Value = "!!str", t
	case json.Number:
		n.Tag, n.Value = "!!float", t.String()
		if !strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!int"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, err
}

// terminal reports a terminal that a line can be written anew on, and coloured.
func terminal(f *os.File) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(f)
}

// isTerminal reports a terminal.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ) // on every system that has terminals
	return err == nil
}

// tableWidth is how wide a table may be, 0 where it is not cut: in a file or a pipe.
func tableWidth() int {
	if terminal(os.Stdout) || os.Getenv("COLUMNS") != "" {
		return width(os.Stdout)
	}
	return 0
}

// printRows writes a table whose last column is cut to columns, 0 for no limit, and
// before it the widest of the others. What others have written is on one line and cannot
// command the terminal.
func printRows(w io.Writer, head []string, rows [][]string, columns int) error {
	const gap, least, leastLast = 2, 8, 12
	widths := make([]int, len(head))
	all := append([][]string{head}, rows...)
	for _, row := range all {
		for i := range row {
			row[i] = oneLine(row[i])
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	last := len(head) - 1
	if columns > 0 {
		room := columns - gap*last
		for _, n := range widths[:last] {
			room -= n
		}
		for ; room < min(leastLast, widths[last]); room++ {
			widest := 0
			for i, n := range widths[:last] {
				if n > widths[widest] {
					widest = i
				}
			}
			if widths[widest] <= least {
				break
			}
			widths[widest]--
		}
		widths[last] = max(min(widths[last], room), min(leastLast, widths[last]))
	}
	var b strings.Builder
	for _, row := range all {
		line := ""
		for i, text := range row {
			text = cutTo(text, widths[i])
			line += text + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+gap)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func cutTo(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:max(n-1, 0)]) + "…"
}

// oneLine makes of text a line that only shows.
func oneLine(text string) string { return strings.Join(strings.Fields(plain(text)), " ") }

// plain takes out of text what would command a terminal, but for line ends and tabs.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// progress shows how far long work is: on a terminal in one line that it writes anew,
// else in a line now and then.
type progress struct {
	w     io.Writer
	live  bool
	shown time.Time
	said  string
}

const (
	progressLive = 200 * time.Millisecond
	progressLine = 10 * time.Second
	progressBar  = 24 // characters
)

func newProgress(f *os.File) *progress {
	p := &progress{w: f, live: terminal(f)}
	if !p.live {
		p.shown = time.Now() // short work says nothing
	}
	return p
}

// at shows that n of about so many rows are done; of below n: it is not known how many
// there are.
func (p *progress) at(n, of int64, text string) {
	every := progressLine
	if p.live {
		every = progressLive
	}
	now := time.Now()
	if now.Sub(p.shown) < every {
		return
	}
	p.shown = now
	line := fmt.Sprintf("%d rows", n)
	if of > 0 && of >= n {
		share := float64(n) / float64(of)
		full := int(share * progressBar)
		line = fmt.Sprintf("%3.0f%% of about %d rows", 100*share, of)
		if p.live {
			line = "[" + strings.Repeat("#", full) + strings.Repeat("-", progressBar-full) + "] " + line
		}
	}
	if text != "" {
		line += ", " + text
	}
	if p.live {
		fmt.Fprint(p.w, "\r\x1b[K"+line)
	} else {
		fmt.Fprintln(p.w, line)
	}
	p.said = line
}

// end clears the line.
func (p *progress) end() {
	if p.live && p.said != "" {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
