// Package exchange holds what the handler kinds share about the two directions
// of an attempt: capturing output up to a limit (Buffer), keeping secrets out of
// what people see (Mask), judging a numeric outcome by the operator's classes
// (Classes), and reading the JSON answer of a receiver (ParseAnswer).
//
// It promises that everything it returns for people is bounded, that its text is
// valid UTF-8 on one line, and that no secret that Mask was told appears in it.
// It does no I/O and does not decide whether an attempt is repeated.
package exchange

import (
	"bytes"
	"strconv"
)

// Buffer captures a stream: it keeps the first quarter of its limit and the last
// three quarters, where the error usually is, and counts what fell between. It is
// an io.Writer that never fails and never keeps more than its limit.
type Buffer struct {
	limit int
	head  []byte
	tail  []byte // a ring once it is full
	next  int    // where the ring's oldest byte is
	total int64
}

// NewBuffer returns a Buffer that keeps up to limit bytes.
func NewBuffer(limit int) *Buffer { return &Buffer{limit: max(limit, 0)} }

// Write captures p.
func (b *Buffer) Write(p []byte) (int, error) {
	n := len(p)
	b.total += int64(n)
	if room := b.limit/4 - len(b.head); room > 0 {
		k := min(room, len(p))
		b.head = append(b.head, p[:k]...)
		p = p[k:]
	}
	size := b.limit - b.limit/4
	if len(p) > size {
		p = p[len(p)-size:]
	}
	if room := size - len(b.tail); room > 0 {
		k := min(room, len(p))
		b.tail = append(b.tail, p[:k]...)
		p = p[k:]
	}
	for len(p) > 0 {
		k := copy(b.tail[b.next:], p)
		b.next = (b.next + k) % size
		p = p[k:]
	}
	return n, nil
}

// Dropped returns how many bytes fell between head and tail.
func (b *Buffer) Dropped() int64 { return b.total - int64(len(b.head)) - int64(len(b.tail)) }

// Bytes returns what was captured with secrets masked. Where bytes were dropped
// it has the line "[... 123 bytes dropped ...]", which comes on top of the limit.
func (b *Buffer) Bytes(m *Mask) []byte {
	if b.Dropped() == 0 {
		if len(b.tail) == 0 {
			return m.Bytes(b.head)
		}
		return m.Bytes(append(b.head[:len(b.head):len(b.head)], b.tail...))
	}
	out := append([]byte(nil), m.head(b.head)...)
	out = append(out, "\n[... "...)
	out = strconv.AppendInt(out, b.Dropped(), 10)
	out = append(out, " bytes dropped ...]\n"...)
	return append(out, m.tail(b.ordered())...)
}

// LastLine returns the last line that is not blank, without its line end and not
// masked; nil if there is none, or if its beginning was dropped.
func (b *Buffer) LastLine() []byte {
	all := b.ordered()
	cut := b.Dropped() > 0
	if !cut {
		all = append(b.head[:len(b.head):len(b.head)], all...)
	}
	all = bytes.TrimRight(all, " \t\r\n")
	i := bytes.LastIndexByte(all, '\n')
	if len(all) == 0 || i < 0 && cut {
		return nil
	}
	return all[i+1:]
}

// ordered returns the tail with its oldest byte first.
func (b *Buffer) ordered() []byte {
	if b.next == 0 {
		return b.tail
	}
	out := make([]byte, 0, len(b.tail))
	out = append(out, b.tail[b.next:]...)
	return append(out, b.tail[:b.next]...)
}
