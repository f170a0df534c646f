//go:build !linux

package script

import (
	"errors"
	"os"
)

func namelessFile() (*os.File, error) {
	f, err := os.CreateTemp("", "billhook-payload-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
