package billing

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/billhook/billhook/internal/wal"
)

// A transaction may be larger than memory has room for. When what is folded of it
// grows past a limit, Spill moves the rows to Scratch, and folding starts again with
// what comes. At the next Spill a row that was moved before is found by its key and
// the two foldings become one, so that in the end each row counts once, as if
// all of its changes had been folded at once. Commit then reads the rows one after
// another.
//
// An entry of Scratch is either a block, up to blockRows rows with consecutive
// ordinals, or a row that has changed since it was put into a block. Where they are,
// and which row has a key now, is known in RAM for the first million rows (places,
// alive). The rest stands in Memory, under keys that begin with scratch. They belong
// to the open transaction, and the last thing that Commit does is to delete them.
//
//	\x01 o ordinal(8)      place of a row that has changed, of one with a high ordinal
//	\x01 a key             ordinal of the row that has the key now, when alive is full
//	\x01 x key             ordinal of the row that was the last to be deleted under the key
//	\x01 v ordinal(8) n(8) the n-th version of a row, where a gauge judges every change
//
// and while Commit runs
//
//	\x01 m ordinal(8)      memory of a row whose key has changed
//	\x01 t ordinal(8)      its timers
//	\x01 l lane            ordinal of the last deleted row of a lane
//	\x01 d ordinal(8)      ordinals of deleted clients that are told after the row
//	\x01 f client          ordinals of the first and last custom field row of a client
//	\x01 n ordinal(8)      ordinal of the client's next custom field row
//
// Numbers are big-endian. Texts of masked columns are encrypted, under a key that
// nobody has once the process has ended.
const scratch = "\x01"

const (
	scratchRow      = 'o'
	scratchAlive    = 'a'
	scratchDead     = 'x'
	scratchVersion  = 'v'
	scratchMoved    = 'm'
	scratchTimers   = 't'
	scratchLane     = 'l'
	scratchDeferred = 'd'
	scratchFields   = 'f'
	scratchNext     = 'n'
)

// blockRows is how many rows are one entry.
const blockRows = 64

// Scratch keeps the rows of a transaction that RAM has no room for. It belongs to the
// Deriver, which forgets what is there when the transaction has ended.
type Scratch interface {
	// Append keeps a copy of an entry and returns its place, which is never negative.
	Append(entry []byte) (place int64, err error)
	// Read returns the entry at a place. It is valid until the next call.
	Read(place int64) ([]byte, error)
	// Reset forgets all entries.
	Reset()
}

// heap is the Scratch of a Deriver that was given none.
type heap struct{ entries [][]byte }

func (h *heap) Append(entry []byte) (int64, error) {
	h.entries = append(h.entries, slices.Clone(entry))
	return int64(len(h.entries) - 1), nil
}

func (h *heap) Read(place int64) ([]byte, error) { return h.entries[place], nil }

func (h *heap) Reset() { h.entries = nil }

// spilled is the part of the open transaction that was set aside.
type spilled struct {
	scratch Scratch
	next    uint64 // the next row's ordinal, a multiple of blockRows; 0: nothing is spilled
	plans   []*plan
	numbers map[*plan]uint64 // index in plans
	blocks  []int64          // places, by ordinal/blockRows
	changed bitmap           // rows that no longer stand in their block
	limit   uint64           // rows of which RAM knows where they are
	places  rowPlaces        // of those that have changed
	alive   aliveIndex
	voids   []void
	met     filter // keys under which rows were spilled

	fields  bool // there are custom field rows
	parents bool // there are deleted clients
	moved   bool // there are rows whose key has changed

	key, value []byte // buffers

	cipher cipher.Block // for texts of masked columns
	sealed uint64       // how many were encrypted
}

// void says that rows of a table below an ordinal went with a TRUNCATE.
type void struct {
	*mapped
	below uint64
}

