package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"

	"github.com/billhook/billhook/internal/event"
	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"
)

// Verify reads the whole journal and checks that it holds together: every value
// can be read, every execution has its event, every pending one is in its lane
// and in the posting lists and nothing else is, counts are right, no event is
// above the position. It returns an error that wraps ErrDamaged and names the
// first things found wrong. It may run while the journal is in use. Unless progress
// is nil it is called now and then with how many keys were read so far; some are
// read twice.
func (j *Journal) Verify(ctx context.Context, progress func(keys int64)) error {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.leave()
	v := &verifier{ctx: ctx, j: j, progress: progress}
	j.mu.Lock()
	v.list, v.next, v.last = *j.buckets.Load(), j.nextID, j.lastEvent
	for _, bk := range v.list {
		v.counts = append(v.counts, maps.Clone(bk.counts))
		v.spans = append(v.spans, append([]span(nil), bk.spans...))
	}
	v.totals = maps.Clone(j.totals)
	v.stage = j.stage
	snap := j.db.NewSnapshot()
	j.mu.Unlock()
	defer snap.Close()
	v.r = snap
	err := v.run()
	if err == nil {
		err = errors.Join(v.found...)
	} else if !pebble.IsCorruptionError(err) {
		return fmt.Errorf("verify journal %s: %w", j.o.Path, err)
	}
	if err != nil {
		return fmt.Errorf("%w: journal %s: %w", ErrDamaged, j.o.Path, err)
	}
	return nil
}

// verifyMax is how many findings Verify collects before it gives up.
const verifyMax = 10

type verifier struct {
	ctx    context.Context
	j      *Journal
	r      pebble.Reader
	list   bucketList
	counts []map[HandlerStatus]int64
	spans  [][]span
	totals map[HandlerStatus]int64
	stage  *stage
	next   uint64
	last   event.ID
	found  []error
	n      int64

	progress func(keys int64)
}

var errEnough = errors.New("enough found")

func (v *verifier) bad(format string, args ...any) error {
	v.found = append(v.found, fmt.Errorf(format, args...))
	if len(v.found) >= verifyMax {
		return errEnough
	}
	return nil
}

func (v *verifier) scan(prefix []byte, f func(k, v []byte) error) error {
	return scan(v.r, prefix, func(k, val []byte) error {
		if v.n++; v.n%4096 == 0 {
			if v.ctx.Err() != nil {
				return context.Cause(v.ctx)
			}
			if v.progress != nil {
				v.progress(v.n)
			}
		}
		return f(k, val)
	})
}

func (v *verifier) run() error {
	totals := make(map[HandlerStatus]int64)
	var want lanes
	for i, bk := range v.list {
		if err := v.bucket(i, bk, totals, &want); err != nil {
			return v.end(err)
		}
	}
	for hs, n := range totals {
		if v.totals[hs] != n {
			if err := v.bad("handler %d: %d executions are %v, counted %d", hs.Handler, n, hs.Status, v.totals[hs]); err != nil {
				return v.end(err)
			}
		}
	}
	var have lanes
	err := v.scan([]byte{spacePending}, func(k, _ []byte) error {
		if _, _, ok := laneOf(k); !ok {
			return v.bad("pending key %x", k)
		}
		have.add(k)
		return nil
	})
	if err == nil && have != want {
		err = v.pending(want, have)
	}
	if err == nil {
		err = v.position()
	}
	if err == nil {
		err = v.known()
	}
	return v.end(err)
}

