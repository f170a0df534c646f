//go:build !linux

package replication

import (
	"net"
	"syscall"
)

// control leaves the socket as it is.
func control(_, _ string, _ syscall.RawConn) error { return nil }

// gatherer does nothing here: only Linux is known to wake a reader by a
// low-water mark in all the ways this needs. Reads are plain.
type gatherer struct{}

func newGatherer(net.Conn, int) *gatherer { return nil }

func (*gatherer) begin() bool { return false }
func (*gatherer) end()        {}
func (*gatherer) wait()       {}
func (*gatherer) queued() int { return 0 }
