// Package app builds Billhook of its parts and runs it: one straight function
// puts everything together, Run blocks, and stopping goes in reverse order. It is
// the only package that knows the configuration files.
//
// It promises that a start either succeeds or ends with one clear error and
// nothing half done; that a bad handlers.yaml never replaces a good one; and that
// Run returns only when all that it started has ended.
//
// Start with Load and App.Run.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/backfill"
	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/dispatch"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler/plugin"
	"github.com/billhook/billhook/internal/intake"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replay"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/snapshot"
	"github.com/billhook/billhook/internal/replication/writeback"
	"github.com/billhook/billhook/internal/web"
)

// Options of Load.
type Options struct {
	ConfigPath   string
	HandlersPath string
	Version      string
	Env          config.Lookup // nil: the process environment
	Logger       *slog.Logger  // nil: by the log section of the file, to standard error
	// Standby waits for a journal or a slot that somebody else has, instead of ending.
	Standby bool
	// Listener serves the HTTP face instead of http.listen.
	Listener net.Listener
	// Launcher is the command that starts scripts with limits, see script.Options.
	Launcher string

	journal func(*journal.Options) // for tests: what the journal stands on
	plugins *pluginHost            // nil: plugins are only judged
}

// Loaded is a configuration that has been read and judged, with nothing opened
// yet.
type Loaded struct {
	Options  Options
	Config   *config.Billhook
	Handlers *config.Handlers
	Mapping  billing.Mapping
}

// Load reads both files and judges all of them that can be judged without a
// database. Its error names each mistake on a line of its own.
func Load(o Options) (*Loaded, error) {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	b, err := config.LoadBillhook(o.ConfigPath, o.Env)
	if err != nil {
		return nil, err
	}
	m, errMapping := mapping(b)
	h, errHandlers := config.LoadHandlers(o.HandlersPath, o.Env, b)
	if err := errors.Join(errMapping, errHandlers); err != nil {
		return nil, err
	}
	if _, err := billing.New(m, billing.Options{}); err != nil {
		return nil, b.At("entities").Problem(err.Error(), "correct the mapping")
	}
	return &Loaded{Options: o, Config: b, Handlers: h, Mapping: m}, nil
}

// logger makes the logger that the file asks for. What it logs from level on can be
// changed.
func logger(l config.Log, level *slog.LevelVar) *slog.Logger {
	level.Set(levelOf(l.Level))
	o := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o))
}

// levelOf is a level of the file's; the loader allows only good ones.
func levelOf(name string) (level slog.Level) {
	_ = level.UnmarshalText([]byte(name))
	return level
}

// App is a Billhook that is ready to run.
type App struct {
	loaded    *Loaded
	log       *slog.Logger
	level     logLevel
	diagnoses diagnoses
	metrics   *metrics

	journal    *journal.Journal
	dispatcher *dispatch.Dispatcher
	client     *replication.Client
	intake     *intake.Intake
	backfills  *backfill.Backfills
	replays    *replay.Replays
	web        *web.Server
	listener   net.Listener

	writes   *writeBack
	handlers atomic.Pointer[[]*dispatch.Handler]
	shown    atomic.Pointer[[]web.Handler]
	inForce  atomic.Pointer[config.Handlers]
	defined  map[int]defined // of the reloading goroutine
	reload   atomic.Pointer[reloadState]
	reloads  chan chan<- error // asks for one, and is told how it went
	editing  sync.Mutex        // one at a time changes handlers.yaml
	tail     tail
	started  time.Time
	fillErr  atomic.Pointer[string]
	healed   []Healed // when it was started
	sent     *sent    // of Client's looking goroutine
	missed   atomic.Pointer[Missed]
}

