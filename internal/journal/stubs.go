package journal

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
)

// Sentinels that a caller may branch on.
var (
	// ErrDiskFull: the free space is below the reserve. Nothing was written; try
	// the same Batch again later.
	ErrDiskFull = errors.New("journal: disk full")
	// ErrStopped: a write failed or the store is damaged, nothing more will be
	// written until the journal is closed and opened again. The error that wraps
	// it says why.
	ErrStopped = errors.New("journal: stopped")
	// ErrNotFound: no such event or execution, or retention has removed it.
	ErrNotFound = errors.New("journal: not found")
	// ErrFinal: the execution's status is final already.
	ErrFinal = errors.New("journal: execution is final")
)

// Options of Open. Path is required, the zero value of the others is the default.
type Options struct {
	Path       string
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	FS         vfs.FS                // nil: the disk
	Retention  time.Duration         // keep final executions at least so long; 0: for ever
	Cache      int64                 // bytes of block cache; 0: 64 MiB
	MinFree    uint64                // free bytes below which intake is refused; 0: 512 MiB
	Now        func() time.Time
	// OnDurable is called in commit order after a batch of intake is durable,
	// with its pending executions, from one goroutine. It must not call Commit
	// or Close. q is the callee's to keep.
	OnDurable func(q []Queued)
}

// Journal is an open store. Its methods may be called from any goroutine, but
// batches are for one writer.
type Journal struct{}

// Position is where intake stands. It is written in the same commit as the
// events up to it.
type Position struct {
	SystemID    string
	Timeline    uint32
	Slot        string
	Publication string
	CommitLSN   wal.LSN   // the last transaction in the journal
	EndLSN      wal.LSN   // what may be confirmed to the source
	CommitTime  time.Time // of the last transaction
}

// Query selects executions. The zero value of a field selects all.
type Query struct {
	Handler int
	Type    event.Type
	Status  Status
	Object  string
	Lane    string
	Since   time.Time // created at or after
	Until   time.Time // created before
	Text    string    // in LastError, ignoring case
	Before  uint64    // cursor: only ids below; 0: from the newest
	Limit   int       // 0: 50
}

// Batch collects what one commit of intake holds.
type Batch struct{}

func Open(Options) (*Journal, error)            { panic("unfinished") }
func (j *Journal) Close() error                 { panic("unfinished") }
func (j *Journal) Position() (Position, bool)   { panic("unfinished") }
func (j *Journal) Verify(context.Context) error { panic("unfinished") }
func (j *Journal) Err() error                   { panic("unfinished") } // nil, or why the journal is stopped

func (j *Journal) NewBatch() *Batch                                    { panic("unfinished") }
func (b *Batch) Memory(key []byte) (value []byte, ok bool, err error)  { panic("unfinished") }
func (b *Batch) SetMemory(key, value []byte)                           { panic("unfinished") }
func (b *Batch) DeleteMemory(key []byte)                               { panic("unfinished") }
func (b *Batch) DeleteMemoryPrefix(prefix []byte)                      { panic("unfinished") }
func (b *Batch) AddEvent(e *event.Event, plan []Planned) error         { panic("unfinished") }
func (b *Batch) SetPosition(p Position)                                { panic("unfinished") }
func (b *Batch) Bytes() int                                            { panic("unfinished") }
func (b *Batch) Events() int                                           { panic("unfinished") }
func (b *Batch) Discard()                                              { panic("unfinished") }
func (b *Batch) Begin()                                                { panic("unfinished") } // a transaction starts here
func (j *Journal) Commit(b *Batch) (wait func() error, err error)      { panic("unfinished") }
func (j *Journal) CommitPiece(b *Batch) (wait func() error, err error) { panic("unfinished") }
func (j *Journal) DiscardPieces() error                                { panic("unfinished") }
func (j *Journal) ScanMemory(ctx context.Context, prefix []byte, f func(key, value []byte) error) error {
	panic("unfinished")
}

func (j *Journal) Record(ctx context.Context, o Outcome) error { panic("unfinished") }

func (j *Journal) Lanes(ctx context.Context, f func(lane string, head Execution) error) error {
	panic("unfinished")
}

func (j *Journal) Pending(lane string, after uint64, n int) ([]Execution, error) {
	panic("unfinished")
}

func (j *Journal) Event(id event.ID) (*event.Event, error) { panic("unfinished") }

func (j *Journal) Hold(ctx context.Context, handler int) (int, error) { panic("unfinished") }

func (j *Journal) Unhold(ctx context.Context, handler int) ([]Queued, error) { panic("unfinished") }

func (j *Journal) Cancel(ctx context.Context, handler int) (int, error) { panic("unfinished") }

func (j *Journal) Requeue(ctx context.Context, ids []uint64) ([]Queued, error) { panic("unfinished") }

func (j *Journal) Executions(ctx context.Context, q Query) (page []Execution, next uint64, err error) {
	panic("unfinished")
}
func (j *Journal) Execution(id uint64) (Execution, error) { panic("unfinished") }
func (j *Journal) Attempts(id uint64) ([]Attempt, error)  { panic("unfinished") }
func (j *Journal) Events(after event.ID, n int) ([]*event.Event, error) {
	panic("unfinished")
}
func (j *Journal) Counts() map[HandlerStatus]int64  { panic("unfinished") }
func (j *Journal) OldestPending() (time.Time, bool) { panic("unfinished") }

// Expire drops what retention no longer keeps.
func (j *Journal) Expire(ctx context.Context) (buckets int, err error) { panic("unfinished") }
