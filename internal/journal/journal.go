// Package journal is Billhook's durable store: where intake stands in the
// source's log, what it remembers about each row, the events, their executions
// and every attempt. It is the only place with state that outlives the process.
//
// It promises that what one Commit holds is there as a whole or not at all,
// after a kill at any moment and after a power loss: never a position without
// the events up to it, never an execution without its event, no execution id
// twice, counts that agree with the rows. It promises that a store which cannot
// be written, is damaged or is of another format says so, and that no failure
// of the disk ends the process.
//
// It does not decide what is remembered, who is told or when an attempt is
// made, and it does not know what is secret: it stores what it is given.
//
// Start with Open, then Batch for intake, Record for dispatch and Executions for
// people. The key layout is drawn in DESIGN.md.
package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
)

// Errors that a caller may branch on.
var (
	// ErrDiskFull: free space is below the reserve, or a write is waiting for
	// space. Nothing of this call was written; the same call works again once
	// there is space.
	ErrDiskFull = errors.New("disk full")
	// ErrStopped: a write failed or the store is damaged. Nothing more will be
	// written until the journal is closed and opened again; reading still works.
	ErrStopped = errors.New("journal stopped")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("journal closed")
	// ErrDamaged: what is stored cannot be what was written.
	ErrDamaged = errors.New("journal damaged")
	// ErrFormat: the store has a format of another version.
	ErrFormat = errors.New("unknown journal format")
	// ErrInUse: another process has the journal.
	ErrInUse = errors.New("in use")
	// ErrNotFound: no such event or execution, or retention has dropped it.
	ErrNotFound = errors.New("not found in the journal")
	// ErrFinal: the execution's status is final.
	ErrFinal = errors.New("execution is final")
	// ErrOrder: an event is not above the last one in the journal.
	ErrOrder = errors.New("event is not newer than the journal's last")
)

// Options of Open. Path is required; the zero value of the others is a default.
type Options struct {
	Path       string
	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: none
	FS         vfs.FS                // nil: the disk
	// Retention is how long executions are kept at least after they are final.
	// They are dropped in buckets that span up to a sixteenth of it. 0: for ever.
	Retention time.Duration
	// MaxSize is the size of the store in bytes above which the oldest final
	// executions are dropped before their time. 0: no limit.
	MaxSize uint64
	// Cache is the number of bytes for what is not on the disk yet and for blocks
	// that are. 0: 32 MiB.
	Cache int64
	// MemoryCache is the size in bytes of the cache of memory. 0: 24 MiB.
	MemoryCache int
	// MinFree is the number of free bytes on the disk below which intake is
	// refused; attempts are recorded down to a quarter of it. 0: 512 MiB.
	MinFree uint64
	// ReadOnly changes nothing in the folder: what a kill has left half-done stays so,
	// and every write is an error. Nobody else may have the journal all the same.
	ReadOnly bool
	// Now tells the time. nil: time.Now.
	Now func() time.Time
	// OnDurable is called after a commit of intake is durable, in the order of
	// commit and from one goroutine, with the pending executions that it brought.
	// The slice is the callee's. Pending may name an execution shortly before
	// OnDurable does. OnDurable must not call Commit, Expire or Close and
	// must not block on anything that waits for those.
	OnDurable func(q []Queued)

	// What tests make small.
	bucketIDs uint64
	memTable  uint64
	mergeAt   int
}

const (
	defaultCache       = 32 << 20
	defaultMemoryCache = 24 << 20
	defaultMinFree     = 512 << 20
	defaultBucket      = 4 << 20
	memTableSize       = 8 << 20
	maxBucketAge       = 7 * 24 * time.Hour
	flushTimeout       = 10 * time.Second
	minBucketAge       = time.Hour
)

// storeFormat is pinned: a raise cannot be undone, so it goes with formatVersion.
const storeFormat = pebble.FormatTableFormatV6

