// Package intake is the way from the replication stream into the journal: it
// decodes chunks, derives events, plans their executions, and commits all of it
// with the position it came from.
//
// It promises that a transaction is in the journal as a whole or not at all, that
// nothing is confirmed before it is durable there, and that a transaction that
// comes again is left out. It waits for the disk and for nothing else: never for
// a handler.
//
// It does not connect (package replication), does not know what an event is
// (billing) nor who is told (dispatch).
//
// Start with New and Intake.Run.
package intake

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/steady"
	"github.com/billhook/billhook/internal/wal"
)

// Options of New. Journal, Deriver, Plan and Confirm are required.
type Options struct {
	Journal *journal.Journal
	// Mapping is what the Deriver is made of.
	Mapping billing.Mapping
	// Plan says which executions an event has; Wants whether a type has any.
	Plan  func(*event.Event) []journal.Planned
	Wants func(event.Type) bool
	// Types are the event types that can happen, for metrics that start at zero.
	Types []event.Type
	// Confirm is told each position that is durable, in order.
	Confirm func(wal.LSN)
	// Clock is required when the mapping has rules by the clock or thresholds that
	// settle.
	Clock      Clock
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// WriteKey is the key of the marks by which transactions are known that Billhook
	// itself has made, see WriteKey; nil: none is known.
	WriteKey []byte
	// FillRate bounds the rows per second that Fill reads; 0: no limit.
	FillRate float64
	// Retry is how long to wait when the journal has no room; 0: one second.
	Retry time.Duration

	spillAt, pieceBytes int // for tests; 0: billing's own, maxBatchBytes
}

// Batches grow while the disk is busy with the one before, up to these.
const (
	maxBatchBytes        = 2 << 20
	maxBatchTransactions = 10_000
	// idleInterval bounds how often a position without a transaction is journaled.
	idleInterval = time.Second
)

// Intake belongs to the goroutine of Run; Status may be called from any.
type Intake struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	deriver *billing.Deriver

	session  *replication.Session
	decoder  *wal.Decoder
	batch    *journal.Batch
	position journal.Position // of the last transaction or keepalive taken in
	outside  event.ID         // the last id that outsideID gave, or the journal's last event
	timers   timers

	open         bool // inside a transaction
	skipping     bool // inside one that the journal has already
	spilling     bool // inside one that is too large for one commit
	changes      int  // of the open transaction
	told         time.Time
	transactions int // in batch
	dirty        bool
	idleSince    time.Time // last commit of a mere position

	waiting  []outsider   // until no transaction is open
	promised []chan error // of what outsiders have added to batch
	flying   []chan error // of what they have added to the commit under way
	tracked  *touched     // nil: nobody asks
	shown    shown
	xid      uint32 // of the open transaction

	inFlight bool        // a commit is on its way to the disk
	done     chan synced // gets its end
	piece    func() error
	scratch  *journal.Scratch

	ctx       context.Context         // of Run
	calls     chan func() error       // to run in Run's goroutine
	marks     map[string]func() error // what to do when the stream shows a mark
	started   int64                   // makes marks of this process its own
	lastToken uint64
	fillRows  int
	toFill    atomic.Int64
	fillings  atomic.Pointer[[]Filling]
	forms     map[string]string // by table, what Fill has seen to; nil: it has not looked
	relation  *wal.Relation     // of the last change
	refill    chan struct{}
	blocks    atomic.Pointer[string]
}

