package intake

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/snapshot"
	"github.com/billhook/billhook/internal/replication/writeback"
	"github.com/billhook/billhook/internal/wal"
)

// Rows that were in the tables before Billhook are filled into memory silently,
// while the stream runs. Each chunk of rows is read in a statement of its own and
// followed by a mark in the source's log. When the stream shows the mark, all that
// the chunk saw has been derived, so the chunk's rows can be added where memory
// has none: what the stream said of a row is as new or newer.
//
//	filler  read chunk ── register ── write mark ─────────────── wait ── next chunk
//	stream  … changes … changes … changes … mark: add chunk ────┘
//
// Progress is kept in memory beside the rows it tells about, in the same commit.

// defaultFillRows is how many rows a chunk has. It bounds the fill's memory and how
// long one read takes.
const defaultFillRows = 5000

// fillChunk is one chunk on its way.
type fillChunk struct {
	table    snapshot.Table
	rows     []wal.Tuple
	progress fillProgress
	applied  chan error // gets one value
}

// fillProgress is how far a table is.
type fillProgress struct {
	Form  string   `json:"form"`  // what memory must hold, see billing.Deriver.FillPlan
	After []string `json:"after"` // key of the last row that is in memory
	Rows  int64    `json:"rows"`  // read
	Done  bool     `json:"done"`
}

// Filling is how far a table's rows are in memory.
type Filling struct {
	Table string `json:"table"`
	Rows  int64  `json:"rows"`
	// Estimated is about how many rows the table has; -1: not known.
	Estimated int64 `json:"rows_estimated"`
	Done      bool  `json:"done"`
}

// String says it in words.
func (f Filling) String() string {
	if f.Estimated > 0 && f.Estimated >= f.Rows {
		return fmt.Sprintf("%s: %d%% of about %d rows", f.Table, 100*f.Rows/f.Estimated, f.Estimated)
	}
	return fmt.Sprintf("%s: %d rows", f.Table, f.Rows)
}

// Fillings are the tables that Fill has found to be read, nil before it has looked.
// The slice is the caller's to read.
func (in *Intake) Fillings() []Filling {
	if p := in.fillings.Load(); p != nil {
		return *p
	}
	return nil
}

// fillTold is how often the log tells how far a table is.
const fillTold = 10 * time.Second

// filling shows how far the nth table is.
func (in *Intake) filling(n int, f fillProgress) {
	list := slices.Clone(in.Fillings())
	list[n].Rows, list[n].Done = f.Rows, f.Done
	in.fillings.Store(&list)
	in.metrics.fillRows.WithLabelValues(list[n].Table).Set(float64(f.Rows))
}

func tableOf(rel *wal.Relation) string { return rel.Schema + "." + rel.Name }

func progressKey(rel *wal.Relation) []byte { return []byte("\x00fill " + tableOf(rel)) }

// Refill tells that a table has changed so that memory must hold other things of its
// rows than Fill has seen to: Fill is to be called again.
func (in *Intake) Refill() <-chan struct{} { return in.refill }

// described looks at a relation that the stream has described.
func (in *Intake) described(rel *wal.Relation) {
	in.relation = rel
	known, filled := in.forms[tableOf(rel)]
	if !filled {
		return // not mapped, or Fill comes yet
	}
	p, ok := in.deriver.FillPlan(rel)
	if p.Form == known {
		return
	}
	if !ok {
		// From here on its rows are not remembered, though they may be once more before
		// Fill looks.
		in.forms[tableOf(rel)] = ""
		in.batch.DeleteMemory(progressKey(rel))
	}
	select {
	case in.refill <- struct{}{}:
	default:
	}
}