// Journal is an open store. Its methods may be called from any goroutine; the
// batches of intake have one writer at a time.
type Journal struct {
	o       Options
	log     *slog.Logger
	now     func() time.Time
	metrics *metrics
	folder  *folder
	disk    *disk
	db      *pebble.DB

	life   sync.RWMutex // held for reading by every call, for writing by Close
	closed bool         // guarded by life

	// intake is held by whoever commits events: Commit, CommitPiece,
	// DiscardPieces. It comes before mu.
	intake sync.Mutex
	// mu is held from the first read to the apply of every commit. It guards:
	mu        sync.Mutex
	space     space
	nextID    uint64
	lastEvent event.ID
	totals    map[HandlerStatus]int64
	stage     *stage         // nil: none
	hints     map[int]uint64 // no pending execution of the handler is below
	hintEpoch int            // changes when hints may have become wrong

	staged   atomic.Bool                // stage is not nil
	rollNext atomic.Bool                // the next commit of intake begins a bucket
	buckets  atomic.Pointer[bucketList] // stored under mu
	durable  atomic.Uint64              // executions up to here are durable
	position atomic.Pointer[Position]   // durable

	acks  chan *ack
	acked chan struct{} // closed when the goroutine that acknowledges has ended

	failOnce  sync.Once
	failed    chan struct{} // closed after failure is set
	failure   error
	abandoned atomic.Bool // the store panicked: it cannot be closed
	batches   sync.Pool
	spare     chan *pebble.Batch // to be used again: the store's own pool is emptied by each collection
	delta     delta
	cache     *cache
	recent    *recent
	recorder  *recorder
	history   history
}

