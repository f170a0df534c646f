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

	// One reads ahead at a time. Whoever looks for what it may bring waits for it, and
	// does not read the same.
	from, to T             // to is that of executions only: how far events reach is seen when they are read
	landed   chan struct{} // closed when it is in; nil: nobody reads ahead
}

// worth reports whether a miss should read what follows.
func (a *ahead[T]) worth(follows bool) bool {
	if a.landed != nil {
		return false
	}
	if follows && (4*a.hits >= a.read || a.misses >= probeAfter) {
		return true
	}
	a.misses++
	return false
}

// begin says that its caller reads ahead, land that it has read n, up to last.
func (a *ahead[T]) begin(from, to T) { a.from, a.to, a.landed = from, to, make(chan struct{}) }

func (a *ahead[T]) land(last T, n int) {
	if n > 0 {
		a.last, a.read, a.hits, a.misses = last, n, 0, 0
	}
	close(a.landed)
	a.landed = nil
}

func newRecent() *recent { return &recent{events: make(map[event.ID]*event.Event, recentEvents)} }

// row returns an execution if it is known. If not, to is the last id that is to be read
// with it, and version what ahead, or alone if to is id, wants to be told. When another
// is reading it, landed is closed once that is in.
func (c *recent) row(id uint64) (x Execution, ok bool, to uint64, version uint32, landed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &c.rowsRead
	if x := &c.rows[id%recentRows]; x.ID == id {
		a.hits++
		return *x, true, 0, 0, nil
	}
	version = c.versions[id/readAhead%uint64(len(c.versions))]
	if a.landed != nil && a.from <= id && id <= a.to {
		return Execution{}, false, id, version, a.landed
	}
	if a.worth(id > a.last && id-a.last <= readAhead) {
		to = id | (readAhead - 1)
		if to > id {
			a.begin(id, to)
		}
		return Execution{}, false, to, version, nil
	}
	a.last = id
	return Execution{}, false, id, version, nil
}

// ahead takes what was read after row had said that more than one was to be: consecutive
// executions of one run of readAhead, or none.
func (c *recent) ahead(list []Execution, version uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := uint64(0)
	if n := len(list); n > 0 {
		last = list[n-1].ID
		c.keep(list, version)
	}
	c.rowsRead.land(last, len(list))
}

// alone takes an execution that was read by itself.
func (c *recent) alone(x Execution, version uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep([]Execution{x}, version)
}

func (c *recent) keep(list []Execution, version uint32) {
	if c.versions[list[0].ID/readAhead%uint64(len(c.versions))] != version {
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
// be read with it and given to eventsAhead. When another reads what may have it, landed is
// closed once that is in.
func (c *recent) event(id event.ID) (e *event.Event, follow bool, landed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &c.eventsRead
	if e := c.events[id]; e != nil {
		a.hits++
		return e, false, nil
	}
	if a.landed != nil && id.Compare(a.from) >= 0 {
		return nil, false, a.landed
	}
	if a.worth(id.Compare(a.last) > 0) {
		a.begin(id, id)
		return nil, true, nil
	}
	a.last = id
	return nil, false, nil
}

// eventsAhead takes what was read after event had said that those that follow are to be:
// in order, or none.
func (c *recent) eventsAhead(list []*event.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last event.ID
	if n := len(list); n > 0 {
		last = list[n-1].ID
	}
	for _, e := range list {
		c.keepEvent(e)
	}
	c.eventsRead.land(last, len(list))
}

// eventAlone takes an event that was read by itself.
func (c *recent) eventAlone(e *event.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keepEvent(e)
}

func (c *recent) keepEvent(e *event.Event) {
	if c.events[e.ID] != nil {
		return
	}
	delete(c.events, c.order[c.next])
	c.order[c.next], c.events[e.ID] = e.ID, e
	c.next = (c.next + 1) % recentEvents
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
	x, ok, to, version, landed := j.recent.row(id)
	if landed != nil {
		<-landed
		x, ok, to, version, _ = j.recent.row(id)
	}
	if ok {
		return x, nil
	}
	if to > id {
		list, err := readRows(j.db, bucket, id, to)
		if err != nil || len(list) == 0 || list[0].ID != id {
			list = nil // whatever is wrong with those after it is not wrong with this one
		}
		j.recent.ahead(list, version)
		if list != nil {
			return list[0], nil
		}
	}
	x, err := readRow(j.db, bucket, id)
	if err == nil {
		j.recent.alone(x, version)
	}
	return x, err
}
