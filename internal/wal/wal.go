// Package wal holds Postgres' words for what a replication slot sends, and the
// Decoder that turns pgoutput bytes into them. It does no I/O and starts no
// goroutine.
//
// It promises to keep every value as the text Postgres sent, to keep apart the
// four things a column can be (a value, NULL, an unchanged TOAST value that was
// not sent, and a column that an old key tuple does not carry), and never to
// panic on foreign bytes.
//
// It does not interpret values, does not know the billing mapping, and does not
// hold transactions: that is done by package billing.
//
// Start with Decoder and Change.
package wal

import "time"

// Identity is a relation's replica identity, as pg_class.relreplident spells it.
// For a partitioned table published through its root it is the root's, which
// says nothing about what the leaves send.
type Identity byte

// The replica identities.
const (
	IdentityDefault Identity = 'd' // the primary key
	IdentityNothing Identity = 'n'
	IdentityFull    Identity = 'f'
	IdentityIndex   Identity = 'i'
)

// Relation is a table as the stream last described it. It is immutable: when
// the table changes, the stream describes it anew and the Decoder makes another
// Relation, so a pointer may be kept and compared.
type Relation struct {
	ID       uint32 // pg_class.oid
	Schema   string
	Name     string
	Identity Identity
	Columns  []Column
}

// Column is one published column of a Relation, in the order of its tuples.
type Column struct {
	Name     string
	Type     uint32 // pg_type.oid; for an enum or a domain its own
	Modifier int32  // atttypmod, -1 for none
	Key      bool   // part of the replica identity
}

// ValueKind tells what a tuple knows about one column.
type ValueKind uint8

// The kinds of Value. The zero kind is Unknown, so a zero Value claims nothing.
const (
	Unknown   ValueKind = iota // not sent: a column outside an old key tuple
	Null                       // SQL NULL
	Unchanged                  // a TOASTed value the statement did not touch, not sent
	Text                       // sent, in Postgres' text output format
)

// Value is one column's value in a Tuple. Text is Postgres' own text and is nil
// unless Kind is Text. It aliases the decoded bytes: copy it to keep it.
type Value struct {
	Kind ValueKind
	Text []byte
}

// Known reports whether the value itself is known: NULL or Text.
func (v Value) Known() bool { return v.Kind == Null || v.Kind == Text }

// Tuple is one row version; index i belongs to Relation.Columns[i].
type Tuple []Value

// Op is what a Change did to its row.
type Op byte

// The operations, spelled as pgoutput spells them.
const (
	Insert Op = 'I'
	Update Op = 'U'
	Delete Op = 'D'
)

// String returns "insert", "update" or "delete".
func (o Op) String() string {
	switch o {
	case Insert:
		return "insert"
	case Update:
		return "update"
	case Delete:
		return "delete"
	}
	return "op(" + string(rune(o)) + ")"
}

// OldKind tells how much of the old row came with a Change.
type OldKind uint8

// The kinds of old tuple.
const (
	OldNone OldKind = iota // no old tuple: Old is nil
	OldKey                 // only replica identity columns are known; the others are Unknown
	OldFull                // the whole old row (which leaves of a partitioned table may fake, see Decoder.Doubt)
)

// Change is one inserted, updated or deleted row. Old is nil for an insert, New
// is nil for a delete. It and all it points to, but for Relation, are valid only
// until the next call of Decoder.Decode.
type Change struct {
	Op       Op
	Relation *Relation
	OldKind  OldKind
	Old      Tuple
	New      Tuple
}

// Begin opens a transaction.
type Begin struct {
	CommitLSN  LSN // position of the commit record, known in advance
	CommitTime time.Time
	XID        uint32
}

// Commit closes a transaction. EndLSN is the only position that may be confirmed
// to say that this transaction is durable here.
type Commit struct {
	CommitLSN  LSN
	EndLSN     LSN
	CommitTime time.Time
}

// Truncate empties tables. There are no changes for the rows that were in them.
type Truncate struct {
	Relations       []*Relation
	Cascade         bool
	RestartIdentity bool
}

// Logical is a message written with pg_logical_emit_message. A message that is
// not Transactional arrives outside of, or between, transactions.
type Logical struct {
	Transactional bool
	LSN           LSN
	Prefix        string
	Content       []byte
}
