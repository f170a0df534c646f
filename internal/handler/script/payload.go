package script

import (
	"errors"
	"io"
	"os"
)

// payloadFile returns a file that holds b, at its beginning. It has no name and goes
// with its last descriptor.
func payloadFile(b []byte) (*os.File, error) {
	f, err := namelessFile()
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(b); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
