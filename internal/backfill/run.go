package backfill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/intake"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/snapshot"
	"github.com/billhook/billhook/internal/wal"
)

// Run works until ctx ends: one backfill after the other, each again from where it was
// when the database or the journal did not let it.
func (b *Backfills) Run(ctx context.Context) error {
	retry := time.Second
	for {
		s := b.first()
		if s == nil {
			select {
			case <-b.wake:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		err := b.run(ctx, s)
		var refused *InvalidError
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil, errors.Is(err, errCancelled):
			retry = time.Second
			continue
		case errors.As(err, &refused):
			err = b.end(ctx, s, Failed, refused.Text)
			b.log.Error("backfill failed", "backfill", s.Status.ID, "err", refused.Text)
			if err == nil || ctx.Err() != nil {
				continue
			}
		}
		b.log.Warn("backfill is held up, trying again", "backfill", s.Status.ID, "err", err, "in", retry)
		b.mu.Lock()
		s.Status.Why = err.Error()
		b.mu.Unlock()
		select {
		case <-time.After(retry):
		case <-b.wake: // perhaps it was cancelled
		case <-ctx.Done():
			return nil
		}
		retry = min(2*retry, maxRetry)
	}
}

// first is the one whose turn it is, nil when there is none.
func (b *Backfills) first() *stored {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.list {
		if !s.Status.State.Ended() {
			return s
		}
	}
	return nil
}

// end writes down how one has ended.
func (b *Backfills) end(ctx context.Context, s *stored, state State, why string) error {
	err := b.o.Intake.Write(ctx, func(o intake.Outside) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if s.Status.State.Ended() {
			return nil
		}
		s.finish(state, why)
		return b.put(o, s)
	})
	b.count()
	return err
}

// deriver makes one of our own: what intake derives with is busy with the stream.
func (b *Backfills) deriver(types []event.Type) (*billing.Deriver, error) {
	return billing.New(b.o.Mapping, billing.Options{
		Wants: func(t event.Type) bool { return slices.Contains(types, t) },
		Broken: func(t event.Type, err error) {
			b.metrics.broken.Inc()
			b.log.Warn("condition cannot be evaluated for a row of a backfill", "event", t, "err", err)
		},
	})
}

// work is one backfill under way.
type work struct {
	*Backfills
	s       *stored
	deriver *billing.Deriver
	reader  *snapshot.Reader
	tables  []table // the entity's own first
	where   *expr.Condition
	limiter *rate.Limiter
	rows    int // of a chunk
}

type table struct {
	snapshot.Table
	key, columns []int
}

// told is an event of a row, on its way.
type told struct {
	row  string // its name, see billing.Deriver.Backfill
	key  []string
	e    *event.Event
	plan []journal.Planned
}

func (b *Backfills) run(ctx context.Context, s *stored) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.mu.Lock()
	b.stop, b.runs = cancel, s.Status.ID
	spec := s.Status.Spec
	ended := s.Status.State.Ended()
	if !ended {
		s.Status.State, s.Status.Why = Running, ""
	}
	b.mu.Unlock()
	if ended {
		return nil
	}
	b.count()
	defer func() {
		b.mu.Lock()
		b.stop, b.runs = nil, 0
		b.mu.Unlock()
		b.count()
	}()

	w := &work{Backfills: b, s: s}
	// What was judged when it was taken on may have changed since.
	judged := spec
	judged.Events, judged.Handlers = slices.Clone(spec.Events), slices.Clone(spec.Handlers)
	if _, err := b.judge(&judged); err != nil {
		return err
	}
	if spec.Where != "" {
		if w.where, err = expr.CompileRow(spec.Where); err != nil {
			return &InvalidError{"where: " + err.Error()}
		}
	}
	if w.deriver, err = b.deriver(spec.Events); err != nil {
		return err
	}
	w.limiter, w.rows = rate.NewLimiter(rate.Inf, 1), b.o.rows
	if spec.Rate > 0 && !spec.DryRun {
		// A chunk is what a second allows at most, and is paid for when it is journaled.
		each := len(spec.Events) * len(spec.Handlers)
		w.rows = max(1, min(w.rows, int(spec.Rate)/each))
		w.limiter = rate.NewLimiter(rate.Limit(spec.Rate), w.rows*each)
		w.limiter.AllowN(time.Now(), w.limiter.Burst()) // nothing is saved up at the beginning
	}
	if w.reader, err = b.o.Open(ctx); err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = w.reader.Close(closing) // nothing is pending on it
	}()
	if err := w.describe(ctx); err != nil {
		return err
	}
	start := time.Now()
	b.log.Info("backfill begins", "backfill", s.Status.ID, "entity", s.Status.Entity, "rows_estimated", w.tables[0].Estimate, "resumed", s.After != nil)
	for {
		done, err := w.chunk(ctx)
		if err != nil {
			if context.Cause(ctx) == errCancelled {
				return errCancelled
			}
			return err
		}
		if done {
			break
		}
	}
	if err := b.end(ctx, s, Done, ""); err != nil {
		return err
	}
	st, _ := b.Get(s.Status.ID)
	b.log.Info("backfill is done", "backfill", st.ID, "rows", st.Rows, "executions", st.Executions, "took", time.Since(start).Round(time.Millisecond))
	return nil
}

