// Package reconcile finds what was committed while nobody could hear it, after a
// lost slot or a fail-over: it compares every row of the mapped tables with memory and
// derives the net events between the two.
//
// It promises that every row that differs makes the events that one transaction from
// what memory knows to what the row is now would have made, through the same rules;
// that events and the memory they explain are one commit, so that a run that was
// broken off repeats nothing; and that a look changes nothing anywhere.
//
// It cannot tell what happened in between: a balance that went below zero and came
// back is the same balance. It knows rows only as far as memory does: of a table whose
// whole old rows come with the stream there is none.
//
// Start with Run. What it reads must be a snapshot of exactly what the slot will not
// send, see replication.Client.Renew.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/snapshot"
	"github.com/billhook/billhook/internal/wal"
)

// Options of Run. Journal, Mapping, Reader and Publication are required.
type Options struct {
	Journal     *journal.Journal
	Mapping     billing.Mapping
	Seal        []byte // of masked columns
	Reader      *snapshot.Reader
	Publication string
	// Plan says which executions an event has.
	Plan func(*event.Event) []journal.Planned
	// Apply journals what is found. Without it Run only looks.
	Apply bool
	// First is the id of the first event, with Apply.
	First  event.ID
	Logger *slog.Logger
	// Rows is how many rows are read at once; 0: 5000. Samples is how many events of
	// each type are kept; 0: 3.
	Rows, Samples int
	// Progress is called now and then.
	Progress func(Progress)
}

// Progress is how far a run is.
type Progress struct {
	Table string
	Rows  int64 // read so far
	Of    int64 // about how many there are; -1: not known
}

// Report is what Run found.
type Report struct {
	Tables []Table
	Events []Events // sorted by type
	// Handled is how many of the events some handler is told of.
	Handled int
}

// Table is a table that was compared, or why it was not.
type Table struct {
	Name    string `json:"table"`
	Rows    int64  `json:"rows"`
	Gone    int64  `json:"gone"`              // rows that memory knows and the table has no more
	Skipped string `json:"skipped,omitempty"` // why it cannot be compared
}

// Events are the events of one type.
type Events struct {
	Type    event.Type `json:"event"`
	Count   int        `json:"count"`
	Objects []string   `json:"objects"` // samples
}

// Total is how many events there are.
func (r *Report) Total() (n int) {
	for _, e := range r.Events {
		n += e.Count
	}
	return n
}

type run struct {
	o       Options
	log     *slog.Logger
	deriver *billing.Deriver
	batch   *journal.Batch
	next    event.ID
	now     time.Time
	report  Report
	gone    map[string]bool // clients that are there no more
}

