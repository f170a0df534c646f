package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is the file system the store is given. Pebble ends the process, panics or
// keeps a lock for ever when its log or manifest cannot be written, so disk never
// lets it see such an error:
//
//   - A write that finds no space waits until there is some. Nothing is lost or
//     half-written meanwhile, and nothing is reported durable.
//   - Any other failure to write the log, the manifest or a folder freezes the
//     disk: it calls failed once, and from then on changes nothing. What was on
//     the disk at that moment stays, as after a kill, while Pebble is told that
//     all is well. The journal refuses every write from then on and reports none
//     as durable that was not so before, see Journal.fail.
//   - A failure to write a table reaches Pebble, which tries again; it is slowed
//     down, because Pebble does so at once and for ever. Once the journal closes,
//     it freezes the disk.
//
// On a frozen disk flushes go to memory, so that no write under way waits for
// one for ever. Compactions wait until release and go to memory then: Pebble would try
// a failed one again at once and for ever, and a write may be waiting for it.
//
// Before arm is called errors pass through: Open reports them by itself. Compactions
// fail then when what they found damaged has frozen the disk, since Open waits for
// them.
type disk struct {
	vfs.FS
	failed  func(error)
	noSpace func(path string, since time.Duration) // a write is waiting
	quit    chan struct{}                          // closed by release
	once    sync.Once
	shadow  *vfs.MemFS    // the tables of a frozen disk
	retry   time.Duration // after a table could not be written

	armed   atomic.Bool
	frozen  atomic.Bool
	waiting atomic.Int32 // writes that wait for space
}

const (
	spaceRetry  = 200 * time.Millisecond
	tableRetry  = time.Second
	spaceReport = 30 * time.Second
)

func newDisk(fs vfs.FS, failed func(error), noSpace func(string, time.Duration)) *disk {
	return &disk{FS: fs, failed: failed, noSpace: noSpace, quit: make(chan struct{}), shadow: vfs.NewMem(), retry: tableRetry}
}

func (d *disk) arm() { d.armed.Store(true) }

// release ends every wait. A write that fails from now on, or was waiting for space,
// freezes the disk.
func (d *disk) release() { d.once.Do(func() { close(d.quit) }) }

// full reports whether a write is waiting for space.
func (d *disk) full() bool { return d.waiting.Load() > 0 }

// freeze is called with the first error that Pebble must not see, and returns
// whether it was hidden.
func (d *disk) freeze(op, path string, err error) bool {
	if !d.armed.Load() {
		return false
	}
	if d.frozen.CompareAndSwap(false, true) {
		d.failed(fmt.Errorf("%s %s: %w", op, path, err))
	}
	return true
}

// pause waits for d, and reports false when release ended it.
func (d *disk) pause(t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-d.quit:
		return false
	}
}

// untilSpace calls f again and again while it fails for want of space.
func (d *disk) untilSpace(path string, f func() error) error {
	err := f()
	if err == nil || !isNoSpace(err) || !d.armed.Load() {
		return err
	}
	d.waiting.Add(1)
	defer d.waiting.Add(-1)
	start := time.Now()
	for reported := time.Duration(0); err != nil && isNoSpace(err); err = f() {
		if t := time.Since(start); reported == 0 || t-reported >= spaceReport {
			reported = max(t, 1)
			d.noSpace(path, t)
		}
		if !d.pause(spaceRetry) {
			break
		}
	}
	return err
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// isTable tells the files whose loss Pebble survives from those it does not.
func isTable(path string) bool {
	return strings.HasSuffix(path, ".sst") || strings.HasSuffix(path, ".blob")
}

// tableError slows down the error of a table's file. After release it freezes the
// disk, or Pebble would try again for ever and closing it would wait for that.
func (d *disk) tableError(op, path string, err error) error {
	if d.armed.Load() && !d.frozen.Load() && !d.pause(d.retry) {
		d.freeze(op, path, err)
	}
	return err
}

var errFrozen = errors.New("the journal is stopped")

// isFlush tells a flush from a compaction by what Pebble calls its writes.
func isFlush(c vfs.DiskWriteCategory) bool { return strings.Contains(string(c), "flush") }

// unreal makes a file on a frozen disk.
func (d *disk) unreal(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	switch {
	case !isTable(name):
		return d.wrap(name, vfs.NewMemFile(nil)), nil
	case isFlush(c):
	case d.armed.Load():
		<-d.quit
	default:
		return nil, errFrozen // Open waits for compactions, and begins no others while it does
	}
	if err := d.shadow.MkdirAll(d.shadow.PathDir(name), 0o700); err != nil {
		return nil, err
	}
	return d.shadow.Create(name, c)
}

func (d *disk) create(op, name string, c vfs.DiskWriteCategory, f func() (vfs.File, error)) (vfs.File, error) {
	if d.frozen.Load() {
		return d.unreal(name, c)
	}
	var file vfs.File
	err := d.untilSpace(name, func() (err error) {
		file, err = f()
		return err
	})
	switch {
	case err == nil:
		return d.wrap(name, file), nil
	case isTable(name):
		return nil, d.tableError(op, name, err)
	case d.freeze(op, name, err):
		return d.unreal(name, c)
	}
	return nil, err
}

// change is for what alters a folder.
func (d *disk) change(op, name string, f func() error) error {
	if d.frozen.Load() {
		return nil
	}
	err := d.untilSpace(name, f)
	switch {
	case err == nil:
		return nil
	case isTable(name):
		return d.tableError(op, name, err)
	case d.freeze(op, name, err):
		return nil
	}
	return err
}

func (d *disk) wrap(name string, f vfs.File) vfs.File {
	return &diskFile{File: f, disk: d, name: name, table: isTable(name)}
}

func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.create("create", name, c, func() (vfs.File, error) { return d.FS.Create(name, c) })
}

