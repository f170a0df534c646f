package wal

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a byte position in the write-ahead log of one Postgres timeline.
// The zero value is Postgres' invalid LSN and sorts before every other.
//
// An LSN is never added to or subtracted from to make another LSN: only
// positions that the server itself named may be confirmed.
type LSN uint64

// ParseLSN reads Postgres' text form, "16/B374D848".
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok || hi == "" || lo == "" {
		return 0, fmt.Errorf("parse lsn %q: want two hexadecimal numbers as in 16/B374D848", s)
	}
	h, err := strconv.ParseUint(hi, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("parse lsn %q: want two hexadecimal numbers as in 16/B374D848", s)
	}
	l, err := strconv.ParseUint(lo, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("parse lsn %q: want two hexadecimal numbers as in 16/B374D848", s)
	}
	return LSN(h<<32 | l), nil
}

// String returns Postgres' text form, "16/B374D848".
func (l LSN) String() string { return string(l.AppendText(nil)) }

// AppendText appends Postgres' text form to b.
func (l LSN) AppendText(b []byte) []byte {
	b = appendUpperHex(b, uint32(l>>32))
	b = append(b, '/')
	return appendUpperHex(b, uint32(l))
}

// IsZero reports whether l is Postgres' invalid LSN, 0/0.
func (l LSN) IsZero() bool { return l == 0 }

// Compare returns -1, 0 or 1 as l is before, at or after m.
func (l LSN) Compare(m LSN) int {
	switch {
	case l < m:
		return -1
	case l > m:
		return 1
	}
	return 0
}

func appendUpperHex(b []byte, v uint32) []byte {
	const digits = "0123456789ABCDEF"
	shift := 28
	for shift > 0 && v>>uint(shift) == 0 {
		shift -= 4
	}
	for ; shift >= 0; shift -= 4 {
		b = append(b, digits[v>>uint(shift)&0xF])
	}
	return b
}
