package billing

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/billhook/billhook/internal/wal"
)

// A Layout says what the memory of one table's rows holds: one slot per watched
// column, in column order, then one per threshold. A record carries the id of
// the layout it was written under, so that records written before a change of
// the rules or of the table still read correctly: what they lack is unknown.
//
//	record = version(2) layout(uvarint) digests(uvarint) [group(8)] slot*
//	         version(1) layout(uvarint) slot*, of all slots in one, as once written
//	slot   = 0                          unknown
//	       | 1                          NULL
//	       | 2 length(uvarint) bytes    the text itself
//	       | 3 digest(8, big-endian)    xxhash64 of a longer text
//	       | 4 | 5                      threshold: last seen below, above
//	       | 16 digest(16)              of a masked text: HMAC-SHA-256 under Options.Seal, cut
//
// The slot of a rule that fires by the clock is 1 when the row's time has been
// looked at, by the stream or by a fill.
//
// The slots of columns that only tell an update, kept as digests ("#"), are the larger
// part of what is remembered and change seldom, while a balance changes with every call.
// So they stand apart, under a key of their own: layout(uvarint) slot*. digests is the
// layout they were written under, 0 when there are none; what stands under that key
// then is of no account. group is a digest of them all, 0 when it is not known: as long
// as it agrees with the new row they are not even read. Either part is written when it
// has changed.
//
// Layout 0 has no slots: the row was deleted while memory was being filled, and
// the fill must not bring it back.
//
// A watched column that rules look at is kept as text, any other as text when it
// is at most 8 bytes long and as a digest else. Of a masked column only the keyed
// digest is kept, however short the text, unless a rule must compare the text itself;
// what was kept otherwise before the column was masked is not looked at.
type Layout struct {
	ID    uint32   `json:"id"`
	Table string   `json:"table"`
	Slots []string `json:"slots"` // "=column" kept as text, "#column" as digest, "*column" as keyed digest, "<column value" side of a threshold, "@event column" of a rule by the clock
}

// recordVersion is written; of version 1 all slots stand in one.
const recordVersion = 2

// digests begins the keys of digests: the row's own key follows. Of a row that was set
// aside they stand behind it.
const digests = "\x02"

func digestsKey(b, key []byte) []byte {
	if key[0] == scratch[0] {
		return append(append(b, key...), 0)
	}
	return append(append(b, digests...), key...)
}

// layoutsKey is where the layouts stand in Memory. Row keys never start with 0.
const layoutsKey = "\x00layouts"

type slotTag byte

const (
	slotUnknown slotTag = iota
	slotNull
	slotText
	slotDigest
	slotBelow
	slotAbove

	slotSealed slotTag = 16 // its cell has the digest as text
)

const sealedSize = 16

// seal is the keyed digest of a masked text.
func seal(key, text []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(text)
	return h.Sum(nil)[:sealedSize]
}

// cell is what is known of one column before the transaction.
type cell struct {
	tag    slotTag
	text   []byte
	digest uint64
}

func cellOf(v wal.Value) cell {
	switch v.Kind {
	case wal.Null:
		return cell{tag: slotNull}
	case wal.Text:
		return cell{tag: slotText, text: v.Text}
	}
	return cell{}
}

// difference is what comparing an old cell with a new value can say.
type difference uint8

const (
	unknownDifference difference = iota
	same
	differs
)

// against compares the cell with the row's new value.
func (c *cell) against(v wal.Value) difference {
	switch v.Kind {
	case wal.Unchanged:
		return same
	case wal.Unknown:
		return unknownDifference
	}
	eq := false
	switch c.tag {
	case slotNull:
		eq = v.Kind == wal.Null
	case slotText:
		eq = v.Kind == wal.Text && string(c.text) == string(v.Text)
	case slotDigest:
		eq = v.Kind == wal.Text && len(v.Text) > shortText && xxhash.Sum64(v.Text) == c.digest
	default:
		return unknownDifference
	}
	if eq {
		return same
	}
	return differs
}

// compare is against for the cells of a plan, sealed ones among them.
func (p *plan) compare(c *cell, v wal.Value) difference {
	if c.tag != slotSealed || !v.Known() {
		return c.against(v)
	}
	if v.Kind == wal.Text && hmac.Equal(seal(p.seal, v.Text), c.text) {
		return same
	}
	return differs
}

// shortText is the longest text that a digest slot keeps as it is.
const shortText = 8

