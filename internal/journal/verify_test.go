package journal

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestVerifyFinds breaks the store behind the journal's back, one thing at a time.
func TestVerifyFinds(t *testing.T) {
	for _, c := range []struct {
		name, want string
		harm       func(b *pebble.Batch) error
	}{
		{"no event", "event 1-0/C8-1 is missing", func(b *pebble.Batch) error {
			return b.Delete(appendEventKey(nil, 1, at(2, 1)), nil)
		}},
		{"no row", "execution 3 follows 1", func(b *pebble.Batch) error {
			return b.Delete(appendRowKey(nil, 1, 2), nil)
		}},
		{"no lane", "lanes hold 2 pending executions, 3 are expected", func(b *pebble.Batch) error {
			return b.Delete(appendID(appendLanePrefix(nil, "2"), 2), nil)
		}},
		{"another lane", "lanes hold 3 pending executions, 3 are expected, or other ones", func(b *pebble.Batch) error {
			if err := b.Delete(appendID(appendLanePrefix(nil, "2"), 2), nil); err != nil {
				return err
			}
			return b.Set(appendID(appendLanePrefix(nil, "3"), 2), nil, nil)
		}},
		{"a posting too many", "posting lists name 17 executions, 16 are expected", func(b *pebble.Batch) error {
			return b.Set(appendID(appendTextList(nil, 1, postingType, "x"), 2), nil, nil)
		}},
		{"an attempt too many", "execution 2: 1 attempts are stored, it had 0", func(b *pebble.Batch) error {
			return b.Set(appendAttemptKey(nil, 1, 2, 1), appendAttempt(nil, &Attempt{}), nil)
		}},
		{"an attempt of nobody", "execution 9: attempt 1 is out of place", func(b *pebble.Batch) error {
			return b.Set(appendAttemptKey(nil, 1, 9, 1), appendAttempt(nil, &Attempt{}), nil)
		}},
		{"no attempt", "execution 1: 0 attempts are stored, it had 1", func(b *pebble.Batch) error {
			return b.Delete(appendAttemptKey(nil, 1, 1, 1), nil)
		}},
		{"a position below", "event 1-0/190-1 is above the position 0/64", func(b *pebble.Batch) error {
			p := position(1)
			return b.Set(keyPosition, appendPosition(nil, &p), nil)
		}},
		{"a row of another layout", "execution 2: value has layout 9, want 1", func(b *pebble.Batch) error {
			return b.Set(appendRowKey(nil, 1, 2), []byte{9, 9}, nil)
		}},
		{"a strange key", "key 7a belongs to nothing", func(b *pebble.Batch) error {
			return b.Set([]byte("z"), nil, nil)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := open(t, nil)
			for n := range 4 {
				transaction(t, j, n+1, "clients.update", []string{[]string{"1", "2", "3", "4"}[n]}, 1)
			}
			record(t, j, Outcome{Execution: 1, Attempt: &Attempt{Number: 1, OK: true}, Status: Succeeded})
			verify(t, j)
			b := j.db.NewBatch()
			if err := c.harm(b); err != nil {
				t.Fatal(err)
			}
			if err := j.db.Apply(b, pebble.Sync); err != nil {
				t.Fatal(err)
			}
			err := j.Verify(t.Context(), nil)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v\nwant %s", err, c.want)
			}
		})
	}
}

// files reads a folder and all below it.
func files(t testing.TB, fs vfs.FS, path string) map[string]string {
	t.Helper()
	all := map[string]string{}
	names, err := fs.List(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		name = fs.PathJoin(path, name)
		info, err := fs.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			maps.Copy(all, files(t, fs, name))
			continue
		}
		f, err := fs.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		all[name] = info.ModTime().String() + string(b)
	}
	return all
}

// lookOnly opens a journal that was cut off for reading only: it holds together, also
// where a transaction is half in place, and nothing in the folder changes by that.
func lookOnly(t testing.TB, fs vfs.FS) {
	t.Helper()
	before := files(t, fs, "j")
	j, err := Open(Options{mergeAt: 2000, Path: "j", FS: fs, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	verify(t, j)
	if _, err := j.Requeue(t.Context(), []uint64{1}); err == nil || !strings.Contains(err.Error(), "reading only") {
		t.Errorf("a write while it is open for reading only: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	after := files(t, fs, "j")
	for name := range before {
		if before[name] != after[name] {
			t.Errorf("%s has changed", name)
		}
		delete(after, name)
	}
	for name := range after {
		t.Errorf("%s is new", name)
	}
}

// A transaction that is half in place, at each of its commits, is no damage.
func TestLookOnly(t *testing.T) {
	fs := vfs.NewCrashableMem()
	j := open(t, func(o *Options) { o.FS = fs })
	transaction(t, j, 1, "clients.update", []string{"1"}, 1)
	now := func() *vfs.MemFS { return fs.CrashClone(vfs.CrashCloneCfg{}) }
	b := large(t, j, 3, 60)
	b.SetPosition(position(3))
	lookOnly(t, now())
	a, err := j.commitPiece(b, b.whole(), b.position)
	if err == nil {
		err = a.wait()
	}
	if err != nil {
		t.Fatal(err)
	}
	merging := 0
	if err := j.merge(func(e *edit, _ time.Time, _ bool) error {
		if err := e.wait(); err != nil {
			return err
		}
		merging++
		lookOnly(t, now())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if merging < 3 {
		t.Fatalf("only %d commits", merging)
	}
}

func TestVerifyProgress(t *testing.T) {
	j := open(t, nil)
	var names []string
	for i := range 3000 {
		names = append(names, strconv.Itoa(i))
	}
	transaction(t, j, 1, "clients.update", names, 1)
	last, calls := int64(0), 0
	if err := j.Verify(t.Context(), func(keys int64) {
		if keys <= last {
			t.Errorf("%d after %d", keys, last)
		}
		last = keys
		calls++
	}); err != nil || calls < 3 {
		t.Fatalf("%d calls, %v", calls, err)
	}
}

// What cannot be looked into is told, and nothing is made of it.
func TestLookRefused(t *testing.T) {
	dir := t.TempDir()
	ours := filepath.Join(dir, "ours")
	j, err := Open(Options{Path: ours})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, want string
		is         error
	}{
		{filepath.Join(dir, "none"), "there is no journal in", nil},
		{empty, "there is no journal in", nil},
		{ours, fmt.Sprintf("is in use by process %d; stop it first", os.Getpid()), ErrInUse},
	} {
		k, err := Open(Options{Path: c.path, ReadOnly: true})
		if err == nil {
			_ = k.Close()
			t.Errorf("%s: opened", c.path)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v", c.path, err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 2 {
		t.Fatalf("%v %v", names, err)
	}
	if names, err := os.ReadDir(empty); err != nil || len(names) != 0 {
		t.Fatalf("%v %v", names, err)
	}
}
