package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/billhook/billhook/internal/event"
)

// TailEvent is an event as it is derived, for those who watch.
type TailEvent struct {
	ID         string          `json:"id"`
	Type       event.Type      `json:"event"`
	Object     string          `json:"object"`
	Lane       string          `json:"lane"`
	CommitTime time.Time       `json:"commit_time"`
	Origin     string          `json:"origin,omitempty"`
	Handlers   []int           `json:"handlers"` // those that want it
	Missed     int64           `json:"missed,omitempty"`
	Payload    json.RawMessage `json:"payload"`
}

// tailBeat is how often something is sent at the least, so that a client that has gone
// is noticed.
const tailBeat = 15 * time.Second

// liveEvents sends events as they are derived, as server-sent events, until the client
// goes. Filters: event, a pattern such as clients.*, object, lane.
func (s *Server) liveEvents(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	for name := range q {
		if name != "event" && name != "object" && name != "lane" {
			fail(w, http.StatusBadRequest, "%s is no filter; there are event, object and lane", name)
			return
		}
	}
	events, stop := s.opts.Tail()
	defer stop()
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	send := func(format string, args ...any) bool {
		_ = out.SetWriteDeadline(time.Now().Add(2 * tailBeat)) // what cannot do that has no deadline
		_, err := fmt.Fprintf(w, format, args...)
		return err == nil && out.Flush() == nil
	}
	if !send(": events as they are derived\n\n") {
		return
	}
	beat := time.NewTicker(tailBeat)
	defer beat.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-s.stopping:
			return
		case <-beat.C:
			if !send(": \n\n") {
				return
			}
		case e := <-events:
			if p := q.Get("event"); p != "" && !e.Type.Matches(p) || q.Has("object") && q.Get("object") != e.Object || q.Has("lane") && q.Get("lane") != e.Lane {
				if e.Missed == 0 {
					continue
				}
				e = TailEvent{Missed: e.Missed}
			}
			text, err := json.Marshal(e)
			if err != nil {
				s.log.Error("an event cannot be shown", "event", e.ID, "err", err)
				return
			}
			if !send("data: %s\n\n", text) {
				return
			}
		}
	}
}