// describe finds the entity's tables.
func (w *work) describe(ctx context.Context) error {
	var names []catalog.Name
	for _, t := range w.deriver.EntityTables(w.s.Status.Entity) {
		names = append(names, catalog.Name{Schema: t.Schema, Table: t.Name})
	}
	found, err := w.reader.Tables(ctx, names, w.o.Publication)
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b snapshot.Table) int {
		place := func(t snapshot.Table) int {
			return slices.Index(names, catalog.Name{Schema: t.Relation.Schema, Table: t.Relation.Name})
		}
		return place(a) - place(b)
	})
	for _, t := range found {
		key, columns, ok := w.deriver.RowColumns(t.Relation)
		if !ok {
			if len(w.tables) == 0 {
				return &InvalidError{fmt.Sprintf("table %s.%s lacks a column of its key; billhook check says more", t.Relation.Schema, t.Relation.Name)}
			}
			continue
		}
		w.tables = append(w.tables, table{t, key, columns})
	}
	own := w.tables[0]
	if w.where != nil {
		names, _ := w.where.Columns("new")
		for _, name := range names {
			if !slices.ContainsFunc(own.columns, func(i int) bool { return own.Relation.Columns[i].Name == name }) {
				return &InvalidError{fmt.Sprintf("where: table %s.%s has no column %q, or it is excluded", own.Relation.Schema, own.Relation.Name, name)}
			}
		}
	}
	w.mu.Lock()
	w.s.Status.RowsEstimated = own.Estimate
	w.mu.Unlock()
	return nil
}

