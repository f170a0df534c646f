package app

import (
	"encoding/json"
	"sync"
	"sync/atomic"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/web"
)

// tail tells those who watch of each event as it is derived, also of those that no
// handler wants. It never waits for them: who does not keep up loses some, and is told
// how many. While nobody watches it costs nothing.
type tail struct {
	watching atomic.Int32
	mu       sync.Mutex
	watchers map[*watcher]bool
}

type watcher struct {
	events chan web.TailEvent
	missed int64 // since the last that went in
}

// tailBuffer is how many events may wait for one who watches.
const tailBuffer = 1024

func (t *tail) active() bool { return t.watching.Load() > 0 }

// watch begins; stop ends it.
func (t *tail) watch() (events <-chan web.TailEvent, stop func()) {
	w := &watcher{events: make(chan web.TailEvent, tailBuffer)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watchers == nil {
		t.watchers = map[*watcher]bool{}
	}
	t.watchers[w] = true
	t.watching.Add(1)
	return w.events, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.watchers[w] {
			delete(t.watchers, w)
			t.watching.Add(-1)
		}
	}
}

func (t *tail) tell(e *event.Event, plan []journal.Planned) {
	out := web.TailEvent{
		Type: e.Type, Object: e.Object, Lane: e.Lane, ID: e.ID.String(), CommitTime: e.CommitTime.UTC(), Origin: e.Origin,
		Payload: json.RawMessage(e.AppendPayload(nil)), Handlers: make([]int, 0, len(plan)),
	}
	for _, p := range plan {
		out.Handlers = append(out.Handlers, p.Handler)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for w := range t.watchers {
		out.Missed = w.missed
		select {
		case w.events <- out:
			w.missed = 0
		default:
			w.missed++
		}
	}
}