// New makes an Intake.
func New(o Options) (*Intake, error) {
	in := &Intake{
		o: o, log: o.Logger, calls: make(chan func() error), done: make(chan synced, 1),
		refill: make(chan struct{}, 1), marks: map[string]func() error{}, started: time.Now().UnixNano(), fillRows: defaultFillRows,
	}
	in.toFill.Store(-1)
	if in.log == nil {
		in.log = slog.New(slog.DiscardHandler)
	}
	if in.o.Retry == 0 {
		in.o.Retry = time.Second
	}
	in.metrics = newMetrics(o.Registerer, o.Types)
	in.scratch = o.Journal.NewScratch()
	key, err := Seal(o.Journal)
	if err != nil {
		return nil, err
	}
	in.deriver, err = billing.New(o.Mapping, billing.Options{
		Wants: o.Wants,
		Seal:  key,
		Count: in.metrics.event,
		Notice: func(n billing.Notice) {
			in.log.Warn("mapping and database disagree", "table", n.Relation.Schema+"."+n.Relation.Name, "err", n.Text)
		},
		Broken: func(t event.Type, err error) {
			in.metrics.broken.Inc()
			in.log.Warn("condition cannot be evaluated, its event does not fire for this row", "event", t, "err", err)
		},
		Limit: o.spillAt, Between: in.between, Scratch: scratch{in, in.scratch},
	})
	if err != nil {
		return nil, err
	}
	in.timers.clocked = in.deriver.Clocked()
	in.timers.answers = make(chan answer, 1)
	in.timers.clock = steady.New()
	if in.timers.clocked && o.Clock == nil {
		return nil, errors.New("the mapping has rules by the clock, and there is no clock")
	}
	in.batch = o.Journal.NewBatch()
	in.position, _ = o.Journal.Position()
	in.outside = o.Journal.LastEvent()
	if err := in.countTimers(); err != nil {
		return nil, err
	}
	return in, nil
}

// Where keys of the journal's own stand in memory. Row keys never start with 0.
const (
	sealKey  = "\x00seal"
	writeKey = "\x00write"
)

// Seal returns the journal's key for the digests of masked columns, see
// billing.Options. A new journal gets one before anything is remembered under it.
func Seal(j *journal.Journal) ([]byte, error) {
	key, err := secret(j, sealKey)
	if err != nil {
		return nil, fmt.Errorf("make the key for masked columns: %w", err)
	}
	return key, nil
}

// WriteKey returns the journal's key for the marks of transactions that Billhook makes
// itself, see package writeback. A journal that has none gets one.
func WriteKey(j *journal.Journal) ([]byte, error) {
	key, err := secret(j, writeKey)
	if err != nil {
		return nil, fmt.Errorf("make the key for written-back transactions: %w", err)
	}
	return key, nil
}

// secret returns the random key that stands at a place, and puts one there when there
// is none. It is durable then.
func secret(j *journal.Journal, place string) ([]byte, error) {
	b := j.NewBatch()
	key, ok, err := b.Memory([]byte(place))
	if ok || err != nil {
		key = bytes.Clone(key)
		b.Discard()
		return key, err
	}
	key = make([]byte, 32)
	rand.Read(key) // never fails
	b.SetMemory([]byte(place), key)
	wait, err := j.Commit(b)
	if err == nil {
		err = wait()
	}
	return key, err
}

// Blocked returns why intake stands still, "" when it does not.
func (in *Intake) Blocked() string {
	if p := in.blocks.Load(); p != nil {
		return *p
	}
	return ""
}

// synced is what became of the commit under way.
type synced struct {
	end wal.LSN
	err error
}

// Run takes chunks in until ctx ends or the journal fails. While one commit is on
// its way to the disk the next batch grows; so a busy stream shares one sync among
// many transactions, and a quiet one waits for nobody.
func (in *Intake) Run(ctx context.Context, chunks <-chan *replication.Chunk) error {
	in.ctx = ctx
	defer func() {
		// A failed write was reported, or will be by Close.
		_ = in.landed()
		_ = in.pieceLanded()
		in.scratch.Reset()
		in.endClock()
		in.batch.Discard()
	}()
	again := make(chan struct{}) // always ready
	close(again)
	for {
		more, err := in.fire()
		if err != nil {
			return err
		}
		if in.dirty && !in.inFlight {
			if !in.full() {
				select {
				case c := <-chunks:
					if err := in.take(c); err != nil {
						return ended(ctx, err)
					}
					continue
				default:
				}
			}
			if in.due() {
				if err := in.send(); err != nil {
					return ended(ctx, err)
				}
			}
		}
		source := chunks
		if in.full() {
			source = nil
		}
		var idle <-chan time.Time
		if in.dirty && !in.inFlight {
			idle = time.After(idleInterval)
		}
		moreToFire := again
		if !more {
			moreToFire = nil
		}
		due, err := in.untilDue(ctx)
		if err != nil {
			return err
		}
		select {
		case c := <-source:
			if err := in.take(c); err != nil {
				return ended(ctx, err)
			}
		case s := <-in.done:
			if err := in.finish(s); err != nil {
				return err
			}
		case f := <-in.calls:
			if err := f(); err != nil {
				return err
			}
		case a := <-in.timers.answers:
			in.answered(a)
		case <-due:
		case <-moreToFire:
		case <-idle:
		case <-ctx.Done():
			return in.landed()
		}
	}
}

