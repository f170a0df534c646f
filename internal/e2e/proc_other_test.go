//go:build !linux

package e2e

import "syscall"

// dieWithUs does what it can: elsewhere a killed test binary leaves children.
func dieWithUs() *syscall.SysProcAttr { return nil }
