package journal

import (
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/billhook/billhook/internal/event"
)

// recent keeps executions and events that were read or written last. An execution is
// read when its turn comes, again when its outcome is stored, and its event in between:
// each would be a search in every level of the store. As executions come up in about
// the order of their ids, a miss reads those that follow as well, as long as that
// proves to be of use.
//
// What it holds is what the store holds: an edit brings executions up to date while
// Journal.mu is held, and events never change.
type recent struct {
	mu sync.Mutex

	rows     [recentRows]Execution // by id, modulo; ID 0: none
	versions [recentRows / readAhead]uint32
	rowsRead ahead[uint64]

	events     map[event.ID]*event.Event
	order      [recentEvents]event.ID // of events, a ring
	next       int
	eventsRead ahead[event.ID]
}

const (
	recentRows   = 2048
	recentEvents = 512
	readAhead    = 64
	// probeAfter is how many single misses pass before reading ahead is tried again
	// where it was of no use.
	probeAfter = 64
)

// ahead judges whether reading ahead is of use.
type ahead[T any] struct {
	last   T   // read ahead or missed last
	read   int // by the last reading ahead
	hits   int // since
	misses int // alone, since
}

// worth reports whether a miss should read what follows.
func (a *ahead[T]) worth(follows bool) bool {
	if follows && (4*a.hits >= a.read || a.misses >= probeAfter) {
		return true
	}
	a.misses++
	return false
}

func (a *ahead[T]) done(last T, n int) { a.last, a.read, a.hits, a.misses = last, n, 0, 0 }

func newRecent() *recent { return &recent{events: make(map[event.ID]*event.Event, recentEvents)} }

// row returns an execution if it is known. If not, to is the last id that is to be read
// with it, and version what keep wants to be told.
func (c *recent) row(id uint64) (x Execution, ok bool, to uint64, version uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x := &c.rows[id%recentRows]; x.ID == id {
		c.rowsRead.hits++
		return *x, true, 0, 0
	}
	a := &c.rowsRead
	to = id
	if a.worth(id > a.last && id-a.last <= readAhead) {
		to = id | (readAhead - 1)
	} else {
		a.last = id
	}
	return Execution{}, false, to, c.versions[id/readAhead%uint64(len(c.versions))]
}

// keep takes what was read after row had told version: consecutive executions of one
// run of readAhead.
func (c *recent) keep(list []Execution, version uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, last := list[0].ID, list[len(list)-1].ID
	if len(list) > 1 {
		c.rowsRead.done(last, len(list))
	}
	if c.versions[first/readAhead%uint64(len(c.versions))] != version {
		return
	}
	for i := range list {
		c.rows[list[i].ID%recentRows] = list[i]
	}
}

// changed takes what an edit has written. Journal.mu is held.
func (c *recent) changed(list []Execution) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range list {
		id := list[i].ID
		c.versions[id/readAhead%uint64(len(c.versions))]++
		c.rows[id%recentRows] = list[i]
	}
}

// forget drops everything, as when retention has dropped some of it.
func (c *recent) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.versions {
		c.versions[i]++
	}
	clear(c.rows[:])
	clear(c.events)
	clear(c.order[:])
}

// event returns an event if it is known. If not, follow says that those after it are to
// be read with it.
func (c *recent) event(id event.ID) (e *event.Event, follow bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &c.eventsRead
	if e := c.events[id]; e != nil {
		a.hits++
		return e, false
	}
	if a.worth(id.Compare(a.last) > 0) {
		return nil, true
	}
	a.last = id
	return nil, false
}

// keepEvents takes what was read, in order.
func (c *recent) keepEvents(list []*event.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(list) > 1 {
		c.eventsRead.done(list[len(list)-1].ID, len(list))
	}
	for _, e := range list {
		if c.events[e.ID] != nil {
			continue
		}
		delete(c.events, c.order[c.next])
		c.order[c.next], c.events[e.ID] = e.ID, e
		c.next = (c.next + 1) % recentEvents
	}
}

// readRows reads the executions from id to the last one that is asked for.
func readRows(r pebble.Reader, bucket uint32, id, to uint64) (list []Execution, err error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: appendRowKey(nil, bucket, id), UpperBound: appendRowKey(nil, bucket, to+1)})
	if err != nil {
		return nil, err
	}
	list = make([]Execution, 0, to-id+1)
	for ok := it.First(); ok; ok = it.Next() {
		v, verr := it.ValueAndErr()
		if verr != nil {
			err = verr
			break
		}
		x, derr := decodeRow(idOf(it.Key()), v)
		if derr != nil {
			err = derr
			break
		}
		list = append(list, x)
	}
	return list, errors.Join(err, it.Error(), it.Close())
}

// readEvents reads an event and those after it in its bucket, up to last: what is above
// belongs to a transaction that may yet be taken back.
func readEvents(r pebble.Reader, bucket uint32, id, last event.ID) (list []*event.Event, err error) {
	lower := appendEventKey(nil, bucket, id)
	prefix := len(lower) - eventIDSize
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: append(appendEventKey(nil, bucket, last), 0)})
	if err != nil {
		return nil, err
	}
	size := 0
	for ok := it.First(); ok && len(list) < readAhead && size < maxReadAhead; ok = it.Next() {
		v, verr := it.ValueAndErr()
		if verr != nil {
			err = verr
			break
		}
		size += len(v)
		e, derr := decodeEvent(eventIDOf(it.Key()[prefix:]), v)
		if derr != nil {
			err = derr
			break
		}
		list = append(list, e)
	}
	return list, errors.Join(err, it.Error(), it.Close())
}

// maxReadAhead bounds the bytes of events that are read at once.
const maxReadAhead = 128 << 10

// recently reads an execution, or finds it among those that were read or written last.
func (j *Journal) recently(bucket uint32, id uint64) (Execution, error) {
	x, ok, to, version := j.recent.row(id)
	if ok {
		return x, nil
	}
	if to > id {
		list, err := readRows(j.db, bucket, id, to)
		if err == nil && len(list) > 0 && list[0].ID == id {
			j.recent.keep(list, version)
			return list[0], nil
		}
		// Whatever is wrong with those after it is not wrong with this one.
	}
	x, err := readRow(j.db, bucket, id)
	if err == nil {
		j.recent.keep([]Execution{x}, version)
	}
	return x, err
}
