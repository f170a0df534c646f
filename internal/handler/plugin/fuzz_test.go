//go:build unix

package plugin

import (
	"bytes"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/billhook/billhook/internal/handler/exchange"
)

// FuzzOutput: whatever a plugin writes becomes log lines that are fit to be seen, and
// nothing of it ends Billhook.
func FuzzOutput(f *testing.F) {
	for _, seed := range []string{
		"", "plain\n", "[WARN] x\r\n", "ERROR:root:x", "panic: x\n\ngoroutine 1 [running]:\n",
		`{"@level":"info","@message":"m","@timestamp":"2026-11-23T10:15:00.000000Z","a":1,"b":{"c":[1,2]}}`,
		`{"@message":5,"@level":[],"@timestamp":{}}`, `{"@message":"m","@level":7}`, "{", "{}", "\xff\x00\x1b[2J", "[", "[WARN", "1|1|unix|x|grpc|y",
		strings.Repeat("x", maxLogLine+5) + "\nnext\n", "a secret s3cr3t\n", `{"@message":"s3cr3t","s3cr3t":"s3cr3t"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var log bytes.Buffer
		var mask atomic.Pointer[exchange.Mask]
		mask.Store(exchange.NewMask("s3cr3t"))
		o := newOutput(slog.New(slog.NewTextHandler(&log, nil)), &mask, func() string { return "p" }, func() {})
		o.copy(bytes.NewReader(b), true)
		_, _ = o.Write(b)
		if !utf8.Valid(log.Bytes()) || bytes.ContainsFunc(log.Bytes(), func(r rune) bool { return unicode.IsControl(r) && r != '\n' }) {
			t.Errorf("logged %q", log.Bytes())
		}
		if bytes.Contains(log.Bytes(), []byte("s3cr3t")) {
			t.Errorf("the secret is logged: %s", log.Bytes())
		}
		_ = o.lastWords()
		_ = judgeHandshake("/p", string(b), o)
	})
}
