package journal

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/cockroachdb/pebble/v2"
)

// Batch collects what intake commits at once: changes of memory, events with
// their executions, and the position. It has one owner, from NewBatch until it
// is given to Commit or CommitPiece without an error, or to Discard.
type Batch struct {
	j        *Journal
	memory   overlay
	rows     []byte // encoded events
	events   []batchEvent
	plans    []Planned
	position *Position

	// What was there when the open transaction began, see Begin.
	mark struct {
		rows, events, plans int
		position            bool // was set by then
	}
	err error // of AddEvent

	key   []byte // scratch
	value []byte // what Memory returned last
}

type batchEvent struct {
	id                 event.ID
	commitTime         time.Time
	typ, object, lane  string
	rowFrom, rowTo     int
	plansFrom, plansTo int
}

func newBatch(j *Journal) *Batch { return &Batch{j: j, memory: newOverlay()} }

// NewBatch returns an empty Batch.
func (j *Journal) NewBatch() *Batch { return j.batches.Get().(*Batch) }

// Discard gives an unwanted b back.
func (b *Batch) Discard() { b.recycle() }

func (b *Batch) recycle() {
	b.memory.reset()
	if cap(b.rows) > 32<<20 {
		b.rows = nil
	}
	clear(b.events)
	b.rows, b.events, b.plans, b.position, b.err = b.rows[:0], b.events[:0], b.plans[:0], nil, nil
	b.mark.rows, b.mark.events, b.mark.plans, b.mark.position = 0, 0, 0, false
	b.j.batches.Put(b)
}

// Memory returns what is remembered under key: what this batch has set, else
// what earlier ones have. The value is valid until the next call on b.
func (b *Batch) Memory(key []byte) (value []byte, ok bool, err error) {
	if value, ok, known := b.memory.get(key); known {
		return value, ok, nil
	}
	j := b.j
	if err := j.enter(); err != nil {
		return nil, false, err
	}
	defer j.leave()
	if j.staged.Load() {
		value, ok, known, err := b.stagedMemory(key)
		if err != nil || known {
			return value, ok, err
		}
	}
	value, ok, known := j.delta.get(b.value[:0], key)
	if !known {
		var epoch uint64
		if value, ok, known, epoch = j.cache.get(b.value[:0], key); !known {
			value, ok, err = b.stored(key)
			if err == nil {
				j.cache.put(key, value, ok, epoch)
			}
			return value, ok, err
		}
	}
	if ok {
		b.value = value
	}
	return value, ok, nil
}

// stored reads memory from the store.
func (b *Batch) stored(key []byte) (value []byte, ok bool, err error) {
	b.key = append(append(b.key[:0], spaceMemory), key...)
	value, ok, err = b.read(b.key)
	if err != nil {
		return nil, false, b.j.memoryError(key, err)
	}
	return value, ok, nil
}

func (b *Batch) read(key []byte) (value []byte, ok bool, err error) {
	v, closer, err := b.j.db.Get(key)
	if err != nil {
		if errors.Is(err, pebble.ErrNotFound) {
			return nil, false, nil
		}
		return nil, false, err
	}
	b.value = append(b.value[:0], v...)
	return b.value, true, closer.Close()
}

func (j *Journal) memoryError(key []byte, err error) error {
	return fmt.Errorf("journal %s: read memory %q: %w", j.o.Path, key, err)
}

// SetMemory remembers value under key. Both are copied.
func (b *Batch) SetMemory(key, value []byte) { b.memory.set(key, value) }

// DeleteMemory forgets key.
func (b *Batch) DeleteMemory(key []byte) { b.memory.delete(key) }

// DeleteMemoryPrefix forgets every key that starts with prefix, as when a table
// is truncated or a rule no longer needs what it remembered.
func (b *Batch) DeleteMemoryPrefix(prefix []byte) { b.memory.deletePrefix(prefix) }

