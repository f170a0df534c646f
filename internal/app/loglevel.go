package app

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// logLevel is the least level that is logged: the usual one, or another for a while.
type logLevel struct {
	v     slog.LevelVar
	log   *slog.Logger
	usual slog.Level

	mu    sync.Mutex
	until time.Time // zero: until it is changed again
	back  *time.Timer
}

// Level returns the level in force, and until when; zero: until it is changed.
func (l *logLevel) Level() (level slog.Level, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.v.Level(), l.until
}

// SetLevel changes it, for as long as is said, after which the usual one is in force
// again; 0: until it is changed.
func (l *logLevel) SetLevel(level slog.Level, d time.Duration, by string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.back != nil {
		l.back.Stop()
	}
	l.until, l.back = time.Time{}, nil
	// Told at a level that is shown before or after.
	l.log.Log(context.Background(), max(l.v.Level(), slog.LevelInfo), "log level changed", "level", level.String(), "for", d.String(), "by", by)
	l.v.Set(level)
	if d <= 0 {
		return
	}
	l.until = time.Now().Add(d)
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.back != t {
			return // it was changed meanwhile
		}
		l.v.Set(l.usual)
		l.until, l.back = time.Time{}, nil
		l.log.Info("log level is the usual one again", "level", l.usual.String())
	})
	l.back = t
}
