package journal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// auditKept is how many actions of people are kept, the newest.
const auditKept = 10000

const auditV1 = 1

// Audit keeps what somebody did, as the caller writes it. It is durable on return.
func (j *Journal) Audit(value []byte) error {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.leave()
	e, err := j.applied(len(value), func(e *edit) error {
		if err := j.room(len(value)+256, j.o.MinFree/4); err != nil {
			return err
		}
		last, err := lastKey(j.db, []byte{spaceAudit})
		if err != nil {
			return err
		}
		number := uint64(1)
		if last != nil {
			number = idOf(last) + 1
		}
		e.key = appendAuditKey(e.key[:0], number)
		if err := e.set(append([]byte{auditV1}, value...)); err != nil {
			return err
		}
		if number <= auditKept {
			return nil
		}
		return e.b.DeleteRange(appendAuditKey(nil, 0), appendAuditKey(nil, number-auditKept+1), nil)
	})
	if err == nil {
		err = e.wait()
	}
	if err != nil {
		return fmt.Errorf("keep what was done: %w", err)
	}
	return nil
}

// Audits calls f with what people did, the newest first, below the number before; 0 is
// all. f returns false to end it; the value is valid only during the call.
func (j *Journal) Audits(before uint64, f func(number uint64, value []byte) bool) (err error) {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.leave()
	lower, upper := bounds([]byte{spaceAudit})
	if before != 0 {
		upper = appendAuditKey(nil, before)
	}
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return fmt.Errorf("read what was done: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.Last(); ok; ok = it.Prev() {
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("read what was done: %w", err)
		}
		if len(it.Key()) != 9 || len(v) == 0 || v[0] != auditV1 {
			return j.damaged(fmt.Errorf("audit key %x", it.Key()))
		}
		if !f(idOf(it.Key()), v[1:]) {
			break
		}
	}
	return it.Error()
}

func appendAuditKey(k []byte, number uint64) []byte {
	return binary.BigEndian.AppendUint64(append(k, spaceAudit), number)
}