func appendCell(b []byte, c cell, exact bool) []byte {
	switch c.tag {
	case slotText:
		if !exact && len(c.text) > shortText {
			return binary.BigEndian.AppendUint64(append(b, byte(slotDigest)), xxhash.Sum64(c.text))
		}
		b = binary.AppendUvarint(append(b, byte(slotText)), uint64(len(c.text)))
		return append(b, c.text...)
	case slotDigest:
		return binary.BigEndian.AppendUint64(append(b, byte(slotDigest)), c.digest)
	case slotSealed:
		return append(append(b, byte(slotSealed)), c.text...)
	}
	return append(b, byte(c.tag))
}

// appendSealed is appendCell for a masked column. What is known of it in another
// form is forgotten.
func (p *plan) appendSealed(b []byte, c cell) []byte {
	switch c.tag {
	case slotText:
		return append(append(b, byte(slotSealed)), seal(p.seal, c.text)...)
	case slotSealed, slotNull:
		return appendCell(b, c, false)
	}
	return append(b, byte(slotUnknown))
}

// readCell takes one slot off a record.
func readCell(b []byte) (cell, []byte, bool) {
	if len(b) == 0 {
		return cell{}, nil, false
	}
	tag, b := slotTag(b[0]), b[1:]
	switch tag {
	case slotText:
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			return cell{}, nil, false
		}
		b = b[size:]
		return cell{tag: tag, text: b[:n:n]}, b[n:], true
	case slotDigest:
		if len(b) < 8 {
			return cell{}, nil, false
		}
		return cell{tag: tag, digest: binary.BigEndian.Uint64(b)}, b[8:], true
	case slotSealed:
		if len(b) < sealedSize {
			return cell{}, nil, false
		}
		return cell{tag: tag, text: b[:sealedSize:sealedSize]}, b[sealedSize:], true
	case slotUnknown, slotNull, slotBelow, slotAbove:
		return cell{tag: tag}, b, true
	}
	return cell{}, nil, false
}

// record is a row's memory, decoded under a plan: cells by column index of the
// relation and sides by gauge.
type record struct {
	found bool
	gone  bool // deleted while memory was being filled
	cells []cell
	sides []slotTag
	marks []slotTag // by plan.at: slotNull when looked at

	// Where and how it stands in memory; empty when it was not read from there.
	key     []byte
	raw     []byte // aliases the Deriver's buffer
	digests uint32 // layout that the digests stand under, 0: there are none
	group   uint64 // digest of them, 0: not known
	same    bool   // they are as the new row has them, and were not read
}

func (r *record) reset(columns, gauges, at int) {
	r.found, r.gone = false, false
	r.key, r.raw, r.digests, r.group, r.same = r.key[:0], nil, 0, 0, false
	r.cells = slices.Grow(r.cells[:0], columns)[:columns]
	clear(r.cells)
	r.sides = slices.Grow(r.sides[:0], gauges)[:gauges]
	clear(r.sides)
	r.marks = slices.Grow(r.marks[:0], at)[:at]
	clear(r.marks)
}

// remember reads the memory of key into r. Texts alias the Deriver's buffers, or now,
// which is the row as it is, nil when it is not there or its memory is wanted for
// something else.
func (d *Deriver) remember(mem Memory, p *plan, key []byte, r *record, now []wal.Value) error {
	r.reset(len(p.rel.Columns), len(p.gauges), len(p.at))
	b, ok, err := mem.Memory(key)
	if err != nil {
		return fmt.Errorf("read memory of %s: %w", p.rel.Name, err)
	}
	if !ok || len(b) == 0 {
		return nil
	}
	d.recordText = append(d.recordText[:0], b...)
	b = d.recordText
	version := b[0]
	if version != recordVersion && version != 1 {
		return fmt.Errorf("read memory of %s: record version %d is not known to this version of billhook", p.rel.Name, version)
	}
	id, b, ok := cutNumber(b[1:])
	if !ok {
		return damagedRecord(p)
	}
	r.key, r.raw = append(r.key, key...), d.recordText
	if id == 0 {
		r.gone = true
		return nil
	}
	targets, ok := d.targets(p, id)
	if !ok {
		return nil // written for another table under the same entity: tells nothing
	}
	r.found = true
	if version == 1 {
		return p.readSlots(b, targets, r, func(target) bool { return true })
	}
	apart, b, ok := cutNumber(b)
	if !ok {
		return damagedRecord(p)
	}
	if apart != 0 {
		if len(b) < 8 {
			return damagedRecord(p)
		}
		r.digests, r.group, b = apart, binary.BigEndian.Uint64(b), b[8:]
	}
	if err := p.readSlots(b, targets, r, func(t target) bool { return !t.digest }); err != nil || apart == 0 {
		return err
	}
	if now != nil && apart == p.layout.ID && r.group != 0 && d.groupOf(p, func(i int) cell { return cellOf(now[i]) }) == r.group {
		for _, to := range p.targets {
			if to.digest {
				r.cells[to.column] = cellOf(now[to.column])
			}
		}
		r.same = true
		return nil
	}
	d.digestKey = digestsKey(d.digestKey[:0], key)
	if b, ok, err = mem.Memory(d.digestKey); err != nil {
		return fmt.Errorf("read memory of %s: %w", p.rel.Name, err)
	}
	if !ok {
		return damagedRecord(p)
	}
	d.digestText = append(d.digestText[:0], b...)
	if id, b, ok = cutNumber(d.digestText); !ok || id != apart {
		return damagedRecord(p)
	}
	if targets, ok = d.targets(p, id); !ok {
		return damagedRecord(p)
	}
	return p.readSlots(b, targets, r, func(t target) bool { return t.digest })
}

