package script

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// payloadFile returns a file that holds b, at its beginning. It has no name and
// goes with its last descriptor.
func payloadFile(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("payload", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "payload")
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.Seek(0, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
