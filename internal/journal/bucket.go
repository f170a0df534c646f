package journal

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/cockroachdb/pebble/v2"
)

// bucket is a run of execution IDs with all that belongs to them, and the events
// that came in meanwhile. Its keys are one contiguous range, so that retention
// is one range deletion.
type bucket struct {
	// These never change.
	number  uint32
	first   uint64    // the first execution ID
	after   event.ID  // the events of this bucket are those above
	created time.Time // when it was begun

	// These are guarded by Journal.mu.
	finished time.Time // when the last execution became final, as stored: up to finishedGrain behind
	counts   map[HandlerStatus]int64
	spans    []span // of runs of spanIDs executions, from first
}

// span is the time within which a run of executions was created. Clocks go
// backwards, so times do not ascend with IDs; spans are what Since and Until use.
type span struct{ min, max int64 } // microseconds

const (
	spanIDs       = 4096
	finishedGrain = time.Hour
)

func (s span) with(us int64) span { return span{min(s.min, us), max(s.max, us)} }

func (bk *bucket) run(id uint64) uint32 { return uint32((id - bk.first) / spanIDs) }

// open is the number of executions that are not final.
func (bk *bucket) open() (n int64) {
	for hs, c := range bk.counts {
		if hs.Status.Open() {
			n += c
		}
	}
	return n
}

// executions is how many there are. IDs have no gaps, so it is also the distance
// from the first to the next ID.
func (bk *bucket) executions() (n int64) {
	for _, c := range bk.counts {
		n += c
	}
	return n
}

// last is when the bucket's youngest execution was created, or the last became
// final, whichever is later.
func (bk *bucket) last() time.Time {
	t := bk.created
	if bk.finished.After(t) {
		t = bk.finished
	}
	for _, s := range bk.spans {
		if m := fromMicros(s.max); m.After(t) {
			t = m
		}
	}
	return t
}

func appendBucketRow(b []byte, bk *bucket, finished time.Time) []byte {
	b = append(b, bucketV1)
	b = binary.BigEndian.AppendUint64(b, bk.first)
	b = appendEventID(b, bk.after)
	b = appendTime(b, bk.created)
	return appendTime(b, finished)
}

func decodeBucketRow(number uint32, value []byte) (*bucket, error) {
	c := newCut(value, bucketV1)
	bk := &bucket{
		number:   number,
		first:    c.u64(),
		after:    c.eventID(),
		created:  c.time(),
		finished: c.time(),
		counts:   make(map[HandlerStatus]int64),
	}
	if err := c.done(); err != nil {
		return nil, fmt.Errorf("bucket %d: %w", number, err)
	}
	return bk, nil
}

// bucketList is ascending and never changed once it is shared.
type bucketList []*bucket

// of returns the bucket of an execution, nil when retention has dropped it.
func (l bucketList) of(id uint64) *bucket {
	i := sort.Search(len(l), func(i int) bool { return l[i].first > id })
	if i == 0 {
		return nil
	}
	return l[i-1]
}

// home returns the bucket that an event came into, nil when it was dropped.
func (l bucketList) home(id event.ID) *bucket {
	i := sort.Search(len(l), func(i int) bool { return l[i].after.Compare(id) >= 0 })
	if i == 0 {
		return nil
	}
	return l[i-1]
}

func (l bucketList) current() *bucket { return l[len(l)-1] }

// loadBuckets reads the buckets with their counts and spans.
func loadBuckets(r pebble.Reader) (bucketList, error) {
	var list bucketList
	err := scan(r, []byte{spaceBucket}, func(k, v []byte) error {
		if len(k) != 5 {
			return fmt.Errorf("bucket key %x", k)
		}
		bk, err := decodeBucketRow(binary.BigEndian.Uint32(k[1:]), v)
		if err != nil {
			return err
		}
		if n := len(list); n > 0 && list[n-1].first > bk.first {
			return fmt.Errorf("bucket %d starts at execution %d, below bucket %d", bk.number, bk.first, list[n-1].number)
		}
		list = append(list, bk)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, bk := range list {
		prefix := appendLog(nil, bk.number, logCount)
		err := scan(r, prefix, func(k, v []byte) error {
			k = k[len(prefix):]
			n, size := binary.Uvarint(v)
			if len(k) != 5 || size != len(v) {
				return fmt.Errorf("count %x in bucket %d", k, bk.number)
			}
			bk.counts[HandlerStatus{int(binary.BigEndian.Uint32(k)), Status(k[4])}] = int64(n)
			return nil
		})
		if err != nil {
			return nil, err
		}
		prefix = appendLog(nil, bk.number, logSpan)
		err = scan(r, prefix, func(k, v []byte) error {
			k = k[len(prefix):]
			if len(k) != 4 || len(v) != 16 || binary.BigEndian.Uint32(k) != uint32(len(bk.spans)) {
				return fmt.Errorf("span %x in bucket %d", k, bk.number)
			}
			bk.spans = append(bk.spans, span{
				int64(binary.BigEndian.Uint64(v)), int64(binary.BigEndian.Uint64(v[8:])),
			})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// scan calls f with every key that has the prefix; both slices are valid only
// during the call.
func scan(r pebble.Reader, prefix []byte, f func(k, v []byte) error) (err error) {
	lower, upper := bounds(prefix)
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := it.Close(); err == nil {
			err = cerr
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := f(it.Key(), v); err != nil {
			return err
		}
	}
	return it.Error()
}

// Counts returns the number of executions by handler and status, without those
// that retention has dropped.
func (j *Journal) Counts() map[HandlerStatus]int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.totals)
}

// view is what a search needs of a bucket, taken at one moment.
type view struct {
	number uint32
	first  uint64
	end    uint64          // the ID after the last
	lists  []HandlerStatus // with at least one execution
	spans  []span
}

// views returns the buckets and a snapshot of the store that agrees with them.
// The caller closes the snapshot.
func (j *Journal) views() ([]view, *pebble.Snapshot) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.viewsLocked()
}

func (j *Journal) viewsLocked() ([]view, *pebble.Snapshot) {
	list := *j.buckets.Load()
	vs := make([]view, len(list))
	for i, bk := range list {
		vs[i] = view{number: bk.number, first: bk.first, end: bk.first + uint64(bk.executions()), spans: slices.Clone(bk.spans)}
		for hs, n := range bk.counts {
			if n > 0 {
				vs[i].lists = append(vs[i].lists, hs)
			}
		}
	}
	return vs, j.db.NewSnapshot()
}
