//go:build unix

package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/billhook/billhook/internal/handler/exchange"
)

// keeper keeps a plugin running, for all Handlers that share it. Its goroutine owns
// the process:
//
//	starting ──► running ──► (dead) ──► starting       at once, after a long run
//	    └──────────────────► waiting ──► starting      after a delay that grows
type keeper struct {
	opts    Options
	log     *slog.Logger
	out     *output
	folder  *folder // of its goroutine; nil for a plugin that was started by hand
	mask    atomic.Pointer[exchange.Mask]
	name    atomic.Pointer[string]
	secrets []string // of its goroutine: what the plugin last said is secret
	file    atomic.Pointer[fileStamp]
	calls   atomic.Int64 // numbers calls

	wanted   chan struct{} // closed when it is to be started
	wants    sync.Once
	cancel   context.CancelFunc
	done     chan struct{}
	tried    chan struct{} // closed after the first start
	firstErr error         // of it

	mu    sync.Mutex // guards what follows
	users int
	state state
}

// state is how the plugin is. One of its first two fields is set, or none while it is
// starting.
type state struct {
	instance *instance
	err      error         // why it is down
	until    time.Time     // when it is started again
	changed  chan struct{} // closed when another state follows
}

func newKeeper(o Options) *keeper {
	k := &keeper{
		opts: o, log: o.Logger.With("handler", o.HandlerID), wanted: make(chan struct{}),
		done: make(chan struct{}), tried: make(chan struct{}), users: 1, state: state{changed: make(chan struct{})},
	}
	k.mask.Store(configMask(nil, o.Config, nil))
	base := filepath.Base(o.Path)
	k.name.Store(&base)
	k.out = newOutput(k.log, &k.mask, func() string { return *k.name.Load() }, func() { o.Metrics.droppedLine(o.HandlerID) })
	if !o.Lazy {
		k.want()
	}
	var ctx context.Context
	ctx, k.cancel = context.WithCancel(context.Background())
	go k.run(ctx)
	return k
}

// want has the plugin started, if it is not yet.
func (k *keeper) want() { k.wants.Do(func() { close(k.wanted) }) }

// share counts one more user, unless there is none any more.
func (k *keeper) share() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.users == 0 {
		return false
	}
	k.users++
	return true
}

// release counts one user less, and ends the plugin with the last.
func (k *keeper) release() {
	k.mu.Lock()
	k.users--
	last := k.users == 0
	k.mu.Unlock()
	if last {
		k.cancel()
		<-k.done
	}
}

func (k *keeper) set(s state) {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.state.changed)
	s.changed = make(chan struct{})
	k.state = s
}

// running returns the instance that runs, or nil.
func (k *keeper) running() *instance {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state.instance
}

func (k *keeper) status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.wanted:
	default:
		return Status{}
	}
	if i := k.state.instance; i != nil {
		return Status{Wanted: true, Up: true, Name: i.name, Version: i.version, Since: i.since}
	}
	return Status{Wanted: true, Err: k.state.err}
}

// get returns the instance that runs, after waiting for one that is being started, as
// one that has just died will be. Its error is fit for people.
func (k *keeper) get(ctx context.Context) (*instance, error) {
	k.want()
	for {
		k.mu.Lock()
		s := k.state
		k.mu.Unlock()
		switch {
		case s.instance != nil && !s.instance.gone():
			return s.instance, nil
		case s.err != nil:
			if s.until.IsZero() {
				return nil, s.err
			}
			return nil, &failure{fmt.Sprintf("%v; it is started again in %s", s.err, max(time.Until(s.until), 0).Round(100*time.Millisecond)), s.err}
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			return nil, &failure{"plugin " + k.opts.Path + ": it is still being started", context.Cause(ctx)}
		}
	}
}

// run starts the plugin again and again until ctx ends.
func (k *keeper) run(ctx context.Context) {
	defer close(k.done)
	select {
	case <-k.wanted:
	case <-ctx.Done():
		k.firstErr = errClosed
		close(k.tried)
		k.set(state{err: errClosed})
		return
	}
	k.opts.Metrics.add(k)
	defer k.opts.Metrics.remove(k)
	defer func() {
		if k.folder != nil {
			k.folder.remove()
		}
	}()
	failures := 0
	began := uint64(time.Now().UnixNano())
	for first := true; ; {
		i, err := k.start(ctx)
		if ctx.Err() != nil {
			if i != nil {
				i.discard()
			}
			err = errClosed
		}
		// Whoever waits for the first start then finds what came of it.
		told := func(s state) {
			k.set(s)
			if first {
				k.firstErr = err
				close(k.tried)
				first = false
			}
		}
		if errors.Is(err, errClosed) {
			told(state{err: err})
			return
		}
		if err == nil {
			k.log.Info("plugin started", "plugin", i.name, "version", i.version)
			told(state{instance: i})
			reason := i.watch(ctx)
			if reason == "" {
				k.set(state{err: errClosed})
				i.discard()
				return
			}
			k.set(state{})
			err = i.died(reason)
			i.discard()
			if time.Since(i.since) >= k.opts.Steady {
				failures = 0
			}
			failures++
			k.opts.Metrics.restarted(k.opts.HandlerID, reason)
		} else {
			failures = max(failures+1, 2)
			k.opts.Metrics.restarted(k.opts.HandlerID, restartStart)
		}
		delay := k.opts.Restart.Delay(failures, began)
		k.log.Error("a plugin is down, and its attempts fail until it is up", "plugin", *k.name.Load(), "err", err, "again", delay.Round(time.Millisecond))
		if delay == 0 {
			told(state{})
			continue
		}
		told(state{err: err, until: time.Now().Add(delay)})
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			k.set(state{err: errClosed})
			return
		case <-timer.C:
		}
		k.set(state{})
	}
}

var errClosed = errors.New("the plugin was ended")

// died is why a plugin that ran is gone.
func (i *instance) died(reason string) error {
	path := i.keeper.opts.Path
	switch {
	case reason == restartHang:
		return fmt.Errorf("plugin %s was killed since it did not end a call that was given up", path)
	case reason == restartHealth && i.process != nil:
		return fmt.Errorf("plugin %s was killed since it did not say that it is well", path)
	case i.process == nil:
		return fmt.Errorf("plugin %s, which is being debugged, is gone", path)
	}
	return fmt.Errorf("plugin %s %s", path, i.process.end())
}
