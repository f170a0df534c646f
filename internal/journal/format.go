package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A journal's folder holds:
//
//	JOURNAL   what this folder is: see stamp
//	LOCK      locked while a process has the journal open
//	OWNER     the id of that process, for people
//	store/    the Pebble store
const (
	stampFile = "JOURNAL"
	lockFile  = "LOCK"
	ownerFile = "OWNER"
	storeDir  = "store"
)

// formatVersion is the version of the key layout. A binary opens its own and older ones,
// which it makes its own.
//
//	1
//	2  memory is in two places, m and d
const (
	formatVersion = 2
	oldestVersion = 1
)

// stamp is the content of JOURNAL. It is written in two steps, so that an
// interrupted creation can be told from a store that has gone: "creating" before
// the store is made, "ready" once it is there.
type stamp struct {
	format int
	state  string
}

const (
	stampTitle    = "Billhook journal"
	stateCreating = "creating"
	stateReady    = "ready"
)

func (s stamp) String() string {
	return fmt.Sprintf("%s\nformat %d\nstate %s\n", stampTitle, s.format, s.state)
}

func parseStamp(text string) (stamp, error) {
	var s stamp
	lines := strings.Split(text, "\n")
	if len(lines) < 3 || lines[0] != stampTitle {
		return s, fmt.Errorf("first line is not %q", stampTitle)
	}
	format, ok := strings.CutPrefix(lines[1], "format ")
	if !ok {
		return s, errors.New("second line is not its format")
	}
	var err error
	if s.format, err = strconv.Atoi(format); err != nil {
		return s, fmt.Errorf("format %q is not a number", format)
	}
	if s.state, ok = strings.CutPrefix(lines[2], "state "); !ok || s.format <= formatVersion && s.state != stateCreating && s.state != stateReady {
		return s, errors.New("third line is not its state")
	}
	return s, nil
}

// folder is a journal's folder, locked by this process.
type folder struct {
	fs    vfs.FS
	path  string
	stamp stamp
	lock  io.Closer
}

// lookIntoFolder locks a folder that is there and changes nothing in it.
func lookIntoFolder(fsys vfs.FS, path string) (_ *folder, err error) {
	f := &folder{fs: fsys, path: path}
	text, err := f.read(stampFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no journal in %s: it has no file %s", path, stampFile)
	}
	if err != nil {
		return nil, f.refused("read "+stampFile, err)
	}
	if f.lock, err = fsys.Lock(fsys.PathJoin(path, lockFile)); err != nil {
		return nil, f.locked(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.lock.Close())
		}
	}()
	if err := f.judge(text); err != nil {
		return nil, err
	}
	if f.fresh() {
		return nil, fmt.Errorf("the journal in %s was never made to the end: it is empty, and billhook run makes it anew", path)
	}
	return f, nil
}

// openFolder makes the folder if it is missing, refuses it if it is something
// else, and locks it.
func openFolder(fsys vfs.FS, path string) (_ *folder, err error) {
	f := &folder{fs: fsys, path: path}
	info, err := fsys.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := makeFolder(fsys, path); err != nil {
			return nil, f.refused("make the folder", err)
		}
	case err != nil:
		return nil, f.refused("look at the folder", err)
	case !info.IsDir():
		return nil, fmt.Errorf("journal %s is a file; set journal.path to a folder", path)
	}
	names, err := fsys.List(path)
	if err != nil {
		return nil, f.refused("list the folder", err)
	}
	stamped, foreign := false, ""
	for _, n := range names {
		switch n {
		case stampFile:
			stamped = true
		case lockFile, ownerFile, stampFile + ".new", "lost+found":
		default:
			if foreign == "" || n < foreign {
				foreign = n
			}
		}
	}
	if !stamped && foreign != "" {
		if foreign == storeDir {
			return nil, fmt.Errorf("%w: journal %s has a store but its %s file is missing; restore the whole folder from a backup, or set journal.path to an empty folder", ErrDamaged, path, stampFile)
		}
		return nil, fmt.Errorf("%s is not a journal: it holds %q; set journal.path to an empty or new folder", path, foreign)
	}
	if f.lock, err = fsys.Lock(fsys.PathJoin(path, lockFile)); err != nil {
		return nil, f.locked(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.lock.Close())
		}
	}()
	if !stamped {
		if err := f.write(stamp{formatVersion, stateCreating}); err != nil {
			return nil, f.refused("write the folder", err)
		}
	} else {
		text, err := f.read(stampFile)
		if err != nil {
			return nil, f.refused("read "+stampFile, err)
		}
		if err := f.judge(text); err != nil {
			return nil, err
		}
		if f.stamp.format < formatVersion { // before anything is written that the older one does not know
			if err := f.write(stamp{formatVersion, f.stamp.state}); err != nil {
				return nil, f.refused("write the folder", err)
			}
		}
	}
	if err := f.replace(ownerFile, fmt.Sprintf("%d\n", syscall.Getpid())); err != nil {
		return nil, f.refused("write the folder", err)
	}
	return f, nil
}

