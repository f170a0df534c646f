//go:build unix

package script

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

// identity is whom a program runs as.
type identity struct {
	switches bool // to another user or group than Billhook's own
	uid, gid uint32
	groups   []uint32
	name     string // for messages
	home     string
}

func newIdentity(userName, groupName string) (identity, error) {
	id := identity{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), home: "/"}
	id.name = "uid " + strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil {
		id.name = u.Username
		if u.HomeDir != "" {
			id.home = u.HomeDir
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
		id.gid = uint32(n)
	}
	if userName == "" && groupName == "" || id.uid == own.uid && id.gid == own.gid && own.uid != 0 {
		return id, nil
	}
	if own.uid != 0 {
		return id, fmt.Errorf("running as user %q group %q: only root may change to another user, and Billhook runs as %s; leave user and group out, or start Billhook as root",
			userName, groupName, own.name)
	}
	id.switches = true
	return id, nil
}

func (id *identity) setUser(name string) error {
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
		id.uid, id.gid, id.groups, id.name, id.home = uint32(n), uint32(n), nil, name, "/"
		return nil
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("user %q: %w", name, err)
	}
	id.uid, id.gid, id.groups, id.name, id.home = uint32(uid), uint32(gid), nil, u.Username, u.HomeDir
	if id.home == "" {
		id.home = "/"
	}
	groups, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("groups of user %q: %w", name, err)
	}
	for _, g := range groups {
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			id.groups = append(id.groups, uint32(n))
		}
	}
	return nil
}

// sysProcAttr returns what a run's process gets: a group of its own, and the
// identity.
func (id identity) sysProcAttr() *syscall.SysProcAttr {
	a := platformAttr()
	a.Setpgid = true
	if id.switches {
		a.Credential = &syscall.Credential{Uid: id.uid, Gid: id.gid, Groups: id.groups}
	}
	return a
}

// checkFile judges whether the file at path may be run: a regular executable file
// which, like its directory, nobody but root, Billhook's user or the run's user
// can change. Where symbolic links lead to it, the directory named and the one it
// is in are judged both.
func checkFile(path string, id identity) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("script %q: want an absolute path, such as /usr/local/script/block-client", path)
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return missing(path, err)
	}
	info, err := os.Lstat(target)
	if err != nil {
		return missing(path, err)
	}
	if err := checkDirs(filepath.Dir(target), path, id); err != nil {
		return err
	}
	if link := filepath.Dir(filepath.Clean(path)); link != filepath.Dir(target) {
		if err := checkDirs(link, path, id); err != nil {
			return err
		}
	}
	switch {
	case info.IsDir():
		return fmt.Errorf("script %s is a directory: name the file in it", path)
	case !info.Mode().IsRegular():
		return fmt.Errorf("script %s is not a regular file", path)
	case info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("script %s is not executable: chmod +x %s", path, target)
	}
	if err := id.trusts(info); err != nil {
		return fmt.Errorf("script %s %w: chown root %s", path, err, target)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("script %s can be changed by others (mode %04o): chmod go-w %s", path, info.Mode().Perm(), target)
	}
	return nil
}

func missing(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("script %s does not exist: put it there or correct its path: %w", path, err)
	}
	return fmt.Errorf("script %s: %w", path, err)
}

// checkDirs judges the directory of a program, and its parents for what lets
// anybody rename it: world-writable without the sticky bit.
func checkDirs(dir, path string, id identity) error {
	info, err := os.Stat(dir)
	if err != nil {
		return missing(path, err)
	}
	if err := id.trusts(info); err != nil {
		return fmt.Errorf("script %s: its directory %s %w: chown root %s", path, dir, err, dir)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("script %s: its directory %s can be changed by others (mode %04o): chmod go-w %s, or move the script",
			path, dir, info.Mode().Perm(), dir)
	}
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return missing(path, err)
		}
		if info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return fmt.Errorf("script %s: the directory %s above it can be changed by anybody (mode %04o): chmod o-w %s, or move the script",
				path, parent, info.Mode().Perm(), parent)
		}
		if parent == filepath.Dir(parent) {
			return nil
		}
	}
}

// trusts judges the owner of a file or directory.
func (id identity) trusts(info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("has no known owner")
	}
	if stat.Uid == 0 || stat.Uid == id.uid || int(stat.Uid) == os.Geteuid() {
		return nil
	}
	owner := "uid " + strconv.FormatUint(uint64(stat.Uid), 10)
	if u, err := user.LookupId(strconv.FormatUint(uint64(stat.Uid), 10)); err == nil {
		owner = u.Username
	}
	return fmt.Errorf("belongs to %s, who is neither root nor %s", owner, id.name)
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

// checkInterpreter finds at once what would let every start fail.
func checkInterpreter(path string) error {
	name, err := interpreter(path)
	if err != nil || name == "" {
		// One that may be executed but not read is no script but a program.
		return nil
	}
	if strings.HasSuffix(name, "\r") {
		return fmt.Errorf("script %s: its first line ends with a carriage return, as files from Windows do: sed -i 's/\\r$//' %s", path, path)
	}
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("script %s: the interpreter %s of its first line does not exist: install it or correct the line", path, name)
	}
	return nil
}

// explainStart says why a program that was judged to be in order did not start.
func explainStart(path, dir string, id identity, err error) error {
	err = fmt.Errorf("start script %s: %w", path, err)
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("%w; begin it with a line such as #!/bin/sh", err)
	case errors.Is(err, fs.ErrNotExist):
		if info, serr := os.Stat(dir); serr != nil || !info.IsDir() {
			return fmt.Errorf("%w; the working directory %s does not exist", err, dir)
		}
		if ierr := checkInterpreter(path); ierr != nil {
			return ierr
		}
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; user %s must be able to enter its directory and %s and to execute it, and its disk must not be mounted noexec", err, id.name, dir)
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("%w; user %s has too many processes", err, id.name)
	}
	return err
}