func (s *spilled) reset() {
	s.scratch.Reset()
	*s = spilled{scratch: s.scratch, limit: s.limit, key: resetBuffer(s.key, 1<<16), value: resetBuffer(s.value, 1<<16), cipher: s.cipher, sealed: s.sealed}
}

// filter is a Bloom filter of keys, so that most rows that are new are not looked
// for. Past some millions of keys it lets more and more through.
type filter []uint64

const filterBits = 1 << 23

func places(key []byte) [2]uint64 {
	h := xxhash.Sum64(key)
	return [2]uint64{h % filterBits, (h >> 32) % filterBits}
}

func (f *filter) add(key []byte) {
	if *f == nil {
		*f = make(filter, filterBits/64)
	}
	for _, n := range places(key) {
		(*f)[n/64] |= 1 << (n % 64)
	}
}

func (f filter) has(key []byte) bool {
	if f == nil {
		return false
	}
	for _, n := range places(key) {
		if f[n/64]&(1<<(n%64)) == 0 {
			return false
		}
	}
	return true
}

func (s *spilled) isVoid(m *mapped, ordinal uint64) bool {
	return slices.ContainsFunc(s.voids, func(v void) bool { return v.mapped == m && ordinal < v.below })
}

// at makes a key of a space, with a number.
func (s *spilled) at(space byte, n uint64) []byte {
	s.key = binary.BigEndian.AppendUint64(append(append(s.key[:0], scratch...), space), n)
	return s.key
}

// of makes a key of a space, with a text.
func (s *spilled) of(space byte, text []byte) []byte {
	s.key = append(append(append(s.key[:0], scratch...), space), text...)
	return s.key
}

// number reads an ordinal.
func (s *spilled) number(mem Memory, key []byte) (n uint64, ok bool, err error) {
	v, ok, err := mem.Memory(key)
	if err != nil || !ok {
		return 0, false, err
	}
	if len(v) < 8 {
		return 0, false, errDamaged
	}
	return binary.BigEndian.Uint64(v), true, nil
}

func (s *spilled) setNumber(mem Memory, key []byte, n uint64) {
	s.value = binary.BigEndian.AppendUint64(s.value[:0], n)
	mem.SetMemory(key, s.value)
}

var errDamaged = errors.New("the open transaction's rows are damaged")

// Full reports whether the open transaction should be spilled before it grows.
func (d *Deriver) Full() bool { return d.tx.size > d.opts.Limit }

// Spill moves what is folded of the open transaction to mem. Between its rows it
// calls Options.Between, so that mem may be written away.
func (d *Deriver) Spill(mem Memory) error {
	if err := d.spill(mem); err != nil {
		return fmt.Errorf("set aside rows of a large transaction: %w", err)
	}
	return nil
}

