// Package replay makes executions again that are final: dead letters whose receiver
// is well again, or what a receiver got and has lost. One, several by their ids, or all
// that a filter selects, at a rate, in the background.
//
// It promises that the oldest come first, so that within a lane and a handler the new
// executions have the order of the old ones. It promises that what a replay has made
// and how far it is are one commit: after a kill at any moment it goes on, has made none
// twice and left none out. What it makes is told to dispatch after it is durable. The
// newest execution there was when it began bounds it, so that it never replays what
// replays have made meanwhile; an older one that dies while it runs may still be among
// those it finds. It keeps of each replay who asked, for what, and what became of it.
//
// It does not decide when an attempt is made, and it brings back nothing that retention
// has dropped.
//
// Start with New, Replays.Run and Replays.Start.
package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
)

// Filter selects executions. What is not given selects all; all that is given must
// hold.
type Filter struct {
	Handler int        `json:"handler,omitempty"`
	Event   event.Type `json:"event,omitempty"`
	// Status is a final one. Empty means dead.
	Status string `json:"status,omitempty"`
	Object string `json:"object,omitempty"`
	Lane   string `json:"lane,omitempty"`
	Text   string `json:"text,omitempty"` // in the error, letter case aside
	// Request and Response are texts in what was sent and what came back.
	Request  string    `json:"request,omitempty"`
	Response string    `json:"response,omitempty"`
	Attempts int       `json:"attempts,omitempty"` // at least
	Duration float64   `json:"duration,omitempty"` // of the last attempt, in seconds, at least
	Since    time.Time `json:"since,omitzero"`     // journaled at or after
	Until    time.Time `json:"until,omitzero"`     // journaled before
}

