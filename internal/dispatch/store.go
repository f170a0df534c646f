package dispatch

import (
	"context"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
)

// Store is the part of *journal.Journal that the dispatcher uses, from many
// goroutines at once. Its methods may block for the disk. Errors other than
// journal.ErrFinal and journal.ErrNotFound mean that the store cannot do it now:
// the dispatcher asks again.
type Store interface {
	// Record makes an outcome durable before it returns nil, and returns what is
	// pending now because of it. ErrFinal: the execution has ended already.
	// ErrNotFound: it is gone.
	Record(ctx context.Context, o journal.Outcome) ([]journal.Queued, error)
	// RecordThen is Record that returns at once and calls done once when the outcome is
	// durable or could not be made so.
	RecordThen(o journal.Outcome, done func(told []journal.Queued, err error))
	// Lanes calls f for each lane with pending executions, with the first of them.
	Lanes(ctx context.Context, f func(lane string, head journal.Execution) error) error
	// Pending returns up to n pending executions of a lane with an id above
	// after, by ascending id; fewer than n means that there are no more.
	Pending(lane string, after uint64, n int) ([]journal.Execution, error)
	Event(id event.ID) (*event.Event, error)
	Execution(id uint64) (journal.Execution, error)
	// Attempt returns the nth attempt of an execution, from 1.
	Attempt(id uint64, n int) (journal.Attempt, error)
	// Executions is asked for the newest execution only.
	Executions(ctx context.Context, q journal.Query) (page []journal.Execution, next uint64, err error)

	// Hold, Unhold and Cancel move the open executions of a handler. Unhold is
	// called until it returns none, and returns them by ascending id. An error comes
	// with those that were done.
	Hold(ctx context.Context, handler int) (int, error)
	Unhold(ctx context.Context, handler int) ([]journal.Queued, error)
	Cancel(ctx context.Context, handler int) (int, error)
	// Requeue makes new pending executions that repeat those given.
	Requeue(ctx context.Context, ids []uint64) ([]journal.Queued, error)

	// Counts is cheap, and knows of what was announced.
	Counts() map[journal.HandlerStatus]int64
}

var _ Store = (*journal.Journal)(nil)
