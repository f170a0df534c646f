package demo

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// arrival is one attempt as its receiver saw it.
type arrival struct {
	handler   int
	attempt   int
	accepted  bool // the receiver answered that all is well
	id        string
	lsn       uint64 // from id
	ordinal   uint64 // from id
	xid       uint32 // 0 when the payload does not say
	typ       string
	object    string
	client    string // who it is about, as far as the payload says
	signed    bool   // by the demo's secret
	digest    [sha256.Size]byte
	committed time.Time
	at        time.Time
}

// readArrival reads what the payload says, in any format that has the parts of an
// event: Billhook's own, the vendor's envelope, whose id is only in the header,
// and CloudEvents around Billhook's own.
func readArrival(body []byte, id string) (a arrival, err error) {
	type event struct {
		DT       time.Time       `json:"dt"`
		EventsID string          `json:"events_id"`
		ObjectID json.RawMessage `json:"object_id"`
		ID       string          `json:"id"`
		Lane     string          `json:"lane"`
		XID      uint32          `json:"xid"`
	}
	var payload struct {
		Event event `json:"event"`

		SpecVersion string `json:"specversion"`
		ID          string `json:"id"`
		Type        string `json:"type"`
		Subject     string `json:"subject"`
		Data        struct {
			Event event `json:"event"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &payload); err != nil {
		return arrival{}, fmt.Errorf("read a payload: %w", err)
	}
	e := payload.Event
	if payload.SpecVersion != "" {
		e = payload.Data.Event
	}
	object := strings.Trim(string(e.ObjectID), `"`)
	if payload.SpecVersion != "" && (payload.ID != e.ID || payload.Type != e.EventsID || payload.Subject != object) {
		return arrival{}, fmt.Errorf("the CloudEvent is %s, %s of %s; in it is %s, %s of %s",
			payload.ID, payload.Type, payload.Subject, e.ID, e.EventsID, object)
	}
	if e.ID != "" && id != "" && e.ID != id {
		return arrival{}, fmt.Errorf("the payload of event %s came under the id %s", e.ID, id)
	}
	if e.ID != "" {
		id = e.ID
	}
	a = arrival{
		id: id, xid: e.XID, typ: e.EventsID, object: object, client: e.Lane,
		digest: sha256.Sum256(body), committed: e.DT,
	}
	if a.lsn, a.ordinal, err = splitID(id); err != nil {
		return arrival{}, err
	}
	if a.typ == "" || a.object == "" || e.DT.IsZero() {
		return arrival{}, fmt.Errorf("the payload of event %s lacks events_id, object_id or dt", id)
	}
	return a, nil
}

// splitID reads an event id, timeline-lsn-ordinal as in 1-16/B374D848-3, by
// itself: the demo takes nothing from Billhook on trust.
func splitID(id string) (lsn, ordinal uint64, err error) {
	bad := fmt.Errorf("event id %q is not timeline-lsn-ordinal", id)
	parts := strings.Split(id, "-")
	if len(parts) != 3 {
		return 0, 0, bad
	}
	high, low, ok := strings.Cut(parts[1], "/")
	h, err1 := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	ordinal, err3 := strconv.ParseUint(parts[2], 10, 32)
	if !ok || errors.Join(err1, err2, err3) != nil {
		return 0, 0, bad
	}
	return h<<32 | l, ordinal, nil
}

// arrivals collects what all receivers saw.
type arrivals struct {
	mu       sync.Mutex
	all      []arrival
	problems []string      // payloads that could not be read
	changed  chan struct{} // closed and replaced at each addition
}

func newArrivals() *arrivals { return &arrivals{changed: make(chan struct{})} }

func (s *arrivals) add(a arrival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, a)
	s.signal()
}

func (s *arrivals) problem(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = append(s.problems, text)
	s.signal()
}

func (s *arrivals) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// snapshot returns what came so far, and a channel that closes with the next.
func (s *arrivals) snapshot() (all []arrival, problems []string, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[:len(s.all):len(s.all)], s.problems[:len(s.problems):len(s.problems)], s.changed
}