func (v *verifier) end(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// lanes stands for a set of keys: their number, and the sum of their hashes,
// which does not depend on their order.
type lanes struct {
	n   uint64
	sum uint64
}

func (l *lanes) add(k []byte) {
	l.n++
	l.sum += xxhash.Sum64(k)
}

func (v *verifier) bucket(i int, bk *bucket, totals map[HandlerStatus]int64, pending *lanes) error {
	end := v.next
	if i+1 < len(v.list) {
		end = v.list[i+1].first
	}
	// Events, and those of them that executions name: both in order but for
	// replays, which are looked up.
	events, closeEvents, err := v.events(bk)
	if err != nil {
		return err
	}
	defer closeEvents()

	counts := make(map[HandlerStatus]int64)
	var want, have lanes
	var key []byte
	checkAttempts, closeAttempts, err := v.attempts(bk)
	if err != nil {
		return err
	}
	defer closeAttempts()
	expect := bk.first
	prefix := appendLog(nil, bk.number, logRow)
	err = v.scan(prefix, func(k, val []byte) error {
		id := idOf(k)
		x, err := decodeRow(id, val)
		if err != nil {
			return v.bad("%w", err)
		}
		if id != expect {
			if err := v.bad("bucket %d: execution %d follows %d", bk.number, id, expect-1); err != nil {
				return err
			}
		}
		expect = id + 1
		if id >= end {
			return v.bad("execution %d is outside bucket %d", id, bk.number)
		}
		hs := HandlerStatus{x.Handler, x.Status}
		counts[hs]++
		totals[hs]++
		if err := checkAttempts(id, x.Attempts); err != nil {
			return err
		}
		if x.Status == Pending {
			key = appendID(appendLanePrefix(key[:0], x.Lane), id)
			pending.add(key)
		}
		key = appendID(appendStatusList(key[:0], bk.number, hs), id)
		want.add(key)
		key = appendID(appendTextList(key[:0], bk.number, postingType, string(x.Type)), id)
		want.add(key)
		key = appendID(appendTextList(key[:0], bk.number, postingObject, x.Object), id)
		want.add(key)
		key = appendID(appendTextList(key[:0], bk.number, postingLane, x.Lane), id)
		want.add(key)
		if x.Status.Open() != x.Finished.IsZero() {
			if err := v.bad("execution %d is %v and finished at %v", id, x.Status, x.Finished); err != nil {
				return err
			}
		}
		if run := int(bk.run(id)); run >= len(v.spans[i]) || v.spans[i][run].with(micros(x.Created)) != v.spans[i][run] {
			if err := v.bad("execution %d was created outside the time of its run", id); err != nil {
				return err
			}
		}
		ok, err := events(x.Event)
		if err != nil {
			return err
		}
		if !ok {
			return v.bad("execution %d: event %v is missing", id, x.Event)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := checkAttempts(math.MaxUint64, 0); err != nil { // what is left
		return err
	}
	if i+1 == len(v.list) && expect != v.next {
		if err := v.bad("the next execution would be %d after %d", v.next, expect-1); err != nil {
			return err
		}
	}
	if err := v.scan(appendLog(nil, bk.number, logPosting), func(k, _ []byte) error {
		have.add(k)
		return nil
	}); err != nil {
		return err
	}
	if have != want {
		if err := v.postings(bk, want, have); err != nil {
			return err
		}
	}
	// A count of 0 may be stored or not.
	for hs, n := range v.counts[i] {
		if counts[hs] != n {
			if err := v.bad("bucket %d, handler %d: %d executions are %v, counted %d", bk.number, hs.Handler, counts[hs], hs.Status, n); err != nil {
				return err
			}
		}
		delete(counts, hs)
	}
	for hs, n := range counts {
		if err := v.bad("bucket %d, handler %d: %d executions are %v, not counted", bk.number, hs.Handler, n, hs.Status); err != nil {
			return err
		}
	}
	return nil
}

// attempts returns a function that, asked for one execution after another in
// ascending order, compares their attempts with how many they had: numbered from
// 1 without a gap, and none that belongs to no execution.
func (v *verifier) attempts(bk *bucket) (check func(id uint64, n int) error, done func(), err error) {
	prefix := appendLog(nil, bk.number, logAttempt)
	lower, upper := bounds(prefix)
	it, err := v.r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, nil, err
	}
	valid := it.First()
	check = func(id uint64, n int) error {
		found := 0
		for ; valid; valid = it.Next() {
			k := it.Key()[len(prefix):]
			if len(k) != 12 {
				if err := v.bad("attempt key %x", it.Key()); err != nil {
					return err
				}
				continue
			}
			at, number := binary.BigEndian.Uint64(k), int(binary.BigEndian.Uint32(k[8:]))
			if at > id {
				break
			}
			if found++; at < id || number != found {
				if err := v.bad("execution %d: attempt %d is out of place", at, number); err != nil {
					return err
				}
			}
			val, err := it.ValueAndErr()
			if err != nil {
				return err
			}
			if _, err := decodeAttempt(number, val); err != nil {
				if err := v.bad("execution %d: %w", at, err); err != nil {
					return err
				}
			}
		}
		if err := it.Error(); err != nil {
			return err
		}
		if found != n && id != math.MaxUint64 {
			return v.bad("execution %d: %d attempts are stored, it had %d", id, found, n)
		}
		return nil
	}
	return check, func() { _ = it.Close() }, nil
}

// events decodes the bucket's events as it is asked for them, and tells whether
// an event is there.
func (v *verifier) events(bk *bucket) (has func(event.ID) (bool, error), done func(), err error) {
	prefix := appendLog(nil, bk.number, logEvent)
	lower, upper := bounds(prefix)
	it, err := v.r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, nil, err
	}
	valid := it.First()
	at := func() event.ID { return eventIDOf(it.Key()[len(prefix):]) }
	has = func(id event.ID) (bool, error) {
		if !valid || at().Compare(id) > 0 {
			// A replay, or the beginning of another order.
			_, err := v.j.eventRow(v.r, id)
			if errors.Is(err, ErrNotFound) {
				return false, nil
			}
			return err == nil, err
		}
		for valid && at().Compare(id) < 0 {
			valid = it.Next()
		}
		return valid && at() == id, it.Error()
	}
	return has, func() { _ = it.Close() }, nil
}

// postings says which posting list of a bucket is wrong.
func (v *verifier) postings(bk *bucket, want, have lanes) error {
	return v.bad("bucket %d: posting lists name %d executions, %d are expected, or other ones", bk.number, have.n, want.n)
}

func (v *verifier) pending(want, have lanes) error {
	return v.bad("lanes hold %d pending executions, %d are expected, or other ones", have.n, want.n)
}

// position checks that no event is above it, and that all events can be read.
func (v *verifier) position() error {
	val, closer, err := v.r.Get(keyPosition)
	var p Position
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		p.Generation = 0
	case err != nil:
		return err
	default:
		p, err = decodePosition(val)
		if err = errors.Join(err, closer.Close()); err != nil {
			return v.bad("%w", err)
		}
	}
	known := err == nil
	for _, bk := range v.list {
		prefix := appendLog(nil, bk.number, logEvent)
		err := v.scan(prefix, func(k, val []byte) error {
			if len(k) != len(prefix)+eventIDSize {
				return v.bad("event key %x", k)
			}
			id := eventIDOf(k[len(prefix):])
			if _, err := decodeEvent(id, val); err != nil {
				return v.bad("%w", err)
			}
			staged := v.stage != nil && id.Compare(v.stage.after) > 0
			if id.Compare(v.last) > 0 && !staged {
				return v.bad("event %v is above the last one, %v", id, v.last)
			}
			if known && !staged && (id.Generation > p.Generation || id.Generation == p.Generation && id.CommitLSN > p.CommitLSN) {
				return v.bad("event %v is above the position %v", id, p.CommitLSN)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// known reads all memory, and checks that there is nothing in the store that does
// not belong there.
func (v *verifier) known() error {
	buckets := make(map[uint32]bool)
	for _, bk := range v.list {
		buckets[bk.number] = true
	}
	return v.scan(nil, func(k, val []byte) error {
		switch k[0] {
		case spaceMemory, spacePending, spaceBucket:
			return nil
		case spaceDelta:
			o := newOverlay()
			if err := readDelta(&o, val); err != nil {
				return v.bad("changes of memory %x: %w", k[1:], err)
			}
			if len(k) == 9 {
				return nil
			}
		case spaceReplay:
			if len(k) == 9 && len(val) > 0 && val[0] == replayV1 {
				return nil
			}
		case spaceAudit:
			if len(k) == 9 && len(val) > 0 && val[0] == auditV1 {
				return nil
			}
		case spaceHistory:
			if _, _, err := decodeHistory(k, val); err == nil {
				return nil
			}
		case spaceMeta:
			if bytes.Equal(k, keyPosition) || bytes.Equal(k, keyStage) {
				return nil
			}
		case spaceStage:
			if v.stage != nil {
				return nil
			}
		case spaceLog:
			if len(k) > 5 && buckets[binary.BigEndian.Uint32(k[1:])] {
				return nil
			}
		}
		return v.bad("key %x belongs to nothing", k)
	})
}