// do runs f in Run's goroutine.
func (in *Intake) do(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	select {
	case in.calls <- func() error { done <- f(); return nil }:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// TablesToFill returns how many mapped tables are not wholly in memory yet, -1
// before that is known.
func (in *Intake) TablesToFill() int { return int(in.toFill.Load()) }

// Fill brings the rows of the mapped tables into memory as far as they are not,
// and returns when they are. It may be stopped and called again, at any time: it
// goes on where it was. Run must be under way.
func (in *Intake) Fill(ctx context.Context, reader *snapshot.Reader, publication string) error {
	type job struct {
		table        snapshot.Table
		key, columns []int
		progress     fillProgress
	}
	tables, err := reader.Tables(ctx, in.tableNames(), publication)
	if err != nil {
		return err
	}
	var left []job
	err = in.do(ctx, func() error {
		in.deriver.SetNow(in.timers.clock.Now().Add(in.timers.skew))
		in.forms = map[string]string{}
		for _, t := range tables {
			if err := in.deriver.Attend(t.Relation, in.batch); err != nil {
				return err
			}
			b, found, err := in.batch.Memory(progressKey(t.Relation))
			if err != nil {
				return err
			}
			p, ok := in.deriver.FillPlan(t.Relation)
			in.forms[tableOf(t.Relation)] = p.Form
			if !ok {
				if found {
					// Its rows are no longer remembered, so they are to be read again should
					// they be needed once more.
					in.batch.DeleteMemory(progressKey(t.Relation))
					in.dirty = true
				}
				continue
			}
			var progress fillProgress
			if found {
				if err := json.Unmarshal(b, &progress); err != nil {
					return fmt.Errorf("read the fill's progress: %w", err)
				}
			}
			if progress.Form == p.Form && progress.Done {
				continue
			}
			if progress.Form != p.Form {
				progress = fillProgress{Form: p.Form}
			}
			left = append(left, job{t, p.Key, p.Columns, progress})
		}
		in.deriver.SetFilling(len(left) > 0)
		return nil
	})
	if err != nil {
		return err
	}
	in.setToFill(len(left))
	list := make([]Filling, len(left))
	for n, f := range left {
		list[n] = Filling{Table: tableOf(f.table.Relation), Rows: f.progress.Rows, Estimated: f.table.Estimate}
		in.metrics.fillRows.WithLabelValues(list[n].Table).Set(float64(f.progress.Rows))
		in.metrics.fillEstimated.WithLabelValues(list[n].Table).Set(float64(max(0, f.table.Estimate)))
	}
	in.fillings.Store(&list)
	limiter, most := rate.NewLimiter(rate.Inf, 0), in.fillRows
	if in.o.FillRate > 0 {
		most = max(1, min(most, int(in.o.FillRate)))
		limiter = rate.NewLimiter(rate.Limit(in.o.FillRate), most)
	}
	for n, f := range left {
		start, told, rows := time.Now(), time.Now(), 0
		name := list[n].Table
		in.log.Info("filling memory", "table", name, "rows_estimated", f.table.Estimate, "resumed", f.progress.After != nil)
		for !f.progress.Done {
			if err := limiter.WaitN(ctx, most); err != nil {
				return err
			}
			c := &fillChunk{table: f.table, progress: f.progress, applied: make(chan error, 1)}
			if c.rows, err = reader.Read(ctx, f.table, f.key, f.columns, f.progress.After, most); err != nil {
				return err
			}
			if len(c.rows) > 0 {
				last := c.rows[len(c.rows)-1]
				c.progress.After = nil
				for _, i := range f.key {
					c.progress.After = append(c.progress.After, string(last[i].Text))
				}
			}
			c.progress.Rows += int64(len(c.rows))
			c.progress.Done = len(c.rows) < most
			if err := in.applyAtMark(ctx, reader, c); err != nil {
				return err
			}
			rows += len(c.rows)
			f.progress = c.progress
			in.metrics.filled.Add(float64(len(c.rows)))
			in.filling(n, f.progress)
			if now := time.Now(); now.Sub(told) >= fillTold {
				told = now
				in.log.Info("filling memory", "table", name, "rows", f.progress.Rows, "rows_estimated", f.table.Estimate, "per_second", int(float64(rows)/now.Sub(start).Seconds()))
			}
		}
		in.log.Info("memory filled", "table", name, "rows", rows, "took", time.Since(start).Round(time.Millisecond))
		in.setToFill(len(left) - n - 1)
	}
	return in.do(ctx, func() error {
		in.deriver.SetFilling(false)
		return nil
	})
}

func (in *Intake) setToFill(n int) {
	in.toFill.Store(int64(n))
	in.metrics.filling.Set(float64(n))
}

func (in *Intake) tableNames() []catalog.Name {
	var names []catalog.Name
	for _, t := range billing.Tables(in.o.Mapping) {
		names = append(names, catalog.Name{Schema: t.Schema, Table: t.Name})
	}
	return names
}

// applyAtMark hands a chunk to Run, writes its mark, and waits until the stream
// has shown it.
func (in *Intake) applyAtMark(ctx context.Context, reader *snapshot.Reader, c *fillChunk) error {
	token, err := in.mark(ctx, func() error {
		err := in.apply(c)
		c.applied <- err
		return err
	})
	if err != nil {
		return err
	}
	if err := reader.Mark(ctx, token); err != nil {
		return err
	}
	return wait(ctx, c.applied)
}

// logical takes a logical message: a mark of ours, or somebody else's business.
func (in *Intake) logical(m *wal.Logical) error {
	if m.Prefix == writeback.Prefix {
		// Anybody may write such a message; only the key makes it good, and only for the
		// transaction that it stands in.
		if m.Transactional && in.open && writeback.Marks(in.o.WriteKey, in.position.Slot, in.xid, m.Content) {
			in.deriver.Own()
			in.metrics.own.Inc()
		}
		return nil
	}
	if m.Prefix != snapshot.Prefix {
		return nil
	}
	f, ok := in.marks[string(m.Content)]
	if !ok {
		return nil // of an earlier process
	}
	delete(in.marks, string(m.Content))
	return f()
}

func (in *Intake) apply(c *fillChunk) error {
	for _, row := range c.rows {
		if err := in.deriver.Fill(c.table.Relation, row, in.batch); err != nil {
			return err
		}
	}
	if c.progress.Done {
		if err := in.deriver.Filled(c.table.Relation, in.batch); err != nil {
			return err
		}
	}
	b, err := json.Marshal(c.progress)
	if err != nil {
		return err
	}
	in.batch.SetMemory(progressKey(c.table.Relation), b)
	in.dirty = true
	return nil
}