func (d *Deriver) spill(mem Memory) error {
	t, s := &d.tx, &d.tx.spilled
	t.buildIndex()
	if s.next == 0 {
		for i := range d.loaded {
			d.loaded[i].block = 0 // of an earlier transaction
		}
	}

	// Which spilled row does each go on with? One that was there before by the key
	// that it had first; one that was inserted under the key of another is that row
	// again.
	before := make([]uint64, len(t.rows)) // ordinal + 1; 0: a new row
	if s.next > 0 {
		claimed := map[uint64]bool{}
		for _, pass := range []struct {
			existed bool
			space   byte
		}{{true, scratchAlive}, {false, scratchAlive}, {false, scratchDead}} {
			space := pass.space
			for i := range t.rows {
				r := &t.rows[i]
				if r.void || r.existed != pass.existed || before[i] > 0 || !s.met.has(r.firstKey()) {
					continue
				}
				n, ok, err := d.spilledUnder(mem, space, r.firstKey())
				if err != nil {
					return err
				}
				if ok && !claimed[n] && !s.isVoid(r.mapped, n) {
					claimed[n] = true
					before[i] = n + 1
					if space == scratchDead || s.alive.full {
						mem.DeleteMemory(s.of(space, r.firstKey()))
					}
				}
			}
		}
	}

	// Rows take their places, in order.
	ordinals := make([]uint64, len(t.rows))
	var block []byte
	first, n := s.next, uint64(0)
	flush := func() error {
		if n > 0 {
			place, err := s.scratch.Append(block)
			if err != nil {
				return err
			}
			s.blocks = append(s.blocks, place)
			block, first, n = block[:0], first+blockRows, 0
		}
		return d.opts.Between()
	}
	for i := range t.rows {
		r := &t.rows[i]
		if r.void {
			continue
		}
		s.fields = s.fields || r.role == fieldRow
		s.parents = s.parents || r.new == nil && r.isClient()
		if before[i] > 0 {
			ordinals[i] = before[i] - 1
			if err := d.spillAgain(mem, r, ordinals[i]); err != nil {
				return err
			}
			s.moved = s.moved || d.loaded[0].wasKey != nil
			if err := d.opts.Between(); err != nil {
				return err
			}
			continue
		}
		s.moved = s.moved || r.wasKey != nil
		ordinals[i] = first + n
		if err := s.addVersions(mem, r.plan, ordinals[i], 0, r.path); err != nil {
			return err
		}
		block = s.appendRow(block, r, len(r.path))
		if n++; n == blockRows {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	s.next = first
	for key, i := range t.alive {
		s.met.add([]byte(key))
		if !s.alive.add([]byte(key), ordinals[i], s.limit) {
			s.setNumber(mem, s.of(scratchAlive, []byte(key)), ordinals[i])
		}
	}
	for key, i := range t.dead {
		s.met.add([]byte(key))
		s.setNumber(mem, s.of(scratchDead, []byte(key)), ordinals[i])
	}
	t.empty()
	return d.opts.Between()
}

// spillAgain folds r into the spilled row of which it is the continuation, which it
// leaves in d.loaded[0].
func (d *Deriver) spillAgain(mem Memory, r *row, ordinal uint64) error {
	s := &d.tx.spilled
	l := &d.loaded[0]
	if ok, err := d.load(mem, ordinal, l); err != nil || !ok {
		return errors.Join(err, errDamaged)
	}
	versions := l.spilledVersions
	fill := func(values []wal.Value) {
		if r.existed && len(values) == len(l.new) {
			fillUnchanged(values, l.new)
		}
	}
	fill(r.new)
	for _, v := range r.path {
		fill(v)
	}
	path := r.path
	if r.existed && r.updated && r.perChange {
		path = append([]image{l.new}, path...)
	}
	if err := s.addVersions(mem, r.plan, ordinal, versions, path); err != nil {
		return err
	}
	l.plan = r.plan
	if l.existed && l.old == nil && l.wasKey == nil {
		l.old = r.old
	}
	if string(l.key) != string(r.key) {
		if l.wasKey == nil {
			l.wasKey = l.key
		}
		l.key = r.key
	}
	l.new = r.new
	s.value = s.appendRow(s.value[:0], &l.row, versions+len(path))
	place, err := s.scratch.Append(s.value)
	if err != nil {
		return err
	}
	s.changed.set(ordinal)
	if ordinal < s.limit {
		s.places.set(ordinal, place)
	} else {
		s.setNumber(mem, s.at(scratchRow, ordinal), uint64(place))
	}
	return nil
}

// spilledUnder returns the ordinal of a spilled row by its key now, or by the key
// under which it was the last to be deleted.
func (d *Deriver) spilledUnder(mem Memory, space byte, key []byte) (ordinal uint64, ok bool, err error) {
	s := &d.tx.spilled
	if !s.met.has(key) {
		return 0, false, nil
	}
	if space == scratchAlive {
		l := &d.loaded[3]
		for n := range s.alive.candidates(key) {
			b, ok, err := d.raw(mem, n, l)
			if err != nil || !ok {
				return 0, false, errors.Join(err, errDamaged)
			}
			if now, p, there, ok := s.head(b); !ok {
				return 0, false, errDamaged
			} else if there && string(now) == string(key) && !s.isVoid(p.mapped, n) {
				return n, true, nil
			}
		}
		if !s.alive.full {
			return 0, false, nil
		}
	}
	return s.number(mem, s.of(space, key))
}

// addVersions keeps versions of a row from the given number on.
func (s *spilled) addVersions(mem Memory, p *plan, ordinal uint64, from int, versions []image) error {
	for i, v := range versions {
		s.value = s.appendTuple(s.value[:0], p, v)
		mem.SetMemory(s.version(ordinal, from+i), s.value)
	}
	return nil
}

func (s *spilled) version(ordinal uint64, n int) []byte {
	s.key = binary.BigEndian.AppendUint64(s.at(scratchVersion, ordinal), uint64(n))
	return s.key
}

// loaded is a row that was read back.
type loaded struct {
	row
	ordinal uint64
	block   uint64 // first ordinal of the block in text, plus 1
	text    []byte // of the block
	rest    []byte // of text after the row that was read last
	at      uint64 // ordinal at the beginning of rest
	again   []byte // a row that stands by itself
	oldBuf  []wal.Value
	newBuf  []wal.Value
}

// load reads a row. It reports false for an ordinal that no row has.
func (d *Deriver) load(mem Memory, ordinal uint64, l *loaded) (bool, error) {
	b, ok, err := d.raw(mem, ordinal, l)
	if err != nil || !ok {
		return false, err
	}
	return true, d.tx.spilled.readRow(b, l)
}

// raw reads a row as appendRow wrote it, into l.
func (d *Deriver) raw(mem Memory, ordinal uint64, l *loaded) (b []byte, ok bool, err error) {
	s := &d.tx.spilled
	l.ordinal = ordinal
	if s.changed.has(ordinal) {
		place := uint64(0)
		if ordinal < s.limit {
			place = uint64(s.places.get(ordinal))
		} else if place, ok, err = s.number(mem, s.at(scratchRow, ordinal)); err != nil || !ok {
			return nil, false, errors.Join(err, errDamaged)
		}
		if b, err = s.scratch.Read(int64(place)); err != nil {
			return nil, false, err
		}
		l.again = append(l.again[:0], b...)
		return l.again, true, nil
	}
	first := ordinal / blockRows * blockRows
	if l.block != first+1 || l.at > ordinal {
		if ordinal/blockRows >= uint64(len(s.blocks)) {
			return nil, false, nil
		}
		if b, err = s.scratch.Read(s.blocks[ordinal/blockRows]); err != nil {
			return nil, false, err
		}
		l.text = append(l.text[:0], b...)
		l.block, l.at, l.rest = first+1, first, l.text
	}
	for {
		if len(l.rest) == 0 {
			return nil, false, nil
		}
		n, size := binary.Uvarint(l.rest)
		if size <= 0 || n > uint64(len(l.rest)-size) {
			return nil, false, errDamaged
		}
		b = l.rest[:size+int(n)]
		l.rest = l.rest[size+int(n):]
		l.at++
		if l.at > ordinal {
			return b, true, nil
		}
	}
}

const (
	rowExisted = 1 << iota
	rowOldFull
	rowMoved
	rowThere
)

// appendRow appends a row with its length.
func (s *spilled) appendRow(b []byte, r *row, versions int) []byte {
	number, ok := s.numbers[r.plan]
	if !ok {
		if s.numbers == nil {
			s.numbers = map[*plan]uint64{}
		}
		number = uint64(len(s.plans))
		s.numbers[r.plan] = number
		s.plans = append(s.plans, r.plan)
	}
	var flags byte
	for i, set := range []bool{r.existed, r.oldFull, r.wasKey != nil, r.new != nil} {
		if set {
			flags |= 1 << i
		}
	}
	start := len(b)
	b = binary.AppendUvarint(b, number)
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(versions))
	b = appendText(b, r.key)
	if r.wasKey != nil {
		b = appendText(b, r.wasKey)
	}
	b = s.appendTuple(b, r.plan, r.old)
	if r.new != nil {
		b = s.appendTuple(b, r.plan, r.new)
	}
	var length [binary.MaxVarintLen64]byte
	return slices.Insert(b, start, length[:binary.PutUvarint(length[:], uint64(len(b)-start))]...)
}

// head reads of a row that was read back only its key now and whether it is there.
func (s *spilled) head(b []byte) (key []byte, p *plan, there, ok bool) {
	c := cursor{b: b}
	c.uint() // length
	number := c.uint()
	flags := c.byte()
	c.uint() // versions
	key = c.text()
	if c.bad || number >= uint64(len(s.plans)) {
		return nil, nil, false, false
	}
	return key, s.plans[number], flags&rowThere != 0, true
}

func (s *spilled) readRow(b []byte, l *loaded) error {
	c := cursor{b: b}
	c.uint() // length
	number := c.uint()
	flags := c.byte()
	versions := c.uint()
	l.row = row{
		existed: flags&rowExisted != 0, oldFull: flags&rowOldFull != 0,
		spilledVersions: int(versions), spilled: true, ordinal: int(l.ordinal),
	}
	l.key = c.text()
	if flags&rowMoved != 0 {
		l.wasKey = c.text()
	}
	l.oldBuf = c.tuple(l.oldBuf)
	l.old = l.oldBuf
	if len(l.old) == 0 {
		l.old = nil
	}
	if flags&rowThere != 0 {
		l.newBuf = c.tuple(l.newBuf)
		l.new = l.newBuf
	}
	if c.bad || len(c.b) > 0 || number >= uint64(len(s.plans)) {
		return errDamaged
	}
	l.plan = s.plans[number]
	s.decrypt(l.plan, l.old)
	s.decrypt(l.plan, l.new)
	l.void = s.isVoid(l.mapped, l.ordinal)
	return nil
}

func appendText(b, text []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

func (s *spilled) appendTuple(b []byte, p *plan, values []wal.Value) []byte {
	b = binary.AppendUvarint(b, uint64(len(values)))
	for i, v := range values {
		b = append(b, byte(v.Kind))
		switch {
		case v.Kind != wal.Text:
		case i < len(p.masked) && p.masked[i]:
			b = appendText(b, s.encrypt(v.Text))
		default:
			b = appendText(b, v.Text)
		}
	}
	return b
}

// encrypt returns the text's number and the text encrypted with it.
func (s *spilled) encrypt(text []byte) []byte {
	if s.cipher == nil {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails
		s.cipher, _ = aes.NewCipher(key)
	}
	s.sealed++
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(text)), s.sealed)
	b = append(b, text...)
	s.stream(b).XORKeyStream(b[8:], b[8:])
	return b
}

