package journal

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"sync"
	"unsafe"

	"github.com/cockroachdb/pebble/v2"
)

// cache keeps what memory holds for the rows that were read or written last, so
// that the usual change of a hot row costs no search in the store. It is one
// ring of bytes and one table of offsets into it, beside the heap: whatever its size,
// the collector has nothing to scan and nothing to wait for.
//
// A merge brings it up to date after the store has taken what it says, see delta: so what
// it knows is what the store holds, or the delta hides it.
type cache struct {
	mu    sync.Mutex
	seed  maphash.Seed
	ring  []byte // entries one after another, oldest at head
	head  int
	tail  int
	wraps bool // tail has passed the end and is below head
	last  int  // where the entries before the end stop, when wraps

	// table is open addressing: the hash in the upper half, offset/cacheAlign plus
	// one in the lower, 0 is free. A look at it alone rules out most other keys,
	// and the ring, which is large and cold, is touched once.
	table []uint64
	count int

	// epoch changes with every write, so that a value read from the store before
	// it does not get in after it.
	epoch uint64

	free func() // gives ring and table back; neither may be used any more
}

// An entry is its header, key and value, padded to cacheAlign.
const (
	cacheAlign  = 8
	cacheHeader = 12 // hash u32, entry size u32, key length u16, value length u16
	cacheAbsent = 0xFFFF
	cacheMax    = 4096 // larger entries are not kept
)

// newCache returns a cache of size bytes, an eighth to a quarter of them for the
// table, to be freed.
func newCache(size int) *cache {
	slots := 1 << 8
	for 8*2*slots <= size/4 {
		slots *= 2
	}
	ring := max(size-8*slots, 2*cacheMax) &^ (cacheAlign - 1)
	b, free := outside(8*slots + ring)
	return &cache{
		// Nothing stands before the end yet: add puts it there from the end down.
		wraps: true, head: ring, last: ring,
		seed:  maphash.MakeSeed(),
		ring:  b[8*slots:],
		table: unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), slots),
		free:  free,
	}
}

func (c *cache) hash(key []byte) uint32 { return uint32(maphash.Bytes(c.seed, key)) }

func (c *cache) entryHash(off int) uint32 { return binary.LittleEndian.Uint32(c.ring[off:]) }
func (c *cache) entrySize(off int) int    { return int(binary.LittleEndian.Uint32(c.ring[off+4:])) }

func (c *cache) entryKey(off int) []byte {
	n := int(binary.LittleEndian.Uint16(c.ring[off+8:]))
	return c.ring[off+cacheHeader : off+cacheHeader+n]
}

// entryValue returns nil, false for a key that memory does not hold.
func (c *cache) entryValue(off int) ([]byte, bool) {
	k := int(binary.LittleEndian.Uint16(c.ring[off+8:]))
	n := int(binary.LittleEndian.Uint16(c.ring[off+10:]))
	if n == cacheAbsent {
		return nil, false
	}
	return c.ring[off+cacheHeader+k : off+cacheHeader+k+n], true
}

// entryNeeds is the size of an entry.
func entryNeeds(key, value []byte) int {
	return (cacheHeader + len(key) + len(value) + cacheAlign - 1) &^ (cacheAlign - 1)
}

// slot returns the place in the table that refers to key, or the free one where
// it would be.
func (c *cache) slot(key []byte, hash uint32) int {
	m := len(c.table) - 1
	i := int(hash) & m
	for ; c.table[i] != 0; i = (i + 1) & m {
		if uint32(c.table[i]>>32) == hash && bytes.Equal(c.entryKey(offset(c.table[i])), key) {
			break
		}
	}
	return i
}

func reference(off int, hash uint32) uint64 { return uint64(hash)<<32 | uint64(off/cacheAlign+1) }

func offset(ref uint64) int { return int(uint32(ref)-1) * cacheAlign }

// get appends what is known of key to b. known false: nothing, and then put may
// be called with the epoch.
func (c *cache) get(b, key []byte) (value []byte, ok, known bool, epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ref := c.table[c.slot(key, c.hash(key))]; ref != 0 {
		v, ok := c.entryValue(offset(ref))
		return append(b, v...), ok, true, 0
	}
	return nil, false, false, c.epoch
}

// put adds what the store held at epoch.
func (c *cache) put(key, value []byte, ok bool, epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch == c.epoch {
		c.set(key, value, ok)
	}
}

// now returns the epoch, for add.
func (c *cache) now() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.epoch
}

