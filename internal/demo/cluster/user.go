package cluster

import (
	"errors"
	"fmt"
	"os"
	osuser "os/user"
	"path/filepath"
	"strconv"
)

// user is whom a server runs as when we are root.
type user struct {
	name     string
	uid, gid int
}

// serverUser returns nil when we are an ordinary user, who runs the server; for
// root, whom Postgres refuses, it picks postgres or else nobody.
func serverUser() (*user, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := osuser.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			return nil, fmt.Errorf("user %s: uid: %w", name, err)
		}
		gid, err := strconv.Atoi(u.Gid)
		if err != nil {
			return nil, fmt.Errorf("user %s: gid: %w", name, err)
		}
		return &user{name: name, uid: uid, gid: gid}, nil
	}
	return nil, errors.New("a Postgres server does not run as root and there is no user postgres or nobody: run as an ordinary user")
}

// tempDir returns the temporary folder, or /tmp when u could not reach into it.
func tempDir(u *user) string {
	dir := os.TempDir()
	if u == nil {
		return dir
	}
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return "/tmp"
		}
		if d == filepath.Dir(d) {
			return dir
		}
	}
}
