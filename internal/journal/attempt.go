package journal

import (
	"time"

	"github.com/billhook/billhook/internal/handler"
)

// Attempt is one try of an execution.
type Attempt struct {
	Number    int // from 1
	Start     time.Time
	Duration  time.Duration
	OK        bool
	Permanent bool // failed in a way that trying again will not cure
	Error     string
	Reason    handler.Reason
	Code      int // HTTP status, exit code, gRPC code; -1: none
	Request   handler.Exchange
	Response  handler.Exchange
}

// Outcome is what became of an execution.
type Outcome struct {
	Execution uint64
	// Attempt is the attempt that was made, nil for a change of status without
	// one. Its Number must be one more than the execution's Attempts.
	Attempt *Attempt
	// Status is the new status: Pending to try again at NextAt.
	Status Status
	NextAt time.Time
	// Error and Reason become the execution's LastError and LastReason. When
	// empty and there is an Attempt, they are taken from it.
	Error  string
	Reason handler.Reason
	// Also changes the status of other open executions in the same commit: the
	// rest of a chain that was stopped. Those already final stay as they are.
	Also []StatusChange
}

// StatusChange is the part of an Outcome that concerns another execution.
type StatusChange struct {
	Execution uint64
	Status    Status
	Error     string // becomes its LastError, such as "stopped by handler 7"
}
