//go:build unix

package plugin_test

import (
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
)

// lines keeps what is logged, and fails the test if the secret is in it.
type lines struct {
	t  *testing.T
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if strings.Contains(string(b), secret) {
		l.t.Errorf("the secret is logged: %s", b)
	}
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func logger(t *testing.T) *slog.Logger {
	t.Helper()
	l, _ := recorder(t)
	return l
}

func recorder(t *testing.T) (*slog.Logger, *lines) {
	t.Helper()
	l := &lines{t: t}
	t.Cleanup(func() {
		if t.Failed() {
			all := strings.Split(l.String(), "\n")
			for _, line := range all[max(len(all)-20, 0):] {
				t.Log("log: " + line[:min(len(line), 300)])
			}
		}
	})
	return slog.New(slog.NewTextHandler(io.Writer(l), &slog.HandlerOptions{Level: slog.LevelDebug})), l
}
