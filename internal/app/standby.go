package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/billhook/billhook/internal/doctor"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/web"
)

// standbyPoll is how often a standby looks whether the journal is free. To look is to
// ask for the lock of one file.
const standbyPoll = 250 * time.Millisecond

// New opens the journal, makes the handlers and attaches to the database. After
// an error nothing stays open. With Options.Standby it waits, as long as ctx lasts, for a
// journal that another process has, and then loads the files anew: they may have been
// changed meanwhile.
func New(ctx context.Context, l *Loaded) (*App, error) {
	if !l.Options.Standby {
		return open(ctx, l)
	}
	for {
		waited, err := l.await(ctx)
		if err != nil {
			return nil, err
		}
		if waited {
			if l, err = Load(l.Options); err != nil {
				return nil, err
			}
		}
		a, err := open(ctx, l)
		if !errors.Is(err, journal.ErrInUse) {
			return a, err
		}
		// Another one that waited was faster, or who has it cannot be seen from here.
		select {
		case <-ctx.Done():
			return nil, stoppedWaiting(ctx, l.Config.Journal.Path)
		case <-time.After(standbyPoll):
		}
	}
}

func stoppedWaiting(ctx context.Context, path string) error {
	return fmt.Errorf("stopped while waiting for the journal in %s: %w", path, context.Cause(ctx))
}

// await returns when nobody has the journal. Until then it answers at http.listen that it
// is alive and not ready.
func (l *Loaded) await(ctx context.Context) (waited bool, err error) {
	path := l.Config.Journal.Path
	holder := doctor.Holder(path)
	if holder == "" {
		return false, nil
	}
	log := l.Options.Logger
	if log == nil {
		log = logger(l.Config.Log, new(slog.LevelVar))
	}
	access := credentials(l.Config)
	listener := l.Options.Listener
	if listener == nil {
		if listener, err = listen(ctx, l.Config, access); err != nil {
			return false, err
		}
		defer listener.Close()
	}
	var text atomic.Pointer[string]
	say := func(holder string) {
		s := fmt.Sprintf("standby: %s has the journal in %s", holder, path)
		if old := text.Load(); old == nil || *old != s {
			text.Store(&s)
			log.Info("standby: waiting for the journal", "path", path, "holder", holder)
		}
	}
	say(holder)
	registry := newRegistry(l.Options.Version)
	replication.MeasureStandby(registry)
	stop := serveStandby(listener, web.Standby(web.Options{
		Ready:    func() []web.Check { return []web.Check{{Name: "standby", Text: *text.Load()}} },
		Gatherer: registry, Version: l.Options.Version, Access: access, Logger: log,
	}))
	defer stop()
	tick := time.NewTicker(standbyPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, stoppedWaiting(ctx, path)
		case <-tick.C:
		}
		if holder = doctor.Holder(path); holder == "" {
			log.Info("the journal is free, taking over", "path", path)
			return true, nil
		}
		say(holder)
	}
}

// serveStandby serves h until stop is called, which leaves the listener open.
func serveStandby(l net.Listener, h http.Handler) (stop func()) {
	kept := &keptListener{Listener: l}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(kept) // it ends when it is closed
	}()
	return func() {
		_ = srv.Close() // whoever asks is told again
		<-done
		if d, ok := l.(interface{ SetDeadline(time.Time) error }); ok {
			_ = d.SetDeadline(time.Time{}) // or nobody will be accepted, which shows
		}
	}
}

// keptListener ends waiting for connections when it is closed, and can be used again.
type keptListener struct{ net.Listener }

func (k *keptListener) Close() error {
	if d, ok := k.Listener.(interface{ SetDeadline(time.Time) error }); ok {
		return d.SetDeadline(time.Unix(1, 0))
	}
	return k.Listener.Close()
}
