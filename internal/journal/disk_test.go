package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// traffic commits transactions and records attempts until something fails, and
// returns the last transaction that was acknowledged and the failure.
func traffic(j *Journal, first, n int) (acked int, err error) {
	for i := first; i < first+n; i++ {
		b := j.NewBatch()
		for o := range 10 {
			e := sample(at(i, o+1), "clients.update", fmt.Sprint(o))
			e.Data = make([]byte, 3000)
			if err := b.AddEvent(e, []Planned{{Handler: 1}}); err != nil {
				return acked, err
			}
		}
		b.SetMemory([]byte("last"), fmt.Append(nil, i))
		b.SetPosition(position(i))
		wait, err := j.Commit(b)
		if err != nil {
			return acked, err
		}
		if err := wait(); err != nil {
			return acked, err
		}
		acked = i
		id := uint64(i)
		if _, err := j.Record(context.Background(), Outcome{Execution: id, Attempt: &Attempt{Number: 1, OK: true}, Status: Succeeded}); err != nil {
			return acked, err
		}
	}
	return acked, nil
}

// TestDiskError fails each write, sync, create, rename and so on in turn. The
// process lives, the journal says that it stopped or goes on, and what it
// acknowledged is there when it is opened again.
func TestDiskError(t *testing.T) {
	const transactions = 25
	run := func(k int64) (ops int64) {
		fs := vfs.NewCrashableMem()
		var n atomic.Int64
		var on atomic.Bool
		failing := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if !on.Load() || op.Kind.ReadOrWrite() == errorfs.OpIsRead || op.Kind == errorfs.OpFileClose {
				return nil
			}
			if n.Add(1) == k {
				return syscall.EIO
			}
			return nil
		}))
		j, err := Open(Options{mergeAt: 1, Path: "j", FS: failing, memTable: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		on.Store(true)
		j.disk.retry = time.Millisecond
		acked, err := traffic(j, 1, transactions)
		switch {
		case err == nil && acked == transactions:
		case errors.Is(err, ErrStopped) && errors.Is(err, syscall.EIO):
			// Stopped for good, and for everyone, while reading goes on.
			select {
			case <-j.Stopped():
			default:
				t.Fatalf("operation %d: not stopped", k)
			}
			for range 3 {
				if _, err := traffic(j, 1000, 1); !errors.Is(err, ErrStopped) {
					t.Fatalf("operation %d: a write after the stop: %v", k, err)
				}
			}
			if _, err := j.Execution(1); err != nil && !errors.Is(err, ErrNotFound) {
				t.Fatalf("operation %d: %v", k, err)
			}
		default:
			t.Fatalf("operation %d: %v", k, err)
		}
		if err := j.Close(); err != nil && !errors.Is(err, ErrStopped) {
			t.Fatalf("operation %d: close: %v", k, err)
		}
		// As it is, and as it were had the power gone as well.
		for _, fs := range []vfs.FS{fs.CrashClone(vfs.CrashCloneCfg{}), fs} {
			j, err := Open(Options{mergeAt: 1, Path: "j", FS: fs})
			if err != nil {
				t.Fatalf("operation %d: open: %v", k, err)
			}
			if n := intact(t, j, acked); n > acked+1 {
				t.Fatalf("operation %d: %d transactions, %d were acknowledged", k, n, acked)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
		}
		return n.Load()
	}
	ops := run(-1)
	step := max(1, ops/25)
	if testing.Short() {
		step = max(1, ops/8)
	}
	t.Logf("%d operations", ops)
	for k := int64(1); k <= ops; k += step {
		run(k)
	}
}

// limited is a disk with a quota for what is written, and a say on free space.
type limited struct {
	vfs.FS
	free atomic.Int64
}

func (l *limited) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: uint64(max(0, l.free.Load()))}, nil
}

func (l *limited) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.Create(name, c)
	return &limitedFile{f, l}, err
}

func (l *limited) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.ReuseForWrite(oldname, newname, c)
	return &limitedFile{f, l}, err
}

type limitedFile struct {
	vfs.File
	l *limited
}

func (f *limitedFile) Write(p []byte) (int, error) {
	free := f.l.free.Add(-int64(len(p)))
	if free >= 0 {
		return f.File.Write(p)
	}
	// As a real disk does, write what fits.
	f.l.free.Add(int64(len(p)))
	fits := max(0, int(f.l.free.Load())/2)
	n, err := f.File.Write(p[:fits])
	f.l.free.Add(-int64(n))
	return n, errors.Join(err, &os.PathError{Op: "write", Path: "j", Err: syscall.ENOSPC})
}