// AddEvent adds e and its executions, in the order of plan. It keeps nothing of
// e. Events are added in ascending order of ID and must be above those in the
// journal already: an error that wraps ErrOrder otherwise, at once or from Commit.
func (b *Batch) AddEvent(e *event.Event, plan []Planned) error {
	if n := len(b.events); n > 0 && b.events[n-1].id.Compare(e.ID) >= 0 {
		b.err = fmt.Errorf("%w: %v after %v", ErrOrder, e.ID, b.events[n-1].id)
		return b.err
	}
	for _, p := range plan {
		if p.Handler < 0 || p.Handler > math.MaxUint32 {
			b.err = fmt.Errorf("add event %v: handler id %d is out of range", e.ID, p.Handler)
			return b.err
		}
	}
	ev := batchEvent{id: e.ID, commitTime: e.CommitTime, rowFrom: len(b.rows), plansFrom: len(b.plans)}
	b.rows = appendEvent(b.rows, e)
	b.plans = append(b.plans, plan...)
	ev.rowTo, ev.plansTo = len(b.rows), len(b.plans)
	if len(plan) > 0 {
		s := string(e.Type) + e.Object + e.Lane
		ev.typ, s = s[:len(e.Type)], s[len(e.Type):]
		ev.object, ev.lane = s[:len(e.Object)], s[len(e.Object):]
	}
	b.events = append(b.events, ev)
	return nil
}

// SetPosition sets what Journal.Position will be. The last call counts.
func (b *Batch) SetPosition(p Position) { b.position = &p }

// Bytes is about how much b will write, Events how many events it holds.
func (b *Batch) Bytes() int { return len(b.memory.arena) + len(b.rows) + 200*len(b.plans) }

// Events is the number of events in b.
func (b *Batch) Events() int { return len(b.events) }

// Begin says that a transaction of the source begins here. It lets CommitPiece
// tell the open transaction from the whole ones before it.
func (b *Batch) Begin() {
	b.memory.setMark()
	b.mark.rows, b.mark.events, b.mark.plans = len(b.rows), len(b.events), len(b.plans)
	b.mark.position = b.position != nil
}

// portion is all of a batch, or what came before or after Begin.
type portion struct {
	changes  iter.Seq[change]
	prefixes [][]byte
	events   []batchEvent
	position *Position
}

func (b *Batch) whole() portion {
	return portion{b.memory.all(), b.memory.prefixes, b.events, b.position}
}

func (b *Batch) before() portion {
	return portion{b.memory.before(), b.memory.prefixes[:b.memory.mark.prefixes], b.events[:b.mark.events], b.position}
}

func (b *Batch) since() portion {
	return portion{b.memory.since(), b.memory.prefixes[b.memory.mark.prefixes:], b.events[b.mark.events:], nil}
}

// Commit applies b: later batches and readers see it on return. It is durable
// when wait returns nil. Batches become durable in the order of Commit, so an
// intake that lets several be under way at once must confirm to the source no
// more than the last one that wait has returned nil for.
//
// When CommitPiece has staged the beginning of b's transaction, Commit ends it.
//
// An error that wraps ErrDiskFull leaves b as it was, to be tried again. After
// any other error b is the caller's still, and nothing of it is in the journal;
// after one that wraps ErrStopped nothing ever will be, until it is reopened.
func (j *Journal) Commit(b *Batch) (wait func() error, err error) {
	if err := j.enter(); err != nil {
		return nil, err
	}
	defer j.leave()
	j.intake.Lock()
	defer j.intake.Unlock()
	if b.err != nil {
		return nil, b.err
	}
	var a *ack
	if j.stage != nil {
		a, err = j.commitStage(b)
	} else {
		a, err = j.commit(b, b.whole())
	}
	if err != nil {
		return nil, err
	}
	j.metrics.events.Observe(float64(len(b.events)))
	b.recycle()
	return a.wait, nil
}

