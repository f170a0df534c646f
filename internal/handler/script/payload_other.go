//go:build !linux

package script

import (
	"errors"
	"os"
)

// payloadFile returns a file that holds b, at its beginning. Its name is gone.
func payloadFile(b []byte) (*os.File, error) {
	f, err := os.CreateTemp("", "billhook-payload-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.Seek(0, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
