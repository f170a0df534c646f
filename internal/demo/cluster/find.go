package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

// ErrNotFound is in the chain of the error that Find returns when this machine
// has no Postgres server.
var ErrNotFound = errors.New("no Postgres server found")

// Find returns the folder that holds the server's programs (postgres, initdb,
// pg_ctl) and its major version. The environment decides first, BILLHOOK_PG_BIN
// and then PG_BIN: what they name must be there. Else the newest version below
// /usr/lib/postgresql or a like place wins, and last what PATH finds.
func Find() (bin string, version int, err error) {
	for _, name := range []string{"BILLHOOK_PG_BIN", "PG_BIN"} {
		if bin := os.Getenv(name); bin != "" {
			v, err := serverVersion(bin)
			if err != nil {
				return "", 0, fmt.Errorf("%s=%s: %w", name, bin, err)
			}
			return bin, v, nil
		}
	}
	dirs, err := installed()
	if err != nil {
		return "", 0, err
	}
	for _, dir := range dirs {
		if v, err := serverVersion(dir); err == nil && v > version {
			bin, version = dir, v
		}
	}
	if bin != "" {
		return bin, version, nil
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		if v, err := serverVersion(filepath.Dir(path)); err == nil {
			return filepath.Dir(path), v, nil
		}
	}
	return "", 0, fmt.Errorf("%w on this machine: install one (Debian, Ubuntu: apt-get install postgresql), or set BILLHOOK_PG_BIN to the folder that holds postgres and initdb", ErrNotFound)
}

// installed returns the folders in which packages put Postgres' programs, older
// versions first within each kind of package.
func installed() (dirs []string, err error) {
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
		"/usr/pgsql-*/bin",          // Red Hat
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("look for servers in %s: %w", pattern, err)
		}
		dirs = append(dirs, found...)
	}
	return dirs, nil
}

// serverVersion returns the major version of the server in dir, or an error when
// dir lacks a program that this package needs.
func serverVersion(dir string) (int, error) {
	for _, name := range []string{"initdb", "pg_ctl"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return 0, err
		}
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask postgres for its version: %w", err)
	}
	m := regexp.MustCompile(`\) (\d+)`).FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("no version in %q", out)
	}
	return strconv.Atoi(string(m[1]))
}