// Below the reserve intake is refused and attempts are still recorded; below a
// quarter of it nothing is written; with space again all goes on by itself.
func TestDiskReserve(t *testing.T) {
	fs := &limited{FS: vfs.NewMem()}
	fs.free.Store(1 << 40)
	j := open(t, func(o *Options) { o.FS, o.MinFree = fs, 100<<20 })
	if _, err := traffic(j, 1, 1); err != nil {
		t.Fatal(err)
	}
	fs.free.Store(60 << 20)
	j.space.asked = time.Time{}
	b := j.NewBatch()
	if err := b.AddEvent(sample(at(2, 1), "clients.update", "1"), []Planned{{Handler: 1}}); err != nil {
		t.Fatal(err)
	}
	b.SetPosition(position(2))
	if _, err := j.Commit(b); !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), "60 MiB free, 100 MiB are kept") {
		t.Fatalf("commit below the reserve: %v", err)
	}
	if _, err := j.CommitPiece(b); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("piece below the reserve: %v", err)
	}
	record(t, j, Outcome{Execution: 2, Attempt: &Attempt{Number: 1}, Status: Dead})
	fs.free.Store(20 << 20)
	j.space.asked = time.Time{}
	if _, err := j.Record(context.Background(), Outcome{Execution: 3, Attempt: &Attempt{Number: 1}, Status: Dead}); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("attempt below a quarter of the reserve: %v", err)
	}
	fs.free.Store(1 << 40)
	record(t, j, Outcome{Execution: 3, Attempt: &Attempt{Number: 1}, Status: Dead})
	commit(t, j, b)
	want(t, "newest", all(t, j, Query{Limit: 1})[0], uint64(11))
	verify(t, j)
}

// A disk that fills up under a write makes it wait, not fail: when there is space
// again, what was under way ends well.
func TestDiskFull(t *testing.T) {
	fs := &limited{FS: vfs.NewMem()}
	fs.free.Store(2 << 20)
	j := open(t, func(o *Options) { o.FS, o.MinFree = fs, 1 })
	type result struct {
		acked int
		err   error
	}
	done := make(chan result, 1)
	go func() {
		acked, err := traffic(j, 1, 200)
		done <- result{acked, err}
	}()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !j.disk.full() {
		select {
		case <-tick.C:
		case r := <-done:
			if !errors.Is(r.err, ErrDiskFull) {
				t.Fatalf("ended after %d with %v before the disk was full", r.acked, r.err)
			}
			done <- r // it was refused while another write waits
		case <-deadline:
			t.Fatal("the disk never filled")
		}
	}
	b := j.NewBatch()
	if err := b.AddEvent(sample(at(999, 1), "clients.update", "1"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Commit(b); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("commit while another waits: %v", err)
	}
	b.Discard()
	fs.free.Store(1 << 40)
	r := <-done
	for errors.Is(r.err, ErrDiskFull) { // until the write that waits has found the space
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(r.err)
		}
		if acked, err := traffic(j, r.acked+1, 200-r.acked); acked > 0 {
			r = result{acked, err}
		} else {
			r.err = err
		}
	}
	if r.err != nil {
		t.Fatal(r.err)
	}
	if err := j.Err(); err != nil {
		t.Fatal(err)
	}
	verify(t, j)
}

// Close does not wait for space. What was not acknowledged is lost, the rest not.
func TestCloseOnFullDisk(t *testing.T) {
	fs := &limited{FS: vfs.NewMem()}
	fs.free.Store(1 << 20)
	j, err := Open(Options{mergeAt: 1, Path: "j", FS: fs, MinFree: 1, memTable: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	acked := make(chan int)
	go func() {
		n, _ := traffic(j, 1, 10_000)
		acked <- n
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !j.disk.full() {
		<-tick.C
	}
	if err := j.Close(); err != nil && !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
	n := <-acked
	fs.free.Store(1 << 40)
	j, err = Open(Options{mergeAt: 1, Path: "j", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	intact(t, j, n)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// Close ends also when no table can be written, though memtables wait for it that
// leave no room for another.
func TestCloseWithoutTables(t *testing.T) {
	for _, failure := range []error{syscall.ENOSPC, syscall.EIO} {
		fs := vfs.NewMem()
		var on, refused atomic.Bool
		failing := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if !on.Load() || !isTable(op.Path) || op.Kind != errorfs.OpFileWrite {
				return nil
			}
			refused.Store(true)
			return failure
		}))
		j, err := Open(Options{mergeAt: 1, Path: "j", FS: failing, MinFree: 1, memTable: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		on.Store(true)
		acked := make(chan int)
		go func() {
			n, _ := traffic(j, 1, 10_000)
			acked <- n
		}()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for !refused.Load() {
			<-tick.C
		}
		if err := j.Close(); err != nil && !errors.Is(err, ErrStopped) {
			t.Fatal(err)
		}
		n := <-acked
		if j, err = Open(Options{mergeAt: 1, Path: "j", FS: fs}); err != nil {
			t.Fatal(err)
		}
		intact(t, j, n)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFrozenWhileOpening: Open waits for compactions, so one that meets a frozen disk
// before the journal is open must fail; later it waits, and goes to memory when the
// journal closes.
func TestFrozenWhileOpening(t *testing.T) {
	d := newDisk(vfs.NewMem(), func(error) {}, func(string, time.Duration) {})
	d.frozen.Store(true)
	if _, err := d.Create("000007.sst", "pebble-compaction"); !errors.Is(err, errFrozen) {
		t.Errorf("while opening: %v", err)
	}
	d.arm()
	waited := make(chan error, 1)
	go func() {
		_, err := d.Create("000008.sst", "pebble-compaction")
		waited <- err
	}()
	select {
	case err := <-waited:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	d.release()
	if err := <-waited; err != nil {
		t.Errorf("after release: %v", err)
	}
	if _, err := d.FS.Stat("000008.sst"); err == nil {
		t.Error("a table was made on the frozen disk")
	}
}