// String is f as JSON, for logs.
func (f *Filter) String() string {
	b, err := json.Marshal(f)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Spec says what is to be replayed, and how. It has either IDs or a Filter.
type Spec struct {
	IDs    []uint64 `json:"ids,omitempty"`
	Filter *Filter  `json:"filter,omitempty"`
	// Latest leaves out what is older than another one of the same object and handler
	// among what is selected.
	Latest bool `json:"latest,omitempty"`
	// Again replays also what was replayed before.
	Again bool `json:"again,omitempty"`
	// Rate is how many executions are made per second; 0: as many as the handlers take.
	Rate float64 `json:"rate"`
}

// By is who asked for a replay.
type By struct {
	Name string `json:"by,omitempty"`   // of the token or the user; empty: nobody is asked who they are
	Role string `json:"role,omitempty"` // "operator"
}

// State is what has become of a replay.
type State string

// A replay is cancelled by people. What keeps it from going on is tried again.
const (
	Waiting   State = "waiting" // to be begun
	Running   State = "running"
	Done      State = "done"
	Cancelled State = "cancelled"
)

// Ended reports whether nothing more will happen.
func (s State) Ended() bool { return s == Done || s == Cancelled }

// Why an execution that is selected is left out, beside what the journal refuses: its
// handler is archived or no longer in handlers.yaml; another one of its object and
// handler is newer, see Spec.Latest.
const (
	LeftHandler journal.Refusal = "handler"
	LeftOlder   journal.Refusal = "older"
)

// Status is how far a replay is.
type Status struct {
	ID uint64 `json:"id"`
	Spec
	By
	State State `json:"state"`
	// Why it does not go on now.
	Why      string     `json:"why,omitempty"`
	Created  time.Time  `json:"created"`
	Finished *time.Time `json:"finished,omitempty"`
	// UpTo is the newest execution that there was when it began.
	UpTo uint64 `json:"up_to"`
	// Matching is how many were to be replayed when it began; -1: not known (yet).
	Matching int64 `json:"matching"`
	Replayed int64 `json:"replayed"`
	// LeftOut counts by reason.
	LeftOut map[journal.Refusal]int64 `json:"left_out,omitempty"`
	// Executions are the first that were made.
	Executions []uint64 `json:"executions,omitempty"`
}

// Count is what a replay would do.
type Count struct {
	Matching int64                     `json:"matching"` // executions that would be replayed
	LeftOut  map[journal.Refusal]int64 `json:"left_out,omitempty"`
	// Complete is false when time ran out: there are more.
	Complete bool `json:"complete"`
}

// ErrNotFound says that there is no such replay, or that it is no longer kept.
var ErrNotFound = errors.New("no such replay")

// InvalidError is a mistake in a Spec.
type InvalidError struct{ Text string }

func (e *InvalidError) Error() string { return e.Text }

// RefusedError says why an execution cannot be replayed as it is.
type RefusedError struct{ Text string }

func (e *RefusedError) Error() string { return e.Text }

// Handler is what a replay must know of a handler.
type Handler struct {
	ID   int
	Gone bool // archived
}

// Options of New. All but Resolve, Logger and Registerer are required.
type Options struct {
	Journal *journal.Journal
	// Enqueue tells dispatch of executions that are durable.
	Enqueue func([]journal.Queued)
	// Handlers returns those that there are.
	Handlers func() []Handler
	// Resolve turns a name or an alias of an event type into event types.
	Resolve    func(name string) []event.Type
	Logger     *slog.Logger
	Registerer prometheus.Registerer

	part int // for tests: executions of a commit at most
}

// DefaultRate is the rate, in executions per second, when nobody says another.
const DefaultRate = 50

// MaxIDs is how many executions a Spec may name.
const MaxIDs = 1000

const (
	maxRate    = 1e6
	maxOpen    = 16  // replays at a time
	maxEnded   = 500 // ended ones are kept
	maxSamples = 10
	maxText    = 1024
)

// stored is a replay in the journal.
type stored struct {
	Status Status `json:"status"`
	After  uint64 `json:"after"` // executions up to here were looked at
}

func (s stored) copy() stored {
	s.Status.LeftOut = maps.Clone(s.Status.LeftOut)
	s.Status.Executions = slices.Clone(s.Status.Executions)
	return s
}

func (s *stored) finish(state State) {
	now := time.Now().UTC()
	s.Status.State, s.Status.Why, s.Status.Finished = state, "", &now
}

func (s *stored) add(made []journal.Queued, left ...map[journal.Refusal]int64) {
	s.Status.Replayed += int64(len(made))
	for _, q := range made {
		if len(s.Status.Executions) < maxSamples {
			s.Status.Executions = append(s.Status.Executions, q.Execution)
		}
	}
	for _, l := range left {
		for why, n := range l {
			if s.Status.LeftOut == nil {
				s.Status.LeftOut = map[journal.Refusal]int64{}
			}
			s.Status.LeftOut[why] += n
		}
	}
}

// one is a replay.
type one struct {
	id    uint64
	write sync.Mutex // held over each commit; comes before Replays.mu

	// Guarded by Replays.mu.
	kept  stored // as it is in the journal, but for Why, Matching and Running
	taken bool   // a goroutine works on it
	stop  context.CancelCauseFunc
}

// Replays are all there are and were.
type Replays struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{}
	begin   sync.Mutex // held while one is taken on; comes before one.write

	mu   sync.Mutex
	list []*one // by id
	next uint64
}

// New reads what the journal has of replays.
func New(o Options) (*Replays, error) {
	r := &Replays{o: o, log: o.Logger, wake: make(chan struct{}, 1), next: 1}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.o.part == 0 {
		r.o.part = journal.MaxReplayed
	}
	r.metrics = newMetrics(o.Registerer)
	err := o.Journal.Replays(func(number uint64, state []byte) error {
		x := &one{id: number}
		if err := json.Unmarshal(state, &x.kept); err != nil {
			return err
		}
		r.list = append(r.list, x)
		r.next = max(r.next, number+1)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the replays: %w", err)
	}
	r.count()
	return r, nil
}

// List returns all that are kept, the newest first.
func (r *Replays) List() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Status, 0, len(r.list))
	for _, x := range slices.Backward(r.list) {
		out = append(out, x.kept.copy().Status)
	}
	return out
}

// Get returns one.
func (r *Replays) Get(id uint64) (Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.find(id); x != nil {
		return x.kept.copy().Status, nil
	}
	return Status{}, ErrNotFound
}

// find returns one; mu is held.
func (r *Replays) find(id uint64) *one {
	for _, x := range r.list {
		if x.id == id {
			return x
		}
	}
	return nil
}