// ended makes a wait that was broken off because ctx has ended a good end: what was
// not written is sent again.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return nil
	}
	return err
}

// send commits the batch and has its end told to done.
func (in *Intake) send() error {
	end, wait, err := in.commit(in.ctx)
	if err != nil {
		return err
	}
	in.inFlight = true
	in.flying, in.promised = in.promised, nil
	go func() { in.done <- synced{end, wait()} }()
	return nil
}

// landed waits for the commit that is on its way.
func (in *Intake) landed() error {
	if !in.inFlight {
		return nil
	}
	return in.finish(<-in.done)
}

func (in *Intake) finish(s synced) error {
	in.inFlight = false
	for _, done := range in.flying {
		done <- s.err
	}
	in.flying = nil
	if s.err != nil {
		return fmt.Errorf("write the journal: %w", s.err)
	}
	in.metrics.durable.Set(float64(s.end))
	in.o.Confirm(s.end)
	return nil
}

// full reports a batch that takes no more before it is committed.
func (in *Intake) full() bool {
	return in.batch.Bytes() > maxBatchBytes || in.transactions >= maxBatchTransactions
}

// due reports whether what the batch holds should be committed now: always when
// there are transactions, now and then when there is but a newer position.
func (in *Intake) due() bool {
	return in.transactions > 0 || in.timers.fired > 0 || len(in.promised) > 0 || time.Since(in.idleSince) >= idleInterval
}

// commit gives the batch to the journal, waiting for room if there is none.
func (in *Intake) commit(ctx context.Context) (end wal.LSN, wait func() error, err error) {
	in.batch.SetPosition(in.position)
	if wait, err = in.write(ctx, in.o.Journal.Commit); err != nil {
		return 0, nil, err
	}
	in.metrics.batches.Observe(float64(in.transactions))
	in.metrics.flush()
	if in.transactions == 0 {
		in.idleSince = time.Now()
	}
	in.transactions, in.timers.fired, in.dirty = 0, 0, false
	if err := in.countTimers(); err != nil {
		return 0, nil, err
	}
	return in.position.EndLSN, wait, nil
}

// write gives the batch to commit, and again when there is no room, and begins a
// new one.
func (in *Intake) write(ctx context.Context, commit func(*journal.Batch) (func() error, error)) (wait func() error, err error) {
	err = in.untilRoom(ctx, func() (err error) {
		wait, err = commit(in.batch)
		return err
	})
	if err != nil {
		return nil, err
	}
	in.batch = in.o.Journal.NewBatch()
	return wait, nil
}

// untilRoom writes to the journal, again and again while there is no room for it.
func (in *Intake) untilRoom(ctx context.Context, write func() error) error {
	for {
		err := write()
		if err == nil {
			break
		}
		if !errors.Is(err, journal.ErrDiskFull) {
			return fmt.Errorf("write the journal: %w", err)
		}
		if in.Blocked() == "" {
			in.log.Error("intake stands still until there is room for the journal; nothing is confirmed, nothing is lost", "err", err)
		}
		text := err.Error()
		in.blocks.Store(&text)
		in.metrics.blocked.Set(1)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(in.o.Retry):
		}
	}
	if in.Blocked() != "" {
		in.log.Info("there is room for the journal again, intake goes on")
		in.blocks.Store(nil)
		in.metrics.blocked.Set(0)
	}
	return nil
}

// take works through one chunk and releases it.
func (in *Intake) take(c *replication.Chunk) error {
	defer c.Release()
	if s := c.Session(); s != in.session {
		if err := in.begin(s); err != nil {
			return err
		}
	}
	var sent time.Time
	for {
		b, ok := c.Next()
		if !ok {
			if !sent.IsZero() {
				in.timers.skew = sent.Sub(in.timers.clock.Now())
			}
			return nil
		}
		f, err := wal.ParseFrame(b)
		if err != nil {
			return fmt.Errorf("read the stream: %w", err)
		}
		sent = f.SendTime
		if f.Kind == wal.FrameKeepalive {
			// Everything before it is in the batch or in the journal already, so once
			// the batch is durable the server may forget up to here.
			if !in.open && f.WALEnd > in.position.EndLSN {
				in.position.EndLSN = f.WALEnd
				in.dirty = true
			}
			continue
		}
		m, err := in.decoder.Decode(f.Data)
		if err != nil {
			return fmt.Errorf("decode the stream at %s: %w", f.Start, err)
		}
		if err := in.message(m); err != nil {
			return err
		}
	}
}