// chunk reads rows and tells of them. done: there are no more.
func (w *work) chunk(ctx context.Context) (done bool, err error) {
	if err := w.room(ctx); err != nil {
		return false, err
	}
	w.mu.Lock()
	after, again, end, dry := w.s.After, w.s.Again, w.s.End, w.s.Status.DryRun
	w.mu.Unlock()
	if !dry {
		if err := w.o.Intake.Track(ctx, w.s.Status.Entity); err != nil {
			return false, err
		}
		defer func() {
			untracking, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = w.o.Intake.Untrack(untracking) // when intake has ended it tracks no more
		}()
		if err := w.o.Intake.AtMark(ctx, w.reader, func(intake.Outside) error { return nil }); err != nil {
			return false, err
		}
	}
	read, err := w.read(ctx, after, again, end)
	if err != nil {
		return false, err
	}
	events, err := w.derive(read)
	if err != nil {
		return false, err
	}
	if dry {
		// Nothing is written that was not there: progress is, so that it shows.
		err = w.o.Intake.Write(ctx, func(o intake.Outside) error { return w.add(o, &read, events, nil) })
	} else {
		err = w.o.Intake.AtMark(ctx, w.reader, func(o intake.Outside) error {
			return w.add(o, &read, events, func(t *told) error { return o.Add(t.e, t.plan) })
		})
	}
	if err != nil {
		return false, err
	}
	if cause := context.Cause(ctx); cause != nil {
		return false, cause
	}
	w.count()
	w.metrics.rows.Add(float64(read.rows))
	w.metrics.executions.Add(float64(read.executions))
	if read.behind {
		select {
		case <-time.After(behindPause):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	if read.executions > 0 && w.limiter.Limit() != rate.Inf {
		if err := w.limiter.WaitN(ctx, min(read.executions, w.limiter.Burst())); err != nil {
			return false, err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.s.End && len(w.s.Again) == 0, nil
}

// readRows are the rows of one chunk.
type readRows struct {
	sight snapshot.Sight
	time  time.Time
	rows  int64 // new ones of the entity's own table
	after []string
	end   bool
	own   [][]string // keys of all of them
	all   []billing.Rows

	// What add has made of them.
	executions int
	behind     bool // all must be read again
}

func (w *work) read(ctx context.Context, after []string, again [][]string, end bool) (r readRows, err error) {
	if r.sight, err = w.reader.Begin(ctx); err != nil {
		return r, err
	}
	r.time = time.Now().UTC()
	own := w.tables[0]
	r.after, r.end = after, end
	var tuples []wal.Tuple
	if limit := w.rows - len(again); !end && limit > 0 {
		if tuples, err = w.reader.Read(ctx, own.Table, own.key, own.columns, after, limit); err != nil {
			return r, err
		}
		r.rows, r.end = int64(len(tuples)), len(tuples) < limit
		if n := len(tuples); n > 0 {
			r.after = keyOf(own, tuples[n-1])
		}
	}
	more, err := w.reader.ReadKeys(ctx, own.Table, own.key, own.columns, again)
	if err != nil {
		return r, err
	}
	tuples = append(tuples, more...)
	for _, t := range tuples {
		r.own = append(r.own, keyOf(own, t))
	}
	r.all = append(r.all, billing.Rows{Relation: own.Relation, Tuples: tuples})
	for _, t := range w.tables[1:] {
		beside, err := w.reader.ReadKeys(ctx, t.Table, t.key, t.columns, r.own)
		if err != nil {
			return r, err
		}
		r.all = append(r.all, billing.Rows{Relation: t.Relation, Tuples: beside})
	}
	return r, w.reader.End(ctx)
}

func keyOf(t table, tuple wal.Tuple) []string {
	key := make([]string, 0, len(t.key))
	for _, i := range t.key {
		key = append(key, string(tuple[i].Text))
	}
	return key
}

// derive makes the events of a chunk and plans them for the chosen handlers.
func (w *work) derive(r readRows) ([]told, error) {
	var out []told
	keys := map[string][]string{}
	next := 0
	spec := w.s.Status.Spec
	err := w.deriver.Backfill(billing.Standing{Entity: w.s.Status.Entity, Time: r.time, Rows: r.all, Types: spec.Events, Where: w.where},
		func(row []byte, e *event.Event) error {
			plan := slices.DeleteFunc(w.o.Plan(e), func(p journal.Planned) bool { return !slices.Contains(spec.Handlers, p.Handler) })
			if len(plan) == 0 {
				return nil
			}
			name := string(row)
			if _, ok := keys[name]; !ok {
				// Rows come in the order in which they were read.
				for next < len(r.own) && w.deriver.RowName(w.s.Status.Entity, r.own[next]) != name {
					next++
				}
				if next == len(r.own) {
					return fmt.Errorf("row %q is none of those that were read", name)
				}
				keys[name] = r.own[next]
			}
			own := *e
			own.Data, own.Changed, own.ObjectJSON = bytes.Clone(e.Data), bytes.Clone(e.Changed), bytes.Clone(e.ObjectJSON)
			own.Unchanged = slices.Clone(e.Unchanged)
			out = append(out, told{row: name, key: keys[name], e: &own, plan: plan})
			return nil
		})
	return out, err
}

// behindWhy is what a backfill waits for whose read is behind, see intake.Outside.Behind.
const behindWhy = "waits for a transaction that has committed and that other sessions do not see yet; with synchronous replication, for its standby"

// add tells of a chunk's rows, but for those that were touched since they were read,
// and writes the progress down. When the read is behind what was told, it tells of none.
// tell is nil when nobody is to be told. It runs in intake's goroutine.
func (w *work) add(o intake.Outside, r *readRows, events []told, tell func(*told) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.s
	if s.Status.State.Ended() {
		return nil // cancelled meanwhile
	}
	var again [][]string
	touched := map[string]bool{}
	if s.Status.Why == behindWhy {
		s.Status.Why = ""
	}
	switch {
	case tell == nil:
	case o.Behind(r.sight):
		r.behind, again, events = true, r.own, nil
		s.Status.Why = behindWhy
	default:
		for _, key := range r.own {
			name := w.deriver.RowName(s.Status.Entity, key)
			if o.Touched([]byte(name), r.sight) {
				touched[name] = true
				again = append(again, key)
			}
		}
	}
	for i := range events {
		t := &events[i]
		if touched[t.row] {
			continue
		}
		if tell != nil {
			if err := tell(t); err != nil {
				return fmt.Errorf("journal an event of backfill %d: %w", s.Status.ID, err)
			}
		}
		s.Status.Told[t.e.Type]++
		s.Status.Executions += int64(len(t.plan))
		r.executions += len(t.plan)
		if len(s.Status.Samples) < maxSamples && !slices.Contains(s.Status.Samples, t.e.Object) {
			s.Status.Samples = append(s.Status.Samples, t.e.Object)
		}
	}
	s.Status.Rows += r.rows
	s.After, s.Again, s.End = r.after, again, r.end
	w.metrics.again.Add(float64(len(again)))
	return w.put(o, s)
}

// room waits while the handlers are far behind.
func (w *work) room(ctx context.Context) error {
	if w.s.Status.DryRun {
		return nil
	}
	for told := false; ; {
		var waiting int64
		for k, n := range w.o.Journal.Counts() {
			if slices.Contains(w.s.Status.Handlers, k.Handler) && (k.Status == journal.Pending || k.Status == journal.Held) {
				waiting += n
			}
		}
		if waiting < maxPending {
			if told {
				w.mu.Lock()
				w.s.Status.Why = ""
				w.mu.Unlock()
			}
			return nil
		}
		if !told {
			told = true
			w.mu.Lock()
			w.s.Status.Why = fmt.Sprintf("waits for its handlers: %d of their executions are not done yet", waiting)
			w.mu.Unlock()
		}
		select {
		case <-time.After(pendingPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
