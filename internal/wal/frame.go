package wal

import (
	"encoding/binary"
	"fmt"
	"time"
)

// The kinds of Frame, as the replication protocol spells them.
const (
	FrameData      byte = 'w' // XLogData: Data holds what Decoder.Decode takes
	FrameKeepalive byte = 'k' // no data; WALEnd is how far the server has looked
)

// Frame is what one CopyData of a replication stream carries.
type Frame struct {
	Kind byte
	// Start is where the record behind Data lies. It is zero for descriptions of
	// relations and types, several rows may share it, and it goes up and down
	// between interleaved transactions: it neither identifies nor orders anything.
	Start LSN
	// WALEnd is, in a keepalive, the position up to which the server has sent all
	// there was to send. It may be confirmed when all that came before it is
	// durable and no transaction is open.
	WALEnd         LSN
	SendTime       time.Time // the server's clock when it sent this, not when anything happened
	ReplyRequested bool      // keepalive only; the connection's owner has answered it
	Data           []byte    // aliases the frame
}

// ParseFrame reads the payload of one CopyData. It allocates nothing; Data
// aliases b.
func ParseFrame(b []byte) (Frame, error) {
	if len(b) == 0 {
		return Frame{}, fmt.Errorf("replication frame is empty")
	}
	switch b[0] {
	case FrameData:
		if len(b) < 25 {
			return Frame{}, fmt.Errorf("replication frame 'w' is truncated: %d bytes, its header takes 25", len(b))
		}
		return Frame{
			Kind:     FrameData,
			Start:    LSN(binary.BigEndian.Uint64(b[1:])),
			WALEnd:   LSN(binary.BigEndian.Uint64(b[9:])),
			SendTime: timestamp(binary.BigEndian.Uint64(b[17:])),
			Data:     b[25:],
		}, nil
	case FrameKeepalive:
		if len(b) != 18 {
			return Frame{}, fmt.Errorf("replication frame 'k' has %d bytes, want 18", len(b))
		}
		return Frame{
			Kind:           FrameKeepalive,
			WALEnd:         LSN(binary.BigEndian.Uint64(b[1:])),
			SendTime:       timestamp(binary.BigEndian.Uint64(b[9:])),
			ReplyRequested: b[17] == 1,
		}, nil
	}
	return Frame{}, fmt.Errorf("replication frame of unknown kind %q, %d bytes", b[0], len(b))
}

// epoch is 2000-01-01 UTC, where Postgres counts microseconds from.
const epoch = 946684800 * 1000000

// timestamp reads a Postgres TimestampTz.
func timestamp(v uint64) time.Time { return time.UnixMicro(int64(v) + epoch).UTC() }
