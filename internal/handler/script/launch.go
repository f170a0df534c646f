//go:build unix

package script

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// LaunchName is the name under which Options.Launcher is called to start a program
// with limits. A command that offers itself as launcher passes its arguments to
// Launch, before anything else, when its own name is this one.
const LaunchName = "billhook-launch"

// reportFD is where Launch says why the program did not start.
const reportFD = 3

// Launch limits this process and becomes the program. Limits hold for whatever a
// process becomes, and nobody but a process itself can set them before its program
// runs: from outside they would come too late for a short one. args are LaunchName,
// the limits and the program with its arguments. It returns only on failure, with
// an exit code, after it has reported the error number.
func Launch(args []string) int {
	unix.CloseOnExec(reportFD)
	err := launch(args)
	var no syscall.Errno
	if !errors.As(err, &no) {
		no = syscall.EINVAL
	}
	_, _ = os.NewFile(reportFD, "report").WriteString(strconv.Itoa(int(no)))
	return 127
}

func launch(args []string) error {
	if len(args) < 3 {
		return syscall.EINVAL
	}
	limits, err := parseLimits(args[1])
	if err != nil {
		return err
	}
	for _, l := range limits {
		if err := l.set(); err != nil {
			return err
		}
	}
	return syscall.Exec(args[2], args[2:], os.Environ())
}

// set limits this process, to less if less is all that is allowed already.
func (l rlimit) set() error {
	var now unix.Rlimit
	if err := unix.Getrlimit(l.resource, &now); err != nil {
		return err
	}
	lower(&now.Cur, &now.Max, l.value)
	return unix.Setrlimit(l.resource, &now)
}

// lower brings both limits down to value. Their type is not the same everywhere.
func lower[N int64 | uint64](cur, most *N, value uint64) {
	if v := N(value); *most > v || *most < 0 {
		*most = v
	}
	*cur = *most
}

func formatLimits(limits []rlimit) string {
	var b []byte
	for i, l := range limits {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, "%d=%d", l.resource, l.value)
	}
	return string(b)
}

func parseLimits(s string) ([]rlimit, error) {
	var out []rlimit
	for _, part := range strings.Split(s, ",") {
		resource, value, _ := strings.Cut(part, "=")
		r, err := strconv.Atoi(resource)
		if err != nil {
			return nil, err
		}
		v, err := strconv.ParseUint(value, 10, 63)
		if err != nil {
			return nil, err
		}
		out = append(out, rlimit{r, v})
	}
	return out, nil
}

// launched reads Launch's report: nil once the program runs.
func launched(report io.Reader) error {
	b, err := io.ReadAll(report)
	if err != nil || len(b) == 0 {
		return err
	}
	no, err := strconv.Atoi(string(b))
	if err != nil {
		return fmt.Errorf("read the launcher's report: %w", err)
	}
	return syscall.Errno(no)
}