// Start takes a replay on. It is durable when Start returns, and begins at once. A
// mistake in the Spec is an *InvalidError.
func (r *Replays) Start(ctx context.Context, spec Spec, by By) (Status, error) {
	if err := r.judge(&spec); err != nil {
		return Status{}, err
	}
	newest, err := r.newest(ctx)
	if err != nil {
		return Status{}, err
	}
	r.begin.Lock()
	defer r.begin.Unlock()
	if n := r.open(); n >= maxOpen {
		return Status{}, &InvalidError{fmt.Sprintf("%d replays have not ended; wait, or cancel one", n)}
	}
	x := r.make(spec, by, newest)
	if _, err := r.commit(ctx, x, nil, func(*stored, []journal.Queued, map[journal.Refusal]int64) error { return nil }); err != nil {
		return Status{}, err
	}
	what := slog.Any("filter", spec.Filter)
	if spec.Filter == nil {
		what = slog.Int("ids", len(spec.IDs))
	}
	r.log.Info("replay taken on", "replay", x.id, "by", by.Name, what, "latest", spec.Latest, "again", spec.Again, "rate", spec.Rate)
	st, err := r.Get(x.id)
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return st, err
}

// One replays one execution at once, and keeps that as a replay that is done. An
// execution that cannot be replayed as it is is a *RefusedError; one that is not there
// an error that wraps journal.ErrNotFound.
func (r *Replays) One(ctx context.Context, execution uint64, again bool, by By) (Status, error) {
	old, err := r.o.Journal.Execution(execution)
	if err != nil {
		return Status{}, err
	}
	refuse := func(format string, args ...any) error {
		return &RefusedError{fmt.Sprintf("execution %d ", execution) + fmt.Sprintf(format, args...)}
	}
	switch why := r.handlers().refuses(&old, again); why {
	case "":
	case journal.RefusedOpen:
		return Status{}, refuse("is %v; only a final one can be replayed", old.Status)
	case journal.RefusedReplayed:
		return Status{}, refuse("was replayed already, as execution %d; ask with \"again\": true to do it once more", old.Replay)
	default:
		return Status{}, refuse("was for handler %d, which is archived or no longer in handlers.yaml", old.Handler)
	}
	r.begin.Lock()
	defer r.begin.Unlock()
	x := r.make(Spec{IDs: []uint64{execution}, Again: again, Rate: DefaultRate}, by, execution)
	_, err = r.commit(ctx, x, []uint64{execution}, func(s *stored, made []journal.Queued, refused map[journal.Refusal]int64) error {
		for why := range refused { // since we have looked
			return refuse("cannot be replayed any more (%s)", why)
		}
		s.add(made)
		s.After, s.Status.Matching = execution, 1
		s.finish(Done)
		return nil
	})
	if err != nil {
		return Status{}, err
	}
	r.log.Info("execution replayed", "execution", execution, "replay", x.id, "by", by.Name)
	return r.Get(x.id)
}

// make makes one that nobody knows yet; begin is held.
func (r *Replays) make(spec Spec, by By, newest uint64) *one {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := &one{id: r.next}
	r.next++
	x.kept.Status = Status{ID: x.id, Spec: spec, By: by, State: Waiting, Created: time.Now().UTC(), UpTo: newest, Matching: -1}
	return x
}

// Cancel ends one that has not ended. What it has made stays made.
func (r *Replays) Cancel(ctx context.Context, id uint64) (Status, error) {
	r.mu.Lock()
	x := r.find(id)
	r.mu.Unlock()
	if x == nil {
		return Status{}, ErrNotFound
	}
	_, err := r.commit(ctx, x, nil, func(s *stored, _ []journal.Queued, _ map[journal.Refusal]int64) error {
		s.finish(Cancelled)
		return nil
	})
	if err != nil && !errors.Is(err, errEnded) {
		return Status{}, err
	}
	r.mu.Lock()
	if x.stop != nil {
		x.stop(errEnded)
	}
	r.mu.Unlock()
	return r.Get(id)
}

// errEnded says that a replay has ended, so that nothing more is made.
var errEnded = errors.New("the replay has ended")