// open is New without waiting.
func open(ctx context.Context, l *Loaded) (_ *App, err error) {
	c := l.Config
	a := &App{loaded: l, log: l.Options.Logger, reloads: make(chan chan<- error), started: time.Now()}
	if a.log == nil {
		a.log = logger(c.Log, &a.level.v)
		a.level.log, a.level.usual = a.log, levelOf(c.Log.Level)
	}
	registry := newRegistry(l.Options.Version)
	a.metrics = newMetrics(registry)

	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()

	access := credentials(c)
	a.listener = l.Options.Listener
	if a.listener == nil {
		if a.listener, err = listen(ctx, c, access); err != nil {
			return nil, err
		}
	}
	undo = append(undo, func() { _ = a.listener.Close() })

	a.writes = newWriteBack(l.Mapping, c.EventTypes())
	a.writes.log, a.writes.total = a.log, a.metrics.writeBack
	l.Options.plugins = &pluginHost{ctx: ctx, log: a.log, metrics: plugin.NewMetrics(registry)}
	definedNow, made, err := build(l.Handlers, nil, columnsOf(l.Mapping), a.writes, l.Options)
	if err != nil {
		return nil, err
	}
	owned := false // the dispatcher closes handlers once it has them
	undo = append(undo, func() {
		for _, h := range made {
			if h.Call != nil && !owned {
				_ = h.Call.Close()
			}
		}
	})

	undoJournal := journalUndo(c.Journal.Path)
	options := journal.Options{
		Path: c.Journal.Path, Retention: c.Journal.Retention,
		Logger: a.log, Registerer: registry,
		OnDurable: func(q []journal.Queued) { a.dispatcher.Enqueue(q) },
	}
	if l.Options.journal != nil {
		l.Options.journal(&options)
	}
	a.journal, err = journal.Open(options)
	if err != nil {
		return nil, err
	}
	position, attached := a.journal.Position()
	if !attached {
		undo = append(undo, undoJournal) // after Close: no one else had the folder
	}
	undo = append(undo, func() { _ = a.journal.Close() })
	b := a.journal.NewBatch()
	a.healed, err = readHealed(b)
	if err == nil {
		err = a.readMissed(b)
	}
	b.Discard()
	if err != nil {
		return nil, err
	}

	writeKey, err := intake.WriteKey(a.journal)
	if err != nil {
		return nil, err
	}
	a.writes.writer, err = writeback.New(writeback.Options{
		DSN: c.Source.DSN.Reveal(), Slot: c.Source.Slot, Key: writeKey,
		Render: func(typeOID uint32, text []byte) []byte { return billing.AppendValue(nil, typeOID, text) },
	})
	if err != nil {
		return nil, err
	}

	a.dispatcher, err = dispatch.New(dispatch.Options{
		Store: a.journal, Logger: a.log, Registerer: registry, Workers: c.Dispatch.Concurrency, Grace: c.Dispatch.Grace,
	})
	if err != nil {
		return nil, err
	}

	if attached && (position.Slot != c.Source.Slot || position.Publication != c.Source.Publication) {
		return nil, c.At("source.slot").Problem(
			fmt.Sprintf("the journal in %s belongs to slot %q and publication %q, not to %q and %q", c.Journal.Path, position.Slot, position.Publication, c.Source.Slot, c.Source.Publication),
			"name those, or give another journal.path")
	}
	resume := replication.Position{}
	if attached {
		resume = replication.Position{
			SystemID: position.SystemID, Timeline: position.Timeline, Slot: position.Slot,
			Publication: position.Publication, PublicationOID: position.PublicationOID, LSN: position.EndLSN,
		}
	}
	var before *catalog.Publication
	if a.sent != nil {
		before = &a.sent.Publication
	}
	a.client, err = replication.New(replication.Options{
		Sent: before, Looked: a.looked,
		DSN: c.Source.DSN.Reveal(), Slot: c.Source.Slot, Publication: c.Source.Publication,
		Resume: resume, Tables: tables(l.Mapping), Create: c.Source.Create, Failover: c.Source.Failover, Logger: a.log, Registerer: registry,
	})
	if err != nil {
		return nil, err
	}
	a.intake, err = intake.New(intake.Options{
		Journal: a.journal, Mapping: l.Mapping, Plan: a.plan, Wants: a.wants, Types: eventTypes(c), WriteKey: writeKey,
		FillRate: float64(c.Source.FillRate.Count) / c.Source.FillRate.Per.Seconds(),
		Confirm:  a.client.Confirm, Clock: a.client.Clock(), Logger: a.log, Registerer: registry,
	})
	if err != nil {
		return nil, err
	}
	a.backfills, err = backfill.New(ctx, backfill.Options{
		Journal: a.journal, Mapping: l.Mapping, Intake: a.intake, Publication: c.Source.Publication,
		Open: func(ctx context.Context) (*snapshot.Reader, error) { return snapshot.Open(ctx, c.Source.DSN.Reveal()) },
		Plan: a.plan, Handlers: a.listeners, Resolve: resolver(c), Logger: a.log, Registerer: registry,
	})
	if err != nil {
		return nil, err
	}
	a.replays, err = replay.New(replay.Options{
		Journal: a.journal, Enqueue: a.dispatcher.Enqueue, Handlers: a.replayable, Resolve: resolver(c), Logger: a.log, Registerer: registry,
	})
	if err != nil {
		return nil, err
	}
	// The last that can fail: what it makes in the database is not taken back later.
	if err = a.attach(ctx, attached); err != nil {
		return nil, err
	}
	owned = true
	a.use(l.Handlers, definedNow, made)
	a.metrics.reloaded(nil)

	var level web.LogLevel
	if a.level.log != nil { // the log is ours
		level = &a.level
	}
	o := web.Options{
		Journal: a.journal, Handlers: a.faring, Diagnose: a.diagnose, Diagnosis: a.diagnoses.last.Load, Changes: func() (any, error) { return a.pending() }, LogLevel: level,
		Status: a.status, Backfills: a.backfills, Replays: a.replays, Try: a.try, Tail: a.tail.watch,
		Ready: a.Ready, Live: a.journal.Err, Gatherer: registry, Version: l.Options.Version, Access: access, Logger: a.log,
	}
	switch edit := l.Config.HTTP.EditHandlers; {
	case edit == nil:
		o.SetStatus = a.setStatus
		if len(access) > 0 {
			o.Editor = &editor{App: a}
		}
	case *edit:
		o.SetStatus, o.Editor = a.setStatus, &editor{App: a}
	}
	a.web = web.New(o)
	return a, nil
}

