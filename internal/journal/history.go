package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Tally is what happened to executions in some time.
type Tally struct {
	Made      int64 `json:"made"`      // by intake, replays and on_dead
	Succeeded int64 `json:"succeeded"` // executions
	Failed    int64 `json:"failed"`    // attempts
	Dead      int64 `json:"dead"`      // executions
}

func (t *Tally) add(o Tally) {
	t.Made += o.Made
	t.Succeeded += o.Succeeded
	t.Failed += o.Failed
	t.Dead += o.Dead
}

// historyMinutes is for how long tallies are kept.
const historyMinutes = 24 * 60

// history counts what happened in each minute of the last day.
type history struct {
	mu      sync.Mutex
	minutes [historyMinutes]historyMinute // by minute, modulo
	saved   int64                         // minutes below are on disk as they are
}

type historyMinute struct {
	number   int64 // since 1970
	handlers map[int]Tally
}

func minuteOf(t time.Time) int64 { return t.Unix() / 60 }

func (h *history) add(now time.Time, list []handlerTally) {
	if len(list) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.minute(minuteOf(now))
	for _, c := range list {
		t := m.handlers[c.handler]
		t.add(c.Tally)
		m.handlers[c.handler] = t
	}
}

// minute is a minute's place, which is emptied when it holds another. mu is held.
func (h *history) minute(number int64) *historyMinute {
	m := &h.minutes[((number%historyMinutes)+historyMinutes)%historyMinutes]
	if m.handlers == nil || m.number != number {
		m.number, m.handlers = number, map[int]Tally{}
	}
	// A clock that went back: those minutes are written again.
	h.saved = min(h.saved, number)
	return m
}

// History returns what happened in the n parts of time of step each that end with the
// one of now, the oldest first, by handler; 0 is all of them. Step is a whole number of
// minutes and n steps are a day at most. What a crash had not saved is not in it.
func (j *Journal) History(now time.Time, step time.Duration, n int) map[int][]Tally {
	per := max(int64(step/time.Minute), 1)
	last := minuteOf(now) / per
	out := map[int][]Tally{0: make([]Tally, n)}
	h := &j.history
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.minutes {
		m := &h.minutes[i]
		at := n - 1 - int(last-m.number/per)
		if m.handlers == nil || at < 0 || at >= n {
			continue
		}
		for id, t := range m.handlers {
			if out[id] == nil {
				out[id] = make([]Tally, n)
			}
			out[id][at].add(t)
			out[0][at].add(t)
		}
	}
	return out
}

// SaveHistory makes durable what History returns. Call it once a minute, and before
// Close.
func (j *Journal) SaveHistory() error {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.leave()
	now := minuteOf(j.now())
	h := &j.history
	h.mu.Lock()
	rows := map[int64][]byte{}
	for i := range h.minutes {
		if m := &h.minutes[i]; m.handlers != nil && m.number >= h.saved && m.number > now-historyMinutes && m.number <= now {
			rows[m.number] = appendHistory(nil, m.handlers)
		}
	}
	h.saved = now
	h.mu.Unlock()
	if len(rows) == 0 {
		return nil
	}
	e, err := j.applied(0, func(e *edit) error {
		if err := j.room(len(rows)*256, j.o.MinFree/4); err != nil {
			return err
		}
		for _, number := range slices.Sorted(maps.Keys(rows)) {
			e.key = appendHistoryKey(e.key[:0], number)
			if err := e.set(rows[number]); err != nil {
				return err
			}
		}
		return e.b.DeleteRange(appendHistoryKey(nil, 0), appendHistoryKey(nil, max(now-historyMinutes, 0)), nil)
	})
	if err == nil {
		err = e.wait()
	}
	if err != nil {
		h.mu.Lock()
		for number := range rows {
			h.saved = min(h.saved, number)
		}
		h.mu.Unlock()
		return fmt.Errorf("save history: %w", err)
	}
	return nil
}

// loadHistory reads what was saved.
func (j *Journal) loadHistory(r pebble.Reader) error {
	h := &j.history
	now := minuteOf(j.now())
	err := scan(r, []byte{spaceHistory}, func(k, v []byte) error {
		number, handlers, err := decodeHistory(k, v)
		if err != nil {
			return j.damaged(err)
		}
		if number > now-historyMinutes && number <= now {
			*h.minute(number) = historyMinute{number, handlers}
		}
		return nil
	})
	h.saved = now
	return err
}

func appendHistoryKey(k []byte, minute int64) []byte {
	return binary.BigEndian.AppendUint32(append(k, spaceHistory), uint32(minute))
}

// appendHistory is what one minute holds: version, then for each handler its id and tally.
func appendHistory(b []byte, handlers map[int]Tally) []byte {
	b = append(b, historyV1)
	for _, id := range slices.Sorted(maps.Keys(handlers)) {
		t := handlers[id]
		for _, n := range [...]int64{int64(id), t.Made, t.Succeeded, t.Failed, t.Dead} {
			b = binary.AppendUvarint(b, uint64(n))
		}
	}
	return b
}

const historyV1 = 1

func decodeHistory(k, v []byte) (number int64, handlers map[int]Tally, err error) {
	if len(k) != 5 || len(v) == 0 || v[0] != historyV1 {
		return 0, nil, fmt.Errorf("history key %x", k)
	}
	handlers = map[int]Tally{}
	for v = v[1:]; len(v) > 0; {
		var n [5]int64
		for i := range n {
			u, size := binary.Uvarint(v)
			if size <= 0 || u > 1<<62 {
				return 0, nil, errors.New("a history that is cut off")
			}
			n[i], v = int64(u), v[size:]
		}
		handlers[int(n[0])] = Tally{n[1], n[2], n[3], n[4]}
	}
	return int64(binary.BigEndian.Uint32(k[1:])), handlers, nil
}

// handlerTally is what an edit adds to the history.
type handlerTally struct {
	handler int
	Tally
}

// tally is what the edit adds for a handler.
func (e *edit) tally(handler int) *Tally {
	for i := range e.tallies {
		if e.tallies[i].handler == handler {
			return &e.tallies[i].Tally
		}
	}
	e.tallies = append(e.tallies, handlerTally{handler: handler})
	return &e.tallies[len(e.tallies)-1].Tally
}