// Open opens the journal in o.Path, making it if the folder is missing or empty.
// Anything else that is not a journal of this format in good order is an error
// that says what it found and what to do; a journal is never started anew in
// place of an old one.
func Open(o Options) (*Journal, error) {
	if o.Path == "" {
		return nil, errors.New("open journal: no path")
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Cache <= 0 {
		o.Cache = defaultCache
	}
	if o.MemoryCache <= 0 {
		o.MemoryCache = defaultMemoryCache
	}
	if o.MinFree == 0 {
		o.MinFree = defaultMinFree
	}
	if o.bucketIDs == 0 {
		o.bucketIDs = defaultBucket
	}
	if o.memTable == 0 {
		o.memTable = memTableSize
	}
	if o.mergeAt == 0 {
		o.mergeAt = mergeAt
	}
	j := &Journal{
		delta:  newDelta(),
		o:      o,
		log:    o.Logger,
		now:    o.Now,
		totals: make(map[HandlerStatus]int64),
		hints:  make(map[int]uint64),
		acks:   make(chan *ack, 64),
		acked:  make(chan struct{}),
		spare:  make(chan *pebble.Batch, 4),
		failed: make(chan struct{}),
	}
	j.recent, j.recorder = newRecent(), newRecorder()
	j.batches.New = func() any { return newBatch(j) }
	j.metrics = newMetrics(o.Registerer)
	j.disk = newDisk(o.FS, j.fail, j.noSpace)
	j.space = space{disk: j.disk, path: o.Path, now: time.Now}

	var err error
	if o.ReadOnly {
		j.folder, err = lookIntoFolder(o.FS, o.Path)
	} else {
		j.folder, err = openFolder(o.FS, o.Path)
	}
	if err != nil {
		return nil, err
	}
	j.cache = newCache(o.MemoryCache)
	if err := j.open(); err != nil {
		j.disk.release()
		defer j.cache.free()
		if j.db != nil && !j.abandoned.Load() {
			err = errors.Join(err, j.db.Close())
		}
		return nil, errors.Join(err, j.folder.lock.Close())
	}
	j.disk.arm()
	j.metrics.watch(j)
	go j.acknowledge()
	go j.record()
	if !o.ReadOnly {
		go j.warm()
	}
	return j, nil
}

func (j *Journal) open() error {
	fresh := j.folder.fresh()
	if err := j.openStore(!fresh); err != nil {
		var errno syscall.Errno
		switch {
		case errors.Is(err, pebble.ErrDBDoesNotExist):
			return j.beyondRepair(errors.New("the store is gone"))
		case !fresh && !(errors.As(err, &errno) && errno != syscall.ENOENT):
			return j.beyondRepair(err)
		}
		return j.folder.refused("open the store", err)
	}
	if fresh {
		b := j.db.NewBatch()
		bk := &bucket{number: 1, first: 1, created: j.now()}
		err := b.Set(appendBucketKey(nil, bk.number), appendBucketRow(nil, bk, time.Time{}), nil)
		if err == nil {
			err = j.db.Apply(b, pebble.Sync)
		}
		if err == nil {
			err = j.folder.made()
		}
		if err != nil {
			return j.folder.refused("make the store", err)
		}
	}
	if err := j.load(); err != nil {
		return j.beyondRepair(err)
	}
	return nil
}

func (j *Journal) beyondRepair(err error) error {
	if errors.Is(err, ErrDamaged) { // the store has said so as it was read
		return fmt.Errorf("journal %s: %w; restore the folder from a backup, or move it away", j.o.Path, err)
	}
	return fmt.Errorf("%w: journal %s: %w; restore the folder from a backup, or move it away", ErrDamaged, j.o.Path, err)
}

// openStore opens Pebble. It reports a panic on damaged files as an error.
func (j *Journal) openStore(exists bool) (err error) {
	defer func() {
		if r := recover(); r != nil {
			j.abandoned.Store(true)
			err = fmt.Errorf("the store panicked: %v", r)
		}
	}()
	cores := runtime.GOMAXPROCS(0)
	opts := &pebble.Options{
		FS:                 j.disk,
		Logger:             storeLog{j},
		LoggerAndTracer:    storeLog{j},
		ErrorIfNotExists:   exists,
		ReadOnly:           j.o.ReadOnly,
		FormatMajorVersion: storeFormat,
		CacheSize:          j.o.Cache,
		MemTableSize:       j.o.memTable,
		// Two full memtables may wait for the disk while a third fills. They are
		// taken out of the cache.
		MemTableStopWritesThreshold: 3,
		CompactionConcurrencyRange: func() (int, int) {
			return 1, max(1, min(cores-1, 4))
		},
		// Twelve tables on top of one another, and not two, before they are merged below:
		// what is below is written anew each time, while filters keep most reads out of
		// the tables on top.
		L0CompactionThreshold: 24,
		L0StopWritesThreshold: 72,
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) {
				j.metrics.errors.WithLabelValues("background").Inc()
				j.log.Error("journal store: flush or compaction", "err", err)
			},
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				_ = j.damaged(fmt.Errorf("%s: %w", info.Path, info.Details))
			},
			PossibleAPIMisuse: func(info pebble.PossibleAPIMisuseInfo) {
				// See edit.delOnce: what would be left is an execution that is pending for ever.
				if info.Kind == pebble.NondeterministicSingleDelete {
					_ = j.damaged(fmt.Errorf("key %x was set twice and deleted once", info.UserKey))
				}
			},
			DiskSlow: func(info vfs.DiskSlowInfo) {
				j.log.Warn("journal disk is slow", "err", info.String())
			},
		},
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		opts.Levels[i].IndexBlockSize = 64 << 10 // one level of index for most tables
	}
	opts.Experimental.SpanPolicyFunc = spans
	opts.ApplyCompressionSettings(func() pebble.DBCompressionSettings {
		c := pebble.DBCompressionFastest
		c.Levels[0] = block.NoCompression // what is on top is written anew soon
		return c
	})
	db, err := pebble.Open(j.folder.store(), opts)
	if err != nil {
		return err
	}
	j.db = db
	return nil
}

// spans has tables end where memory begins and ends. A table from L to p lies over all of
// memory, which would be written anew with it whenever it is merged below.
func spans(start []byte) (policy pebble.SpanPolicy, end []byte, err error) {
	switch {
	case start[0] < spaceMemory:
		return policy, []byte{spaceMemory}, nil
	case start[0] == spaceMemory:
		return policy, []byte{spaceMemory + 1}, nil
	}
	return policy, nil, nil
}

