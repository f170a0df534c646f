package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/billhook/billhook/internal/handler"
)

// Attempt is one try of an execution.
type Attempt struct {
	Number    int // from 1
	Start     time.Time
	Duration  time.Duration
	OK        bool
	Permanent bool // failed in a way that trying again will not cure
	Uncounted bool // the handler's limit does not count it
	// SentPayload: Request.Body is the event's payload, as Event.AppendPayload writes
	// it. It is not kept a second time, but written again when the attempt is read.
	SentPayload bool
	Error       string
	Reason      handler.Reason
	Code        int // HTTP status, exit code, gRPC code; -1: none
	Request     handler.Exchange
	Response    handler.Exchange
}

// Outcome is what became of an execution.
type Outcome struct {
	Execution uint64
	// Attempt is the attempt that was made, nil for a change of status without
	// one. Its Number must be one more than the execution's Attempts.
	Attempt *Attempt
	// Status is the new status: Pending to try again at NextAt.
	Status Status
	NextAt time.Time
	// Error and Reason become the execution's LastError and LastReason. When
	// empty and there is an Attempt, they are taken from it.
	Error  string
	Reason handler.Reason
	// Also changes the status of other open executions in the same commit: the
	// rest of a chain that was stopped. Those already final stay as they are.
	Also []StatusChange
	// OnDead, when the status becomes Dead, makes an execution of the same event at
	// the end of the lane, whose DeadOf is this one.
	OnDead *Planned
	// Patient says that nothing waits for it to be durable, as when it is the last of
	// its lane: then it may wait a moment for others to share its commit.
	Patient bool
}

// StatusChange is the part of an Outcome that concerns another execution.
type StatusChange struct {
	Execution uint64
	Status    Status
	Error     string // becomes its LastError, such as "stopped by handler 7"
}

// Attempts returns the attempts of an execution in their order, none if there is
// no such execution.
func (j *Journal) Attempts(id uint64) ([]Attempt, error) {
	if err := j.enter(); err != nil {
		return nil, err
	}
	defer j.leave()
	return j.attempts(j.db, id)
}

func (j *Journal) attempts(r pebble.Reader, id uint64) ([]Attempt, error) {
	bk := j.buckets.Load().of(id)
	if bk == nil {
		return nil, nil
	}
	var list []Attempt
	err := scan(r, appendID(appendLog(nil, bk.number, logAttempt), id), func(k, v []byte) error {
		a, err := decodeAttempt(int(binary.BigEndian.Uint32(k[len(k)-4:])), v)
		list = append(list, a)
		return err
	})
	if err == nil && slices.ContainsFunc(list, func(a Attempt) bool { return a.SentPayload }) {
		err = j.fillPayload(r, id, list)
	}
	if err != nil {
		return nil, fmt.Errorf("attempts of execution %d: %w", id, err)
	}
	return list, nil
}

// Attempt returns the nth attempt of an execution, from 1, or an error that wraps
// ErrNotFound. It is as kept: a request that has SentPayload set comes without its body.
func (j *Journal) Attempt(id uint64, n int) (Attempt, error) {
	if err := j.enter(); err != nil {
		return Attempt{}, err
	}
	defer j.leave()
	bk := j.buckets.Load().of(id)
	if bk == nil {
		return Attempt{}, fmt.Errorf("execution %d: %w", id, ErrNotFound)
	}
	v, err := getCopy(j.db, appendAttemptKey(nil, bk.number, id, n))
	if errors.Is(err, pebble.ErrNotFound) {
		err = ErrNotFound
	}
	var a Attempt
	if err == nil {
		a, err = decodeAttempt(n, v)
	}
	if err != nil {
		return Attempt{}, fmt.Errorf("attempt %d of execution %d: %w", n, id, err)
	}
	return a, nil
}

// fillPayload gives the attempts of an execution the bodies that were not kept.
func (j *Journal) fillPayload(r pebble.Reader, id uint64, list []Attempt) error {
	_, x, err := j.execution(r, id)
	if err != nil {
		return err
	}
	v, err := j.eventRow(r, x.Event)
	if err != nil {
		return err
	}
	e, err := decodeEvent(x.Event, v)
	if err != nil {
		return err
	}
	for i := range list {
		if list[i].SentPayload {
			list[i].Request.Body = e.AppendPayload(nil)
		}
	}
	return nil
}
