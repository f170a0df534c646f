// Package event holds the billing events that Billhook derives: their identity,
// their types and the JSON document that handlers receive.
//
// It promises that an event, once made, is immutable, and that its ID depends
// only on where the transaction stands in the source's log, so that deriving
// the same transaction again gives the same IDs.
//
// It does not decide when an event happens (package billing) nor who is told
// (package dispatch).
package event

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/billhook/billhook/internal/wal"
)

// ID names an event for ever: the generation and commit LSN of its transaction and
// its ordinal among the events of that transaction, from 1. A change LSN alone
// would not do: all rows of one COPY share one.
//
// The generation is the server's timeline as long as that only grows. When another
// server takes its place, or the same one is put back, positions come a second time;
// then the generation is one more than before.
//
// An event that no change of a transaction made, such as one fired by the clock,
// has the LSN of the last transaction before it and an ordinal from FirstOutside.
type ID struct {
	Generation uint32
	CommitLSN  wal.LSN
	Ordinal    uint32
}

// FirstOutside is the first ordinal of events that come after a transaction
// without being made by it.
const FirstOutside = 1 << 31

// OriginReconcile is the origin of events that were missed and made by comparing
// tables with memory.
const OriginReconcile = "reconcile"

// OriginBackfill is the origin of events of rows that were there already, told because
// somebody asked for them.
const OriginBackfill = "backfill"

// ParseID reads the text form, "1-16/B374D848-3".
func ParseID(s string) (ID, error) {
	bad := func() (ID, error) {
		return ID{}, fmt.Errorf("parse event id %q: want generation-lsn-ordinal as in 1-16/B374D848-3", s)
	}
	parts := strings.Split(s, "-")
	if len(parts) != 3 {
		return bad()
	}
	tl, err := strconv.ParseUint(parts[0], 10, 32)
	if err != nil {
		return bad()
	}
	lsn, err := wal.ParseLSN(parts[1])
	if err != nil {
		return bad()
	}
	n, err := strconv.ParseUint(parts[2], 10, 32)
	if err != nil {
		return bad()
	}
	return ID{Generation: uint32(tl), CommitLSN: lsn, Ordinal: uint32(n)}, nil
}

// String returns the text form, "1-16/B374D848-3".
func (id ID) String() string { return string(id.AppendText(nil)) }

// AppendText appends the text form to b.
func (id ID) AppendText(b []byte) []byte {
	b = strconv.AppendUint(b, uint64(id.Generation), 10)
	b = append(b, '-')
	b = id.CommitLSN.AppendText(b)
	b = append(b, '-')
	return strconv.AppendUint(b, uint64(id.Ordinal), 10)
}

// IsZero reports whether id names no event.
func (id ID) IsZero() bool { return id == ID{} }

// Compare orders IDs of one source by generation, commit LSN and ordinal, which is
// commit order.
func (id ID) Compare(o ID) int {
	switch {
	case id.Generation != o.Generation:
		return cmp(uint64(id.Generation), uint64(o.Generation))
	case id.CommitLSN != o.CommitLSN:
		return id.CommitLSN.Compare(o.CommitLSN)
	}
	return cmp(uint64(id.Ordinal), uint64(o.Ordinal))
}

