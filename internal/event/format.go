package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// A Format writes an event as a handler wants it. The same event gives the same
// bytes, whatever the attempt. It returns the body, its content type, and an error
// when the event cannot be written so, which trying again does not cure.
type Format func(e *Event) (body []byte, contentType string, err error)

const contentJSON = "application/json"

// Columns names the columns of an entity that payloads of other makers treat in a
// way of their own.
type Columns struct {
	Key    []string // what object_id tells
	Client []string // what leads to the client
	// CustomFields hold the custom fields, when they stand in the entity's own table.
	CustomFields []string
}

// Provisioning makes the strict envelope of the billing vendor's own Provisioning
// API, for receivers that were written for it: event with dt (to the second),
// events_id and object_id, and data, and nothing else. columns are those of each
// entity, by its name.
//
//	create, assign and the other events of packages  the row
//	update                                           key, client, and the columns that changed
//	custom_fields.update                             each field and its value
//	archive, delete, balance_zero, balance_notzero   {}, as the vendor sends it
//
// Package events bear the vendor's newer name, clients.subscriptions. Events that
// the vendor does not have come with the row.
func Provisioning(columns map[string]Columns) Format {
	return func(e *Event) ([]byte, string, error) {
		b := append([]byte(nil), `{"event":{"dt":"`...)
		b = e.CommitTime.UTC().AppendFormat(b, "2006-01-02T15:04:05-07:00")
		b = append(b, `","events_id":`...)
		t := string(e.Type)
		if verb, ok := strings.CutPrefix(t, "clients.packages."); ok {
			t = "clients.subscriptions." + verb
		}
		b = AppendJSONString(b, t)
		b = append(b, `,"object_id":`...)
		b = appendRaw(b, e.ObjectJSON, "null")
		b = append(b, `},"data":`...)
		var err error
		switch c := columns[e.Entity]; e.Type {
		case "clients.archive", "clients.delete", "clients.balance_zero", "clients.balance_notzero", "clients.accounts.delete":
			b = append(b, "{}"...)
		case "clients.update", "clients.accounts.update":
			b, err = e.appendChangedData(b, slices.Concat(c.Key, c.Client))
		case "clients.custom_fields.update":
			b, err = e.appendCustomFields(b, c.CustomFields)
		default:
			b = appendRaw(b, e.Data, "{}")
		}
		if err != nil {
			return nil, "", fmt.Errorf("write event %s: %w", e.ID, err)
		}
		return append(b, '}'), contentJSON, nil
	}
}

// appendChangedData appends an object of the columns that are named or changed, in
// the order of the row.
func (e *Event) appendChangedData(b []byte, always []string) ([]byte, error) {
	var changed map[string]json.RawMessage
	if len(e.Changed) > 0 {
		if err := json.Unmarshal(e.Changed, &changed); err != nil {
			return nil, fmt.Errorf("changed is no JSON object: %w", err)
		}
	}
	fields, err := objectFields(e.Data)
	if err != nil {
		return nil, fmt.Errorf("data is no JSON object: %w", err)
	}
	return appendFields(b, fields, func(name string) bool {
		_, ok := changed[name]
		return ok || slices.Contains(always, name)
	}), nil
}

// appendCustomFields appends an object of custom fields: what a side table's rows
// say of those that changed, the object in the one JSON column, or the columns.
func (e *Event) appendCustomFields(b []byte, columns []string) ([]byte, error) {
	fields, err := objectFields(e.Data)
	if err != nil {
		return nil, fmt.Errorf("data is no JSON object: %w", err)
	}
	only := columns
	if len(columns) == 0 {
		only = []string{"custom_fields"}
	}
	if len(only) == 1 {
		for _, f := range fields {
			if f.name == only[0] && len(f.value) > 0 && f.value[0] == '{' {
				return append(b, f.value...), nil
			}
		}
	}
	return appendFields(b, fields, func(name string) bool { return slices.Contains(only, name) }), nil
}

func appendFields(b []byte, fields []field, want func(name string) bool) []byte {
	b = append(b, '{')
	first := true
	for _, f := range fields {
		if !want(f.name) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(AppendJSONString(b, f.name), ':')
		b = append(b, f.value...)
	}
	return append(b, '}')
}

type field struct {
	name  string
	value json.RawMessage
}

// objectFields reads a JSON object's members in their order.
func objectFields(raw json.RawMessage) ([]field, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, fmt.Errorf("it begins with %v", t)
	}
	var fields []field
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, fmt.Errorf("unexpected %v", t)
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		fields = append(fields, field{name, v})
	}
	return fields, nil
}

// CloudEvents is the structured JSON form of CloudEvents 1.0; its data is the
// Billhook payload. An event of no row has no subject.
func CloudEvents(e *Event) ([]byte, string, error) {
	b := append([]byte(nil), `{"specversion":"1.0","id":"`...)
	b = e.ID.AppendText(b)
	b = append(b, `","source":`...)
	b = AppendJSONString(b, "/billhook/"+uriSegment(e.Source))
	b = append(b, `,"type":`...)
	b = AppendJSONString(b, string(e.Type))
	if e.Object != "" {
		b = append(b, `,"subject":`...)
		b = AppendJSONString(b, e.Object)
	}
	b = append(b, `,"time":"`...)
	b = e.CommitTime.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	b = append(b, `","datacontenttype":"application/json","data":`...)
	b = e.AppendPayload(b)
	return append(b, '}'), "application/cloudevents+json", nil
}

// uriSegment writes a name so that it can stand in a URI's path.
func uriSegment(name string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~':
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&0xF])
		}
	}
	return b.String()
}

// Document is an event's payload, decoded. Numbers are json.Number.
type Document struct {
	Event, Data, Changed map[string]any
}

// Document decodes the event's payload, for conditions and templates.
func (e *Event) Document() (Document, error) {
	dec := json.NewDecoder(bytes.NewReader(e.AppendPayload(nil)))
	dec.UseNumber()
	var d Document
	if err := dec.Decode(&d); err != nil {
		return Document{}, fmt.Errorf("decode event %s: %w", e.ID, err)
	}
	return d, nil
}
