package journal

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestAudit: what people did is kept in its order, across restarts, and the oldest goes.
func TestAudit(t *testing.T) {
	disk := vfs.NewMem()
	options := func(o *Options) { o.FS = disk }
	j := open(t, options)
	read := func(before uint64, most int) (list []string) {
		t.Helper()
		if err := j.Audits(before, func(number uint64, value []byte) bool {
			list = append(list, fmt.Sprintf("%d %s", number, value))
			return len(list) < most
		}); err != nil {
			t.Fatal(err)
		}
		return list
	}
	want(t, "nothing", read(0, 9), nil)
	for i := range 3 {
		if err := j.Audit(fmt.Appendf(nil, "did %d", i+1)); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "all", read(0, 9), []string{"3 did 3", "2 did 2", "1 did 1"})
	want(t, "some", read(3, 1), []string{"2 did 2"})
	verify(t, j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, options)
	// As if there had been as many as are kept.
	e, err := j.applied(0, func(e *edit) error {
		e.key = appendAuditKey(e.key[:0], auditKept)
		return e.set([]byte{auditV1, 'x'})
	})
	if err != nil || e.wait() != nil {
		t.Fatal(err)
	}
	if err := j.Audit([]byte("one more")); err != nil {
		t.Fatal(err)
	}
	want(t, "the first has gone", read(0, 9), []string{"10001 one more", "10000 x", "3 did 3", "2 did 2"})
	verify(t, j)
}