func cmp(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Type is an event type, such as "clients.balance_zero".
type Type string

// Matches reports whether a pattern covers the type: the type itself, "clients.*" for all
// that begin with "clients.", or "*".
func (t Type) Matches(pattern string) bool {
	prefix, wild := strings.CutSuffix(pattern, "*")
	return pattern == string(t) || pattern == "*" || wild && strings.HasSuffix(prefix, ".") && strings.HasPrefix(string(t), prefix)
}

// Event is one billing fact derived from a committed transaction.
type Event struct {
	ID     ID
	Type   Type
	Entity string // "clients", "accounts", "packages"
	// Object is the key of the row the event is about, as text: "4711", a uuid,
	// or for a composite key its parts joined by ",", with a backslash before a comma
	// or a backslash in one of them.
	Object string
	// Lane is the ordering key: the client's key, or for an entity without a
	// client "entity:key".
	Lane       string
	XID        uint32
	CommitTime time.Time
	Source     string
	// Origin is empty for an event that a transaction made, else what made it, such
	// as OriginReconcile.
	Origin string

	// ObjectJSON is Object as it stands in payloads: a bare number when the key
	// column is an integer, else a string.
	ObjectJSON json.RawMessage
	// Data is a JSON object: the row as now known, without excluded columns and
	// with masked ones as "***".
	Data json.RawMessage
	// Changed is a JSON object: column to {"old":...,"new":...}; a side that is
	// not known is absent. It is nil for events without changed columns.
	Changed json.RawMessage
	// Unchanged names the columns that Data lacks because the statement did not
	// touch them and the source therefore did not send them (large values).
	Unchanged []string

	// Dead says which execution of the event was given up, for the handler that is
	// called because of that; else nil. It is not the event's own and not journaled.
	Dead *Dead
}

// Dead is an execution that was given up.
type Dead struct {
	Execution uint64
	Handler   int
	Name      string // of the handler
	Attempts  int
	Reason    string
	Error     string
}

func (d *Dead) append(b []byte) []byte {
	b = append(b, `{"execution":`...)
	b = strconv.AppendUint(b, d.Execution, 10)
	b = append(b, `,"handler":`...)
	b = strconv.AppendInt(b, int64(d.Handler), 10)
	b = append(b, `,"name":`...)
	b = AppendJSONString(b, d.Name)
	b = append(b, `,"attempts":`...)
	b = strconv.AppendInt(b, int64(d.Attempts), 10)
	b = append(b, `,"reason":`...)
	b = AppendJSONString(b, d.Reason)
	b = append(b, `,"error":`...)
	b = AppendJSONString(b, d.Error)
	return append(b, '}')
}

// AppendPayload appends the "billhook" payload: a JSON object of event, data and
// changed, without a trailing newline. The same event always gives the same bytes.
func (e *Event) AppendPayload(b []byte) []byte {
	b = append(b, `{"event":{"dt":"`...)
	b = e.CommitTime.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000-07:00")
	b = append(b, `","events_id":`...)
	b = AppendJSONString(b, string(e.Type))
	b = append(b, `,"object_id":`...)
	b = appendRaw(b, e.ObjectJSON, "null")
	b = append(b, `,"id":"`...)
	b = e.ID.AppendText(b)
	b = append(b, `","lane":`...)
	b = AppendJSONString(b, e.Lane)
	b = append(b, `,"lsn":"`...)
	b = e.ID.CommitLSN.AppendText(b)
	b = append(b, `","xid":`...)
	b = strconv.AppendUint(b, uint64(e.XID), 10)
	b = append(b, `,"source":`...)
	b = AppendJSONString(b, e.Source)
	if e.Origin != "" {
		b = append(b, `,"origin":`...)
		b = AppendJSONString(b, e.Origin)
	}
	b = append(b, `},"data":`...)
	b = appendRaw(b, e.Data, "{}")
	b = append(b, `,"changed":`...)
	b = appendRaw(b, e.Changed, "{}")
	if len(e.Unchanged) > 0 {
		b = append(b, `,"unchanged":[`...)
		for i, name := range e.Unchanged {
			if i > 0 {
				b = append(b, ',')
			}
			b = AppendJSONString(b, name)
		}
		b = append(b, ']')
	}
	if e.Dead != nil {
		b = append(b, `,"dead":`...)
		b = e.Dead.append(b)
	}
	return append(b, '}')
}

func appendRaw(b []byte, raw json.RawMessage, empty string) []byte {
	if len(raw) == 0 {
		return append(b, empty...)
	}
	return append(b, raw...)
}
