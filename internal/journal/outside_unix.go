//go:build unix

package journal

import "golang.org/x/sys/unix"

// outside returns n zero bytes beside Go's heap, whose size lets the collector wait for as
// much garbage again, and what gives them back. The system gives memory when it is
// first touched.
func outside(n int) (b []byte, free func()) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]byte, n), func() {}
	}
	return b, func() { _ = unix.Munmap(b) } // it is ours and whole
}
