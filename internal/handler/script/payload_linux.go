package script

import (
	"os"

	"golang.org/x/sys/unix"
)

func namelessFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("payload", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), "payload"), nil
}