// load reads what is kept in memory and finishes or clears what a kill left
// half-done.
func (j *Journal) load() error {
	if err := j.loadHistory(j.db); err != nil {
		return err
	}
	list, err := loadBuckets(j.db)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return errors.New("the store is empty")
	}
	j.buckets.Store(&list)
	for _, bk := range list {
		for hs, n := range bk.counts {
			j.totals[hs] += n
		}
	}
	cur := list.current()
	j.nextID = cur.first
	if k, err := lastKey(j.db, appendLog(nil, cur.number, logRow)); err != nil {
		return err
	} else if k != nil {
		j.nextID = idOf(k) + 1
	}
	if err := j.loadPosition(); err != nil {
		return err
	}
	if err := j.delta.load(j.db); err != nil {
		return err
	}
	j.lastEvent = cur.after
	if err := j.loadStage(); err != nil {
		return err
	}
	if k, err := lastKey(j.db, appendLog(nil, cur.number, logEvent)); err != nil {
		return err
	} else if k != nil {
		if id := eventIDOf(k[len(k)-eventIDSize:]); id.Compare(j.lastEvent) > 0 {
			j.lastEvent = id
		}
	}
	if j.o.ReadOnly {
		if j.stage != nil {
			j.lastEvent = j.stage.after // its events are not counted yet
		}
	} else if err := j.finishStage(); err != nil {
		return err
	}
	j.durable.Store(j.nextID - 1)
	return nil
}

func (j *Journal) loadPosition() error {
	v, closer, err := j.db.Get(keyPosition)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := decodePosition(v)
	if err = errors.Join(err, closer.Close()); err != nil {
		return err
	}
	j.position.Store(&p)
	return nil
}

// lastKey returns the greatest key with the prefix, nil if there is none.
func lastKey(r pebble.Reader, prefix []byte) ([]byte, error) {
	lower, upper := bounds(prefix)
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	var k []byte
	if it.Last() {
		k = append(k, it.Key()...)
	}
	return k, errors.Join(it.Error(), it.Close())
}

// Close waits for what was committed to become durable and closes the store. A
// write that waits for space is given up, after which Close returns an error
// that wraps ErrStopped: what is on the disk is whole, only older.
func (j *Journal) Close() error {
	j.disk.release()
	j.life.Lock()
	defer j.life.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	defer j.cache.free()
	close(j.acks)
	<-j.acked
	close(j.recorder.stop)
	<-j.recorder.ended
	<-j.delta.merged
	j.metrics.unwatch()
	var err error
	if !j.abandoned.Load() {
		j.flush()
		err = j.db.Close()
	}
	return errors.Join(j.Err(), err, j.folder.lock.Close())
}

// flush empties the log of the store into tables. It is for the next Open, which
// has nothing to replay then, and no end of a log in which damage could pass for
// a torn write; so it may fail.
func (j *Journal) flush() {
	if j.Err() != nil || j.disk.full() {
		return
	}
	flushed, err := j.db.AsyncFlush()
	if err != nil {
		return
	}
	timeout := time.NewTimer(flushTimeout)
	defer timeout.Stop()
	select {
	case <-flushed:
	case <-j.failed:
	case <-timeout.C:
	}
}

// enter is the start of every call; leave is its end.
func (j *Journal) enter() error {
	j.life.RLock()
	if j.closed {
		j.life.RUnlock()
		return ErrClosed
	}
	return nil
}

func (j *Journal) leave() { j.life.RUnlock() }

// fail stops the journal for writing. The first error counts.
func (j *Journal) fail(err error) {
	// The disk first: who finds it frozen waits for the error.
	j.disk.frozen.Store(true)
	j.failOnce.Do(func() {
		j.failure = fmt.Errorf("%w: %w", ErrStopped, err)
		close(j.failed)
		j.metrics.stopped.Set(1)
		j.metrics.errors.WithLabelValues("write").Inc()
		j.log.Error("journal stopped: nothing more is written until it is opened again", "err", err)
	})
}

