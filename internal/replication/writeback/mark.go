package writeback

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
)

// Prefix is the prefix of the logical messages that mark transactions of a Writer.
const Prefix = "billhook.write"

// A mark is "slot xid mac". The mac binds it to this one transaction and to whoever
// has the key: a mark that somebody has read in the log is worth nothing in another
// transaction, and those of another Billhook at the same database are not ours.

// mark makes the mark of a transaction. xid is its whole id, with the epoch.
func mark(key []byte, slot string, xid uint64) string {
	return slot + " " + strconv.FormatUint(xid, 10) + " " + hex.EncodeToString(mac(key, slot, xid))
}

func mac(key []byte, slot string, xid uint64) []byte {
	m := hmac.New(sha256.New, key)
	_, _ = m.Write([]byte("billhook write-back\x00" + slot + "\x00" + strconv.FormatUint(xid, 10))) // never fails
	return m.Sum(nil)
}

// Marks reports whether content is the mark of a Writer with this key and slot, of the
// transaction with this id. xid is as the stream has it, without the epoch.
func Marks(key []byte, slot string, xid uint32, content []byte) bool {
	parts := strings.Split(string(content), " ")
	if len(key) == 0 || len(parts) != 3 || parts[0] != slot {
		return false
	}
	whole, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil || uint32(whole) != xid {
		return false
	}
	given, err := hex.DecodeString(parts[2])
	return err == nil && hmac.Equal(given, mac(key, slot, whole))
}