func (d *disk) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.create("reuse", newname, c, func() (vfs.File, error) { return d.FS.ReuseForWrite(oldname, newname, c) })
}

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return d.create("open", name, c, func() (vfs.File, error) { return d.FS.OpenReadWrite(name, c, opts...) })
}

func (d *disk) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if d.frozen.Load() && isTable(name) {
		if f, err := d.shadow.Open(name, opts...); err == nil {
			return f, nil
		}
	}
	return d.FS.Open(name, opts...)
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return d.wrap(name, f), nil
}

func (d *disk) Link(oldname, newname string) error {
	return d.change("link", newname, func() error { return d.FS.Link(oldname, newname) })
}

func (d *disk) Rename(oldname, newname string) error {
	return d.change("rename", newname, func() error { return d.FS.Rename(oldname, newname) })
}

func (d *disk) MkdirAll(dir string, perm os.FileMode) error {
	return d.change("make folder", dir, func() error { return d.FS.MkdirAll(dir, perm) })
}

// Remove and RemoveAll pass errors on: Pebble bears them, and a file too many
// does no harm.
func (d *disk) Remove(name string) error {
	if d.frozen.Load() {
		return nil
	}
	return d.FS.Remove(name)
}

func (d *disk) RemoveAll(name string) error {
	if d.frozen.Load() {
		return nil
	}
	return d.FS.RemoveAll(name)
}

func (d *disk) Unwrap() vfs.FS { return d.FS }

type diskFile struct {
	vfs.File
	disk  *disk
	name  string
	table bool
}

// write runs one change of the file's content and settles its error.
func (f *diskFile) write(op string, change func() error) error {
	if !f.table && f.disk.frozen.Load() {
		return nil
	}
	err := change()
	switch {
	case err == nil:
		return nil
	case f.table:
		return f.disk.tableError(op, f.name, err)
	case f.disk.freeze(op, f.name, err):
		return nil
	}
	return err
}

func (f *diskFile) Write(p []byte) (int, error) {
	n := 0
	err := f.write("write", func() error {
		return f.disk.untilSpace(f.name, func() error {
			m, err := f.File.Write(p[n:])
			n += max(m, 0)
			if err == nil && n < len(p) {
				err = io.ErrShortWrite
			}
			return err
		})
	})
	if err == nil {
		n = len(p)
	}
	return n, err
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	n := 0
	err := f.write("write", func() error {
		return f.disk.untilSpace(f.name, func() error {
			m, err := f.File.WriteAt(p[n:], off+int64(n))
			n += max(m, 0)
			return err
		})
	})
	if err == nil {
		n = len(p)
	}
	return n, err
}

// Preallocate only makes writes faster, so its failure is nobody's business.
func (f *diskFile) Preallocate(offset, length int64) error {
	if !f.disk.frozen.Load() {
		_ = f.File.Preallocate(offset, length)
	}
	return nil
}

// A sync that failed is never tried again: the kernel may have dropped the pages.
func (f *diskFile) Sync() error     { return f.write("sync", f.File.Sync) }
func (f *diskFile) SyncData() error { return f.write("sync", f.File.SyncData) }

func (f *diskFile) SyncTo(length int64) (full bool, err error) {
	err = f.write("sync", func() (err error) {
		full, err = f.File.SyncTo(length)
		return err
	})
	return full, err
}

func (f *diskFile) Close() error {
	err := f.File.Close()
	if err != nil && !f.table && (f.disk.frozen.Load() || f.disk.freeze("close", f.name, err)) {
		return nil
	}
	return err
}

// space tells whether there is room to write, asking the system no more often
// than is needed. Its methods are called under Journal.mu.
type space struct {
	disk    *disk
	path    string
	now     func() time.Time
	free    uint64
	asked   time.Time
	written uint64 // since asked
}

const (
	spaceAge   = 250 * time.Millisecond
	spaceBytes = 4 << 20
)

// check returns an error that wraps ErrDiskFull when less than reserve bytes are
// free. n is how much the caller is about to write.
func (s *space) check(n int, reserve uint64) error {
	if s.disk.full() {
		return fmt.Errorf("%w: a write to %s is waiting for space", ErrDiskFull, s.path)
	}
	s.written += uint64(n)
	if now := s.now(); s.asked.IsZero() || s.written > spaceBytes || now.Sub(s.asked) > spaceAge || now.Before(s.asked) || s.free < reserve {
		free, ok := s.disk.free(s.path)
		if !ok {
			return nil
		}
		s.free, s.asked, s.written = free, now, uint64(n)
	}
	if s.free < reserve+uint64(n) {
		return fmt.Errorf("%w: %s has %d MiB free, %d MiB are kept in reserve", ErrDiskFull, s.path, s.free>>20, reserve>>20)
	}
	return nil
}

// free returns the bytes that may still be written, false if that cannot be known.
func (d *disk) free(path string) (uint64, bool) {
	u, err := d.GetDiskUsage(path)
	if err != nil {
		return 0, false
	}
	return u.AvailBytes, true
}

// storeLog gives Pebble's log lines to slog. Its Fatalf stops the journal and
// returns: every place in Pebble that calls it after a failed write goes on to
// return an error or has been told by disk that nothing happened.
type storeLog struct{ j *Journal }

func (l storeLog) Infof(string, ...any) {} // every flush and compaction

func (l storeLog) Errorf(format string, args ...any) {
	l.j.log.Error("journal store", "err", fmt.Sprintf(format, args...))
}

func (l storeLog) Fatalf(format string, args ...any) {
	l.j.fail(fmt.Errorf(format, args...))
}

func (l storeLog) Eventf(context.Context, string, ...any) {}

func (l storeLog) IsTracingEnabled(context.Context) bool { return false }
