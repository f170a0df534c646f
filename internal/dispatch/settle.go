package dispatch

import (
	"context"
	"fmt"

	"github.com/billhook/billhook/internal/journal"
)

// settle brings the statuses of executions in the journal in line with those of
// their handlers, at the start and whenever something tells that they are not, until
// ctx ends.
//
// A gate is settled only when no line is busy with its handler, so that the outcome
// of a running attempt is never overwritten.
func (d *Dispatcher) settle(ctx context.Context) {
	counts := d.store.Counts()
	d.mu.Lock()
	for k := range counts {
		d.gate(k.Handler) // also those whose handler is not in the file
	}
	d.mu.Unlock()
	for p := newPause(); ; {
		g, status, rev := d.pickUnsettled()
		if g == nil {
			select {
			case <-d.unsettled:
				continue
			case <-ctx.Done():
				return
			}
		}
		if err := d.settleGate(ctx, g, status, rev); err != nil {
			if ctx.Err() != nil {
				return
			}
			d.log.Error("cannot bring executions in line with their handler's status",
				"handler", g.id, "status", status.String(), "err", err)
			if !p.wait(ctx.Done()) {
				return
			}
			continue
		}
		p = newPause()
	}
}

// pickUnsettled returns a gate that is to be settled and can be.
func (d *Dispatcher) pickUnsettled() (*gate, Status, uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.gates {
		if !g.settled && g.active == 0 {
			status := Disabled
			if g.cur != nil {
				status = g.cur.Status
			}
			return g, status, g.rev
		}
	}
	return nil, 0, 0
}

func (d *Dispatcher) settleGate(ctx context.Context, g *gate, status Status, rev uint64) error {
	counts := d.store.Counts()
	d.mu.Lock()
	needed := g.queue.n+g.waiting > 0 || g.wanted(counts) > 0
	d.mu.Unlock()

	n := 0
	if needed {
		var err error
		switch status {
		case Enabled:
			n, err = d.unhold(ctx, g.id)
		case Disabled:
			n, err = d.store.Hold(ctx, g.id)
		case Archived:
			n, err = d.store.Cancel(ctx, g.id)
		}
		if err != nil {
			return fmt.Errorf("settle handler %d: %w", g.id, err)
		}
	}
	if n > 0 {
		d.log.Info("executions follow their handler's status", "handler", g.id, "status", status.String(), "executions", n)
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	if status == Archived {
		g.metrics.finished(journal.Cancelled, n)
	}
	if status != Enabled && needed {
		d.gen++
		if g.queue.n+g.waiting > 0 {
			// Not settled yet, so that nothing of the handler passes before it is read
			// again.
			d.reload(g.id)
		}
	}
	if g.rev == rev {
		g.settled = true
		d.offer(g)
	}
	return nil
}

// unhold releases what is held for the handler, oldest first.
func (d *Dispatcher) unhold(ctx context.Context, handler int) (n int, err error) {
	for {
		q, err := d.store.Unhold(ctx, handler)
		n += len(q)
		d.mu.Lock()
		for _, x := range q {
			d.announce(x.Lane, x.Execution, x.Handler, x.Execution)
		}
		d.mu.Unlock()
		if err != nil || len(q) == 0 {
			return n, err
		}
	}
}

// checkLate closes the gate of a handler that was enabled or archived a while ago,
// when intake has planned another execution as held: by a definition that was in
// force when a long transaction began. What is announced after it then waits until
// it is released.
func (d *Dispatcher) checkLate() {
	d.mu.Lock()
	any := false
	for _, g := range d.gates {
		any = any || g.late
	}
	d.mu.Unlock()
	if !any {
		return
	}
	counts := d.store.Counts()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.gates {
		if g.late && g.settled && counts[journal.HandlerStatus{Handler: g.id, Status: journal.Held}] > 0 {
			d.unsettle(g)
		}
	}
}