func (s *spilled) stream(b []byte) cipher.Stream {
	var iv [aes.BlockSize]byte
	copy(iv[:8], b)
	return cipher.NewCTR(s.cipher, iv[:])
}

// decrypt makes clear the masked texts of a tuple that was read back.
func (s *spilled) decrypt(p *plan, values []wal.Value) {
	for i, v := range values {
		if i < len(p.masked) && p.masked[i] && v.Kind == wal.Text && len(v.Text) >= 8 && s.cipher != nil {
			text := make([]byte, len(v.Text)-8)
			s.stream(v.Text).XORKeyStream(text, v.Text[8:])
			values[i].Text = text
		}
	}
}

// cursor reads what the append functions wrote. Texts alias its bytes.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uint() uint64 {
	n, size := binary.Uvarint(c.b)
	if size <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[size:]
	return n
}

func (c *cursor) byte() byte {
	if len(c.b) == 0 {
		c.bad = true
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cursor) text() []byte {
	n := c.uint()
	if n > uint64(len(c.b)) {
		c.bad, c.b = true, nil
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) tuple(into []wal.Value) []wal.Value {
	n := c.uint()
	if n > uint64(len(c.b)) {
		c.bad, c.b = true, nil
		return nil
	}
	into = slices.Grow(into[:0], int(n))[:n]
	for i := range into {
		into[i] = wal.Value{Kind: wal.ValueKind(c.byte())}
		if into[i].Kind == wal.Text {
			into[i].Text = c.text()
		}
	}
	return into
}

// bitmap is a set of ordinals.
type bitmap []uint64

func (b bitmap) has(n uint64) bool { return n/64 < uint64(len(b)) && b[n/64]&(1<<(n%64)) != 0 }

func (b *bitmap) set(n uint64) {
	if need := int(n/64) + 1; need > len(*b) {
		*b = slices.Grow(*b, need-len(*b))[:need]
	}
	(*b)[n/64] |= 1 << (n % 64)
}

// inRAM is of how many rows of a large transaction RAM knows where they are.
const inRAM = 1 << 20

// rowPlaces are the places of rows by ordinal.
type rowPlaces []*[blockRows]int64

func (p rowPlaces) get(ordinal uint64) int64 { return p[ordinal/blockRows][ordinal%blockRows] }

func (p *rowPlaces) set(ordinal uint64, place int64) {
	i := int(ordinal / blockRows)
	if i >= len(*p) {
		*p = slices.Grow(*p, i+1-len(*p))[:i+1]
	}
	if (*p)[i] == nil {
		(*p)[i] = new([blockRows]int64)
	}
	(*p)[i][ordinal%blockRows] = place
}

// aliveIndex finds spilled rows by the key that they have now. It holds no keys, so
// what it says is to be checked, and what is no longer so stays.
type aliveIndex struct {
	table []uint64 // open addressing: upper half of the hash, ordinal + 1; 0 is free
	count uint64
	full  bool // some of the keys are not here
}

func (x *aliveIndex) candidates(key []byte) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		if len(x.table) == 0 {
			return
		}
		h, m := xxhash.Sum64(key), len(x.table)-1
		for i := int(h>>32) & m; x.table[i] != 0; i = (i + 1) & m {
			if x.table[i]>>32 == h>>32 && !yield(x.table[i]&math.MaxUint32-1) {
				return
			}
		}
	}
}

