// Package billing derives events from transactions. It is the core of Billhook
// and it is pure: a transaction and the memory of what was there before go in,
// events and new memory come out. It does no I/O and starts no goroutine; the
// Memory it reads and writes is handed to it.
//
// It promises that the events of a transaction, their order and their IDs depend
// only on the transaction, the Mapping and the memory, so that deriving a
// transaction again after a crash gives the same events; that money is compared
// exactly; and that a value it does not know is never taken for NULL or for a
// change.
//
// It does not decide who is told about an event (package dispatch), nor where
// memory and events are kept (package journal).
//
// # How a transaction is judged
//
// Changes are folded per row first: what counts is the row before the
// transaction and the row after it. An insert with later updates is one create;
// a row that came and went leaves no trace; several writes of a balance are
// judged by their net effect. Then the rules of the row's table are asked, in
// the order of the catalogue, row after row in the order of first change; only a
// deleted client waits for its children, which a cascade deletes after it.
//
// # What the clock does
//
// A rule can wait for a time that a row holds (Test.At), and a threshold for a side
// to hold for a while (Threshold.Settle). Both set timers, in memory beside the rows
// and with them; see clock.go. Deriver.Due says when the next one falls due, and
// Deriver.Fire, called between two transactions, tells the events of those that have.
// What time it is, the caller says.
//
// # What memory is for
//
// With REPLICA IDENTITY FULL the old row comes with each change, and memory only
// keeps the side of a threshold last seen for a value that does not tell it
// itself, being exactly at the threshold, NULL or NaN. With
// the default identity nothing of the old row comes, so memory keeps, per row,
// exact values of the columns that rules look at, short values as they are, and
// a 64-bit digest of every other watched column. Of a masked column it keeps a
// digest with a key. See Layout.
//
// Start with Mapping, New and Deriver.Commit.
package billing

import (
	"slices"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/wal"
)

// The entities Billhook knows.
const (
	Clients  = "clients"
	Accounts = "accounts"
	Packages = "packages"
)

// Table names a table in the source database.
type Table struct {
	Schema string
	Name   string
}

// String returns "schema.name".
func (t Table) String() string { return t.Schema + "." + t.Name }

// Mapping says where the billing database keeps what, and which events there are
// beside the built-in ones.
type Mapping struct {
	Source   string // the source's name in payloads
	Entities []Entity
	Rules    []Rule // the user's own
	// Zone is where dates and timestamps without a zone are at home, for rules that
	// fire by the clock; nil: UTC.
	Zone *time.Location
}

// Tables returns every table that the mapping names, in its order.
func Tables(m Mapping) []Table {
	var out []Table
	for _, e := range m.Entities {
		out = append(out, e.Table)
		if e.Balance != nil && e.Balance.Table != nil {
			out = append(out, *e.Balance.Table)
		}
		if e.CustomFields != nil && e.CustomFields.Table != nil {
			out = append(out, *e.CustomFields.Table)
		}
	}
	return out
}

// Entity maps one entity to its table and, for clients, to the tables beside it.
type Entity struct {
	Name string // Clients, Accounts or Packages
	Table
	Key []string // key columns, in order; they must be part of the replica identity
	// Client are the columns that lead to the client, and so are the lane. It is
	// empty for Clients, whose lane is its own key.
	Client []string

	Ignore  []string // alone, they make no update event
	Mask    []string // shown as "***"
	Exclude []string // never in an event, never in memory

	Truncate bool // a TRUNCATE of Table makes an event
	// Remember keeps memory of rows whose old values come with the stream, too.
	Remember bool

	Archive      *Test         // clients.archive
	Balance      *Balance      // clients.balance_zero, clients.balance_notzero; of Accounts clients.accounts.balance_zero and so on
	CustomFields *CustomFields // clients.custom_fields.update

	Activate   *Test // clients.packages.activate
	Deactivate *Test // clients.packages.deactivate
	Renew      *Test // clients.packages.renew
	Close      *Test // clients.packages.close
}

