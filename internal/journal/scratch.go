package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Scratch is a file in the journal's folder for what the process alone needs and a
// restart does not: it has no name, so that it goes with the process, and is never
// synced. Entries are appended, and read again by their place:
//
//	file    entry entry entry ... | buffer  entry entry
//	entry   length(8, big-endian) bytes
//	place   offset << sizeBits | (8 + length) / sizeUnit, rounded up
//
// so that an entry is one read. A size that has no room in a place is read in two.
//
// It has one user at a time, who ends it with Reset before the journal is closed.
type Scratch struct {
	j      *Journal
	file   vfs.File // nil: all is in buffer
	size   int64    // of the file
	buffer []byte
	read   []byte
}

const (
	scratchFile   = "scratch"
	scratchBuffer = 256 << 10

	entryHeader = 8
	sizeBits    = 16
	sizeUnit    = 64
	maxUnits    = 1<<sizeBits - 1
)

// NewScratch makes a Scratch. The file is made when it is needed.
func (j *Journal) NewScratch() *Scratch { return &Scratch{j: j} }

// Append keeps a copy of an entry and returns its place, which is never negative. When
// there is no room it fails with ErrDiskFull and may be called again.
func (s *Scratch) Append(entry []byte) (place int64, err error) {
	if len(s.buffer) >= scratchBuffer {
		if err := s.flush(); err != nil {
			return 0, err
		}
	}
	units := min((int64(entryHeader+len(entry))+sizeUnit-1)/sizeUnit, maxUnits)
	place = (s.size+int64(len(s.buffer)))<<sizeBits | units
	s.buffer = binary.BigEndian.AppendUint64(s.buffer, uint64(len(entry)))
	s.buffer = append(s.buffer, entry...)
	return place, nil
}

func (s *Scratch) flush() error {
	j := s.j
	j.mu.Lock()
	err := j.room(len(s.buffer), j.o.MinFree)
	j.mu.Unlock()
	if err != nil {
		return err
	}
	if s.file == nil {
		path := j.o.FS.PathJoin(j.o.Path, scratchFile)
		f, err := j.o.FS.OpenReadWrite(path, "unspecified")
		if err != nil {
			return s.failed("make", err)
		}
		if err := j.o.FS.Remove(path); err != nil {
			return errors.Join(s.failed("take the name of", err), f.Close())
		}
		s.file = f
	}
	if _, err := s.file.WriteAt(s.buffer, s.size); err != nil {
		return s.failed("write", err)
	}
	s.size += int64(len(s.buffer))
	if s.buffer = s.buffer[:0]; cap(s.buffer) > 4*scratchBuffer {
		s.buffer = nil // there was one very large entry
	}
	return nil
}

func (s *Scratch) failed(what string, err error) error {
	if isNoSpace(err) {
		err = fmt.Errorf("%w: %w", ErrDiskFull, err)
	}
	return fmt.Errorf("%s the scratch file in %s: %w", what, s.j.o.Path, err)
}

// Read returns the entry at a place. It is valid until the next call of any method.
func (s *Scratch) Read(place int64) ([]byte, error) {
	offset, size := place>>sizeBits, (place&maxUnits)*sizeUnit
	if offset >= s.size {
		b := s.buffer[offset-s.size:]
		return b[entryHeader:][:binary.BigEndian.Uint64(b)], nil
	}
	size = min(size, s.size-offset)
	s.read = slices.Grow(s.read[:0], int(size))[:size]
	if err := s.readAt(s.read, offset); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint64(s.read)
	if n > uint64(s.size-offset-entryHeader) {
		return nil, s.failed("read", errShort)
	}
	if end := int64(n) + entryHeader; end > size {
		s.read = slices.Grow(s.read, int(end-size))[:end]
		if err := s.readAt(s.read[size:], offset+size); err != nil {
			return nil, err
		}
	}
	return s.read[entryHeader:][:n], nil
}

func (s *Scratch) readAt(b []byte, offset int64) error {
	if n, err := s.file.ReadAt(b, offset); err != nil && !(errors.Is(err, io.EOF) && n == len(b)) {
		return s.failed("read", err)
	}
	return nil
}

// Reset forgets all entries and gives the disk its room back.
func (s *Scratch) Reset() {
	if s.file != nil {
		_ = s.file.Close() // nobody reads it again
	}
	*s = Scratch{j: s.j, buffer: s.buffer[:0], read: s.read[:0]}
	if cap(s.read) > 4*scratchBuffer {
		s.read = nil
	}
	if cap(s.buffer) > 4*scratchBuffer {
		s.buffer = nil
	}
}
