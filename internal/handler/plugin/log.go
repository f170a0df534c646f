//go:build unix

package plugin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"

	"github.com/billhook/billhook/internal/handler/exchange"
)

const (
	maxLogLine   = 16 << 10 // bytes of a line that a plugin writes
	maxLogText   = 4 << 10  // bytes of a text that is logged of it
	maxLogValues = 32       // values beside it
	logRate      = 100      // lines per second that are kept, and
	logBurst     = 1000     // that many at once
	keptLines    = 20       // last lines, for when it dies
)

// output makes log lines of what a plugin writes.
type output struct {
	log     *slog.Logger
	mask    *atomic.Pointer[exchange.Mask]
	name    func() string
	dropped func()
	limit   *rate.Limiter

	mu      sync.Mutex // guards what follows
	last    []string   // lines of standard error, the newest last
	panics  bool       // within what a Go program prints when it panics
	missing int64      // lines dropped since the last that was kept
}

func newOutput(log *slog.Logger, mask *atomic.Pointer[exchange.Mask], name func() string, dropped func()) *output {
	return &output{log: log, mask: mask, name: name, dropped: dropped, limit: rate.NewLimiter(logRate, logBurst)}
}

// copy reads lines until r ends, cutting long ones.
func (o *output) copy(r io.Reader, keep bool) {
	b := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, err := b.ReadSlice('\n')
		line = bytes.TrimRight(line, "\r\n")
		cut := false
		for err == bufio.ErrBufferFull {
			if !cut {
				line = bytes.Clone(line)
				cut = true
			}
			_, err = b.ReadSlice('\n')
		}
		if len(line) > 0 {
			o.line(line, keep)
		}
		if err != nil {
			return
		}
	}
}

// Write takes what go-plugin reads of what a plugin prints.
func (o *output) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		if line = bytes.TrimRight(line, "\r\n"); len(line) > 0 {
			o.line(line[:min(len(line), maxLogLine)], false)
		}
	}
	return len(b), nil
}

// line logs one line. Keep is for standard error, whose last lines explain an end.
func (o *output) line(line []byte, keep bool) {
	level, text, values := o.parse(line)
	o.mu.Lock()
	if keep {
		if len(o.last) == keptLines {
			o.last = slices.Delete(o.last, 0, 1)
		}
		o.last = append(o.last, text[:min(len(text), maxLogText)])
	}
	if !o.limit.Allow() {
		o.missing++
		o.mu.Unlock()
		o.dropped()
		return
	}
	missing := o.missing
	o.missing = 0
	o.mu.Unlock()
	if missing > 0 {
		o.log.Warn("a plugin writes faster than its lines are kept", "plugin", o.name(), "dropped", missing)
	}
	if !o.log.Enabled(context.Background(), level) {
		return
	}
	mask := o.mask.Load()
	attrs := []slog.Attr{slog.String("plugin", o.name())}
	for _, v := range values {
		attrs = append(attrs, slog.String("plugin_"+mask.Line(v.name, 100), mask.Line(v.text, maxLogText)))
	}
	o.log.LogAttrs(context.Background(), level, mask.Line(text, maxLogText), attrs...)
}

// lastWords is the line that explains best why the process ended; empty if none does.
func (o *output) lastWords() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.last {
		if strings.HasPrefix(l, "panic: ") || strings.HasPrefix(l, "fatal error: ") {
			return l
		}
	}
	if len(o.last) == 0 {
		return ""
	}
	return o.last[len(o.last)-1]
}

// forget drops what an earlier process wrote.
func (o *output) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last, o.panics = nil, false
}

type value struct{ name, text string }

// parse takes a line apart: the JSON that hclog writes, or text that may begin with a
// level.
func (o *output) parse(line []byte) (slog.Level, string, []value) {
	if line[0] == '{' {
		if level, text, values, ok := parseJSON(line); ok {
			return level, text, values
		}
	}
	text := string(line)
	o.mu.Lock()
	defer o.mu.Unlock()
	if strings.HasPrefix(text, "panic: ") || strings.HasPrefix(text, "fatal error: ") {
		o.panics = true
	}
	if o.panics {
		return slog.LevelError, text, nil
	}
	return prefixLevel(text), text, nil
}

// parseJSON reads a line with "@message" and "@level". Nothing of it is taken for
// granted: any program may write anything.
func parseJSON(line []byte) (slog.Level, string, []value, bool) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	var m map[string]any
	if dec.Decode(&m) != nil {
		return 0, "", nil, false
	}
	text, ok := m["@message"].(string)
	if !ok {
		return 0, "", nil, false
	}
	name, _ := m["@level"].(string)
	var values []value
	flatten("", m, &values)
	slices.SortFunc(values, func(a, b value) int { return strings.Compare(a.name, b.name) })
	return levelOf(name), text, values[:min(len(values), maxLogValues)], true
}

func flatten(at string, m map[string]any, to *[]value) {
	for name, v := range m {
		if at == "" && strings.HasPrefix(name, "@") {
			continue
		}
		switch v := v.(type) {
		case map[string]any:
			flatten(at+name+".", v, to)
		case string:
			*to = append(*to, value{at + name, v})
		case []any:
			b, _ := json.Marshal(v)
			*to = append(*to, value{at + name, string(b)})
		default:
			*to = append(*to, value{at + name, fmt.Sprint(v)})
		}
	}
}

func levelOf(name string) slog.Level {
	switch strings.ToLower(name) {
	case "trace", "debug":
		return slog.LevelDebug
	case "warn", "warning":
		return slog.LevelWarn
	case "error", "critical", "fatal":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// prefixLevel is the level that a line begins with, as in "[WARN] x" or "ERROR:root:x".
func prefixLevel(text string) slog.Level {
	text = strings.TrimLeft(text, "[")
	end := strings.IndexFunc(text, func(r rune) bool { return r < 'A' || r > 'Z' })
	if end < 4 || !strings.ContainsRune("]: ", rune(text[end])) {
		return slog.LevelInfo
	}
	return levelOf(text[:end])
}