// commit applies one portion of b. Journal.intake is held.
func (j *Journal) commit(b *Batch, p portion) (*ack, error) {
	start := time.Now()
	if err := j.makeRoom(); err != nil {
		return nil, err
	}
	var values uint64
	e, err := j.applied(b.Bytes()+64*len(b.memory.entries), func(e *edit) error {
		if err := j.room(b.Bytes(), j.o.MinFree); err != nil {
			return err
		}
		if err := j.inOrder(p.events); err != nil {
			return err
		}
		var err error
		if values, err = e.delta(p); err != nil {
			return err
		}
		if err := e.roll(); err != nil {
			return err
		}
		if err := e.events(b, p.events); err != nil {
			return err
		}
		return e.position(p.position)
	})
	if err != nil {
		return nil, err
	}
	if values > 0 {
		j.delta.next += values
		j.delta.add(p)
	}
	a := j.push(e, p.position, start)
	if len(p.events) > 0 && len(p.events) <= quietEvents {
		// The store's writer is to begin before anything else is done here.
		runtime.Gosched()
		j.remember(b, p.events)
	}
	return a, nil
}

// quietEvents is how many events a commit of intake brings at most where there is no
// backlog: what it brings is then wanted as soon as it is durable.
const quietEvents = 16

// remember has events of b at hand for those who are told of them once they are durable.
func (j *Journal) remember(b *Batch, events []batchEvent) {
	for i := range events {
		ev := &events[i]
		if ev.plansFrom == ev.plansTo {
			continue
		}
		if e, err := decodeEvent(ev.id, b.rows[ev.rowFrom:ev.rowTo]); err == nil {
			j.recent.eventAlone(e)
		}
	}
}

// push hands an applied edit to the goroutine that acknowledges, in the order of
// applies because Journal.intake is held over both. Journal.mu is not: when the
// queue is full, whoever drains it may need it.
func (j *Journal) push(e *edit, p *Position, start time.Time) *ack {
	a := &ack{edit: e, position: p, start: start, done: make(chan struct{})}
	j.acks <- a
	return a
}

func (e *edit) position(p *Position) error {
	if p == nil {
		return nil
	}
	e.val = appendPosition(e.val[:0], p)
	return e.b.Set(keyPosition, e.val, nil)
}

// room returns an error when n bytes may not be written now.
func (j *Journal) room(n int, reserve uint64) error {
	if err := j.Err(); err != nil {
		return err
	}
	if err := j.space.check(n, reserve); err != nil {
		j.metrics.errors.WithLabelValues("refused").Inc()
		return err
	}
	return nil
}

func (j *Journal) inOrder(events []batchEvent) error {
	if len(events) > 0 && events[0].id.Compare(j.lastEvent) <= 0 {
		return fmt.Errorf("%w: %v, the last is %v", ErrOrder, events[0].id, j.lastEvent)
	}
	return nil
}

// events writes events and their executions.
func (e *edit) events(b *Batch, events []batchEvent) error {
	now := e.j.now()
	for i := range events {
		ev := &events[i]
		bucket := e.current().number
		e.key = appendEventKey(e.key[:0], bucket, ev.id)
		if err := e.set(b.rows[ev.rowFrom:ev.rowTo]); err != nil {
			return err
		}
		for _, p := range b.plans[ev.plansFrom:ev.plansTo] {
			x := ev.execution(p, now)
			if err := e.create(&x); err != nil {
				return err
			}
		}
		e.last = ev.id
	}
	return nil
}

func (ev *batchEvent) execution(p Planned, now time.Time) Execution {
	x := Execution{
		Event: ev.id, Type: event.Type(ev.typ), Object: ev.object, Lane: ev.lane,
		Handler: p.Handler, Priority: p.Priority, Status: p.status(),
		Created: now, CommitTime: ev.commitTime,
	}
	return x
}

// roll begins a new bucket when the current one is full or old.
func (e *edit) roll() error {
	bk, now := e.current(), e.j.now()
	n := e.next - bk.first
	if n >= e.j.o.bucketIDs || n > 0 && (now.Sub(bk.created) >= e.j.bucketAge() || e.j.rollNext.Load()) {
		e.j.rollNext.Store(false)
		return e.begin(now)
	}
	return nil
}

// bucketAge is how long a bucket is filled: short enough for retention to be
// exact to a sixteenth, long enough that searching needs few of them.
func (j *Journal) bucketAge() time.Duration {
	if j.o.Retention <= 0 {
		return maxBucketAge
	}
	return min(max(j.o.Retention/16, minBucketAge), maxBucketAge)
}