// Run compares. With Options.Apply what it finds is durable when it returns, and what
// was found before an error too; to call it again is to go on.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Rows == 0 {
		o.Rows = 5000
	}
	if o.Samples == 0 {
		o.Samples = 3
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	r := &run{o: o, log: o.Logger, next: o.First, now: time.Now(), gone: map[string]bool{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	var err error
	r.deriver, err = billing.New(o.Mapping, billing.Options{
		Seal: o.Seal,
		Broken: func(t event.Type, err error) {
			r.log.Warn("condition cannot be evaluated, its event does not fire for this row", "event", t, "err", err)
		},
	})
	if err != nil {
		return r.report, err
	}
	r.batch = o.Journal.NewBatch()
	defer func() { r.batch.Discard() }()

	var names []catalog.Name
	for _, t := range billing.Tables(o.Mapping) {
		names = append(names, catalog.Name{Schema: t.Schema, Table: t.Name})
	}
	tables, err := o.Reader.Tables(ctx, names, o.Publication)
	if err != nil {
		return r.report, err
	}
	// Clients come before what belongs to them, and go after it.
	place := func(t snapshot.Table) int {
		return slices.Index(names, catalog.Name{Schema: t.Relation.Schema, Table: t.Relation.Name})
	}
	slices.SortFunc(tables, func(a, b snapshot.Table) int { return place(a) - place(b) })
	r.report.Tables = make([]Table, len(tables))
	keys := make([][]int, len(tables))
	for i, t := range tables {
		r.report.Tables[i].Name = t.Relation.Schema + "." + t.Relation.Name
		var ok bool
		if keys[i], ok = r.deriver.Comparable(t.Relation); !ok {
			r.report.Tables[i].Skipped = "no rule needs to remember its rows"
			if t.Relation.Identity == wal.IdentityFull {
				r.report.Tables[i].Skipped = "its rows are not remembered, since their old values come with the stream (REPLICA IDENTITY FULL); with remember: true its entity is, from then on"
			}
			continue
		}
		if err := r.rows(ctx, t, keys[i], &r.report.Tables[i]); err != nil {
			return r.report, err
		}
	}
	// The custom fields of a client that is gone end with it.
	for i, t := range tables {
		if keys[i] == nil || !r.isClients(t) {
			continue
		}
		if err := r.left(ctx, t, keys[i], func(gone [][]string) error {
			for _, k := range gone {
				r.gone[billing.JoinKey(k)] = true
			}
			return nil
		}); err != nil {
			return r.report, err
		}
	}
	for i, t := range slices.Backward(tables) {
		if keys[i] == nil {
			continue
		}
		if err := r.left(ctx, t, keys[i], func(gone [][]string) error {
			r.report.Tables[i].Gone += int64(len(gone))
			return r.compare(ctx, billing.Difference{Relation: t.Relation, Gone: gone})
		}); err != nil {
			return r.report, err
		}
	}
	slices.SortFunc(r.report.Events, func(a, b Events) int { return slices.Compare([]byte(a.Type), []byte(b.Type)) })
	return r.report, nil
}

// rows compares the rows that a table has.
func (r *run) rows(ctx context.Context, t snapshot.Table, key []int, report *Table) error {
	_, columns, _ := r.deriver.RowColumns(t.Relation)
	var after []string
	for {
		rows, err := r.o.Reader.Read(ctx, t, key, columns, after, r.o.Rows)
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			last := rows[len(rows)-1]
			after = make([]string, 0, len(key))
			for _, i := range key {
				after = append(after, string(last[i].Text))
			}
			if err := r.compare(ctx, billing.Difference{Relation: t.Relation, Rows: rows}); err != nil {
				return err
			}
		}
		report.Rows += int64(len(rows))
		r.o.Progress(Progress{report.Name, report.Rows, t.Estimate})
		if len(rows) < r.o.Rows {
			return nil
		}
	}
}

// left hands on the keys of rows that memory knows and the table has no more.
func (r *run) left(ctx context.Context, t snapshot.Table, key []int, f func(gone [][]string) error) error {
	var keys [][]string
	look := func() error {
		if len(keys) == 0 {
			return nil
		}
		present, err := r.o.Reader.Present(ctx, t, key, keys)
		if err != nil {
			return err
		}
		var gone [][]string
		for i, there := range present {
			if !there {
				gone = append(gone, keys[i])
			}
		}
		keys = keys[:0]
		if len(gone) == 0 {
			return nil
		}
		return f(gone)
	}
	// What is found changes the memory that is scanned, so the scan is of what the
	// store holds when it begins.
	err := r.o.Journal.ScanMemory(ctx, r.deriver.RememberedPrefix(t.Relation), func(k, v []byte) error {
		texts, ok, err := r.deriver.Remembered(t.Relation, k, v)
		if err != nil || !ok {
			return err
		}
		if keys = append(keys, texts); len(keys) < r.o.Rows {
			return nil
		}
		return look()
	})
	if err != nil {
		return err
	}
	return look()
}

// isClients reports whether a table is the clients' own.
func (r *run) isClients(t snapshot.Table) bool {
	return slices.ContainsFunc(r.o.Mapping.Entities, func(e billing.Entity) bool {
		return e.Name == billing.Clients && e.Schema == t.Relation.Schema && e.Table.Name == t.Relation.Name
	})
}

// compare derives what differs and, with Apply, journals it.
func (r *run) compare(ctx context.Context, d billing.Difference) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.ID, d.Origin, d.Time = r.next, event.OriginReconcile, r.now
	next, err := r.deriver.Compare(d, r.batch, func(e *event.Event) error {
		if strings.HasSuffix(string(e.Type), ".custom_fields.update") && r.gone[e.Object] {
			return nil
		}
		plan := r.o.Plan(e)
		r.count(e, len(plan) > 0)
		if len(plan) == 0 || !r.o.Apply {
			return nil
		}
		return r.batch.AddEvent(e, plan)
	})
	if err != nil {
		return err
	}
	if !r.o.Apply {
		r.batch.Discard()
		r.batch = r.o.Journal.NewBatch()
		return nil
	}
	r.next = next
	wait, err := r.o.Journal.Commit(r.batch)
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	r.batch = r.o.Journal.NewBatch()
	if err := wait(); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

func (r *run) count(e *event.Event, handled bool) {
	if handled {
		r.report.Handled++
	}
	i := slices.IndexFunc(r.report.Events, func(x Events) bool { return x.Type == e.Type })
	if i < 0 {
		i = len(r.report.Events)
		r.report.Events = append(r.report.Events, Events{Type: e.Type})
	}
	x := &r.report.Events[i]
	x.Count++
	if len(x.Objects) < r.o.Samples {
		x.Objects = append(x.Objects, e.Object)
	}
}
