//go:build !unix

package plugins

import "os"

// die ends this process at once.
func die() {
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Kill()
	}
}
