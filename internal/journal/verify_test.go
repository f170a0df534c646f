package journal

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// TestVerifyFinds breaks the store behind the journal's back, one thing at a time.
func TestVerifyFinds(t *testing.T) {
	for _, c := range []struct {
		name, want string
		harm       func(b *pebble.Batch) error
	}{
		{"no event", "event 1-0/C8-1 is missing", func(b *pebble.Batch) error {
			return b.Delete(appendEventKey(nil, 1, at(2, 1)), nil)
		}},
		{"no row", "execution 3 follows 1", func(b *pebble.Batch) error {
			return b.Delete(appendRowKey(nil, 1, 2), nil)
		}},
		{"no lane", "lanes hold 2 pending executions, 3 are expected", func(b *pebble.Batch) error {
			return b.Delete(appendID(appendLanePrefix(nil, "2"), 2), nil)
		}},
		{"another lane", "lanes hold 3 pending executions, 3 are expected, or other ones", func(b *pebble.Batch) error {
			if err := b.Delete(appendID(appendLanePrefix(nil, "2"), 2), nil); err != nil {
				return err
			}
			return b.Set(appendID(appendLanePrefix(nil, "3"), 2), nil, nil)
		}},
		{"a posting too many", "posting lists name 17 executions, 16 are expected", func(b *pebble.Batch) error {
			return b.Set(appendID(appendTextList(nil, 1, postingType, "x"), 2), nil, nil)
		}},
		{"an attempt too many", "execution 2: 1 attempts are stored, it had 0", func(b *pebble.Batch) error {
			return b.Set(appendAttemptKey(nil, 1, 2, 1), appendAttempt(nil, &Attempt{}), nil)
		}},
		{"an attempt of nobody", "execution 9: attempt 1 is out of place", func(b *pebble.Batch) error {
			return b.Set(appendAttemptKey(nil, 1, 9, 1), appendAttempt(nil, &Attempt{}), nil)
		}},
		{"no attempt", "execution 1: 0 attempts are stored, it had 1", func(b *pebble.Batch) error {
			return b.Delete(appendAttemptKey(nil, 1, 1, 1), nil)
		}},
		{"a position below", "event 1-0/190-1 is above the position 0/64", func(b *pebble.Batch) error {
			p := position(1)
			return b.Set(keyPosition, appendPosition(nil, &p), nil)
		}},
		{"a row of another layout", "execution 2: value has layout 9, want 1", func(b *pebble.Batch) error {
			return b.Set(appendRowKey(nil, 1, 2), []byte{9, 9}, nil)
		}},
		{"a strange key", "key 7a belongs to nothing", func(b *pebble.Batch) error {
			return b.Set([]byte("z"), nil, nil)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := open(t, nil)
			for n := range 4 {
				transaction(t, j, n+1, "clients.update", []string{[]string{"1", "2", "3", "4"}[n]}, 1)
			}
			record(t, j, Outcome{Execution: 1, Attempt: &Attempt{Number: 1, OK: true}, Status: Succeeded})
			verify(t, j)
			b := j.db.NewBatch()
			if err := c.harm(b); err != nil {
				t.Fatal(err)
			}
			if err := j.db.Apply(b, pebble.Sync); err != nil {
				t.Fatal(err)
			}
			err := j.Verify(t.Context())
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v\nwant %s", err, c.want)
			}
		})
	}
}