// damaged stops the journal because of what it read.
func (j *Journal) damaged(err error) error {
	j.fail(fmt.Errorf("%w: %w", ErrDamaged, err))
	return j.Err()
}

func (j *Journal) noSpace(path string, since time.Duration) {
	j.metrics.errors.WithLabelValues("no_space").Inc()
	j.log.Error("journal disk is full, a write is waiting for space", "err", path, "waited", since)
}

// Err returns nil, or why the journal is stopped: an error that wraps ErrStopped.
func (j *Journal) Err() error {
	if !j.disk.frozen.Load() {
		return nil
	}
	<-j.failed
	return j.failure
}

// Stopped is closed when the journal stops; Err then says why.
func (j *Journal) Stopped() <-chan struct{} { return j.failed }

// Position is where intake stands. It is written in the same commit as the
// events up to it.
type Position struct {
	SystemID string
	Timeline uint32
	// Generation is the first number of the ids of events from here on. It is the
	// timeline as long as that only grows; see Follow.
	Generation  uint32
	Slot        string
	Publication string
	// PublicationOID tells a publication that was dropped and made again.
	PublicationOID uint32
	CommitLSN      wal.LSN   // the last transaction in the journal
	EndLSN         wal.LSN   // what may be confirmed to the source
	CommitTime     time.Time // of the last transaction
}

// Follow moves p to a timeline of a cluster. Where positions of before may mean other
// transactions, a new generation begins, so that no id is given twice and none goes
// back; restored says that they may, although the timeline is the same.
func (p *Position) Follow(systemID string, timeline uint32, restored bool) {
	switch {
	case p.SystemID == "":
		p.Generation = timeline
	case p.SystemID != systemID || p.Timeline != timeline || restored:
		p.Generation = max(p.Generation+1, timeline)
		p.CommitLSN = 0
	}
	p.SystemID, p.Timeline = systemID, timeline
}

// Position returns the last position that is durable, false if there is none.
func (j *Journal) Position() (Position, bool) {
	if p := j.position.Load(); p != nil {
		return *p, true
	}
	return Position{}, false
}

// LastEvent returns the id of the last event that was added, the zero ID if there
// was none. It outlives the event's retention.
func (j *Journal) LastEvent() event.ID {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lastEvent
}

// ack is a commit of intake that is applied and not yet durable.
type ack struct {
	edit     *edit
	position *Position
	start    time.Time
	done     chan struct{} // closed after err is set
	err      error
}

func (a *ack) wait() error {
	<-a.done
	return a.err
}

// acknowledge waits for commits of intake in their order and tells of them.
func (j *Journal) acknowledge() {
	defer close(j.acked)
	for a := range j.acks {
		last, q := a.edit.next-1, a.edit.queued
		a.err = a.edit.wait()
		if a.err == nil {
			j.metrics.commit.WithLabelValues("intake").Observe(time.Since(a.start).Seconds())
			j.raise(last)
			if a.position != nil {
				j.position.Store(a.position)
			}
			if len(q) > 0 && j.o.OnDurable != nil {
				j.o.OnDurable(q)
			}
		}
		close(a.done)
	}
}

// raise says that executions up to id are durable.
func (j *Journal) raise(id uint64) {
	for {
		old := j.durable.Load()
		if id <= old || j.durable.CompareAndSwap(old, id) {
			return
		}
	}
}

// ScanMemory calls f with every key of memory that starts with prefix, in order,
// as of the last Commit, without what an unfinished transaction has staged. The
// slices are valid only during the call. An error of f ends the scan.
func (j *Journal) ScanMemory(ctx context.Context, prefix []byte, f func(key, value []byte) error) error {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.leave()
	return j.scanMemory(prefix, prefix, nil, func(k, v []byte) (bool, error) {
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		return true, f(k, v)
	})
}
