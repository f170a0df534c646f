package wal

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Kind tells which field of a Message is set.
type Kind uint8

// The kinds of Message.
const (
	// KindIgnored is something that a server may send, that changes nothing, and
	// that protocol 1 does not define: Postgres 18 may report the end of a
	// transaction that was rolled back in pieces.
	KindIgnored Kind = iota
	KindBegin
	KindCommit
	KindChange
	KindTruncate
	KindLogical
	KindRelation
	KindType
	KindOrigin
)

// String returns Postgres' name of the kind, such as "BEGIN".
func (k Kind) String() string {
	switch k {
	case KindIgnored:
		return "IGNORED"
	case KindBegin:
		return "BEGIN"
	case KindCommit:
		return "COMMIT"
	case KindChange:
		return "CHANGE"
	case KindTruncate:
		return "TRUNCATE"
	case KindLogical:
		return "MESSAGE"
	case KindRelation:
		return "RELATION"
	case KindType:
		return "TYPE"
	case KindOrigin:
		return "ORIGIN"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Message is one pgoutput message. Only the field that Kind names is set; the
// others hold leavings. It belongs to its Decoder and is valid until the next
// call of Decode.
type Message struct {
	Kind     Kind
	Begin    Begin
	Commit   Commit
	Change   Change
	Truncate Truncate
	Logical  Logical
	Origin   Origin
	Type     Type

	// Relation is what was described, for KindRelation: the same pointer as
	// before when the description is the same. Previous is the description it
	// takes the place of, nil for the first one.
	Relation *Relation
	Previous *Relation
}

// Origin says that the open transaction came here by replication from another
// server. It follows the Begin.
type Origin struct {
	CommitLSN LSN // on the other server
	Name      string
}

// Type names a type that is not built in. For a domain, Postgres sends the
// domain's OID with the name of its base type.
type Type struct {
	ID     uint32 // pg_type.oid
	Schema string // "pg_catalog" for a base type of a domain
	Name   string
}

// Decoder reads pgoutput protocol 1. It keeps what the connection has described
// so far, so each connection takes a new one. The zero Decoder is ready. It is
// for one goroutine.
type Decoder struct {
	message   Message
	relations map[uint32]*Relation
	last      *Relation // what the previous change was about; most often the next one's too
	types     map[uint32]Type
	doubted   map[uint32]bool
	ignored   uint64

	oldValues, newValues Tuple // reused; as long as the widest relation so far
}

// Doubt names relations whose full old rows cannot be trusted: partitioned
// tables published through a root whose replica identity is FULL while some leaf
// has another, or may get another while the stream runs. The stream claims a full old row for them, with NULL for what the
// leaf did not log. The Decoder gives such a row as OldKey, with the NULLs as
// Unknown. The relations of earlier calls are replaced.
func (d *Decoder) Doubt(ids ...uint32) {
	d.doubted = nil
	for _, id := range ids {
		if d.doubted == nil {
			d.doubted = make(map[uint32]bool)
		}
		d.doubted[id] = true
	}
}

// Relation returns what the connection last said about a table, nil if nothing.
func (d *Decoder) Relation(id uint32) *Relation { return d.relations[id] }

// Type returns the type of an OID if the connection has described it, which it
// does for all that are not built in before their first use.
func (d *Decoder) Type(id uint32) (Type, bool) {
	t, ok := d.types[id]
	return t, ok
}

// Ignored returns how many messages of KindIgnored there were.
func (d *Decoder) Ignored() uint64 { return d.ignored }

// Decode reads one message: the Data of a Frame. Begin, Commit and changes cost
// no allocation. What it returns aliases data and is valid until the next call.
//
// An error names the kind of the message and the offset of the byte that made no
// sense. The Decoder remains usable and what it knew is unchanged, but a caller
// that goes on has lost a message.
func (d *Decoder) Decode(data []byte) (*Message, error) {
	if len(data) == 0 {
		return nil, fmt.Errorf("decode pgoutput: message is empty")
	}
	m := &d.message
	var err error
	switch data[0] {
	case 'I':
		err = d.insert(data)
	case 'U':
		err = d.update(data)
	case 'D':
		err = d.delete(data)
	case 'B':
		if len(data) != 21 {
			return nil, wrongLength(data, "BEGIN", 21)
		}
		m.Kind = KindBegin
		m.Begin = Begin{
			CommitLSN:  LSN(binary.BigEndian.Uint64(data[1:])),
			CommitTime: timestamp(binary.BigEndian.Uint64(data[9:])),
			XID:        binary.BigEndian.Uint32(data[17:]),
		}
	case 'C':
		if len(data) != 26 {
			return nil, wrongLength(data, "COMMIT", 26)
		}
		if data[1] != 0 {
			return nil, fmt.Errorf("decode COMMIT at byte 1: unknown flags %#x", data[1])
		}
		m.Kind = KindCommit
		m.Commit = Commit{
			CommitLSN:  LSN(binary.BigEndian.Uint64(data[2:])),
			EndLSN:     LSN(binary.BigEndian.Uint64(data[10:])),
			CommitTime: timestamp(binary.BigEndian.Uint64(data[18:])),
		}
	case 'R':
		err = d.relation(data)
	case 'Y':
		err = d.typ(data)
	case 'T':
		err = d.truncate(data)
	case 'M':
		err = d.logical(data)
	case 'O':
		err = d.origin(data)
	case 'A':
		// STREAM ABORT. Its transaction was never sent to a reader of protocol 1.
		d.ignored++
		m.Kind = KindIgnored
	case 'S', 'E', 'c', 'p':
		return nil, fmt.Errorf("decode pgoutput: message %q belongs to the streaming of transactions in progress, which was not asked for", data[0])
	case 'b', 'P', 'K', 'r':
		return nil, fmt.Errorf("decode pgoutput: message %q belongs to two-phase commit, which was not asked for: create the slot without two_phase", data[0])
	default:
		return nil, fmt.Errorf("decode pgoutput: unknown message %q of %d bytes", data[0], len(data))
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

func wrongLength(data []byte, kind string, want int) error {
	if len(data) < want {
		return fmt.Errorf("decode %s at byte %d: truncated, want %d bytes", kind, len(data), want)
	}
	return fmt.Errorf("decode %s at byte %d: %d bytes too many", kind, want, len(data)-want)
}

func (d *Decoder) insert(data []byte) error {
	rel, err := d.changed(data, "INSERT")
	if err != nil {
		return err
	}
	if data[5] != 'N' {
		return fmt.Errorf("decode INSERT at byte 5: want a new tuple 'N', found %q", data[5])
	}
	d.newValues = tupleFor(d.newValues, rel)
	end, err := tuple(data, 6, d.newValues, rel, "INSERT")
	if err != nil {
		return err
	}
	if end != len(data) {
		return wrongLength(data, "INSERT", end)
	}
	d.message.Kind = KindChange
	d.message.Change = Change{Op: Insert, Relation: rel, New: d.newValues}
	return nil
}

func (d *Decoder) update(data []byte) error {
	rel, err := d.changed(data, "UPDATE")
	if err != nil {
		return err
	}
	c := Change{Op: Update, Relation: rel}
	at := 5
	if data[at] == 'K' || data[at] == 'O' {
		if at, err = d.old(data, &c, "UPDATE"); err != nil {
			return err
		}
		if at >= len(data) {
			return fmt.Errorf("decode UPDATE at byte %d: truncated, the new tuple of %s.%s is missing", at, rel.Schema, rel.Name)
		}
	}
	if data[at] != 'N' {
		return fmt.Errorf("decode UPDATE at byte %d: want a new tuple 'N', found %q", at, data[at])
	}
	d.newValues = tupleFor(d.newValues, rel)
	end, err := tuple(data, at+1, d.newValues, rel, "UPDATE")
	if err != nil {
		return err
	}
	if end != len(data) {
		return wrongLength(data, "UPDATE", end)
	}
	c.New = d.newValues
	d.message.Kind = KindChange
	d.message.Change = c
	return nil
}

func (d *Decoder) delete(data []byte) error {
	rel, err := d.changed(data, "DELETE")
	if err != nil {
		return err
	}
	if data[5] != 'K' && data[5] != 'O' {
		return fmt.Errorf("decode DELETE at byte 5: want an old tuple 'K' or 'O', found %q", data[5])
	}
	c := Change{Op: Delete, Relation: rel}
	end, err := d.old(data, &c, "DELETE")
	if err != nil {
		return err
	}
	if end != len(data) {
		return wrongLength(data, "DELETE", end)
	}
	d.message.Kind = KindChange
	d.message.Change = c
	return nil
}

// changed finds the relation of a change and makes sure that the byte that tells
// the tuple's kind is there.
func (d *Decoder) changed(data []byte, kind string) (*Relation, error) {
	if len(data) < 6 {
		return nil, fmt.Errorf("decode %s at byte %d: truncated, want at least 6 bytes", kind, len(data))
	}
	id := binary.BigEndian.Uint32(data[1:])
	if d.last != nil && d.last.ID == id {
		return d.last, nil
	}
	rel := d.relations[id]
	if rel == nil {
		return nil, fmt.Errorf("decode %s at byte 1: relation %d was not described on this connection", kind, id)
	}
	d.last = rel
	return rel, nil
}

// old reads the old tuple whose kind stands at byte 5.
func (d *Decoder) old(data []byte, c *Change, kind string) (end int, err error) {
	d.oldValues = tupleFor(d.oldValues, c.Relation)
	if end, err = tuple(data, 6, d.oldValues, c.Relation, kind); err != nil {
		return 0, err
	}
	c.Old = d.oldValues
	c.OldKind = OldFull
	if data[5] == 'K' || d.doubted[c.Relation.ID] {
		// Columns of a replica identity are never null: NULL stands for "not logged".
		c.OldKind = OldKey
		for i := range c.Old {
			if c.Old[i].Kind == Null {
				c.Old[i].Kind = Unknown
			}
		}
	}
	return end, nil
}

// tupleFor returns t with the length of the relation's tuples.
func tupleFor(t Tuple, rel *Relation) Tuple {
	if n := len(rel.Columns); cap(t) < n {
		return make(Tuple, n)
	} else {
		return t[:n]
	}
}

// tuple reads a tuple that begins at data[at] into t and returns where it ends.
func tuple(data []byte, at int, t Tuple, rel *Relation, kind string) (end int, err error) {
	if len(data)-at < 2 {
		return 0, fmt.Errorf("decode %s at byte %d: truncated in a tuple of %s.%s", kind, len(data), rel.Schema, rel.Name)
	}
	if n := int(binary.BigEndian.Uint16(data[at:])); n != len(t) {
		return 0, fmt.Errorf("decode %s at byte %d: a tuple of %d columns, but %s.%s was described with %d", kind, at, n, rel.Schema, rel.Name, len(t))
	}
	at += 2
	for i := range t {
		if at >= len(data) {
			return 0, truncatedColumn(kind, at, rel, i)
		}
		v := &t[i]
		switch data[at] {
		case 't':
			if len(data)-at < 5 {
				return 0, truncatedColumn(kind, len(data), rel, i)
			}
			n := binary.BigEndian.Uint32(data[at+1:])
			at += 5
			if uint64(n) > uint64(len(data)-at) {
				return 0, fmt.Errorf("decode %s at byte %d: column %q of %s.%s wants %d bytes, %d are left", kind, at-4, rel.Columns[i].Name, rel.Schema, rel.Name, n, len(data)-at)
			}
			v.Kind = Text
			v.Text = data[at : at+int(n) : at+int(n)]
			at += int(n)
		case 'n':
			v.Kind = Null
			v.Text = nil
			at++
		case 'u':
			v.Kind = Unchanged
			v.Text = nil
			at++
		case 'b':
			return 0, fmt.Errorf("decode %s at byte %d: column %q of %s.%s is in binary form, which was not asked for", kind, at, rel.Columns[i].Name, rel.Schema, rel.Name)
		default:
			return 0, fmt.Errorf("decode %s at byte %d: column %q of %s.%s has unknown kind %q", kind, at, rel.Columns[i].Name, rel.Schema, rel.Name, data[at])
		}
	}
	return at, nil
}

func truncatedColumn(kind string, at int, rel *Relation, i int) error {
	return fmt.Errorf("decode %s at byte %d: truncated in column %q of %s.%s", kind, at, rel.Columns[i].Name, rel.Schema, rel.Name)
}

func (d *Decoder) relation(data []byte) error {
	c := cursor{kind: "RELATION", data: data, at: 1}
	rel := &Relation{ID: c.uint32()}
	rel.Schema = schemaName(c.string())
	rel.Name = c.string()
	at := c.at
	rel.Identity = Identity(c.byte())
	n := int(c.uint16())
	if c.err == nil && !slices.Contains([]Identity{IdentityDefault, IdentityNothing, IdentityFull, IdentityIndex}, rel.Identity) {
		return fmt.Errorf("decode RELATION at byte %d: %s.%s has unknown replica identity %q", at, rel.Schema, rel.Name, rel.Identity)
	}
	// Ten bytes are the least a column takes: garbage reserves no memory.
	rel.Columns = make([]Column, 0, min(n, c.left()/10))
	for i := 0; i < n && c.err == nil; i++ {
		key := c.byte()&1 != 0
		rel.Columns = append(rel.Columns, Column{Key: key, Name: c.string(), Type: c.uint32(), Modifier: int32(c.uint32())})
	}
	if err := c.done(); err != nil {
		return err
	}

	m := &d.message
	m.Kind = KindRelation
	m.Previous = d.relations[rel.ID]
	if m.Previous != nil && m.Previous.equal(rel) {
		m.Relation = m.Previous
		return nil
	}
	m.Relation = rel
	if d.relations == nil {
		d.relations = make(map[uint32]*Relation)
	}
	d.relations[rel.ID] = rel
	d.last = nil
	return nil
}

func (r *Relation) equal(o *Relation) bool {
	return r.ID == o.ID && r.Schema == o.Schema && r.Name == o.Name && r.Identity == o.Identity && slices.Equal(r.Columns, o.Columns)
}

// schemaName undoes pgoutput's shorthand: it sends "" for pg_catalog.
func schemaName(s string) string {
	if s == "" {
		return "pg_catalog"
	}
	return s
}

func (d *Decoder) typ(data []byte) error {
	c := cursor{kind: "TYPE", data: data, at: 1}
	t := Type{ID: c.uint32()}
	t.Schema = schemaName(c.string())
	t.Name = c.string()
	if err := c.done(); err != nil {
		return err
	}
	if d.types == nil {
		d.types = make(map[uint32]Type)
	}
	d.types[t.ID] = t
	d.message.Kind = KindType
	d.message.Type = t
	return nil
}

func (d *Decoder) truncate(data []byte) error {
	c := cursor{kind: "TRUNCATE", data: data, at: 1}
	n := c.uint32()
	flags := c.byte()
	t := Truncate{Cascade: flags&1 != 0, RestartIdentity: flags&2 != 0}
	for i := uint32(0); i < n && c.err == nil; i++ {
		at := c.at
		id := c.uint32()
		if c.err != nil {
			break
		}
		rel := d.relations[id]
		if rel == nil {
			return fmt.Errorf("decode TRUNCATE at byte %d: relation %d was not described on this connection", at, id)
		}
		t.Relations = append(t.Relations, rel)
	}
	if err := c.done(); err != nil {
		return err
	}
	d.message.Kind = KindTruncate
	d.message.Truncate = t
	return nil
}

func (d *Decoder) logical(data []byte) error {
	c := cursor{kind: "MESSAGE", data: data, at: 1}
	flags := c.byte()
	l := Logical{Transactional: flags&1 != 0, LSN: LSN(c.uint64()), Prefix: c.string()}
	l.Content = c.bytes(c.uint32())
	if err := c.done(); err != nil {
		return err
	}
	d.message.Kind = KindLogical
	d.message.Logical = l
	return nil
}

func (d *Decoder) origin(data []byte) error {
	c := cursor{kind: "ORIGIN", data: data, at: 1}
	o := Origin{CommitLSN: LSN(c.uint64()), Name: c.string()}
	if err := c.done(); err != nil {
		return err
	}
	d.message.Kind = KindOrigin
	d.message.Origin = o
	return nil
}

// cursor reads the rarer messages. After its first error it reads zeros.
type cursor struct {
	kind string
	data []byte
	at   int
	err  error
}

func (c *cursor) left() int { return len(c.data) - c.at }

// take returns the next n bytes, nil if they are not there.
func (c *cursor) take(n uint32) []byte {
	if c.err != nil {
		return nil
	}
	if uint64(n) > uint64(c.left()) {
		c.err = fmt.Errorf("decode %s at byte %d: truncated, want %d more bytes, %d are left", c.kind, c.at, n, c.left())
		return nil
	}
	b := c.data[c.at : c.at+int(n) : c.at+int(n)]
	c.at += int(n)
	return b
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if b := c.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if b := c.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) bytes(n uint32) []byte { return c.take(n) }

// string reads up to a zero byte.
func (c *cursor) string() string {
	if c.err != nil {
		return ""
	}
	for i := c.at; i < len(c.data); i++ {
		if c.data[i] == 0 {
			s := string(c.data[c.at:i])
			c.at = i + 1
			return s
		}
	}
	c.err = fmt.Errorf("decode %s at byte %d: truncated, a name has no end", c.kind, c.at)
	return ""
}

// done returns the error met on the way, or that bytes are left over.
func (c *cursor) done() error {
	if c.err == nil && c.left() != 0 {
		return wrongLength(c.data, c.kind, c.at)
	}
	return c.err
}