// judge reads the stamp and refuses what this binary does not read.
func (f *folder) judge(text string) (err error) {
	if f.stamp, err = parseStamp(text); err != nil {
		return fmt.Errorf("%w: %s in journal %s: %w; restore the folder from a backup, or set journal.path to an empty folder", ErrDamaged, stampFile, f.path, err)
	}
	if f.stamp.format < oldestVersion || f.stamp.format > formatVersion {
		return fmt.Errorf("%w: journal %s has format %d, this billhook reads formats %d to %d; run the billhook that wrote it, or set journal.path to an empty folder", ErrFormat, f.path, f.stamp.format, oldestVersion, formatVersion)
	}
	return nil
}

// locked words a failure to lock the folder.
func (f *folder) locked(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return f.refused("lock the folder", err)
	}
	return fmt.Errorf("journal %s is %w by %s; stop it first, or set another journal.path: %w", f.path, ErrInUse, f.owner(), err)
}

// makeFolder makes a folder and those above it that are missing, and sees to it
// that a power loss does not take them back.
func makeFolder(fsys vfs.FS, path string) error {
	var made []string
	for p := path; ; p = fsys.PathDir(p) {
		if _, err := fsys.Stat(p); err == nil || p == fsys.PathDir(p) {
			break
		}
		made = append(made, p)
	}
	if err := fsys.MkdirAll(path, 0o700); err != nil {
		return err
	}
	for _, p := range made {
		if err := syncFolder(fsys, fsys.PathDir(p)); err != nil {
			return err
		}
	}
	return nil
}

func syncFolder(fsys vfs.FS, path string) error {
	dir, err := fsys.OpenDir(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (f *folder) store() string { return f.fs.PathJoin(f.path, storeDir) }

// fresh reports whether the store is still to be made.
func (f *folder) fresh() bool { return f.stamp.state == stateCreating }

// made says that the store is there.
func (f *folder) made() error { return f.write(stamp{formatVersion, stateReady}) }

func (f *folder) write(s stamp) error {
	if err := f.replace(stampFile, s.String()); err != nil {
		return err
	}
	f.stamp = s
	return nil
}

// replace writes a file so that after a power loss it is the old or the new one.
func (f *folder) replace(name, text string) error {
	path := f.fs.PathJoin(f.path, name)
	w, err := f.fs.Create(path+".new", "unspecified")
	if err != nil {
		return err
	}
	_, err = w.Write([]byte(text))
	if err == nil {
		err = w.Sync()
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	if err := f.fs.Rename(path+".new", path); err != nil {
		return err
	}
	return syncFolder(f.fs, f.path)
}

func (f *folder) read(name string) (string, error) {
	r, err := f.fs.Open(f.fs.PathJoin(f.path, name))
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(r, 4096))
	return string(text), errors.Join(err, r.Close())
}

// owner names the process that has the journal, as far as is known.
func (f *folder) owner() string {
	text, err := f.read(ownerFile)
	if pid := strings.TrimSpace(text); err == nil && pid != "" {
		return "process " + pid
	}
	return "another process"
}

// refused words a failure to touch the folder, with the user who was refused.
func (f *folder) refused(doing string, err error) error {
	name, id := "unknown", strconv.Itoa(syscall.Getuid())
	if u, uerr := user.Current(); uerr == nil {
		name, id = u.Username, u.Uid
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("journal %s: user %s (uid %s) may not %s; run: sudo install -d -o %s -m 0700 %s: %w", f.path, name, id, doing, name, f.path, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("journal %s is on a read-only file system; set journal.path to a writable folder: %w", f.path, err)
	case isNoSpace(err):
		return fmt.Errorf("%w: journal %s: %s: %w", ErrDiskFull, f.path, doing, err)
	}
	return fmt.Errorf("journal %s: %s: %w", f.path, doing, err)
}