// add adds what the store held at epoch, as what goes first. stale: that is no longer so.
// full: there is no room but that of others.
func (c *cache) add(key, value []byte, epoch uint64) (stale, full bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case epoch != c.epoch:
		return true, false
	case 4*(c.count+1) > 3*len(c.table) || !c.wraps || c.tail+2*cacheMax > c.head:
		return false, true
	}
	hash := c.hash(key)
	i, need := c.slot(key, hash), entryNeeds(key, value)
	if c.table[i] != 0 || need > cacheMax {
		return false, false
	}
	c.head -= need
	c.write(c.head, need, hash, key, value, true)
	c.table[i] = reference(c.head, hash)
	c.count++
	return false, false
}

// forget empties the cache.
func (c *cache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.clear()
}

func (c *cache) clear() {
	clear(c.table)
	c.count, c.head, c.tail, c.last, c.wraps = 0, 0, 0, 0, false
}

func (c *cache) set(key, value []byte, ok bool) {
	hash := c.hash(key)
	need := entryNeeds(key, value)
	i := c.slot(key, hash)
	if ref := c.table[i]; ref != 0 {
		off := offset(ref)
		if need <= c.entrySize(off) {
			c.write(off, c.entrySize(off), hash, key, value, ok)
			return
		}
		c.unlink(i)
	}
	if need > cacheMax {
		return
	}
	for 4*(c.count+1) > 3*len(c.table) {
		c.evict()
	}
	off := c.room(need)
	c.write(off, need, hash, key, value, ok)
	c.table[c.slot(key, hash)] = reference(off, hash)
	c.count++
}

func (c *cache) write(off, size int, hash uint32, key, value []byte, ok bool) {
	e := c.ring[off : off+size]
	binary.LittleEndian.PutUint32(e, hash)
	binary.LittleEndian.PutUint32(e[4:], uint32(size))
	binary.LittleEndian.PutUint16(e[8:], uint16(len(key)))
	n := uint16(len(value))
	if !ok {
		n = cacheAbsent
	}
	binary.LittleEndian.PutUint16(e[10:], n)
	copy(e[cacheHeader:], key)
	copy(e[cacheHeader+len(key):], value)
}

// room makes room for n bytes at the tail, dropping the oldest entries.
func (c *cache) room(n int) int {
	for {
		switch {
		case c.wraps && c.tail+n > c.head:
			c.evict()
		case c.wraps || c.tail+n <= len(c.ring):
			off := c.tail
			c.tail += n
			return off
		default:
			c.last, c.tail, c.wraps = c.tail, 0, true
		}
	}
}

// evict drops the entry at head.
func (c *cache) evict() {
	if c.wraps && c.head == c.last {
		c.head, c.wraps = 0, false
		return
	}
	// What was rewritten elsewhere is not in the table any more.
	m := len(c.table) - 1
	hash := c.entryHash(c.head)
	ref := reference(c.head, hash)
	for i := int(hash) & m; c.table[i] != 0; i = (i + 1) & m {
		if c.table[i] == ref {
			c.unlink(i)
			break
		}
	}
	c.head += c.entrySize(c.head)
}

// unlink frees a place in the table, and moves up what was put behind it only
// because it was taken.
func (c *cache) unlink(i int) {
	m := len(c.table) - 1
	c.count--
	for j := i; ; {
		j = (j + 1) & m
		if c.table[j] == 0 {
			break
		}
		home := int(c.table[j]>>32) & m
		if (j-home)&m >= (j-i)&m {
			c.table[i] = c.table[j]
			i = j
		}
	}
	c.table[i] = 0
}

// warmRows is how many keys of memory warm reads at once.
const warmRows = 256

// warm reads memory into the cache as far as there is room, from the last key down: rows
// stand above what is kept beside them, and so go last. What a restart has emptied
// would come back by one search in the store after the other, and that while there is a
// backlog.
func (j *Journal) warm() {
	lower, upper := bounds([]byte{spaceMemory})
	for more := true; more; {
		if j.enter() != nil {
			return
		}
		upper, more = j.warmBelow(lower, upper)
		j.leave()
	}
}

// warmBelow reads what comes before upper, and returns where to go on and whether there is
// more to read and room for it. What cannot be read is left for those who need it to
// find out.
func (j *Journal) warmBelow(lower, upper []byte) (next []byte, more bool) {
	epoch := j.cache.now()
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, false
	}
	defer it.Close() //nolint:errcheck // nothing hangs on it
	n := 0
	for ok := it.Last(); ok && n < warmRows; ok = it.Prev() {
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, false
		}
		switch stale, full := j.cache.add(it.Key()[1:], v, epoch); {
		case full:
			return nil, false
		case stale && n == 0:
			return upper, true
		case stale:
			return next, true
		}
		next = append(next[:0], it.Key()...)
		n++
	}
	return next, n == warmRows
}
