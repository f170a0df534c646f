package replication

import (
	"encoding/binary"
	"time"

	"github.com/billhook/billhook/internal/wal"
)

// appendStatus appends a standby status update as a whole protocol message. All
// three positions are the durable one: what was only received counts for nothing
// here, and a position left out would be filled in by somebody's default.
//
//	'd' | length u32 | 'r' | written u64 | flushed u64 | applied u64 | clock i64 | reply u8
func appendStatus(b []byte, durable wal.LSN, now time.Time, wantReply bool) []byte {
	b = append(b, 'd')
	b = binary.BigEndian.AppendUint32(b, 4+34)
	b = append(b, 'r')
	for range 3 {
		b = binary.BigEndian.AppendUint64(b, uint64(durable))
	}
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixMicro()-postgresEpoch))
	if wantReply {
		return append(b, 1)
	}
	return append(b, 0)
}

// postgresEpoch is 2000-01-01 UTC in Unix microseconds.
const postgresEpoch = 946684800 * 1000000
