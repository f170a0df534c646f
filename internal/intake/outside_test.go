package intake

import (
	"testing"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// Ids outside of transactions never go back and never meet those of transactions.
func TestOutsideID(t *testing.T) {
	in := &Intake{}
	in.position.Generation = 2
	last := event.ID{}
	next := func(want string) {
		t.Helper()
		id := in.outsideID()
		if id.String() != want || id.Compare(last) <= 0 {
			t.Errorf("%s after %s, want %s", id, last, want)
		}
		last = id
	}
	next("2-0/0-2147483648")
	next("2-0/0-2147483649")
	in.position.CommitLSN = wal.LSN(0x100)
	if after := (event.ID{Generation: 2, CommitLSN: 0x100, Ordinal: 70_000}); last.Compare(after) >= 0 {
		t.Errorf("%s is not before the next transaction's %s", last, after)
	}
	next("2-0/100-2147483648")
	next("2-0/100-2147483649")
	// The journal ends with an event that lies ahead of the position.
	in.outside = event.ID{Generation: 2, CommitLSN: 0x200, Ordinal: 3}
	next("2-0/200-2147483648")
	in.position.Generation, in.position.CommitLSN = 3, 0
	next("3-0/0-2147483648")
}
