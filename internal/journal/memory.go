package journal

import (
	"bytes"
	"hash/maphash"
	"iter"
	"slices"
)

// overlay is what a batch has done to memory, last write winning. Keys and
// values lie in one arena and nothing in it is a pointer, so that a batch of
// 100,000 keys costs the collector nothing.
//
// It also knows what was there before the last mark, so that an open
// transaction can be told from the whole ones before it.
type overlay struct {
	seed    maphash.Seed
	table   []uint32 // open addressing: index into entries plus one, 0 is free
	entries []entry
	arena   []byte
	order   []uint32 // of entries by key, when as long as entries

	// prefixes were deleted, in this order, before any live entry they cover:
	// deletePrefix turns the entries it finds into deletions.
	prefixes [][]byte

	mark struct {
		gen      uint32
		entries  int
		prefixes int
		undo     []undo // what the entries older than the mark held
	}
}

type entry struct {
	hash     uint64
	key, val int // offsets into arena
	keyLen   int32
	valLen   int32  // -1: deleted
	gen      uint32 // of the mark since which it is new or saved
}

type undo struct {
	entry  int
	val    int
	valLen int32
}

const deleted = -1

// change is one entry as it is to be written. ok false: a deletion.
type change struct {
	key, value []byte
	ok         bool
}

func newOverlay() overlay { return overlay{seed: maphash.MakeSeed()} }

func (o *overlay) reset() {
	if cap(o.arena) > 32<<20 {
		*o = overlay{seed: o.seed}
		return
	}
	clear(o.table)
	o.entries, o.arena, o.order, o.prefixes = o.entries[:0], o.arena[:0], o.order[:0], nil
	o.mark.gen, o.mark.entries, o.mark.prefixes, o.mark.undo = 0, 0, 0, o.mark.undo[:0]
}

// setMark says that what follows belongs to another transaction than what is
// there.
func (o *overlay) setMark() {
	o.mark.gen++
	o.mark.entries, o.mark.prefixes, o.mark.undo = len(o.entries), len(o.prefixes), o.mark.undo[:0]
}

func (o *overlay) keyOf(e *entry) []byte { return o.arena[e.key : e.key+int(e.keyLen)] }

func (o *overlay) slice(val int, n int32) ([]byte, bool) {
	if n == deleted {
		return nil, false
	}
	return o.arena[val : val+int(n) : val+int(n)], true
}

// find returns the index of key's entry, -1 if there is none.
func (o *overlay) find(key []byte, hash uint64) int {
	if len(o.table) == 0 {
		return -1
	}
	m := uint64(len(o.table) - 1)
	for i := hash & m; o.table[i] != 0; i = (i + 1) & m {
		e := &o.entries[o.table[i]-1]
		if e.hash == hash && bytes.Equal(o.keyOf(e), key) {
			return int(o.table[i] - 1)
		}
	}
	return -1
}

// get tells what the overlay says of key; known false: nothing.
func (o *overlay) get(key []byte) (value []byte, ok, known bool) {
	if i := o.find(key, maphash.Bytes(o.seed, key)); i >= 0 {
		value, ok = o.slice(o.entries[i].val, o.entries[i].valLen)
		return value, ok, true
	}
	return nil, false, covered(o.prefixes, key)
}

func covered(prefixes [][]byte, key []byte) bool {
	for _, p := range prefixes {
		if bytes.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

func (o *overlay) set(key, value []byte) {
	e := o.edit(key)
	if int(e.valLen) >= len(value) {
		copy(o.arena[e.val:], value)
	} else {
		e.val = len(o.arena)
		o.arena = append(o.arena, value...)
	}
	e.valLen = int32(len(value))
}

func (o *overlay) delete(key []byte) { o.edit(key).valLen = deleted }

func (o *overlay) deletePrefix(prefix []byte) {
	for i := range o.entries {
		if bytes.HasPrefix(o.keyOf(&o.entries[i]), prefix) {
			o.save(i)
			o.entries[i].valLen = deleted
		}
	}
	o.prefixes = append(o.prefixes, bytes.Clone(prefix))
}

// edit returns the entry of key, made if need be, for its value to be changed.
// Where valLen is not negative the value's place may be written over.
func (o *overlay) edit(key []byte) *entry {
	hash := maphash.Bytes(o.seed, key)
	if i := o.find(key, hash); i >= 0 {
		o.save(i)
		return &o.entries[i]
	}
	if 4*(len(o.entries)+1) > 3*len(o.table) {
		o.grow()
	}
	o.entries = append(o.entries, entry{
		hash: hash, key: len(o.arena), keyLen: int32(len(key)), valLen: deleted, gen: o.mark.gen,
	})
	o.arena = append(o.arena, key...)
	o.link(hash, len(o.entries))
	return &o.entries[len(o.entries)-1]
}

// save keeps what an entry older than the mark held, once, and gives up its
// place in the arena.
func (o *overlay) save(i int) {
	e := &o.entries[i]
	if e.gen == o.mark.gen {
		return
	}
	o.mark.undo = append(o.mark.undo, undo{entry: i, val: e.val, valLen: e.valLen})
	e.gen, e.valLen = o.mark.gen, deleted
}

func (o *overlay) link(hash uint64, ref int) {
	m := uint64(len(o.table) - 1)
	i := hash & m
	for o.table[i] != 0 {
		i = (i + 1) & m
	}
	o.table[i] = uint32(ref)
}

func (o *overlay) grow() {
	o.table = make([]uint32, max(1024, 2*len(o.table)))
	for i := range o.entries {
		o.link(o.entries[i].hash, i+1)
	}
}

// all are all entries as they are now.
func (o *overlay) all() iter.Seq[change] {
	return func(yield func(change) bool) {
		for i := range o.entries {
			e := &o.entries[i]
			v, ok := o.slice(e.val, e.valLen)
			if !yield(change{o.keyOf(e), v, ok}) {
				return
			}
		}
	}
}

// changes are all entries as they are now, in the order of keys: the store takes
// sorted keys in less time.
func (o *overlay) changes() iter.Seq[change] {
	return func(yield func(change) bool) {
		if len(o.order) != len(o.entries) {
			o.order = o.order[:0]
			for i := range o.entries {
				o.order = append(o.order, uint32(i))
			}
			slices.SortFunc(o.order, func(a, b uint32) int {
				return bytes.Compare(o.keyOf(&o.entries[a]), o.keyOf(&o.entries[b]))
			})
		}
		for _, i := range o.order {
			e := &o.entries[i]
			v, ok := o.slice(e.val, e.valLen)
			if !yield(change{o.keyOf(e), v, ok}) {
				return
			}
		}
	}
}

// before are the entries as they were at the mark.
func (o *overlay) before() iter.Seq[change] {
	return func(yield func(change) bool) {
		was := make(map[int]undo, len(o.mark.undo))
		for _, u := range o.mark.undo {
			was[u.entry] = u
		}
		for i := range o.mark.entries {
			e := &o.entries[i]
			val, n := e.val, e.valLen
			if u, ok := was[i]; ok {
				val, n = u.val, u.valLen
			}
			v, ok := o.slice(val, n)
			if !yield(change{o.keyOf(e), v, ok}) {
				return
			}
		}
	}
}

// since are the entries that changed after the mark.
func (o *overlay) since() iter.Seq[change] {
	return func(yield func(change) bool) {
		for i := range o.entries {
			e := &o.entries[i]
			if e.gen != o.mark.gen {
				continue
			}
			v, ok := o.slice(e.val, e.valLen)
			if !yield(change{o.keyOf(e), v, ok}) {
				return
			}
		}
	}
}
