package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// outputFlag adds --output, checkOutput judges it.
func outputFlag(fs *pflag.FlagSet, output *string) {
	fs.StringVar(output, "output", "table", "table for people, json for scripts")
}

func checkOutput(output string) error {
	if output != "table" && output != "json" {
		return usageError{fmt.Errorf("--output %s: want table or json", output)}
	}
	return nil
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