// begin starts over on a new connection. What was open is sent again.
func (in *Intake) begin(s *replication.Session) error {
	in.session = s
	in.decoder = &wal.Decoder{}
	in.decoder.Doubt(s.Doubted...)
	in.deriver.Reset(s.Doubted...)
	if in.spilling {
		if err := in.discard(); err != nil {
			return err
		}
	}
	in.open = false
	in.position.Follow(s.SystemID, s.Timeline, false)
	in.position.Slot, in.position.Publication, in.position.PublicationOID = s.Slot, s.Publication, s.PublicationOID
	if in.position.EndLSN < s.Start || in.position.CommitLSN == 0 {
		in.position.EndLSN = s.Start
	}
	in.dirty = true
	in.idleSince = time.Time{}
	return in.outsiders()
}

// outsideID returns the next id for an event that no change made. It follows the
// last transaction in the batch and precedes every later one, so it may not be
// asked for while a transaction is open.
func (in *Intake) outsideID() event.ID {
	id := event.ID{Generation: in.position.Generation, CommitLSN: in.position.CommitLSN, Ordinal: event.FirstOutside}
	if in.outside.Compare(id) >= 0 {
		id = in.outside
		id.Ordinal = max(id.Ordinal+1, event.FirstOutside)
	}
	in.outside = id
	return id
}

func (in *Intake) message(m *wal.Message) error {
	switch m.Kind {
	case wal.KindChange:
		if in.skipping {
			return nil
		}
		if m.Change.Relation != in.relation {
			in.described(m.Change.Relation)
		}
		if in.tracked != nil {
			if err := in.touch(&m.Change); err != nil {
				return fmt.Errorf("note a change for a backfill: %w", err)
			}
		}
		in.metrics.change(&m.Change, in.deriver.Change(&m.Change))
		in.changes++
		if in.deriver.Full() {
			return in.spill()
		}
	case wal.KindBegin:
		in.open = true
		in.changes = 0
		in.xid = m.Begin.XID
		in.shown.add(m.Begin)
		in.skipping = m.Begin.CommitLSN <= in.position.CommitLSN
		if in.skipping {
			in.metrics.repeated.Inc()
			return nil
		}
		in.deriver.Begin(in.position.Generation, m.Begin)
	case wal.KindCommit:
		in.open = false
		if in.skipping {
			in.skipping = false
			return in.outsiders()
		}
		if err := in.committed(m.Commit); err != nil {
			return err
		}
		return in.outsiders()
	case wal.KindTruncate:
		if in.skipping {
			return nil
		}
		if in.tracked != nil {
			in.tracked.all[in.xid] = true
		}
		for _, rel := range m.Truncate.Relations {
			if in.deriver.Truncate(rel) {
				in.log.Warn("a mapped table was truncated: its rows went without delete events", "table", rel.Schema+"."+rel.Name)
				in.metrics.truncates.Inc()
			}
		}
	case wal.KindLogical:
		if !in.skipping {
			return in.logical(&m.Logical)
		}
	}
	return nil
}

// committed derives the transaction that has just ended into the batch.
func (in *Intake) committed(c wal.Commit) error {
	in.batch.Begin()
	err := in.deriver.Commit(memory{in}, func(e *event.Event) error {
		plan := in.o.Plan(e)
		if len(plan) == 0 {
			return nil
		}
		return in.batch.AddEvent(e, plan)
	})
	if err != nil {
		return fmt.Errorf("derive the transaction committed at %s: %w", c.CommitLSN, err)
	}
	in.position.CommitLSN, in.position.EndLSN, in.position.CommitTime = c.CommitLSN, c.EndLSN, c.CommitTime
	in.transactions++
	in.dirty = true
	in.metrics.transaction(c.CommitTime)
	if in.spilling {
		return in.spilled()
	}
	return nil
}
