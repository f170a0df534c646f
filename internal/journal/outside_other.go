//go:build !unix

package journal

// outside returns n zero bytes.
func outside(n int) (b []byte, free func()) { return make([]byte, n), func() {} }
