// Package backfill tells handlers of rows that were there before them: it reads an
// entity's tables in chunks while the stream runs, and has the events journaled that
// each row's present state stands for.
//
// It promises that a row's event stands in its lane where the row was so: after all
// that the stream told of it before, and before all that comes later, so that a handler
// that acts on what comes last is right. What stands in the journal of a chunk and how
// far the backfill is are one commit, so that one that was broken off goes on without a
// row told twice or left out. It promises to hold no transaction open between chunks, to
// keep to a rate, and to wait while its handlers are far behind.
//
// It does not know which events a row stands for (package billing), nor where the
// stream is (intake).
//
//	track ── mark ──► read at one moment ── mark ──► add what was not touched since
//	  ▲                                                      │ touched: read again
//	  └──────────────────────────────────────────────────────┘
//
// The first mark gives the transactions that the stream told of before Track the time to
// be seen by the moment, and if one of them is not all the same, the chunk is read again;
// the second makes sure that every one the moment saw has been told.
//
// Start with New, Backfills.Run and Backfills.Start.
package backfill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/intake"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replication/snapshot"
)

// Spec says what a backfill is to tell, and whom.
type Spec struct {
	Events   []event.Type `json:"events"`
	Handlers []int        `json:"handlers"`
	// Where is a condition over new, the row of the entity's own table; empty: all.
	Where string `json:"where,omitempty"`
	// Rate is how many executions are made per second; 0: as many as the handlers take.
	Rate float64 `json:"rate"`
	// DryRun counts and tells nobody.
	DryRun bool `json:"dry_run,omitempty"`
}

// State is what has become of a backfill.
type State string

// A backfill waits until the ones before it have ended. It is cancelled by people; it
// fails by what only people can cure.
const (
	Waiting   State = "waiting"
	Running   State = "running"
	Done      State = "done"
	Cancelled State = "cancelled"
	Failed    State = "failed"
)

// Ended reports whether nothing more will happen.
func (s State) Ended() bool { return s == Done || s == Cancelled || s == Failed }

// Status is how far a backfill is.
type Status struct {
	ID int `json:"id"`
	Spec
	State State `json:"state"`
	// Why it failed, or what it waits for.
	Why      string     `json:"why,omitempty"`
	Entity   string     `json:"entity"`
	Created  time.Time  `json:"created"`
	Finished *time.Time `json:"finished,omitempty"`
	Rows     int64      `json:"rows"` // read
	// RowsEstimated is about how many there are; -1: not known.
	RowsEstimated int64 `json:"rows_estimated"`
	// Told counts events by type, those that some handler is told of.
	Told map[event.Type]int64 `json:"told"`
	// Executions is how many were made, or would have been.
	Executions int64 `json:"executions"`
	// Samples are objects of the first events.
	Samples []string `json:"samples,omitempty"`
}

// ErrNotFound says that there is no such backfill, or that it is no longer kept.
var ErrNotFound = errors.New("no such backfill")

// InvalidError is a mistake in a Spec.
type InvalidError struct{ Text string }

func (e *InvalidError) Error() string { return e.Text }

// Handler is what a backfill must know of a handler.
type Handler struct {
	ID int
	// Listens reports whether the handler is told of events of a type at all.
	Listens func(event.Type) bool
	Gone    bool // archived
}

// Options of New. All but Logger and Registerer are required.
type Options struct {
	Journal     *journal.Journal
	Mapping     billing.Mapping
	Intake      *intake.Intake
	Publication string
	// Open connects to the source.
	Open func(context.Context) (*snapshot.Reader, error)
	// Plan says which executions an event has, of all handlers; Handlers which there are.
	Plan     func(*event.Event) []journal.Planned
	Handlers func() []Handler
	// Resolve turns a name or an alias of an event type into event types.
	Resolve    func(name string) []event.Type
	Logger     *slog.Logger
	Registerer prometheus.Registerer

	rows int // for tests: of a chunk
}

// DefaultRate is the rate, in executions per second, when nobody says another.
const DefaultRate = 100

const (
	// chunkRows is how many rows are read at once. It bounds memory and for how long
	// vacuum is held back.
	chunkRows = 500
	// maxPending is how many executions of its handlers may wait before a backfill
	// rests, so that it never fills the journal faster than they are done.
	maxPending   = 10_000
	pendingPause = 500 * time.Millisecond
	// behindPause is how long it waits before it reads again what others do not see yet.
	behindPause = 100 * time.Millisecond
	maxRetry    = time.Minute
	maxEnded    = 100 // ended ones are kept
	maxSamples  = 10
	maxWhere    = 4096
	maxRate     = 1e6
)