// groupOf is the digest of a row's digests, 0 when one of them is not known.
func (d *Deriver) groupOf(p *plan, cellAt func(column int) cell) uint64 {
	b := d.groupBuf[:0]
	for _, to := range p.targets {
		if !to.digest {
			continue
		}
		switch c := cellAt(to.column); c.tag {
		case slotNull:
			b = append(b, 0)
		case slotText:
			b = binary.BigEndian.AppendUint64(append(b, 1), xxhash.Sum64(c.text))
		case slotDigest:
			b = binary.BigEndian.AppendUint64(append(b, 1), c.digest)
		default:
			return 0
		}
	}
	d.groupBuf = b
	return max(1, xxhash.Sum64(b))
}

func damagedRecord(p *plan) error {
	return fmt.Errorf("read memory of %s: damaged record", p.rel.Name)
}

// cutNumber takes a layout's id off a record.
func cutNumber(b []byte) (id uint32, rest []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > math.MaxUint32 {
		return 0, nil, false
	}
	return uint32(n), b[size:], true
}

// targets says where the slots of a layout go.
func (d *Deriver) targets(p *plan, id uint32) ([]target, bool) {
	if id == p.layout.ID {
		return p.targets, true
	}
	return d.foreignTargets(p, id)
}

// readSlots reads the slots that are among those of a record. What is known already
// stays.
func (p *plan) readSlots(b []byte, targets []target, r *record, among func(target) bool) error {
	for _, to := range targets {
		if !among(to) {
			continue
		}
		c, rest, ok := readCell(b)
		if !ok {
			return damagedRecord(p)
		}
		b = rest
		switch {
		case to.column >= 0:
			if r.cells[to.column].tag == slotUnknown {
				r.cells[to.column] = c
			}
		case to.gauge >= 0:
			r.sides[to.gauge] = c.tag
		case to.at >= 0:
			r.marks[to.at] = c.tag
		}
	}
	return nil
}

// target is where a slot of a layout goes: a column, a gauge, a rule by the clock,
// or (all -1) nowhere. digest says that the slot is one of the digests.
type target struct {
	column, gauge, at int
	digest            bool
}

// foreignTargets maps the slots of an older layout onto the plan.
func (d *Deriver) foreignTargets(p *plan, id uint32) ([]target, bool) {
	if t, ok := p.foreign[id]; ok {
		return t, t != nil
	}
	var targets []target
	for i := range d.layouts {
		if d.layouts[i].ID != id || d.layouts[i].Table != p.layout.Table {
			continue
		}
		targets = make([]target, 0, len(d.layouts[i].Slots))
		for _, s := range d.layouts[i].Slots {
			targets = append(targets, p.target(s))
		}
	}
	p.foreign[id] = targets
	return targets, targets != nil
}

// loadLayouts reads the known layouts once.
func (d *Deriver) loadLayouts(mem Memory) error {
	if d.layoutsLoaded {
		return nil
	}
	b, ok, err := mem.Memory([]byte(layoutsKey))
	if err != nil {
		return fmt.Errorf("read memory layouts: %w", err)
	}
	if ok {
		if err := json.Unmarshal(b, &d.layouts); err != nil {
			return fmt.Errorf("read memory layouts: %w", err)
		}
	}
	d.layoutsLoaded = true
	return nil
}

