//go:build unix

package script

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bounds what a run may use; zero is no limit beyond Billhook's own. Core
// dumps are always off.
type Limits struct {
	OpenFiles    int64
	Processes    int64         // of the user, not of the run: useful with a user of its own
	AddressSpace int64         // bytes per process
	FileSize     int64         // bytes per file
	CPU          time.Duration // per process, rounded up to whole seconds
}

type rlimit struct {
	resource int
	value    uint64
}

func (l Limits) list() ([]rlimit, error) {
	var out []rlimit
	for _, v := range []struct {
		name     string
		resource int
		value    int64
	}{
		{"open_files", unix.RLIMIT_NOFILE, l.OpenFiles},
		{"processes", unix.RLIMIT_NPROC, l.Processes},
		{"address_space", unix.RLIMIT_AS, l.AddressSpace},
		{"file_size", unix.RLIMIT_FSIZE, l.FileSize},
		{"cpu", unix.RLIMIT_CPU, int64(math.Ceil(l.CPU.Seconds()))},
	} {
		switch {
		case v.value < 0:
			return nil, fmt.Errorf("limit %s: want more than 0", v.name)
		case v.value > 0:
			out = append(out, rlimit{v.resource, uint64(v.value)})
		}
	}
	return out, nil
}