// Test is what must have happened to a row. All that is given must hold.
type Test struct {
	Becomes *Predicate // did not hold before, holds now
	Changes []string   // at least one of these columns differs
	Moves   *Move
	Deleted bool // the row is deleted: only for Close
	// At fires by the clock, when the time in this column has come and the row still
	// holds it; alone, or with a When over new.
	At   string
	When *expr.Condition // over old, new, changed, op, tx
}

// Predicate is true of a row whose column has one of the values; with Set, whose
// column is not NULL; with Unset, whose column is NULL. Of a boolean column the
// values are true and false.
type Predicate struct {
	Column     string
	Values     []string
	Set, Unset bool
}

// holds reports whether the predicate is true of a known value.
func (p *Predicate) holds(v wal.Value) bool {
	switch {
	case p.Set:
		return v.Kind == wal.Text
	case p.Unset:
		return v.Kind == wal.Null
	}
	return v.Kind == wal.Text && slices.Contains(p.Values, string(v.Text))
}

// Move is true of an update that moved the column's value in a direction: in
// time for dates and times, in size for numbers.
type Move struct {
	Column   string
	Backward bool // else forward
}

// Balance says where the balance stands: in a column of the entity's table, or,
// with Table, of a table beside it whose Key columns lead to the entity's key. Only
// Clients may have such a table, and a client at most one row in it.
type Balance struct {
	Table *Table
	Key   []string
	// Amount is the balance: a column, or an expression whose first column is the
	// one that moves with every call and alone makes no update event.
	Amount     *expr.Number
	Value      Decimal // the threshold
	Hysteresis Decimal
	// OnCreate lets a client that starts at or below zero fire balance_zero.
	OnCreate bool
	// PerChange judges every write instead of the transaction's net effect.
	PerChange bool
	// Settle is for how long a side must hold before it is told.
	Settle time.Duration
}

// CustomFields says where custom fields stand: in Columns of the entity's table
// (a JSON column is one of them), or, with Table, in rows of a table beside it.
type CustomFields struct {
	Columns []string

	Table  *Table
	Client []string // columns that lead to the client
	Name   string   // column with the field's name
	Value  string   // column with the field's value
}

// Ops is a set of operations.
type Ops uint8

// The operations a Rule can ask for.
const (
	OnInsert Ops = 1 << iota
	OnUpdate
	OnDelete
)

// Rule is the one form of all events. It fires when the row's net operation is
// one of On and both Threshold and Test, as far as they are given, hold.
type Rule struct {
	Event  event.Type
	Entity string
	On     Ops

	Threshold *Threshold
	Test

	// anyChange is the update event: a column differs that is neither ignored
	// nor told by another event of the same row.
	anyChange bool
	// told are columns whose change this rule's event tells, so that it is not
	// an update as well; with toldIfFired only when the event has fired.
	told        []string
	toldIfFired bool
}

// Threshold is one side of a pair of events that fire alternately.
type Threshold struct {
	Amount *expr.Number
	Value  Decimal
	// Hysteresis is how far beyond Value the way back must go before it counts.
	Hysteresis Decimal
	// Below: fires when the value comes from above and is now <= Value. Else it
	// fires when the value comes from below and is now >= Value.
	Below     bool
	OnCreate  bool // a new row that is <= Value fires the Below side
	PerChange bool
	Settle    time.Duration // for how long a side must hold before it is told
}

// Memory is what was seen before, by opaque key. The Deriver is its only user
// while a transaction is derived. A returned value is valid until the next call.
type Memory interface {
	Memory(key []byte) (value []byte, ok bool, err error)
	SetMemory(key, value []byte)
	DeleteMemory(key []byte)
	DeleteMemoryPrefix(prefix []byte)
}

// Notice is something about the mapping that the running database contradicts,
// such as a mapped column that a table no longer has. What needs the column
// rests until it is back.
type Notice struct {
	Relation *wal.Relation
	Text     string
}
