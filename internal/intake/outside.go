package intake

import (
	"context"
	"strconv"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replication/snapshot"
	"github.com/billhook/billhook/internal/wal"
)

// Outside takes what no transaction of the source makes into the next commit: events,
// and what somebody keeps about them. It is good until the function it was given to
// returns.
type Outside struct{ in *Intake }

// Add gives e an id and adds it, with its executions. It keeps nothing of e.
func (o Outside) Add(e *event.Event, plan []journal.Planned) error {
	e.ID = o.in.outsideID()
	return o.in.batch.AddEvent(e, plan)
}

// SetMemory keeps value under key, which starts with 0 so that it is no row's.
func (o Outside) SetMemory(key, value []byte) { o.in.batch.SetMemory(key, value) }

// DeleteMemory forgets key.
func (o Outside) DeleteMemory(key []byte) { o.in.batch.DeleteMemory(key) }

// Touched reports whether a transaction that sight does not see has touched a row
// since Track; see Behind for those before. row is named as billing.Deriver.Touches does it.
func (o Outside) Touched(row []byte, sight snapshot.Sight) bool {
	t := o.in.tracked
	unseen := func(xid uint32) bool { return !sight.Sees(xid) }
	for _, xid := range t.rows[string(row)] {
		if unseen(xid) {
			return true
		}
	}
	for xid := range t.all {
		if unseen(xid) {
			return true
		}
	}
	return false
}

// Behind reports whether sight does not see a transaction that was derived before Track
// began, so that nobody has noted which rows it touched. The stream shows a transaction
// as soon as its commit is on the disk, and other sessions see it a moment later: when
// the one that commits goes on, and where a standby must confirm, when it has.
func (o Outside) Behind(sight snapshot.Sight) bool {
	s := &o.in.shown
	if s.count == 0 {
		return false
	}
	last := s.ring[(s.count-1)%shownMost]
	for n := s.count - min(s.count, shownMost); n < o.in.tracked.before; n++ {
		if x := s.ring[n%shownMost]; last.commit-x.commit < shownAge && !sight.Sees(x.xid) {
			return true
		}
	}
	return false
}

// shown are the last transactions that the stream has shown.
type shown struct {
	ring  []shownTransaction // shownMost of them
	count uint64             // of all; the nth is at n%shownMost
}

type shownTransaction struct {
	xid    uint32
	commit int64 // Unix seconds
}

// One that takes longer to be seen than so many others after it, or than so long, is not
// looked for: after some time its xid is that of another.
const (
	shownMost = 1 << 14
	shownAge  = 3600 // seconds
)

func (s *shown) add(b wal.Begin) {
	if s.ring == nil {
		s.ring = make([]shownTransaction, shownMost)
	}
	s.ring[s.count%shownMost] = shownTransaction{b.XID, b.CommitTime.Unix()}
	s.count++
}

// touched is what the stream has said of an entity's rows since Track.
type touched struct {
	entity string
	before uint64              // shown.count when it began
	rows   map[string][]uint32 // the transactions that touched a row
	all    map[uint32]bool     // transactions that may have touched any row
}

// maxTouched is of how many rows it is remembered which transactions touched them; a
// transaction that comes after may have touched any.
const maxTouched = 100_000

// Track begins to note which rows of an entity the stream tells of, anew when it was
// tracking already. Untrack ends it.
func (in *Intake) Track(ctx context.Context, entity string) error {
	return in.do(ctx, func() error {
		in.tracked = &touched{entity: entity, before: in.shown.count, rows: map[string][]uint32{}, all: map[uint32]bool{}}
		return nil
	})
}

// Untrack ends what Track began.
func (in *Intake) Untrack(ctx context.Context) error {
	return in.do(ctx, func() error {
		in.tracked = nil
		return nil
	})
}

// touch notes the rows that a change of the open transaction concerns.
func (in *Intake) touch(c *wal.Change) error {
	t := in.tracked
	return in.deriver.Touches(t.entity, c, memory{in}, func(row []byte) {
		switch xids := t.rows[string(row)]; {
		case row == nil, xids == nil && len(t.rows) >= maxTouched:
			t.all[in.xid] = true
		case len(xids) == 0 || xids[len(xids)-1] != in.xid:
			t.rows[string(row)] = append(xids, in.xid)
		}
	})
}

// outsider waits until no transaction is open.
type outsider struct {
	f    func(Outside) error
	done chan error // gets one value, when what f added is durable
}

// outsiders takes one in, and lets all add that may.
func (in *Intake) outsiders(more ...outsider) error {
	in.waiting = append(in.waiting, more...)
	for !in.open && len(in.waiting) > 0 {
		o := in.waiting[0]
		in.waiting = in.waiting[1:]
		if err := o.f(Outside{in}); err != nil {
			o.done <- err
			return err // what it has half added must not be written
		}
		in.promised = append(in.promised, o.done)
		in.dirty = true
	}
	return nil
}

// Write has f add to a commit, and returns when that is durable. What f adds stands
// between two transactions of the source. Run must be under way. f runs once, but when
// ctx ends before nothing is known of it.
func (in *Intake) Write(ctx context.Context, f func(Outside) error) error {
	done := make(chan error, 1)
	select {
	case in.calls <- func() error { return in.outsiders(outsider{f, done}) }:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return wait(ctx, done)
}

// AtMark is Write, but only after everything is derived that reader's session can have
// seen by now: it writes a mark into the source's log, and f follows it.
func (in *Intake) AtMark(ctx context.Context, reader *snapshot.Reader, f func(Outside) error) error {
	done := make(chan error, 1)
	token, err := in.mark(ctx, func() error {
		return in.outsiders(outsider{f, done})
	})
	if err != nil {
		return err
	}
	if err := reader.Mark(ctx, token); err != nil {
		return err
	}
	return wait(ctx, done)
}

func wait(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// mark has f run in Run's goroutine, inside the mark's own transaction, when the stream
// shows the mark with the token that it returns.
func (in *Intake) mark(ctx context.Context, f func() error) (token string, err error) {
	err = in.do(ctx, func() error {
		in.lastToken++
		token = "fill " + strconv.FormatInt(in.started, 36) + " " + strconv.FormatUint(in.lastToken, 10)
		in.marks[token] = f
		return nil
	})
	return token, err
}
