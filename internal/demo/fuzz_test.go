package demo

import (
	"testing"
)

// FuzzReadArrival: whatever is posted to the receiver, it is read or refused.
func FuzzReadArrival(f *testing.F) {
	f.Add(`{"event":{"dt":"2026-11-23T10:15:00.123456+00:00","events_id":"clients.update","object_id":4711,"id":"1-16/B374D848-3","lane":"4711","xid":7731},"data":{}}`, "")
	f.Add(`{"event":{"dt":"2026-11-23T10:15:00Z","events_id":"clients.update","object_id":"a"}}`, "1-0/1-1")
	f.Add(`{"specversion":"1.0","id":"1-0/1-1","type":"clients.update","subject":"1","data":{"event":{"dt":"2026-11-23T10:15:00Z","events_id":"clients.update","object_id":1,"id":"1-0/1-1"}}}`, "1-0/1-1")
	f.Fuzz(func(t *testing.T, body, id string) {
		a, err := readArrival([]byte(body), id)
		if err != nil {
			return
		}
		if a.id == "" || a.typ == "" || a.object == "" || a.committed.IsZero() || id != "" && a.id != id {
			t.Errorf("read %+v from %q under %q", a, body, id)
		}
	})
}
