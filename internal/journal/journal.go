// Package journal is Billhook's durable store: where intake stands in the
// source's log, what it remembers about each row, the events, their executions
// and every attempt. It is the only place with state that outlives the process.
//
// It promises that what one Commit holds is there as a whole or not at all,
// after a kill at any moment and after a power loss: never a position without
// the events up to it, never an execution without its event, no execution id
// twice, counts that agree with the rows. It promises that a store which cannot
// be written, is damaged or is of another format says so, and that no failure
// of the disk ends the process.
//
// It does not decide what is remembered, who is told or when an attempt is
// made, and it does not know what is secret: it stores what it is given.
//
// Start with Open, Batch for intake, Record for dispatch and Executions for
// people. The key layout is drawn in DESIGN.md.
package journal
