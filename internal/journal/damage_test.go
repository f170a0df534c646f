package journal

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// copyFS copies a folder of one file system to another in memory.
func copyFS(t *testing.T, from vfs.FS, path string) *vfs.MemFS {
	t.Helper()
	to := vfs.NewMem()
	if _, err := vfs.Clone(from, to, path, path); err != nil {
		t.Fatal(err)
	}
	return to
}

func readFile(t *testing.T, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, "unspecified")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

var damageFlips = flag.Int("flips", 2, "bits to flip in each file of a journal")

// TestFlippedBytes flips one bit at a time, in every file of a journal that was
// closed and of one that was killed. Whatever it hits, the journal says so or
// holds all there was. The one exception is the very end of the log after a kill,
// which cannot be told from a write that was torn: there it may hold the last
// commits less, and whole ones.
func TestFlippedBytes(t *testing.T) {
	closed := vfs.NewCrashableMem()
	j := open(t, func(o *Options) { o.FS = closed })
	if _, err := traffic(j, 1, 40); err != nil {
		t.Fatal(err)
	}
	if err := j.db.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := traffic(j, 41, 40); err != nil {
		t.Fatal(err)
	}
	killed := closed.CrashClone(vfs.CrashCloneCfg{})
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	flipBytes(t, closed, false)
	flipBytes(t, killed, true)
}

// promised returns how much of a log, in bytes, its own blocks after the one that
// holds byte i say is durable: each chunk names the offset that was synced when it
// was written. Damage before that offset is found; damage after it looks like a
// write that was torn. How far the last promise trails the end of the log depends
// on how the writer's flushes fell, thus the test reads it from the log.
func promised(log []byte, i int) (synced int) {
	const block, header = 32 << 10, 19
	for at := (i/block + 1) * block; at < len(log); at += block {
		for b := log[at:min(at+block, len(log))]; len(b) >= header; {
			n := int(binary.LittleEndian.Uint16(b[4:]))
			if b[6] == 0 || header+n > len(b) {
				break
			}
			synced = max(synced, int(binary.LittleEndian.Uint64(b[11:])))
			b = b[header+n:]
		}
	}
	return synced
}

func flipBytes(t *testing.T, base *vfs.MemFS, wasKilled bool) {
	t.Helper()
	names, err := base.List("j/store")
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"j/JOURNAL"}
	for _, n := range names {
		if name := "j/store/" + n; len(readFile(t, base, name)) > 0 {
			files = append(files, name)
		}
	}
	r := rand.New(rand.NewPCG(9, 9))
	flips := *damageFlips
	for _, name := range files {
		said := map[string]int{}
		isLog := strings.HasSuffix(name, ".log")
		for range flips {
			fs := copyFS(t, base, "j")
			b := readFile(t, fs, name)
			i := r.IntN(len(b))
			mayLose := isLog && wasKilled && promised(b, i) <= i
			b[i] ^= 1 << r.IntN(8)
			writeFile(t, fs, name, b)
			where := fmt.Sprintf("%s, byte %d of %d", name, i, len(b))
			j, err := Open(Options{mergeAt: 2000, Path: "j", FS: fs})
			if err != nil {
				if !strings.Contains(err.Error(), "journal j") {
					t.Fatalf("%s: %v", where, err)
				}
				said["open"]++
				continue
			}
			err = j.Verify(t.Context(), nil)
			p, _ := j.Position()
			lost := 80 - int(p.CommitLSN/100)
			switch {
			case errors.Is(err, ErrDamaged):
				said["verify"]++
			case err != nil:
				t.Fatalf("%s: %v", where, err)
			case lost > 0 && !mayLose:
				t.Errorf("%s: %d transactions are lost and nobody says why", where, lost)
			default:
				said[fmt.Sprintf("nothing, %d lost", lost)]++
			}
			if err := j.Close(); err != nil && !errors.Is(err, ErrStopped) {
				t.Fatalf("%s: %v", where, err)
			}
		}
		t.Logf("%s: %v", name, said)
	}
}

// TestLostFiles takes one file away at a time.
func TestLostFiles(t *testing.T) {
	base := vfs.NewMem()
	j := open(t, func(o *Options) { o.FS = base })
	if _, err := traffic(j, 1, 40); err != nil {
		t.Fatal(err)
	}
	if err := j.db.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := base.List("j/store")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range append(names, "", "../JOURNAL") {
		fs := copyFS(t, base, "j")
		name := fs.PathJoin("j/store", n)
		if n == "../JOURNAL" {
			name = "j/JOURNAL"
		}
		if err := fs.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
		j, err := Open(Options{mergeAt: 2000, Path: "j", FS: fs})
		if err != nil {
			t.Logf("without %s: %v", name, err)
			if !strings.Contains(err.Error(), "journal j") {
				t.Errorf("without %s: the error does not name the journal", name)
			}
			continue
		}
		if p, _ := j.Position(); p != position(40) {
			t.Errorf("without %s: position is %+v and nobody says why", name, p)
		}
		_ = j.Close()
	}
}

func TestFoldersRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(dir, "full")
	if err := os.MkdirAll(filepath.Join(full, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(dir, "locked")
	if err := os.Mkdir(locked, 0o500); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, "JOURNAL"), []byte("Billhook journal\nformat 3\nstate ready\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ours := filepath.Join(dir, "deep", "down")
	j, err := Open(Options{Path: ours})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for _, c := range []struct {
		path, want string
		is         error
		root       bool // root may do it
	}{
		{"", "no path", nil, false},
		{file, "is a file; set journal.path to a folder", nil, false},
		{full, `is not a journal: it holds "x"; set journal.path to an empty or new folder`, nil, false},
		{filepath.Join(locked, "j"), "may not make the folder; run: sudo install -d -o ", os.ErrPermission, true},
		{locked, "may not lock the folder; run: sudo install -d -o ", os.ErrPermission, true},
		{other, "has format 3, this billhook reads formats 1 to 2; run the billhook that wrote it", ErrFormat, false},
		{ours, fmt.Sprintf("is in use by process %d; stop it first", os.Getpid()), nil, false},
	} {
		if c.root && os.Getuid() == 0 {
			continue
		}
		k, err := Open(Options{Path: c.path})
		if err == nil {
			_ = k.Close()
			t.Errorf("%s: opened", c.path)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s:\n got %v\nwant %s", c.path, err, c.want)
		}
	}
}

// A creation that was cut short begins again.
func TestCutCreation(t *testing.T) {
	for _, with := range []string{"", "store"} {
		fs := vfs.NewMem()
		if err := fs.MkdirAll("j/"+with, 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, fs, "j/JOURNAL", []byte(stamp{formatVersion, stateCreating}.String()))
		open(t, func(o *Options) { o.FS = fs })
	}
}