// key is where a backfill stands in memory, and prefix where all do. No row's key
// begins with 0.
const prefix = "\x00backfill "

func key(id int) []byte { return fmt.Appendf(nil, "%s%010d", prefix, id) }

// stored is a backfill in the journal.
type stored struct {
	Status Status     `json:"status"`
	After  []string   `json:"after"`           // key of the last row that was read
	Again  [][]string `json:"again,omitempty"` // keys of rows to be read again
	End    bool       `json:"end,omitempty"`   // there is none after
}

// Backfills are all there are and were.
type Backfills struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{}

	mu   sync.Mutex
	list []*stored // by id
	next int
	stop context.CancelCauseFunc // of the one that runs
	runs int                     // its id
}

// New reads what the journal has of backfills.
func New(ctx context.Context, o Options) (*Backfills, error) {
	b := &Backfills{o: o, log: o.Logger, wake: make(chan struct{}, 1), next: 1}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.o.rows == 0 {
		b.o.rows = chunkRows
	}
	b.metrics = newMetrics(o.Registerer)
	err := o.Journal.ScanMemory(ctx, []byte(prefix), func(_, value []byte) error {
		var s stored
		if err := json.Unmarshal(value, &s); err != nil {
			return err
		}
		b.list = append(b.list, &s)
		b.next = max(b.next, s.Status.ID+1)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the backfills: %w", err)
	}
	b.count()
	return b, nil
}

// List returns all that are kept, the newest first.
func (b *Backfills) List() []Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Status, 0, len(b.list))
	for _, s := range slices.Backward(b.list) {
		out = append(out, s.Status.copy())
	}
	return out
}

// Get returns one.
func (b *Backfills) Get(id int) (Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.find(id); s != nil {
		return s.Status.copy(), nil
	}
	return Status{}, ErrNotFound
}

func (s Status) copy() Status {
	s.Told = maps.Clone(s.Told)
	s.Samples = slices.Clone(s.Samples)
	return s
}

// find returns one; mu is held.
func (b *Backfills) find(id int) *stored {
	i, ok := slices.BinarySearchFunc(b.list, id, func(s *stored, id int) int { return s.Status.ID - id })
	if !ok {
		return nil
	}
	return b.list[i]
}

// Start takes a backfill on. It is durable when Start returns, and begins when those
// before it have ended. A mistake in the Spec is an *InvalidError.
func (b *Backfills) Start(ctx context.Context, spec Spec) (Status, error) {
	entity, err := b.judge(&spec)
	if err != nil {
		return Status{}, err
	}
	b.mu.Lock()
	s := &stored{Status: Status{
		ID: b.next, Spec: spec, State: Waiting, Entity: entity, Created: time.Now().UTC(), RowsEstimated: -1, Told: map[event.Type]int64{},
	}}
	b.next++
	b.mu.Unlock()
	var old [][]byte
	err = b.o.Intake.Write(ctx, func(o intake.Outside) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		at, _ := slices.BinarySearchFunc(b.list, s.Status.ID, func(s *stored, id int) int { return s.Status.ID - id })
		b.list = slices.Insert(b.list, at, s)
		if ended := slices.IndexFunc(b.list, func(s *stored) bool { return s.Status.State.Ended() }); ended >= 0 && len(b.list) > maxEnded {
			old = append(old, key(b.list[ended].Status.ID))
			b.list = slices.Delete(b.list, ended, ended+1)
		}
		for _, k := range old {
			o.DeleteMemory(k)
		}
		return b.put(o, s)
	})
	if err != nil {
		return Status{}, fmt.Errorf("write the backfill down: %w", err)
	}
	b.log.Info("backfill taken on", "backfill", s.Status.ID, "events", spec.Events, "handlers", spec.Handlers, "where", spec.Where, "rate", spec.Rate, "dry_run", spec.DryRun)
	b.nudge()
	b.count()
	return b.Get(s.Status.ID)
}

func (b *Backfills) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// put writes s; mu is held.
func (b *Backfills) put(o intake.Outside, s *stored) error {
	v, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write backfill %d down: %w", s.Status.ID, err)
	}
	o.SetMemory(key(s.Status.ID), v)
	return nil
}

