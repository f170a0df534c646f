package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/template"
)

// A Format writes an event as a handler wants it. The same event gives the same
// bytes, whatever the attempt. It returns the body, its content type, and an error
// when the event cannot be written so, which trying again does not cure.
type Format func(e *Event) (body []byte, contentType string, err error)

const contentJSON = "application/json"

// Billhook is the format that says everything: event, data and changed.
func Billhook(e *Event) ([]byte, string, error) {
	return e.AppendPayload(nil), contentJSON, nil
}

// Provisioning is the strict envelope of the billing vendor's own Provisioning
// API, for receivers that were written for it: event with dt, events_id and
// object_id, and data. A create has the whole row, an update the key and the
// columns that changed, and what the vendor sends as {} is {}. Package events
// bear the vendor's newer name, clients.subscriptions.
func Provisioning(e *Event) ([]byte, string, error) {
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
	switch {
	case emptyInVendor(e.Type):
		b = append(b, "{}"...)
	case e.Type == "clients.update" || e.Type == "clients.accounts.update":
		var err error
		if b, err = e.appendChangedData(b); err != nil {
			return nil, "", err
		}
	case e.Type == "clients.custom_fields.update":
		var data struct {
			Fields json.RawMessage `json:"custom_fields"`
		}
		if err := json.Unmarshal(e.Data, &data); err == nil && len(data.Fields) > 0 {
			b = append(b, data.Fields...)
		} else {
			b = appendRaw(b, e.Data, "{}")
		}
	default:
		b = appendRaw(b, e.Data, "{}")
	}
	return append(b, '}'), contentJSON, nil
}

func emptyInVendor(t Type) bool {
	switch t {
	case "clients.archive", "clients.delete", "clients.balance_zero", "clients.balance_notzero", "clients.accounts.delete":
		return true
	}
	return false
}

// appendChangedData appends an object of the key and the new values of the
// columns that changed, in the order of the row.
func (e *Event) appendChangedData(b []byte) ([]byte, error) {
	var changed map[string]json.RawMessage
	if len(e.Changed) > 0 {
		if err := json.Unmarshal(e.Changed, &changed); err != nil {
			return nil, fmt.Errorf("write event %s: changed is no JSON object: %w", e.ID, err)
		}
	}
	fields, err := objectFields(e.Data)
	if err != nil {
		return nil, fmt.Errorf("write event %s: data is no JSON object: %w", e.ID, err)
	}
	b = append(b, '{')
	first := true
	for i, f := range fields {
		if _, ok := changed[f.name]; !ok && i > 0 && f.name != "id" && f.name != "clients_id" {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(AppendJSONString(b, f.name), ':')
		b = append(b, f.value...)
	}
	return append(b, '}'), nil
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
	if _, err := dec.Token(); err != nil {
		return nil, err
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
// Billhook payload.
func CloudEvents(e *Event) ([]byte, string, error) {
	b := append([]byte(nil), `{"specversion":"1.0","id":"`...)
	b = e.ID.AppendText(b)
	b = append(b, `","source":`...)
	b = AppendJSONString(b, "/billhook/"+e.Source)
	b = append(b, `,"type":`...)
	b = AppendJSONString(b, string(e.Type))
	b = append(b, `,"subject":`...)
	b = AppendJSONString(b, e.Object)
	b = append(b, `,"time":"`...)
	b = e.CommitTime.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	b = append(b, `","datacontenttype":"application/json","data":`...)
	b = e.AppendPayload(b)
	return append(b, '}'), "application/cloudevents+json", nil
}

// Template makes a Format of a Go text/template. The template sees .event, .data
// and .changed as decoded JSON with numbers kept as written; {{json x}} writes any
// value as JSON. What it writes must be JSON unless contentType says otherwise.
func Template(text, contentType string) (Format, error) {
	if contentType == "" {
		contentType = contentJSON
	}
	t, err := template.New("body").Option("missingkey=error").Funcs(template.FuncMap{"json": templateJSON}).Parse(text)
	if err != nil {
		return nil, err
	}
	return func(e *Event) ([]byte, string, error) {
		doc, err := e.Document()
		if err != nil {
			return nil, "", err
		}
		var out bytes.Buffer
		if err := t.Execute(&out, map[string]any{"event": doc.Event, "data": doc.Data, "changed": doc.Changed}); err != nil {
			return nil, "", fmt.Errorf("write event %s by template: %w", e.ID, err)
		}
		if strings.HasSuffix(contentType, "json") && !json.Valid(out.Bytes()) {
			return nil, "", fmt.Errorf("write event %s by template: the result is no JSON; write values with {{json .data.name}}", e.ID)
		}
		return out.Bytes(), contentType, nil
	}, nil
}

func templateJSON(v any) (string, error) {
	if s, ok := v.(string); ok {
		return string(AppendJSONString(nil, s)), nil
	}
	b, err := json.Marshal(v)
	return string(b), err
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
