package billing

import (
	"bytes"
	"encoding/json"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// kind is how a column's text is written as JSON.
type kind uint8

const (
	textKind    kind = iota
	numberKind       // a JSON number with all its digits
	decimalKind      // exact, so a JSON string
	boolKind
	jsonKind  // embedded as it is
	arrayKind // of elements of another kind: arrayKind + kind
)

// kindOf maps Postgres' built-in types. Every other type, enums and domains among
// them, is text.
func kindOf(oid uint32) kind {
	switch oid {
	case 20, 21, 23, 26: // int8, int2, int4, oid
		return numberKind
	case 700, 701: // float4, float8
		return numberKind
	case 1700: // numeric
		return decimalKind
	case 16: // bool
		return boolKind
	case 114, 3802: // json, jsonb
		return jsonKind
	case 1016, 1005, 1007, 1028, 1021, 1022: // int8[], int2[], int4[], oid[], float4[], float8[]
		return arrayKind + numberKind
	case 1231:
		return arrayKind + decimalKind
	case 1000:
		return arrayKind + boolKind
	case 199, 3807:
		return arrayKind + jsonKind
	case 1009, 1015, 1014, 1002, 1003, 2951, 1041, 651, 1040, 1182, 1115, 1185, 1183, 1270, 1187:
		// text, varchar, bpchar, char, name, uuid, inet, cidr, macaddr, date, timestamp, timestamptz, time, timetz, interval
		return arrayKind + textKind
	}
	return textKind
}

var (
	masked  = []byte(`"***"`)
	jsonNil = []byte("null")
)

// appendJSON appends a value's text as JSON.
func (k kind) appendJSON(b, text []byte) []byte {
	switch {
	case k == numberKind:
		if isJSONNumber(text) {
			return append(b, text...)
		}
	case k == boolKind:
		switch string(text) {
		case "t":
			return append(b, "true"...)
		case "f":
			return append(b, "false"...)
		}
	case k == jsonKind:
		if json.Valid(text) {
			return append(b, bytes.TrimSpace(text)...)
		}
	case k >= arrayKind:
		start := len(b)
		if out, ok := appendArray(b, text, k-arrayKind); ok {
			return out
		}
		b = b[:start]
	}
	return event.AppendJSONString(b, text)
}

// AppendValue appends the text of a value as payloads have it, as JSON. typeOID is the
// column's type.
func AppendValue(b []byte, typeOID uint32, text []byte) []byte {
	return kindOf(typeOID).appendJSON(b, text)
}

// isJSONNumber reports whether text, as Postgres prints integers and floats, is a
// JSON number too: NaN and Infinity are not.
func isJSONNumber(text []byte) bool {
	if len(text) > 0 && text[0] == '-' {
		text = text[1:]
	}
	if len(text) == 0 || text[0] < '0' || text[0] > '9' || len(text) > 1 && text[0] == '0' && text[1] >= '0' && text[1] <= '9' {
		return false
	}
	for _, c := range text {
		if (c < '0' || c > '9') && c != '.' && c != 'e' && c != 'E' && c != '+' && c != '-' {
			return false
		}
	}
	return text[len(text)-1] >= '0' && text[len(text)-1] <= '9'
}

// appendArray appends Postgres' array text, {a,"b c",NULL,{1,2}}, as a JSON array.
// ok is false when text is no array.
func appendArray(b, text []byte, elem kind) (out []byte, ok bool) {
	if len(text) > 0 && text[0] == '[' { // [0:2]={...}: the bounds are dropped
		i := bytes.IndexByte(text, '=')
		if i < 0 {
			return b, false
		}
		text = text[i+1:]
	}
	b, rest, ok := appendArrayLevel(b, text, elem, 0)
	return b, ok && len(rest) == 0
}

// maxArrayDepth is above Postgres' own limit of 6 dimensions.
const maxArrayDepth = 8

func appendArrayLevel(b, text []byte, elem kind, depth int) (out, rest []byte, ok bool) {
	if len(text) == 0 || text[0] != '{' || depth > maxArrayDepth {
		return b, text, false
	}
	text = text[1:]
	b = append(b, '[')
	if len(text) > 0 && text[0] == '}' {
		return append(b, ']'), text[1:], true
	}
	for {
		switch {
		case len(text) == 0:
			return b, text, false
		case text[0] == '{':
			if b, text, ok = appendArrayLevel(b, text, elem, depth+1); !ok {
				return b, text, false
			}
		case text[0] == '"':
			var el []byte
			i := 1
			for ; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
					if i == len(text) {
						return b, text, false
					}
				}
				el = append(el, text[i])
			}
			if i >= len(text) {
				return b, text, false
			}
			b = elem.appendJSON(b, el)
			text = text[i+1:]
		default:
			i := bytes.IndexAny(text, ",}")
			if i <= 0 {
				return b, text, false
			}
			if string(text[:i]) == "NULL" {
				b = append(b, jsonNil...)
			} else {
				b = elem.appendJSON(b, text[:i])
			}
			text = text[i:]
		}
		if len(text) == 0 {
			return b, text, false
		}
		switch text[0] {
		case ',':
			b = append(b, ',')
			text = text[1:]
		case '}':
			return append(b, ']'), text[1:], true
		default:
			return b, text, false
		}
	}
}

// appendValue appends a column's value, masked if it must be.
func (p *plan) appendValue(b []byte, column int, v wal.Value) []byte {
	switch {
	case v.Kind == wal.Null:
		return append(b, jsonNil...)
	case p.masked[column]:
		return append(b, masked...)
	}
	return p.kinds[column].appendJSON(b, v.Text)
}

// appendName appends `"name":`, with a comma before it unless the object has just
// been opened.
func appendName(b []byte, name string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = event.AppendJSONString(b, name)
	return append(b, ':')
}
