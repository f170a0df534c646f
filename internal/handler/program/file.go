//go:build unix

// Package program holds what the handler kinds share that start programs: whom a
// program runs as (Identity), who might have changed its file (CheckFile), and how its
// process ends with nothing left of it (AwaitExit, Bury).
//
// It promises that a file that CheckFile passed can be changed by nobody but root,
// Billhook's user or the user that runs it. It starts nothing itself.
package program

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Identity is whom a program runs as.
type Identity struct {
	Switches bool // to another user or group than Billhook's own
	UID, GID uint32
	Groups   []uint32
	Name     string // for people
	Home     string
}

// NewIdentity returns the identity of a user and a group, names or numbers; without
// both it is Billhook's own. Only root may have another.
func NewIdentity(userName, groupName string) (Identity, error) {
	id := Identity{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Home: "/"}
	id.Name = "uid " + strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil {
		id.Name = u.Username
		if u.HomeDir != "" {
			id.Home = u.HomeDir
		}
	}
	own := id
	if userName != "" {
		if err := id.setUser(userName); err != nil {
			return id, err
		}
	}
	if groupName != "" {
		g, err := user.LookupGroup(groupName)
		if err != nil {
			g, err = user.LookupGroupId(groupName)
		}
		text := groupName
		if err == nil {
			text = g.Gid
		}
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return id, fmt.Errorf("group %q: there is no such group", groupName)
		}
		id.GID = uint32(n)
	}
	if userName == "" && groupName == "" || id.UID == own.UID && id.GID == own.GID && own.UID != 0 {
		return id, nil
	}
	if own.UID != 0 {
		return id, fmt.Errorf("running as user %q group %q: only root may change to another user, and Billhook runs as %s; leave user and group out, or start Billhook as root",
			userName, groupName, own.Name)
	}
	id.Switches = true
	return id, nil
}

func (id *Identity) setUser(name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		// A number without an entry in the user database is a user all the same.
		n, perr := strconv.ParseUint(name, 10, 32)
		if perr != nil {
			return fmt.Errorf("user %q: there is no such user", name)
		}
		id.UID, id.GID, id.Groups, id.Name, id.Home = uint32(n), uint32(n), nil, name, "/"
		return nil
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("user %q: %w", name, err)
	}
	id.UID, id.GID, id.Groups, id.Name, id.Home = uint32(uid), uint32(gid), nil, u.Username, u.HomeDir
	if id.Home == "" {
		id.Home = "/"
	}
	groups, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("groups of user %q: %w", name, err)
	}
	for _, g := range groups {
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			id.Groups = append(id.Groups, uint32(n))
		}
	}
	return nil
}

// Attr returns what the program's process gets: a group of its own, the identity, and
// on Linux SIGKILL when Billhook dies.
func (id Identity) Attr() *syscall.SysProcAttr {
	a := platformAttr()
	a.Setpgid = true
	if id.Switches {
		a.Credential = &syscall.Credential{Uid: id.UID, Gid: id.GID, Groups: id.Groups}
	}
	return a
}

// CheckFile judges whether the file at path may be run: a regular executable file
// which, like its directory, nobody but root, Billhook's user or the run's user
// can change. Where symbolic links lead to it, the directory named and the one it
// is in are judged both.
func CheckFile(kind, path string, id Identity) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%s %q: want an absolute path, such as /usr/local/%[1]s/block-client", kind, path)
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return missing(kind, path, err)
	}
	info, err := os.Lstat(target)
	if err != nil {
		return missing(kind, path, err)
	}
	if err := checkDirs(kind, filepath.Dir(target), path, id); err != nil {
		return err
	}
	if link := filepath.Dir(filepath.Clean(path)); link != filepath.Dir(target) {
		if err := checkDirs(kind, link, path, id); err != nil {
			return err
		}
	}
	switch {
	case info.IsDir():
		return fmt.Errorf("%s %s is a directory: name the file in it", kind, path)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s %s is not a regular file", kind, path)
	case info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s %s is not executable: chmod +x %s", kind, path, target)
	}
	if err := id.trusts(info); err != nil {
		return fmt.Errorf("%s %s %w: chown root %s", kind, path, err, target)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s %s can be changed by others (mode %04o): chmod go-w %s", kind, path, info.Mode().Perm(), target)
	}
	return nil
}