// add reports false when it has as many keys as the limit.
func (x *aliveIndex) add(key []byte, ordinal, limit uint64) bool {
	if ordinal >= math.MaxUint32 {
		x.full = true
		return false
	}
	for n := range x.candidates(key) {
		if n == ordinal {
			return true
		}
	}
	if x.count >= limit/4*3 {
		x.full = true
		return false
	}
	if 4*(x.count+1) > uint64(3*len(x.table)) {
		old := x.table
		x.table = make([]uint64, max(1<<12, 2*len(old)))
		for _, e := range old {
			if e != 0 {
				x.put(e)
			}
		}
	}
	x.put(xxhash.Sum64(key)>>32<<32 | (ordinal + 1))
	x.count++
	return true
}

func (x *aliveIndex) put(e uint64) {
	m := len(x.table) - 1
	i := int(e>>32) & m
	for x.table[i] != 0 {
		i = (i + 1) & m
	}
	x.table[i] = e
}

// version returns a version that the row had in the transaction, in order.
func (d *Deriver) version(r *row, n int, mem Memory) (image, error) {
	if !r.spilled {
		return r.path[n], nil
	}
	v, ok, err := mem.Memory(d.tx.spilled.version(uint64(r.ordinal), n))
	if err != nil || !ok {
		return nil, errors.Join(err, errDamaged)
	}
	c := cursor{b: slices.Clone(v)}
	values := c.tuple(nil)
	if c.bad {
		return nil, errDamaged
	}
	d.tx.spilled.decrypt(r.plan, values)
	return values, nil
}

