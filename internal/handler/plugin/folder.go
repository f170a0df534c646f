//go:build unix

package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	folderPrefix = "billhook-plugin-"
	lockName     = "lock"
	newLockName  = lockName + ".new" // until it is locked
	// maxFolder bounds the length of a folder's path: with go-plugin's own names behind
	// it, that of a socket must have no more than 107 bytes.
	maxFolder = 60
	// youngest is the age below which a folder without a lock may be one that is just
	// being made.
	youngest = time.Minute
)

// folder is a private folder for a plugin's sockets. It holds a lock, so that the
// folders of a Billhook that was killed can be told from those in use.
type folder struct {
	path string
	lock *os.File
}

func newFolder(base string) (*folder, error) {
	if base == "" {
		base = os.TempDir()
	}
	if len(base)+len(folderPrefix)+10 > maxFolder {
		if base == "/tmp" {
			return nil, fmt.Errorf("the path %s is too long for a socket", base)
		}
		return newFolder("/tmp") // a longer path would fail in ways that nobody understands
	}
	sweep(base)
	path, err := os.MkdirTemp(base, folderPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a folder for sockets: %w", err)
	}
	// It bears its name only when it is locked: somebody who sweeps would take one that is
	// not yet for one whose owner has gone.
	f, err := os.OpenFile(filepath.Join(path, newLockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Rename(filepath.Join(path, newLockName), filepath.Join(path, lockName))
	}
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		return nil, errors.Join(fmt.Errorf("lock the folder for sockets %s: %w", path, err), os.RemoveAll(path))
	}
	return &folder{path, f}, nil
}

// empty removes what a process left.
func (f *folder) empty() {
	entries, _ := os.ReadDir(f.path)
	for _, e := range entries {
		if e.Name() != lockName {
			_ = os.RemoveAll(filepath.Join(f.path, e.Name()))
		}
	}
}

func (f *folder) remove() {
	_ = os.RemoveAll(f.path)
	_ = f.lock.Close()
}

// sweep removes the folders of others that are gone.
func sweep(base string) {
	entries, _ := os.ReadDir(base)
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), folderPrefix) {
			continue
		}
		path := filepath.Join(base, e.Name())
		f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			if info, ierr := e.Info(); errors.Is(err, fs.ErrNotExist) && ierr == nil && time.Since(info.ModTime()) > youngest {
				_ = os.Remove(filepath.Join(path, newLockName))
				_ = os.Remove(path) // only if it is empty
			}
			continue
		}
		var stat unix.Stat_t
		own := unix.Fstat(int(f.Fd()), &stat) == nil && int(stat.Uid) == os.Geteuid()
		if own && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(path)
		}
		_ = f.Close()
	}
}
