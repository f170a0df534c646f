//go:build !linux

package e2e

import (
	"errors"
	"syscall"
)

// dieWithUs does what it can: elsewhere a killed test binary leaves children.
func dieWithUs() *syscall.SysProcAttr { return nil }

func mount(string, int) error { return errors.ErrUnsupported }

func unmount(string) error { return nil }

func isFull(error) bool { return false }

func remountReadOnly(string) error { return errors.ErrUnsupported }
