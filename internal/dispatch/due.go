package dispatch

import (
	"container/heap"
	"context"
	"time"
)

// maxSleep bounds how long the clock sleeps, so that a step of the wall clock forward,
// or that the machine has slept, is noticed. See steady.Clock.
const maxSleep = time.Minute

// wake is an entry of the due heap, for a line or a gate.
type wake struct {
	at    int64 // by Dispatcher.now
	index int   // in the heap
	line  *line
	gate  *gate
}

// dueHeap holds those that wait for a time, the earliest first.
type dueHeap []*wake

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueHeap) Push(x any) {
	w := x.(*wake)
	w.index = len(*h)
	*h = append(*h, w)
}

func (h *dueHeap) Pop() any {
	old := *h
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return w
}

func (h *dueHeap) remove(w *wake) { heap.Remove(h, w.index) }

// now is the time by which the dispatcher waits, in nanoseconds.
func (d *Dispatcher) now() int64 { return d.steady.Now().UnixNano() }

// sleep puts w into the due heap.
func (d *Dispatcher) sleep(w *wake, at int64) {
	w.at = at
	heap.Push(&d.due, w)
	if w.index == 0 {
		signal(d.earlier)
	}
}

// clock moves what is due out of the heap, until ctx ends.
func (d *Dispatcher) clock(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if next, ok := d.wakeDue(d.now()); ok {
			timer.Reset(next)
		} else {
			timer.Stop()
		}
		select {
		case <-timer.C:
		case <-d.earlier:
		case <-ctx.Done():
			return
		}
	}
}

// wakeDue moves some of what is due and returns how long to sleep before the next.
// It reports false when nothing waits.
func (d *Dispatcher) wakeDue(now int64) (time.Duration, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range 1024 {
		if len(d.due) == 0 {
			return 0, false
		}
		w := d.due[0]
		if w.at > now {
			return min(time.Duration(w.at-now), maxSleep), true
		}
		if w.gate != nil {
			heap.Pop(&d.due)
			w.gate.shut = false
			d.offer(w.gate)
			continue
		}
		d.unplace(w.line)
		w.line.woken = w.line.id
		d.place(w.line)
	}
	return 0, true
}