func missing(kind, path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s %s does not exist: put it there or correct its path: %w", kind, path, err)
	}
	return fmt.Errorf("%s %s: %w", kind, path, err)
}

// checkDirs judges the directory of a program, and its parents for what lets
// anybody rename it: world-writable without the sticky bit.
func checkDirs(kind, dir, path string, id Identity) error {
	info, err := os.Stat(dir)
	if err != nil {
		return missing(kind, path, err)
	}
	if err := id.trusts(info); err != nil {
		return fmt.Errorf("%s %s: its directory %s %w: chown root %s", kind, path, dir, err, dir)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s %s: its directory %s can be changed by others (mode %04o): chmod go-w %[3]s, or move the %[1]s",
			kind, path, dir, info.Mode().Perm())
	}
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return missing(kind, path, err)
		}
		if info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return fmt.Errorf("%s %s: the directory %s above it can be changed by anybody (mode %04o): chmod o-w %[3]s, or move the %[1]s",
				kind, path, parent, info.Mode().Perm())
		}
		if parent == filepath.Dir(parent) {
			return nil
		}
	}
}

// trusts judges the owner of a file or directory.
func (id Identity) trusts(info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("has no known owner")
	}
	if stat.Uid == 0 || stat.Uid == id.UID || int(stat.Uid) == os.Geteuid() {
		return nil
	}
	owner := "uid " + strconv.FormatUint(uint64(stat.Uid), 10)
	if u, err := user.LookupId(strconv.FormatUint(uint64(stat.Uid), 10)); err == nil {
		owner = u.Username
	}
	return fmt.Errorf("belongs to %s, who is neither root nor %s", owner, id.Name)
}

// interpreter returns the program named in the first line of the script at path;
// "" if it names none.
func interpreter(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 256)
	line, _ := r.ReadSlice('\n')
	rest, ok := strings.CutPrefix(string(line), "#!")
	if !ok {
		return "", nil
	}
	rest = strings.Trim(rest, " \t\n")
	name, _, _ := strings.Cut(rest, " ")
	name, _, _ = strings.Cut(name, "\t")
	return name, nil
}

// CheckInterpreter finds at once what would let every start of the file at path fail.
func CheckInterpreter(kind, path string) error {
	name, err := interpreter(path)
	if err != nil || name == "" {
		// One that may be executed but not read is no script but a program.
		return nil
	}
	if strings.HasSuffix(name, "\r") {
		return fmt.Errorf("%s %s: its first line ends with a carriage return, as files from Windows do: sed -i 's/\\r$//' %s", kind, path, path)
	}
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s %s: the interpreter %s of its first line does not exist: install it or correct the line", kind, path, name)
	}
	return nil
}

// ExplainStart says why a program that was judged to be in order did not start.
func ExplainStart(kind, path, dir string, id Identity, err error) error {
	err = fmt.Errorf("start %s %s: %w", kind, path, err)
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("%w; begin it with a line such as #!/bin/sh", err)
	case errors.Is(err, fs.ErrNotExist):
		if info, serr := os.Stat(dir); serr != nil || !info.IsDir() {
			return fmt.Errorf("%w; the working directory %s does not exist", err, dir)
		}
		if ierr := CheckInterpreter(kind, path); ierr != nil {
			return ierr
		}
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; user %s must be able to enter its directory and %s and to execute it, and its disk must not be mounted noexec", err, id.Name, dir)
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("%w; user %s has too many processes", err, id.Name)
	}
	return err
}