// outlived reports whether memory may hold rows of the plan's table as they were once
// remembered, under a replica identity that did not bring their old values.
func (d *Deriver) outlived(p *plan, mem Memory) (bool, error) {
	if p.outlived == nil {
		if err := d.loadLayouts(mem); err != nil {
			return false, err
		}
		found := slices.ContainsFunc(d.layouts, func(l Layout) bool {
			return l.Table == p.layout.Table && slices.ContainsFunc(l.Slots, func(s string) bool { return strings.ContainsRune("=#*", rune(s[0])) })
		})
		p.outlived = &found
	}
	return *p.outlived, nil
}

// settle gives the plan the layout that its slots ask for, a new one if need be,
// which is then written with the transaction at hand.
func (d *Deriver) settle(p *plan, mem Memory) error {
	if p.layout.ID != 0 || len(p.layout.Slots) == 0 {
		return nil
	}
	if err := d.loadLayouts(mem); err != nil {
		return err
	}
	var last uint32
	for _, l := range d.layouts {
		if l.Table == p.layout.Table && slices.Equal(l.Slots, p.layout.Slots) {
			p.layout.ID = l.ID
			return nil
		}
		last = max(last, l.ID)
	}
	p.layout.ID = last + 1
	d.layouts = append(d.layouts, p.layout)
	b, err := json.Marshal(d.layouts)
	if err != nil {
		return fmt.Errorf("write memory layouts: %w", err)
	}
	mem.SetMemory([]byte(layoutsKey), b)
	return nil
}

// write remembers a row under key, as far as that differs from what r says stands
// there: cellAt gives the cell of a column, sides those of the gauges. alike reports
// whether a column's cell is as it was; nil: that is not known.
func (d *Deriver) write(p *plan, mem Memory, key []byte, r *record, cellAt func(column int) cell, sides []slotTag, alike func(column int) bool) {
	there := len(r.raw) > 0 && string(r.key) == string(key)
	stays := false
	if p.apart {
		stays = there && r.digests == p.layout.ID && alike != nil
		for i := 0; stays && !r.same && i < len(p.targets); i++ {
			stays = !p.targets[i].digest || alike(p.targets[i].column)
		}
		if !stays {
			b := binary.AppendUvarint(d.recordBuf[:0], uint64(p.layout.ID))
			d.recordBuf = p.appendSlots(b, cellAt, sides, true)
			d.digestKey = digestsKey(d.digestKey[:0], key)
			mem.SetMemory(d.digestKey, d.recordBuf)
		}
	}
	b := binary.AppendUvarint(append(d.recordBuf[:0], recordVersion), uint64(p.layout.ID))
	switch {
	case !p.apart:
		b = append(b, 0)
	case stays && r.group != 0:
		b = binary.BigEndian.AppendUint64(binary.AppendUvarint(b, uint64(p.layout.ID)), r.group)
	default:
		b = binary.BigEndian.AppendUint64(binary.AppendUvarint(b, uint64(p.layout.ID)), d.groupOf(p, cellAt))
	}
	d.recordBuf = p.appendSlots(b, cellAt, sides, false)
	if !there || string(d.recordBuf) != string(r.raw) {
		mem.SetMemory(key, d.recordBuf)
	}
}

// erase forgets what is remembered of a row under key.
func (d *Deriver) erase(p *plan, key []byte, mem Memory) {
	mem.DeleteMemory(key)
	d.eraseDigests(p, key, mem)
}

func (d *Deriver) eraseDigests(p *plan, key []byte, mem Memory) {
	if p.apart {
		d.digestKey = digestsKey(d.digestKey[:0], key)
		mem.DeleteMemory(d.digestKey)
	}
}

// appendSlots encodes either the digests or the others.
func (p *plan) appendSlots(b []byte, cellAt func(column int) cell, sides []slotTag, digests bool) []byte {
	for i, to := range p.targets {
		if to.digest != digests {
			continue
		}
		if to.gauge >= 0 {
			b = append(b, byte(sides[to.gauge]))
			continue
		}
		if to.at >= 0 {
			b = append(b, byte(slotNull))
			continue
		}
		if p.layout.Slots[i][0] == '*' {
			b = p.appendSealed(b, cellAt(to.column))
			continue
		}
		b = appendCell(b, cellAt(to.column), p.layout.Slots[i][0] == '=')
	}
	return b
}
