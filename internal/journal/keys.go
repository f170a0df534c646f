package journal

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// The first byte of every key names its space; DESIGN.md draws them all. Numbers
// in keys are big-endian, so that keys ascend as the numbers do.
const (
	spaceAudit   = 'A' // what people did: number
	spaceMeta    = 'M' // what there is one of
	spaceBucket  = 'b' // bucket rows, by number
	spaceLog     = 'L' // everything that retention drops: number, one of the log* bytes, ...
	spaceHistory = 'h' // what happened in a minute: minute since 1970
	spaceMemory  = 'm' // memory, by the caller's key
	spaceDelta   = 'd' // what commits have done to memory and is not there yet, see delta.go: number
	spacePending = 'p' // pending executions by lane: lane, execution
	spaceReplay  = 'r' // what is kept of replays: number
	spaceStage   = 's' // an unfinished large transaction, see stage.go
)

// The parts of a bucket.
const (
	logEvent   = 'e' // event ID
	logRow     = 'x' // execution ID
	logAttempt = 'a' // execution ID, attempt number
	logCount   = 'c' // handler, status
	logPosting = 'i' // one of the posting* bytes, value, execution ID
	logSpan    = 't' // number of a run of execution IDs
)

// What executions are found by.
const (
	postingStatus = 's' // handler u32, status u8
	postingType   = 't'
	postingObject = 'o'
	postingLane   = 'l'
)

// The parts of the stage.
const (
	stageMemory = 'm' // key -> one byte, value
	stagePlan   = 'x' // sequence number -> execution row
	stagePrefix = 'd' // sequence number -> a prefix of memory keys that was deleted
)

var (
	keyPosition = []byte{spaceMeta, 'p'}
	keyStage    = []byte{spaceMeta, 's'}
)

const (
	eventIDSize = 4 + 8 + 4
	// maxPostingValue is the longest value that a posting holds as it is. Longer
	// ones are cut and end in a digest; whoever follows a posting compares the row.
	maxPostingValue = 64
)

func appendBucketKey(k []byte, number uint32) []byte {
	return binary.BigEndian.AppendUint32(append(k, spaceBucket), number)
}

func appendLog(k []byte, bucket uint32, part byte) []byte {
	return append(binary.BigEndian.AppendUint32(append(k, spaceLog), bucket), part)
}

func appendEventID(k []byte, id event.ID) []byte {
	k = binary.BigEndian.AppendUint32(k, id.Generation)
	k = binary.BigEndian.AppendUint64(k, uint64(id.CommitLSN))
	return binary.BigEndian.AppendUint32(k, id.Ordinal)
}

func eventIDOf(b []byte) event.ID {
	return event.ID{
		Generation: binary.BigEndian.Uint32(b),
		CommitLSN:  wal.LSN(binary.BigEndian.Uint64(b[4:])),
		Ordinal:    binary.BigEndian.Uint32(b[12:]),
	}
}

func appendEventKey(k []byte, bucket uint32, id event.ID) []byte {
	return appendEventID(appendLog(k, bucket, logEvent), id)
}

func appendRowKey(k []byte, bucket uint32, id uint64) []byte {
	return binary.BigEndian.AppendUint64(appendLog(k, bucket, logRow), id)
}

func appendAttemptKey(k []byte, bucket uint32, id uint64, number int) []byte {
	k = binary.BigEndian.AppendUint64(appendLog(k, bucket, logAttempt), id)
	return binary.BigEndian.AppendUint32(k, uint32(number))
}

func appendCountKey(k []byte, bucket uint32, hs HandlerStatus) []byte {
	k = binary.BigEndian.AppendUint32(appendLog(k, bucket, logCount), uint32(hs.Handler))
	return append(k, byte(hs.Status))
}

func appendSpanKey(k []byte, bucket, run uint32) []byte {
	return binary.BigEndian.AppendUint32(appendLog(k, bucket, logSpan), run)
}

func appendReplayKey(k []byte, number uint64) []byte {
	return binary.BigEndian.AppendUint64(append(k, spaceReplay), number)
}

func appendStatusList(k []byte, bucket uint32, hs HandlerStatus) []byte {
	k = append(appendLog(k, bucket, logPosting), postingStatus)
	k = binary.BigEndian.AppendUint32(k, uint32(hs.Handler))
	return append(k, byte(hs.Status))
}

// appendTextList appends the prefix of the posting list of a text value.
func appendTextList(k []byte, bucket uint32, kind byte, value string) []byte {
	return appendText(append(appendLog(k, bucket, logPosting), kind), value)
}

// appendText appends value so that no value is a prefix of another. Long values
// share a prefix only with values that have the same digest.
func appendText(k []byte, value string) []byte {
	if len(value) <= maxPostingValue {
		return append(append(k, byte(len(value))), value...)
	}
	sum := sha256.Sum256([]byte(value))
	k = append(k, 0xFF)
	k = append(k, value[:maxPostingValue/2]...)
	return append(k, sum[:maxPostingValue/2]...)
}

func appendID(k []byte, id uint64) []byte { return binary.BigEndian.AppendUint64(k, id) }

// idOf returns the execution ID at the end of a key.
func idOf(k []byte) uint64 { return binary.BigEndian.Uint64(k[len(k)-8:]) }

// appendLanePrefix appends the prefix of a lane's pending keys. The whole lane is
// in the key, so that Lanes can name it.
func appendLanePrefix(k []byte, lane string) []byte {
	k = append(k, spacePending)
	k = binary.AppendUvarint(k, uint64(len(lane)))
	return append(k, lane...)
}

// laneOf returns the lane and the execution ID of a pending key.
func laneOf(k []byte) (lane string, id uint64, ok bool) {
	if len(k) < 1 || k[0] != spacePending {
		return "", 0, false
	}
	n, size := binary.Uvarint(k[1:])
	if size <= 0 || uint64(len(k)-1-size) != n+8 {
		return "", 0, false
	}
	rest := k[1+size:]
	return string(rest[:n]), binary.BigEndian.Uint64(rest[n:]), true
}

// after returns the least key that is greater than every key with the prefix k,
// nil if there is none. It reuses k.
func after(k []byte) []byte {
	for i := len(k) - 1; i >= 0; i-- {
		if k[i] != 0xFF {
			k[i]++
			return k[:i+1]
		}
	}
	return nil
}

func bounds(prefix []byte) (lower, upper []byte) {
	return prefix, after(append([]byte(nil), prefix...))
}
