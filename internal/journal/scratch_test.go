package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestScratch reads entries of all sizes back by their places, over and over.
func TestScratch(t *testing.T) {
	dir := t.TempDir() + "/j"
	j := open(t, func(o *Options) { o.Path, o.FS = dir, vfs.Default })
	s := j.NewScratch()
	r := rand.New(rand.NewPCG(1, 2))
	sizes := []int{0, 1, sizeUnit - entryHeader, sizeUnit - entryHeader + 1, 300, 20_000, scratchBuffer, 3 * scratchBuffer, maxUnits*sizeUnit + 1, 2 * maxUnits * sizeUnit}
	for round := range 3 {
		var entries [][]byte
		var places []int64
		check := func(i int) {
			t.Helper()
			if got, err := s.Read(places[i]); err != nil || !bytes.Equal(got, entries[i]) {
				t.Fatalf("round %d, entry %d of %d bytes: %d bytes, %v", round, i, len(entries[i]), len(got), err)
			}
		}
		for i := range 600 {
			size := sizes[r.IntN(7)]
			if i < len(sizes) {
				size = sizes[i]
			}
			entry := make([]byte, size)
			for k := range entry {
				entry[k] = byte(r.Uint32())
			}
			place, err := s.Append(entry)
			if err != nil || place < 0 {
				t.Fatal(place, err)
			}
			entries, places = append(entries, bytes.Clone(entry)), append(places, place)
			clear(entry) // it was copied
			check(i)
			check(r.IntN(i + 1))
		}
		for i := range entries {
			check(i)
		}
		if _, err := os.Stat(dir + "/" + scratchFile); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the file has a name: %v", err)
		}
		s.Reset()
		if s.file != nil || cap(s.buffer) > 4*scratchBuffer || cap(s.read) > 4*scratchBuffer {
			t.Errorf("%d and %d bytes are kept", cap(s.buffer), cap(s.read))
		}
	}
}

// TestScratchOnFullDisk: what has no room is refused and may be tried again, nothing
// of it twice.
func TestScratchOnFullDisk(t *testing.T) {
	fs := &limited{FS: vfs.NewMem()}
	fs.free.Store(1 << 40)
	j := open(t, func(o *Options) { o.FS, o.MinFree = fs, 100<<20 })
	s := j.NewScratch()
	entry := bytes.Repeat([]byte("row "), 1000)
	var places []int64
	fs.free.Store(60 << 20)
	j.space.asked = time.Time{}
	for {
		place, err := s.Append(entry)
		if err != nil {
			if !errors.Is(err, ErrDiskFull) {
				t.Fatal(err)
			}
			break
		}
		places = append(places, place)
	}
	if _, err := s.Append(entry); !errors.Is(err, ErrDiskFull) {
		t.Fatal(err)
	}
	fs.free.Store(1 << 40)
	for range 1000 {
		place, err := s.Append(entry)
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, place)
	}
	seen := map[int64]bool{}
	for _, place := range places {
		if got, err := s.Read(place); err != nil || !bytes.Equal(got, entry) || seen[place] {
			t.Fatalf("%d bytes, %v, seen %v", len(got), err, seen[place])
		}
		seen[place] = true
	}
	s.Reset()
}
