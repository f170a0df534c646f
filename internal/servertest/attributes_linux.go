package servertest

import "syscall"

// attributes has the kernel end a server when the test is killed.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
