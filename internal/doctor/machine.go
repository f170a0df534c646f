package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	checkFolder  = "journal: folder"
	checkDisk    = "journal: disk"
	checkAddress = "http: address"
)

// journal looks at the folder without touching it.
func (r *report) journal() {
	path := r.o.JournalPath
	at, info, err := existing(path)
	install := fmt.Sprintf("sudo install -d -o %d -m 0700 %s", os.Getuid(), shellQuote(path))
	switch {
	case err != nil:
		r.add(checkFolder, Fail, install, "%v", err)
		return
	case !info.IsDir() && at == path:
		r.add(checkFolder, Fail, "journal: {path: "+path+".d}", "%s is a file, not a folder", path)
		return
	case !info.IsDir():
		r.add(checkFolder, Fail, "journal: {path: "+filepath.Join(filepath.Dir(at), "billhook")+"}", "%s cannot be made: %s is a file", path, at)
		return
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK|unix.R_OK); err != nil {
		why := fmt.Sprintf("uid %d may not write to it", os.Getuid())
		if errors.Is(err, syscall.EROFS) {
			why, install = "its file system is read-only", "let journal.path name a folder on a disk that can be written"
		}
		r.add(checkFolder, Fail, install, "%s: %s", at, why)
		return
	}
	if at == path {
		foreign, err := stranger(path)
		switch {
		case err != nil:
			r.add(checkFolder, Fail, install, "%v", err)
			return
		case foreign != "":
			r.add(checkFolder, Fail, "journal: {path: "+filepath.Join(path, "billhook")+"}", "%s is not a journal: it holds %q", path, foreign)
			return
		}
		if r.o.Attached {
			r.holder = fmt.Sprintf("process %d", os.Getpid())
		} else {
			r.holder = Holder(path)
		}
	}
	switch {
	case r.holder != "":
		r.add(checkFolder, OK, "", "%s, in use by the billhook that runs as %s", path, r.holder)
	case at == path:
		r.add(checkFolder, OK, "", "%s", path)
	default:
		r.add(checkFolder, OK, "", "%s will be made", path)
	}
	r.disk(at)
}

// existing finds the folder itself or the nearest one above it that is there.
func existing(path string) (at string, info fs.FileInfo, err error) {
	for at = path; ; at = filepath.Dir(at) {
		info, err = os.Stat(at)
		if err == nil || at == filepath.Dir(at) || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return at, info, err
		}
	}
}

// stranger names what a folder holds that is no journal's, when it is no journal.
func stranger(path string) (string, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return "", err
	}
	found := ""
	for _, e := range entries {
		switch e.Name() {
		case "JOURNAL":
			return "", nil
		case "LOCK", "OWNER", "JOURNAL.new", "lost+found":
		default:
			if found == "" {
				found = e.Name()
			}
		}
	}
	return found, nil
}

// Holder says who has a journal open, "" for nobody. It takes no lock. It must not
// be asked by the process that has it open: to open and close the file of a lock
// gives up what the process has of it.
func Holder(path string) string {
	f, err := os.Open(filepath.Join(path, "LOCK"))
	if err != nil {
		return ""
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return ""
	}
	if lock.Pid <= 0 { // it is in another container
		return "another process"
	}
	return fmt.Sprintf("process %d", lock.Pid)
}

func (r *report) disk(at string) {
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		r.add(checkDisk, Skip, "", "%v", err)
		return
	}
	free := uint64(st.Bavail) * uint64(st.Bsize)
	const remedy = "make room there, or let journal.path name a folder on another disk"
	switch {
	case free < r.o.MinFree:
		r.add(checkDisk, Fail, remedy, "%s are free, and intake stands still below %s", bytes(int64(free)), bytes(int64(r.o.MinFree)))
	case free/4 < r.o.MinFree:
		r.add(checkDisk, Warn, remedy, "only %s are free; intake stands still below %s", bytes(int64(free)), bytes(int64(r.o.MinFree)))
	default:
		r.add(checkDisk, OK, "", "%s are free", bytes(int64(free)))
	}
}

// listen opens the address for a moment.
func (r *report) listen() {
	if r.o.Listen == "" {
		return
	}
	l, err := net.Listen("tcp", r.o.Listen)
	switch {
	case err == nil:
		_ = l.Close()
		r.add(checkAddress, OK, "", "%s is free", r.o.Listen)
	case errors.Is(err, syscall.EADDRINUSE) && r.holder != "":
		r.add(checkAddress, OK, "", "%s is in use, as it is to be while billhook runs (%s)", r.o.Listen, r.holder)
	case errors.Is(err, syscall.EADDRINUSE):
		r.add(checkAddress, Fail, "ss -ltnp 'sport = :"+port(r.o.Listen)+"' # shows who; or let http.listen name another address", "%s is in use by another process", r.o.Listen)
	case errors.Is(err, syscall.EACCES):
		r.add(checkAddress, Fail, "http: {listen: \"127.0.0.1:8321\"}", "uid %d may not listen on %s", os.Getuid(), r.o.Listen)
	default:
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		r.add(checkAddress, Fail, "http: {listen: \"127.0.0.1:8321\"}", "cannot listen on %s: %v", r.o.Listen, err)
	}
}

func port(address string) string {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return p
}

// shellQuote quotes a path for a shell where that is needed.
func shellQuote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
