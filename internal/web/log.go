package web

import (
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
)

// LogLevel is the least level that is logged. Its methods may be called from any
// goroutine.
type LogLevel interface {
	// Level returns it, and until when it is in force; zero: until it is changed.
	Level() (level slog.Level, until time.Time)
	// SetLevel changes it for a while, 0: until it is changed again.
	SetLevel(level slog.Level, d time.Duration, by string)
}

// maxLogFor bounds for how long a level is changed: longer than that it belongs into
// the file.
const maxLogFor = 7 * 24 * time.Hour

func (s *Server) logLevel(w http.ResponseWriter, _ *http.Request) {
	level, until := s.opts.LogLevel.Level()
	shown := map[string]any{"level": strings.ToLower(level.String())}
	if !until.IsZero() {
		shown["until"] = until.UTC()
	}
	answer(w, http.StatusOK, shown)
}

func (s *Server) setLogLevel(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Level string `json:"level"`
		For   string `json:"for"` // a duration; empty: until it is changed again
	}
	if err := readBody(w, r, &asked); err != nil {
		fail(w, http.StatusBadRequest, "%v", err)
		return
	}
	var level slog.Level
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, asked.Level) || level.UnmarshalText([]byte(asked.Level)) != nil {
		fail(w, http.StatusUnprocessableEntity, "level %q: want debug, info, warn or error", asked.Level)
		return
	}
	var d time.Duration
	if asked.For != "" {
		var err error
		if d, err = time.ParseDuration(asked.For); err != nil || d <= 0 || d > maxLogFor {
			fail(w, http.StatusUnprocessableEntity, "for %q: want a duration such as 15m, of %v at most", asked.For, maxLogFor)
			return
		}
	}
	s.opts.LogLevel.SetLevel(level, d, whoOf(r).Name)
	s.act(r, "log level set", "level", asked.Level, "for", asked.For)
	s.logLevel(w, r)
}

func (s *Server) handlerChanges(w http.ResponseWriter, r *http.Request) {
	changes, err := s.opts.Changes()
	if err != nil {
		s.notDone(w, r, err)
		return
	}
	answer(w, http.StatusOK, map[string]any{"changes": changes})
}
