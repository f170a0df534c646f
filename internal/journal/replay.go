package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Refusal is why an execution is not replayed.
type Refusal string

// The refusals.
const (
	RefusedGone     Refusal = "gone"     // there is none, or it is no longer kept
	RefusedOpen     Refusal = "open"     // it is pending or held: it will be attempted anyway
	RefusedReplayed Refusal = "replayed" // it was replayed before
)

// ReplayCommit is one commit of a replay: the executions that it makes, and what is
// kept of the replay as a whole.
type ReplayCommit struct {
	Number uint64 // of the replay; at least 1
	// Executions are to be replayed, at most MaxReplayed, each once. None: only what is
	// kept changes.
	Executions []uint64
	Again      bool // also those that were replayed before
	// State returns what is to be kept of the replay from then on, told what the
	// commit makes, in the order of Executions, and how many of those it refuses.
	// It is called once and must not call the journal. An error of it is returned, and
	// nothing is written.
	State func(made []Queued, refused map[Refusal]int64) ([]byte, error)
	// Forget names replays of which nothing is kept any more.
	Forget []uint64
}

// MaxReplayed is how many executions one ReplayCommit may name, so that attempts and
// intake get their turn.
const MaxReplayed = moveSize

// CommitReplay makes for each execution a new pending one, of the same event for the
// same handler, whose ReplayOf is the old one, at the end of its lane, and returns
// the new ones. Their State is in the same commit, which is durable on return: so
// whoever goes on from it after a kill repeats nothing and leaves nothing out. What
// is returned is not known to dispatch. ErrDiskFull means that nothing was written.
func (j *Journal) CommitReplay(ctx context.Context, c ReplayCommit) ([]Queued, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if c.Number == 0 || len(c.Executions) > MaxReplayed {
		return nil, fmt.Errorf("replay %d: %d executions in one commit", c.Number, len(c.Executions))
	}
	if err := j.enter(); err != nil {
		return nil, err
	}
	defer j.leave()
	start := time.Now()
	e, err := j.replay(c)
	if err == nil {
		err = e.wait()
	}
	if err != nil {
		return nil, fmt.Errorf("replay %d: %w", c.Number, err)
	}
	j.metrics.commit.WithLabelValues("status").Observe(time.Since(start).Seconds())
	j.raise(e.next - 1)
	return e.queued, nil
}

func (j *Journal) replay(c ReplayCommit) (*edit, error) {
	return j.applied(0, func(e *edit) error {
		if err := j.room((len(c.Executions)+4)*1024, j.o.MinFree/4); err != nil {
			return err
		}
		refused := map[Refusal]int64{}
		for _, id := range c.Executions {
			why, err := e.replay(id, c.Again)
			if err != nil {
				return err
			}
			if why != "" {
				refused[why]++
			}
		}
		state, err := c.State(slices.Clone(e.queued), refused)
		if err != nil {
			return err
		}
		for _, number := range c.Forget {
			e.key = appendReplayKey(e.key[:0], number)
			if err := e.del(); err != nil {
				return err
			}
		}
		e.key = appendReplayKey(e.key[:0], c.Number)
		e.val = append(append(e.val[:0], replayV1), state...)
		return e.set(e.val)
	})
}

// Replays calls f with every replay of which something is kept, by number, and what
// that is, valid only during the call. An error of f ends it.
func (j *Journal) Replays(f func(number uint64, state []byte) error) error {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.leave()
	return scan(j.db, []byte{spaceReplay}, func(k, v []byte) error {
		if len(k) != 9 || len(v) == 0 || v[0] != replayV1 {
			return j.damaged(fmt.Errorf("replay key %x", k))
		}
		return f(binary.BigEndian.Uint64(k[1:]), v[1:])
	})
}

// Requeue replays executions that are final, also those that were replayed before,
// without anything kept of it as a whole. It works in several commits; an error comes
// with those that were done.
func (j *Journal) Requeue(ctx context.Context, ids []uint64) ([]Queued, error) {
	if err := j.enter(); err != nil {
		return nil, err
	}
	defer j.leave()
	var q []Queued
	for len(ids) > 0 {
		if ctx.Err() != nil {
			return q, context.Cause(ctx)
		}
		n := min(moveSize, len(ids))
		start := time.Now()
		e, err := j.applied(0, func(e *edit) error {
			if err := j.room(n*1024, j.o.MinFree/4); err != nil {
				return err
			}
			for _, id := range ids[:n] {
				why, err := e.replay(id, true)
				switch {
				case err != nil:
					return err
				case why == RefusedGone:
					return fmt.Errorf("execution %d: %w", id, ErrNotFound)
				case why != "":
					return fmt.Errorf("execution %d is %s; only a final one can be replayed", id, why)
				}
			}
			return nil
		})
		if err == nil {
			err = e.wait()
		}
		if err != nil {
			return q, fmt.Errorf("replay: %w", err)
		}
		j.metrics.commit.WithLabelValues("status").Observe(time.Since(start).Seconds())
		j.raise(e.next - 1)
		q = append(q, e.queued...)
		ids = ids[n:]
	}
	return q, nil
}

// replay makes an execution that repeats another, and marks that one, or says why it
// does not.
func (e *edit) replay(id uint64, again bool) (Refusal, error) {
	bk, old, err := e.execution(id)
	switch {
	case errors.Is(err, ErrNotFound):
		return RefusedGone, nil
	case err != nil:
		return "", err
	case old.Status.Open():
		return RefusedOpen, nil
	case old.Replay != 0 && !again:
		return RefusedReplayed, nil
	}
	old.Replay = e.next
	if err := e.change(bk, old.Status, &old); err != nil {
		return "", err
	}
	return "", e.again(&old, Execution{Handler: old.Handler, Priority: old.Priority, ReplayOf: old.ID, DeadOf: old.DeadOf, Status: Pending})
}

// again makes another execution of old's event, at the end of its lane.
func (e *edit) again(old *Execution, x Execution) error {
	// The new execution may outlive the bucket of its event, so it takes a copy
	// along.
	if bk := e.current(); e.j.buckets.Load().home(old.Event) != bk {
		value, err := e.j.eventRow(e.j.db, old.Event)
		if err != nil {
			return err
		}
		e.key = appendEventKey(e.key[:0], bk.number, old.Event)
		if err := e.set(value); err != nil {
			return err
		}
	}
	x.Event, x.Type, x.Object, x.Lane = old.Event, old.Type, old.Object, old.Lane
	x.Created, x.CommitTime = e.j.now(), old.CommitTime
	return e.create(&x)
}
