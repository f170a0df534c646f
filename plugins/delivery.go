package plugins

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Delivery is one event at one attempt. It is read-only.
type Delivery struct {
	EventType string // such as clients.balance_zero
	// EventID is the same at every attempt, and no other event has it: a receiver that
	// keeps it can tell a repetition.
	EventID  string
	ObjectID string // key of the row, as text: "4711"
	// Lane is the ordering key, usually the client's. Events of one lane come one after
	// another, those of different lanes at once.
	Lane        string
	Attempt     int // from 1
	HandlerID   int
	HandlerName string

	// Payload is the event in the format that the handler names, JSON unless that is a
	// template of the operator's. Decode reads it.
	Payload     []byte
	ContentType string
}

// Event is a payload, decoded. What a format does not tell is zero.
type Event struct {
	Event EventHead `json:"event"`
	// Data is the row as it is now known. Changed has the columns that differ. Columns
	// that the operator masks or excludes are not there.
	Data    Row               `json:"data"`
	Changed map[string]Change `json:"changed"`
	// Unchanged are columns whose values the database did not send, since they are large
	// and did not change.
	Unchanged []string `json:"unchanged"`
}

// EventHead is the part of a payload that tells of the event itself.
type EventHead struct {
	Time     string `json:"dt"`        // of the commit, such as 2026-11-23T10:15:00.123456+00:00
	Type     string `json:"events_id"` // such as clients.balance_zero
	ObjectID any    `json:"object_id"` // json.Number or string
	ID       string `json:"id"`
	Lane     string `json:"lane"`
	LSN      string `json:"lsn"`
	XID      uint32 `json:"xid"`
	Source   string `json:"source"`
	Origin   string `json:"origin"` // backfill and the like; empty for what just happened
}

// Change is one column's value before and after.
type Change struct {
	Old any `json:"old"` // nil also when it is not known
	New any `json:"new"`
}

// Row is the columns of a row by name. Values are text (amounts too: they are exact),
// json.Number, bool, nil for NULL, or what a JSON column holds.
type Row map[string]any

// Text returns a column as text: "Acme", "-0.500000", "4711", "true". It reports false
// when there is no such column, or it is NULL or no scalar.
func (r Row) Text(column string) (string, bool) {
	switch v := r[column].(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}

// Decode reads the payload in the formats billhook and provisioning. Its error is
// permanent.
func (d *Delivery) Decode() (*Event, error) {
	dec := json.NewDecoder(bytes.NewReader(d.Payload))
	dec.UseNumber() // digits stay as they are
	var e Event
	err := dec.Decode(&e)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the JSON object")
		}
	}
	if err == nil && e.Event.Type == "" {
		err = errors.New("it has no event.events_id")
	}
	if err != nil {
		return nil, Permanent(Because(CausePayload, fmt.Errorf("the payload is not in the format billhook or provisioning: %w", err)))
	}
	return &e, nil
}