// Cancel ends one that has not ended. What it has told stays told.
func (b *Backfills) Cancel(ctx context.Context, id int) (Status, error) {
	b.mu.Lock()
	s := b.find(id)
	if s == nil {
		b.mu.Unlock()
		return Status{}, ErrNotFound
	}
	b.mu.Unlock()
	err := b.o.Intake.Write(ctx, func(o intake.Outside) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if s.Status.State.Ended() {
			return nil
		}
		s.finish(Cancelled, "")
		if b.runs == id && b.stop != nil {
			b.stop(errCancelled)
		}
		return b.put(o, s)
	})
	if err != nil {
		return Status{}, fmt.Errorf("write down that backfill %d is cancelled: %w", id, err)
	}
	b.count()
	return b.Get(id)
}

var errCancelled = errors.New("the backfill was cancelled")

func (s *stored) finish(state State, why string) {
	now := time.Now().UTC()
	s.Status.State, s.Status.Why, s.Status.Finished = state, why, &now
	s.After, s.Again = nil, nil
}

// judge finds mistakes in a Spec, writes event types out, and returns the entity.
func (b *Backfills) judge(spec *Spec) (entity string, err error) {
	bad := func(format string, args ...any) (string, error) {
		return "", &InvalidError{fmt.Sprintf(format, args...)}
	}
	d, err := b.deriver(nil)
	if err != nil {
		return "", err
	}
	if len(spec.Events) == 0 {
		return bad("events: name at least one event type")
	}
	var types []event.Type
	for _, name := range spec.Events {
		found := b.o.Resolve(string(name))
		if len(found) == 0 {
			return bad("events: %s is no event type", name)
		}
		of := map[string][]event.Type{} // by entity
		for _, t := range found {
			e, err := d.Backfills(t)
			switch {
			case err == nil:
				of[e] = append(of[e], t)
			case len(found) == 1:
				return bad("events: %v, so it cannot be backfilled", err)
			}
		}
		// A wildcard is about the entity of the ones before, or else the first.
		if entity == "" {
			for _, e := range slices.Backward(b.o.Mapping.Entities) {
				if len(of[e.Name]) > 0 {
					entity = e.Name
				}
			}
		}
		if len(found) == 1 && len(of[entity]) == 0 {
			return bad("events: %s is not of %s as the ones before; a backfill reads one entity, so begin one for each", found[0], entity)
		}
		for _, t := range of[entity] {
			if !slices.Contains(types, t) {
				types = append(types, t)
			}
		}
	}
	if len(types) == 0 {
		return bad("events: none of %s can be backfilled", spec.Events)
	}
	spec.Events = types
	if len(spec.Handlers) == 0 {
		return bad("handlers: name at least one, by its id")
	}
	slices.Sort(spec.Handlers)
	spec.Handlers = slices.Compact(spec.Handlers)
	handlers := b.o.Handlers()
	for _, id := range spec.Handlers {
		i := slices.IndexFunc(handlers, func(h Handler) bool { return h.ID == id })
		switch {
		case i < 0:
			return bad("handlers: there is no handler %d", id)
		case handlers[i].Gone:
			return bad("handlers: handler %d is archived and takes no events", id)
		case !slices.ContainsFunc(types, handlers[i].Listens):
			return bad("handlers: handler %d does not listen to %s; add the event to it in handlers.yaml", id, join(types))
		}
	}
	if len(spec.Where) > maxWhere {
		return bad("where: longer than %d bytes", maxWhere)
	}
	if spec.Where != "" {
		c, err := expr.CompileRow(spec.Where)
		if err != nil {
			return bad("where: %v", err)
		}
		for _, variable := range []string{"old", "changed", "tx"} {
			if names, all := c.Columns(variable); all || len(names) > 0 {
				return bad("where: %s tells of a change, and a backfill looks at rows as they are; use new", variable)
			}
		}
	}
	if spec.Rate < 0 || spec.Rate > maxRate || spec.Rate != spec.Rate {
		return bad("rate: want 0 (no limit) to %d executions per second", int(maxRate))
	}
	return entity, nil
}

func join(types []event.Type) string {
	var s []string
	for _, t := range types {
		s = append(s, string(t))
	}
	return strings.Join(s, ", ")
}
