package dispatch

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
)

// Plan returns the executions that e shall have among the handlers hs, in chain
// order: by priority, ties by id. Those of a disabled handler start as held, an
// archived one gets none.
//
// A condition (When) that cannot be judged never loses the event: its execution
// is planned all the same, and Plan returns the error beside a plan that is
// complete. The dispatcher judges again before it calls the handler; if the
// condition still fails, the execution becomes a dead letter that says why, and
// the handler is not called.
func Plan(hs []*Handler, e *event.Event) ([]journal.Planned, error) {
	var plan []journal.Planned
	var errs []error
	for _, h := range hs {
		if h.Status == Archived || !h.Matches(e.Type) {
			continue
		}
		ok, err := h.wants(e)
		if err != nil {
			errs = append(errs, fmt.Errorf("condition of handler %d (%s) on event %s: %w", h.ID, h.Name, e.ID, err))
		} else if !ok {
			continue
		}
		plan = append(plan, journal.Planned{Handler: h.ID, Priority: h.Priority, Held: h.Status == Disabled})
	}
	slices.SortFunc(plan, func(a, b journal.Planned) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Handler, b.Handler))
	})
	return plan, errors.Join(errs...)
}
