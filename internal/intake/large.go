package intake

import (
	"fmt"
	"time"

	"github.com/billhook/billhook/internal/journal"
)

// The rows of a transaction that grows past a limit are set aside in a scratch file as
// its changes come, and its events and memory in the journal, piece by piece, while
// they are derived. Nobody sees the pieces before the commit that moves the position
// past the transaction; a new connection, or a new process, forgets all of it, and the
// server sends the transaction again.
//
//	        changes past the limit                COMMIT
//	small ─────────────────────────► spilling ─────────────► derive, piece by piece
//	  ▲                                 │  ▲                          │
//	  │          new connection         │  └─ changes, rows aside ────│
//	  └─────────────────────────────────┘                             │
//	  └───────────────── last piece and position, one commit ◄────────┘
//
// Transactions before it are committed first, and the last piece alone, so that a
// commit of the journal never holds parts of two transactions of which one is
// large.

const (
	// largeTransaction is from how many changes on the log tells of a transaction,
	// and largeInterval how often.
	largeTransaction = 100_000
	largeInterval    = 10 * time.Second
)

// memory is the batch's memory, whichever the batch is.
type memory struct{ in *Intake }

func (m memory) Memory(key []byte) ([]byte, bool, error) { return m.in.batch.Memory(key) }
func (m memory) SetMemory(key, value []byte)             { m.in.batch.SetMemory(key, value) }
func (m memory) DeleteMemory(key []byte)                 { m.in.batch.DeleteMemory(key) }
func (m memory) DeleteMemoryPrefix(prefix []byte)        { m.in.batch.DeleteMemoryPrefix(prefix) }

// scratch keeps the rows of a large transaction. While there is no room for them it
// waits.
type scratch struct {
	in   *Intake
	file *journal.Scratch
}

func (s scratch) Append(entry []byte) (place int64, err error) {
	err = s.in.untilRoom(s.in.ctx, func() (err error) {
		place, err = s.file.Append(entry)
		return err
	})
	return place, err
}

func (s scratch) Read(place int64) ([]byte, error) { return s.file.Read(place) }
func (s scratch) Reset()                           { s.file.Reset() }

// spill sets aside what has been folded of the open transaction.
func (in *Intake) spill() error {
	if !in.spilling {
		if in.dirty {
			if err := in.landed(); err != nil {
				return err
			}
			if err := in.send(); err != nil {
				return err
			}
		}
		if err := in.landed(); err != nil {
			return err
		}
		in.spilling = true
		in.told = time.Now()
	}
	if err := in.deriver.Spill(memory{in}); err != nil {
		return err
	}
	if now := time.Now(); in.changes >= largeTransaction && now.Sub(in.told) >= largeInterval {
		in.told = now
		in.log.Info("taking in a large transaction", "changes", in.changes)
	}
	in.metrics.open.Set(float64(in.changes))
	in.metrics.parts.Inc()
	return nil
}

// between gives the journal a piece when the batch has grown large.
func (in *Intake) between() error {
	limit := in.o.pieceBytes
	if limit == 0 {
		limit = maxBatchBytes
	}
	if !in.spilling || in.batch.Bytes() < limit {
		return nil
	}
	return in.stage()
}

// stage gives the journal a piece. While one is on its way to the disk the next
// grows.
func (in *Intake) stage() error {
	if err := in.pieceLanded(); err != nil {
		return err
	}
	wait, err := in.write(in.ctx, in.o.Journal.CommitPiece)
	if err != nil {
		return err
	}
	in.piece = wait
	in.metrics.parts.Inc()
	return nil
}

func (in *Intake) pieceLanded() error {
	if in.piece == nil {
		return nil
	}
	wait := in.piece
	in.piece = nil
	if err := wait(); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// spilled ends a large transaction with its last piece and the position.
func (in *Intake) spilled() error {
	if err := in.pieceLanded(); err != nil {
		return err
	}
	in.spilling = false
	if in.changes >= largeTransaction {
		in.log.Info("took in a large transaction", "changes", in.changes, "lsn", in.position.CommitLSN)
	}
	in.metrics.open.Set(0)
	if err := in.send(); err != nil {
		return err
	}
	return in.landed()
}

// discard forgets the pieces of a transaction that the server will send again.
func (in *Intake) discard() error {
	if err := in.pieceLanded(); err != nil {
		return err
	}
	in.spilling = false
	in.metrics.open.Set(0)
	in.batch.Discard()
	in.batch = in.o.Journal.NewBatch()
	if err := in.o.Journal.DiscardPieces(); err != nil {
		return fmt.Errorf("forget the pieces of an interrupted transaction: %w", err)
	}
	return nil
}