// commitSpilled derives a transaction that stands in mem.
func (d *Deriver) commitSpilled(mem Memory, emit emitter) error {
	if err := d.Spill(mem); err != nil {
		return err
	}
	s := &d.tx.spilled
	r := &d.loaded[0]
	each := func(f func() error) error {
		for i := range s.next {
			ok, err := d.load(mem, i, r)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if err := f(); err != nil {
				return err
			}
			if err := d.opts.Between(); err != nil {
				return err
			}
		}
		return nil
	}
	if s.moved {
		if err := each(func() error { return d.setAside(&r.row, mem) }); err != nil {
			return err
		}
		if err := each(func() error { d.vacate(&r.row, mem); return nil }); err != nil {
			return err
		}
		d.aside = true
	}
	if s.fields || s.parents {
		if err := each(func() error { return d.survey(&r.row, mem) }); err != nil {
			return err
		}
	}
	deferred := 0
	err := each(func() error {
		wait := false
		if r.isClient() && r.op() == wal.Delete {
			lane, err := d.laneOf(&r.row, mem)
			if err != nil {
				return err
			}
			last, ok, err := s.number(mem, s.of(scratchLane, lane))
			if err != nil {
				return err
			}
			if wait = ok && last > uint64(r.ordinal); wait {
				deferred++
				v, _, err := mem.Memory(s.at(scratchDeferred, last))
				if err != nil {
					return err
				}
				s.value = binary.BigEndian.AppendUint64(append(s.value[:0], v...), uint64(r.ordinal))
				mem.SetMemory(s.at(scratchDeferred, last), s.value)
			}
		}
		here := uint64(r.ordinal)
		if !wait {
			if err := d.row(&r.row, mem, emit); err != nil {
				return err
			}
		}
		if deferred == 0 {
			return nil
		}
		v, ok, err := mem.Memory(s.at(scratchDeferred, here))
		if err != nil || !ok {
			return err
		}
		l := &d.loaded[1]
		for v = slices.Clone(v); len(v) >= 8; v = v[8:] {
			deferred--
			if ok, err := d.load(mem, binary.BigEndian.Uint64(v), l); err != nil || !ok {
				return errors.Join(err, errDamaged)
			}
			if err := d.row(&l.row, mem, emit); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	mem.DeleteMemoryPrefix([]byte(scratch))
	s.scratch.Reset()
	return nil
}

// survey notes what the telling of other rows must know of this one: the last
// deleted row of each lane, and the custom field rows of each client.
func (d *Deriver) survey(r *row, mem Memory) error {
	op := r.op()
	s := &d.tx.spilled
	isField := r.role == fieldRow && op != 0
	if !isField && (op != wal.Delete || !s.parents) {
		return nil
	}
	lane, err := d.laneOf(r, mem)
	if err != nil {
		return err
	}
	if op == wal.Delete && s.parents {
		s.setNumber(mem, s.of(scratchLane, lane), uint64(r.ordinal))
	}
	if !isField || len(d.object) == 0 {
		return nil
	}
	v, ok, err := mem.Memory(s.of(scratchFields, d.object))
	if err != nil {
		return err
	}
	first := uint64(r.ordinal)
	if ok {
		first = binary.BigEndian.Uint64(v)
		s.setNumber(mem, s.at(scratchNext, binary.BigEndian.Uint64(v[8:])), uint64(r.ordinal))
	}
	s.value = binary.BigEndian.AppendUint64(s.value[:0], first)
	s.value = binary.BigEndian.AppendUint64(s.value, uint64(r.ordinal))
	mem.SetMemory(s.of(scratchFields, d.object), s.value)
	return nil
}

// spilledFields returns the ordinals of a client's custom field rows.
func (d *Deriver) spilledFields(client string, mem Memory) ([]int, error) {
	s := &d.tx.spilled
	n, ok, err := s.number(mem, s.of(scratchFields, []byte(client)))
	var rows []int
	for ; ok && err == nil; n, ok, err = s.number(mem, s.at(scratchNext, n)) {
		rows = append(rows, int(n))
	}
	return rows, err
}
