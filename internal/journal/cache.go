package journal

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"sync"
)

// cache keeps what memory holds for the rows that were read or written last, so
// that the usual change of a hot row costs no search in the store. It is one
// ring of bytes and one table of offsets into it: whatever its size, the
// collector has nothing to scan.
//
// It is written through: Commit brings it up to date after the store has taken
// the batch, so what it knows is always what the store holds.
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
}

// An entry is its header, key and value, padded to cacheAlign.
const (
	cacheAlign  = 8
	cacheHeader = 12 // hash u32, entry size u32, key length u16, value length u16
	cacheAbsent = 0xFFFF
	cacheMax    = 4096 // larger entries are not kept
)

// newCache returns a cache of size bytes, a sixth to a quarter of them for the
// table. Both are made at once: the system gives memory when it is first touched.
func newCache(size int) *cache {
	slots := 1 << 8
	for 8*2*slots <= size/4 {
		slots *= 2
	}
	return &cache{
		seed:  maphash.MakeSeed(),
		ring:  make([]byte, max(size-8*slots, 2*cacheMax)&^(cacheAlign-1)),
		table: make([]uint64, slots),
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

// apply adds what p has changed in the store.
func (c *cache) apply(p portion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	if len(p.prefixes) > 0 {
		c.clear()
		return
	}
	for ch := range p.changes {
		c.set(ch.key, ch.value, ch.ok)
	}
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
	need := (cacheHeader + len(key) + len(value) + cacheAlign - 1) &^ (cacheAlign - 1)
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