// credentials are who may ask over HTTP.
func credentials(c *config.Billhook) (access []web.Credential) {
	for _, t := range c.HTTP.Tokens {
		access = append(access, web.Credential{Name: t.Name, Token: t.Token.Reveal(), Operator: t.Role == config.Operator})
	}
	for _, u := range c.HTTP.Users {
		access = append(access, web.Credential{Name: u.Name, Password: u.Password.Reveal(), Operator: u.Role == config.Operator})
	}
	return access
}

// listenPatience is how long an address that is in use is tried again: a process
// that was killed in the middle of starting a script leaves its address in use for
// some milliseconds.
const listenPatience = time.Second

// listen opens the address of the HTTP face.
func listen(ctx context.Context, c *config.Billhook, access []web.Credential) (net.Listener, error) {
	for deadline := time.Now().Add(listenPatience); ; {
		l, err := web.Listen(c.HTTP.Listen, access)
		if err == nil {
			return l, nil
		}
		var op *net.OpError
		if !errors.As(err, &op) {
			return nil, err
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) || ctx.Err() != nil {
			return nil, c.At("http.listen").Problem(fmt.Sprintf("cannot listen on %s: %v", c.HTTP.Listen, op.Err), "choose another address, or end the process that has this one")
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// Address is where the HTTP face listens.
func (a *App) Address() net.Addr { return a.listener.Addr() }

func eventTypes(c *config.Billhook) []event.Type {
	var types []event.Type
	for _, t := range c.EventTypes() {
		types = append(types, event.Type(t.Name))
	}
	return types
}

// listeners are the handlers as a backfill must know them.
func (a *App) listeners() []backfill.Handler {
	var out []backfill.Handler
	for _, h := range *a.handlers.Load() {
		out = append(out, backfill.Handler{ID: h.ID, Listens: h.Matches, Gone: h.Status == dispatch.Archived})
	}
	return out
}

// replayable are the handlers as a replay must know them.
func (a *App) replayable() []replay.Handler {
	var out []replay.Handler
	for _, h := range *a.handlers.Load() {
		out = append(out, replay.Handler{ID: h.ID, Gone: h.Status == dispatch.Archived})
	}
	return out
}

// resolver turns what people call an event, or several, into event types.
func resolver(c *config.Billhook) func(name string) []event.Type {
	types := c.EventTypes()
	return func(name string) (out []event.Type) {
		canonical, ok := config.ResolveEvent(types, name)
		if !ok {
			return nil
		}
		for _, t := range types {
			if config.MatchEvent(canonical, t.Name) {
				out = append(out, event.Type(t.Name))
			}
		}
		return out
	}
}

// use puts handlers into force for new events and for those that wait.
func (a *App) use(h *config.Handlers, d map[int]defined, made []*dispatch.Handler) {
	rows := shown(h)
	a.defined = d
	a.handlers.Store(&made)
	a.shown.Store(&rows)
	a.inForce.Store(h)
	a.dispatcher.SetHandlers(made)
}

func (a *App) plan(e *event.Event) []journal.Planned {
	planned, err := dispatch.Plan(*a.handlers.Load(), e)
	if err != nil {
		a.log.Warn("condition of a handler cannot be judged", "event", e.ID.String(), "err", err)
	}
	if a.tail.active() {
		a.tail.tell(e, planned)
	}
	return planned
}

func (a *App) wants(t event.Type) bool {
	if a.tail.active() {
		return true
	}
	for _, h := range *a.handlers.Load() {
		if h.Status != dispatch.Archived && h.Matches(t) {
			return true
		}
	}
	return false
}

// Run runs until ctx ends or something fails that a restart may cure. What ends
// by itself, in the order it was started: the stream, so that nothing more comes
// in; intake, when all that came is durable; the dispatcher, when running attempts
// have ended; the HTTP face; the journal.
func (a *App) Run(ctx context.Context) error {
	background := context.WithoutCancel(ctx)
	failed := make(chan error, 8)
	start := func(name string, run func(context.Context) error) (stop func()) {
		ctx, cancel := context.WithCancel(background)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
		return func() { cancel(); wg.Wait() }
	}

	stopWeb := start("http", func(ctx context.Context) error { return a.web.Run(ctx, a.listener) })
	stopDispatch := start("dispatch", a.dispatcher.Run)
	chunks := make(chan *replication.Chunk)
	stopIntake := start("intake", func(ctx context.Context) error { return a.intake.Run(ctx, chunks) })
	stopStream := start("replication", func(ctx context.Context) error {
		if err := a.client.Run(ctx, chunks); err != nil {
			// Only a person can help. Handlers go on, and health and metrics tell.
			a.log.Error("replication has stopped; no new events come in until this is cured and billhook is started again", "err", err)
		}
		return nil
	})
	stopFill := start("fill", a.fill)
	stopBackfill := start("backfill", a.backfills.Run)
	stopReplay := start("replay", a.replays.Run)
	stopReload := start("reload", a.watch)
	stopDiagnose := start("check", a.diagnoseNow)
	stopRetention := start("retention", a.expire)
	stopHistory := start("history", a.saveHistory)

	var err error
	select {
	case <-ctx.Done():
		a.log.Info("stopping")
	case err = <-failed:
		a.log.Error("stopping after a failure", "err", err)
	case <-a.journal.Stopped():
		err = a.journal.Err() // only opening it anew can cure that
		a.log.Error("stopping after a failure", "err", err)
	}
	stopReload()
	stopDiagnose()
	stopRetention()
	stopReplay()
	stopBackfill()
	stopFill()
	stopStream()
	stopIntake()
	stopDispatch()
	stopHistory()
	a.writes.writer.Close()
	stopWeb()
	if closeErr := a.journal.Close(); closeErr != nil {
		err = errors.Join(err, closeErr)
	}
	select {
	case also := <-failed:
		err = errors.Join(err, also)
	default:
	}
	if err == nil {
		a.log.Info("stopped")
	}
	return err
}

// fill brings the rows that were there before into memory, trying again for ever, and
// again when a table has changed so that other things are to be remembered.
func (a *App) fill(ctx context.Context) error {
	wait := time.Second
	for {
		err := a.fillOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			a.fillErr.Store(nil)
			wait = time.Second
			select {
			case <-a.intake.Refill():
				a.log.Info("a table has changed, looking whether its rows are to be remembered otherwise")
			case <-ctx.Done():
				return nil
			}
			continue
		}
		text := err.Error()
		a.fillErr.Store(&text)
		a.log.Warn("memory cannot be filled from the tables, trying again", "err", err, "in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, time.Minute)
	}
}

func (a *App) fillOnce(ctx context.Context) error {
	reader, err := snapshot.Open(ctx, a.loaded.Config.Source.DSN.Reveal())
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = reader.Close(closing) // nothing is pending on it
	}()
	return a.intake.Fill(ctx, reader, a.loaded.Config.Source.Publication)
}

// expire drops what retention no longer keeps, now and then.
func (a *App) expire(ctx context.Context) error {
	t := time.NewTicker(10 * time.Minute)
	defer t.Stop()
	for {
		if n, err := a.journal.Expire(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("old executions cannot be dropped", "err", err)
		} else if n > 0 {
			a.log.Info("old executions dropped", "executions", n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// saveHistory makes what the charts show durable, so that they outlive a restart.
func (a *App) saveHistory(ctx context.Context) error {
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		if err := a.journal.SaveHistory(); err != nil && a.journal.Err() == nil {
			a.log.Warn("what the charts show cannot be saved", "err", err)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// Counts returns how many executions each handler has in each status.
func (a *App) Counts() map[journal.HandlerStatus]int64 { return a.journal.Counts() }
