package e2e

import "syscall"

// dieWithUs makes a child end when this test binary is killed.
func dieWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
