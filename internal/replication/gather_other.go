//go:build !linux

package replication

import (
	"net"
	"time"
)

// gatherer does nothing here: only Linux is known to hold wake-ups back in the
// way this needs. Reads are plain.
type gatherer struct {
	on    bool
	least int
	trip  time.Duration
	pause time.Duration
	cycle int
}

func newGatherer(net.Conn) *gatherer { return nil }

func (*gatherer) begin()       {}
func (*gatherer) end()         {}
func (*gatherer) lowWater(int) {}
func (*gatherer) queued() int  { return 0 }
