package e2e

import (
	"errors"
	"fmt"
	"syscall"
)

// dieWithUs makes a child end when this test binary is killed.
func dieWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// mount puts a file system in RAM at a path, of so many bytes.
func mount(path string, size int) error {
	return syscall.Mount("tmpfs", path, "tmpfs", 0, fmt.Sprintf("size=%d", size))
}

func unmount(path string) error { return syscall.Unmount(path, syscall.MNT_DETACH) }

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) }

// remountReadOnly lets nobody write there any more.
func remountReadOnly(path string) error {
	return syscall.Mount("", path, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
}
