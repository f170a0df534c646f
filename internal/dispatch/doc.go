// Package dispatch decides who is told of an event, and when: it plans which
// handlers an event concerns, and it brings every execution of the journal to
// its end, one attempt at a time.
//
//	         Plan                    ┌───────────── Unhold ◄─ enabled again
//	   disabled│enabled              │
//	  ┌────────┴────────┐            │
//	  ▼                 ▼            │
//	held ◄── Hold ── pending ◄───────┘
//	  │  disabled or  │ ▲ └──┐
//	  │  removed      │ │    ├─ success ───────────────────► succeeded
//	  │               │ │    ├─ last or permanent failure ─► dead
//	  │               │ │    ├─ an earlier handler of the
//	  │               │ │    │  event said stop, or `when`
//	  │               │ │    │  no longer holds ───────────► skipped
//	  └─── Cancel ────┼─┼────┴─ handler archived ──────────► cancelled
//	                  │ │
//	                  └─┘ failure: NextAt; interrupted: nothing
//
// Executions of one lane run one after another in the order of their ids, which
// is commit order and, within an event, chain order. Lanes run concurrently, and
// a lane that waits, for a retry, a busy handler, a rate or a store that cannot
// write, holds no goroutine and delays no other lane. A handler with Aside leaves
// the lane after a failed first attempt: what it still has to do in that lane
// forms a line of its own beside it, in the same order, and the lane goes on.
//
// It promises:
//   - per lane and handler, attempts are made in the order of the ids, and never
//     two at a time;
//   - an outcome is durable in the journal before anything later of the lane starts;
//   - an attempt that was interrupted by a stop costs nothing, one that was made
//     but could not be recorded is made again: at least once, never less;
//   - a panic of a handler is a failed attempt;
//   - memory is bounded by the number of lanes with pending executions, not by the
//     number of executions.
//
// It does not store anything: the journal is the truth, and a dispatcher that
// starts again reads where every lane stands. It does not know what kinds of
// handlers there are.
//
// Start with Handler, Plan and Dispatcher.Run. DESIGN.md tells how it works inside.
package dispatch
