package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unsafe"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/wal"
)

// Every value starts with the version of its own layout. A change of a layout
// adds a version; readers keep the old ones until the store's format changes.
const (
	eventV1    = 1
	rowV1      = 1
	attemptV1  = 1
	positionV1 = 1
	bucketV1   = 1
	stageV1    = 1
	replayV1   = 1
	deltaV1    = 1
)

var errShort = errors.New("value is cut short or has bytes to spare")

// noTime stands for the zero time, which has no microseconds since 1970.
const noTime = math.MinInt64

func appendString[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return noTime
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == noTime {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func appendTime(b []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(micros(t)))
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// cut takes a value apart. After the first shortage all it gives is zero, and
// done reports it. The strings and bytes it gives share one copy of the value, so
// nobody may write to the bytes.
type cut struct {
	s   string // what is left of copy
	err error

	copy []byte
}

func newCut(value []byte, version byte) cut {
	if len(value) == 0 {
		return cut{err: errShort}
	}
	if value[0] != version {
		return cut{err: fmt.Errorf("value has layout %d, want %d", value[0], version)}
	}
	c := cut{copy: bytes.Clone(value[1:])}
	c.s = unsafe.String(unsafe.SliceData(c.copy), len(c.copy)) //nolint:gosec // nothing writes to copy
	return c
}

func (c *cut) take(n uint64) string {
	if c.err != nil || n > uint64(len(c.s)) {
		c.fail()
		return ""
	}
	v := c.s[:n]
	c.s = c.s[n:]
	return v
}

func (c *cut) fail() {
	if c.err == nil {
		c.err = errShort
	}
}

func (c *cut) byte() byte {
	v := c.take(1)
	if v == "" {
		return 0
	}
	return v[0]
}

func (c *cut) bool() bool { return c.byte() != 0 }

func (c *cut) u32() uint32 {
	v := c.take(4)
	if v == "" {
		return 0
	}
	return uint32(v[0])<<24 | uint32(v[1])<<16 | uint32(v[2])<<8 | uint32(v[3])
}

func (c *cut) u64() uint64 {
	hi := c.u32()
	return uint64(hi)<<32 | uint64(c.u32())
}

func (c *cut) time() time.Time { return fromMicros(int64(c.u64())) }

func (c *cut) uvarint() uint64 {
	var v uint64
	for shift := uint(0); shift < 64; shift += 7 {
		b := c.byte()
		if c.err != nil || shift == 63 && b > 1 {
			break
		}
		v |= uint64(b&0x7F) << shift
		if b < 0x80 {
			return v
		}
	}
	c.fail()
	return 0
}

func (c *cut) varint() int64 {
	u := c.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (c *cut) string() string { return c.take(c.uvarint()) }

func (c *cut) bytes() []byte {
	n := len(c.string())
	if n == 0 {
		return nil
	}
	to := len(c.copy) - len(c.s)
	return c.copy[to-n : to : to]
}

func (c *cut) eventID() event.ID {
	return event.ID{Generation: c.u32(), CommitLSN: wal.LSN(c.u64()), Ordinal: c.u32()}
}

func (c *cut) done() error {
	if c.err == nil && c.s != "" {
		c.err = errShort
	}
	return c.err
}

// more reports whether there is more to read.
func (c *cut) more() bool { return c.err == nil && c.s != "" }

func appendEvent(b []byte, e *event.Event) []byte {
	b = append(b, eventV1)
	b = binary.BigEndian.AppendUint32(b, e.XID)
	b = appendTime(b, e.CommitTime)
	b = appendString(b, e.Type)
	b = appendString(b, e.Entity)
	b = appendString(b, e.Object)
	b = appendString(b, e.Lane)
	b = appendString(b, e.Source)
	b = appendString(b, e.ObjectJSON)
	b = appendString(b, e.Data)
	b = appendString(b, e.Changed)
	b = appendString(b, strings.Join(e.Unchanged, "\x00")) // no column's name holds a zero byte
	if e.Origin != "" {
		b = appendString(b, e.Origin)
	}
	return b
}

func decodeEvent(id event.ID, value []byte) (*event.Event, error) {
	c := newCut(value, eventV1)
	e := &event.Event{
		ID:         id,
		XID:        c.u32(),
		CommitTime: c.time(),
		Type:       event.Type(c.string()),
		Entity:     c.string(),
		Object:     c.string(),
		Lane:       c.string(),
		Source:     c.string(),
		ObjectJSON: json.RawMessage(c.bytes()),
		Data:       json.RawMessage(c.bytes()),
		Changed:    json.RawMessage(c.bytes()),
	}
	if names := c.string(); names != "" {
		e.Unchanged = strings.Split(names, "\x00")
	}
	if c.more() {
		e.Origin = c.string()
	}
	if err := c.done(); err != nil {
		return nil, fmt.Errorf("event %v: %w", id, err)
	}
	return e, nil
}

// appendRow appends all of x but its ID, which is in the key.
func appendRow(b []byte, x *Execution) []byte {
	b = append(b, rowV1, byte(x.Status))
	b = appendEventID(b, x.Event)
	b = appendTime(b, x.NextAt)
	b = appendTime(b, x.Created)
	b = appendTime(b, x.Finished)
	b = appendTime(b, x.CommitTime)
	b = binary.AppendUvarint(b, uint64(x.Handler))
	b = binary.AppendVarint(b, int64(x.Priority))
	b = binary.AppendUvarint(b, uint64(x.Attempts))
	b = binary.AppendUvarint(b, x.ReplayOf)
	b = binary.AppendVarint(b, int64(x.LastCode))
	b = binary.AppendVarint(b, int64(x.LastDuration))
	b = appendString(b, x.Type)
	b = appendString(b, x.Object)
	b = appendString(b, x.Lane)
	b = appendString(b, x.LastReason)
	b = appendString(b, x.LastError)
	if x.Uncounted > 0 || x.DeadOf > 0 || x.Replay > 0 {
		b = binary.AppendUvarint(b, uint64(x.Uncounted))
		b = binary.AppendUvarint(b, x.DeadOf)
	}
	if x.Replay > 0 {
		b = binary.AppendUvarint(b, x.Replay)
	}
	return b
}

func decodeRow(id uint64, value []byte) (Execution, error) {
	c := newCut(value, rowV1)
	x := Execution{
		ID:           id,
		Status:       Status(c.byte()),
		Event:        c.eventID(),
		NextAt:       c.time(),
		Created:      c.time(),
		Finished:     c.time(),
		CommitTime:   c.time(),
		Handler:      int(c.uvarint()),
		Priority:     int(c.varint()),
		Attempts:     int(c.uvarint()),
		ReplayOf:     c.uvarint(),
		LastCode:     int(c.varint()),
		LastDuration: time.Duration(c.varint()),
		Type:         event.Type(c.string()),
		Object:       c.string(),
		Lane:         c.string(),
		LastReason:   handler.Reason(c.string()),
		LastError:    c.string(),
	}
	if c.more() {
		x.Uncounted, x.DeadOf = int(c.uvarint()), c.uvarint()
	}
	if c.more() {
		x.Replay = c.uvarint()
	}
	err := c.done()
	if err == nil && !x.Status.Valid() {
		err = fmt.Errorf("unknown %v", x.Status)
	}
	if err != nil {
		return Execution{}, fmt.Errorf("execution %d: %w", id, err)
	}
	return x, nil
}

// appendAttempt appends all of a but its Number, which is in the key.
func appendAttempt(b []byte, a *Attempt) []byte {
	b = append(b, attemptV1)
	b = appendTime(b, a.Start)
	b = binary.AppendVarint(b, int64(a.Duration))
	b = appendBool(b, a.OK)
	b = appendBool(b, a.Permanent)
	b = binary.AppendVarint(b, int64(a.Code))
	b = appendString(b, a.Reason)
	b = appendString(b, a.Error)
	sent := a.Request
	var flags byte
	if a.Uncounted {
		flags |= attemptUncounted
	}
	if a.SentPayload {
		flags |= attemptPayload
		sent.Body = nil
	}
	b = appendExchange(b, &sent)
	b = appendExchange(b, &a.Response)
	if flags != 0 {
		b = append(b, flags)
	}
	return b
}

const (
	attemptUncounted = 1 << iota
	attemptPayload
)

func appendExchange(b []byte, x *handler.Exchange) []byte {
	b = binary.AppendUvarint(b, uint64(len(x.Head)))
	for _, h := range x.Head {
		b = appendString(b, h)
	}
	b = appendString(b, x.Body)
	return binary.AppendUvarint(b, uint64(x.Truncated))
}

func decodeAttempt(number int, value []byte) (Attempt, error) {
	c := newCut(value, attemptV1)
	a := Attempt{
		Number:    number,
		Start:     c.time(),
		Duration:  time.Duration(c.varint()),
		OK:        c.bool(),
		Permanent: c.bool(),
		Code:      int(c.varint()),
		Reason:    handler.Reason(c.string()),
		Error:     c.string(),
		Request:   c.exchange(),
		Response:  c.exchange(),
	}
	if c.more() {
		flags := c.byte()
		a.Uncounted, a.SentPayload = flags&attemptUncounted != 0, flags&attemptPayload != 0
	}
	if err := c.done(); err != nil {
		return Attempt{}, fmt.Errorf("attempt %d: %w", number, err)
	}
	return a, nil
}

func (c *cut) exchange() handler.Exchange {
	var x handler.Exchange
	n := c.uvarint()
	if n > uint64(len(c.s)) { // each takes at least one byte
		c.fail()
		return x
	}
	if n > 0 {
		x.Head = make([]string, n)
		for i := range x.Head {
			x.Head[i] = c.string()
		}
	}
	x.Body = c.bytes()
	x.Truncated = int64(c.uvarint())
	return x
}

func appendPosition(b []byte, p *Position) []byte {
	b = append(b, positionV1)
	b = binary.BigEndian.AppendUint32(b, p.Timeline)
	b = binary.BigEndian.AppendUint64(b, uint64(p.CommitLSN))
	b = binary.BigEndian.AppendUint64(b, uint64(p.EndLSN))
	b = appendTime(b, p.CommitTime)
	b = appendString(b, p.SystemID)
	b = appendString(b, p.Slot)
	b = appendString(b, p.Publication)
	b = binary.BigEndian.AppendUint32(b, p.PublicationOID)
	if p.Generation != p.Timeline {
		b = binary.BigEndian.AppendUint32(b, p.Generation)
	}
	return b
}

func decodePosition(value []byte) (Position, error) {
	c := newCut(value, positionV1)
	p := Position{
		Timeline:       c.u32(),
		CommitLSN:      wal.LSN(c.u64()),
		EndLSN:         wal.LSN(c.u64()),
		CommitTime:     c.time(),
		SystemID:       c.string(),
		Slot:           c.string(),
		Publication:    c.string(),
		PublicationOID: c.u32(),
	}
	p.Generation = p.Timeline
	if c.more() {
		p.Generation = c.u32()
	}
	if err := c.done(); err != nil {
		return Position{}, fmt.Errorf("position: %w", err)
	}
	return p, nil
}