// commit replays executions, has change tell what is to be kept of x from then on, and
// tells dispatch. One that nobody knows yet is known afterwards.
func (r *Replays) commit(ctx context.Context, x *one, executions []uint64, change func(s *stored, made []journal.Queued, refused map[journal.Refusal]int64) error) ([]journal.Queued, error) {
	x.write.Lock()
	defer x.write.Unlock()
	r.mu.Lock()
	now := x.kept.copy()
	known := r.find(x.id) != nil
	var old *one
	if i := slices.IndexFunc(r.list, func(x *one) bool { return x.kept.Status.State.Ended() }); !known && i >= 0 && len(r.list) >= maxEnded {
		old = r.list[i]
	}
	r.mu.Unlock()
	if now.Status.State.Ended() {
		return nil, errEnded
	}
	c := journal.ReplayCommit{
		Number: x.id, Executions: executions, Again: now.Status.Again,
		State: func(made []journal.Queued, refused map[journal.Refusal]int64) ([]byte, error) {
			if err := change(&now, made, refused); err != nil {
				return nil, err
			}
			return json.Marshal(now)
		},
	}
	if old != nil {
		c.Forget = []uint64{old.id}
	}
	q, err := r.o.Journal.CommitReplay(ctx, c)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	x.kept = now
	if !known {
		r.list = slices.DeleteFunc(r.list, func(x *one) bool { return x == old })
		r.list = append(r.list, x)
	}
	r.mu.Unlock()
	r.metrics.executions.Add(float64(len(q)))
	r.count()
	r.o.Enqueue(q)
	return q, nil
}

// newest returns the newest execution, 0 if there is none.
func (r *Replays) newest(ctx context.Context) (uint64, error) {
	page, _, err := r.o.Journal.Executions(ctx, journal.Query{Limit: 1})
	if err != nil || len(page) == 0 {
		return 0, err
	}
	return page[0].ID, nil
}

// open is how many have not ended.
func (r *Replays) open() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.list {
		if !x.kept.Status.State.Ended() {
			n++
		}
	}
	return n
}

// judge finds mistakes in a Spec, and writes out what it leaves open.
func (r *Replays) judge(spec *Spec) error {
	bad := func(format string, args ...any) error { return &InvalidError{fmt.Sprintf(format, args...)} }
	switch {
	case len(spec.IDs) == 0 && spec.Filter == nil:
		return bad("say what is to be replayed: ids, or a filter (an empty one selects all dead letters)")
	case len(spec.IDs) > 0 && spec.Filter != nil:
		return bad("give ids or a filter, not both")
	case len(spec.IDs) > MaxIDs:
		return bad("ids: at most %d; use a filter for more", MaxIDs)
	case spec.Rate < 0 || spec.Rate > maxRate || spec.Rate != spec.Rate:
		return bad("rate: want 0 (no limit) to %d executions per second", int(maxRate))
	}
	spec.IDs = slices.Clone(spec.IDs)
	slices.Sort(spec.IDs)
	spec.IDs = slices.Compact(spec.IDs)
	if len(spec.IDs) > 0 && spec.IDs[0] == 0 {
		return bad("ids: executions are numbered from 1")
	}
	if spec.Filter == nil {
		return nil
	}
	f := *spec.Filter
	if f.Status == "" {
		f.Status = journal.Dead.String()
	}
	st, err := journal.ParseStatus(f.Status)
	switch {
	case err != nil || st.Open():
		return bad("status: %q: want one that is final: dead, skipped, cancelled or succeeded", f.Status)
	case f.Handler < 0:
		return bad("handler: want the id of a handler")
	case max(len(f.Text), len(f.Request), len(f.Response)) > maxText:
		return bad("text: longer than %d bytes", maxText)
	case f.Attempts < 0 || f.Duration < 0:
		return bad("attempts and duration: want the least that there may be")
	case !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until):
		return bad("since is not before until, so that nothing can be between them")
	}
	// An event type that is no longer defined may have executions still.
	if f.Event != "" && r.o.Resolve != nil {
		switch types := r.o.Resolve(string(f.Event)); len(types) {
		case 0:
		case 1:
			f.Event = types[0]
		default:
			return bad("event: %s names %d event types; give one", f.Event, len(types))
		}
	}
	spec.Filter = &f
	return nil
}

func (f *Filter) query() journal.Query {
	st, _ := journal.ParseStatus(f.Status) // judged
	return journal.Query{
		Handler: f.Handler, Type: f.Event, Status: st, Object: f.Object, Lane: f.Lane, Text: f.Text, Since: f.Since, Until: f.Until,
		Request: f.Request, Response: f.Response, Attempts: f.Attempts, Duration: time.Duration(f.Duration * float64(time.Second)),
	}
}
