package billing

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/wal"
)

const recordTable = `table public.clients id:int* name:text email:text status:text tax_id:text notes:text m_dt:timestamptz balance:numeric deleted_at:timestamptz companies_id:int custom_fields:jsonb`

// Records as they were once written, with all slots in one, are read as ever, and
// written anew with the next change.
func TestRecordVersion1(t *testing.T) {
	const before = recordTable + `
		begin
		insert clients id=1 name=a_long_name_of_one email=null status=active tax_id=secret balance=5
		insert clients id=2 name=a_long_name_of_two email=short status=active balance=-1
		commit
		begin`
	const after = `
		update clients 1 balance=-2
		update clients 2 email=other balance=3 tax_id=secret
		commit
		begin
		update clients 1 name=a_new_long_name_of_one m_dt=2026-01-01
		delete clients 2
		commit`
	for _, identity := range []wal.Identity{wal.IdentityDefault, wal.IdentityIndex} {
		want := play(t, mappings(t)["single"], identity, nil, 0, before+after)
		got := play(t, mappings(t)["single"], identity, nil, 0, before)
		p := got.d.plan(got.rels["clients"])
		for _, id := range []string{"1", "2"} {
			key := []byte("clients\x00" + id)
			if err := got.d.remember(got.mem, p, key, &got.d.rec, nil); err != nil {
				t.Fatal(err)
			}
			old := binary.AppendUvarint([]byte{1}, uint64(p.layout.ID))
			for i, to := range p.targets {
				switch {
				case to.gauge >= 0:
					old = append(old, byte(got.d.rec.sides[to.gauge]))
				case p.layout.Slots[i][0] == '*':
					old = p.appendSealed(old, got.d.rec.cells[to.column])
				default:
					old = appendCell(old, got.d.rec.cells[to.column], p.layout.Slots[i][0] == '=')
				}
			}
			got.mem.SetMemory(key, old)
			got.mem.DeleteMemory(digestsKey(nil, key))
		}
		for line := range strings.Lines(after) {
			if line = strings.TrimSpace(line); line != "" {
				got.line(line)
			}
		}
		if got.out.String() != want.out.String() || len(want.events) == 0 {
			t.Errorf("events\n%s\nwant\n%s", got.out.String(), want.out.String())
		}
		if got.mem.(memoryMap)["clients\x001"][0] != recordVersion {
			t.Error("a changed row is remembered in the old way")
		}
	}
}

// counted counts what is read and written.
type counted struct {
	memoryMap
	read, written []string
}

func (c *counted) Memory(key []byte) ([]byte, bool, error) {
	c.read = append(c.read, string(key))
	return c.memoryMap.Memory(key)
}

func (c *counted) SetMemory(key, value []byte) {
	c.written = append(c.written, string(key))
	c.memoryMap.SetMemory(key, value)
}

// A change of the balance reads and writes little; one that tells nothing writes
// nothing.
func TestRecordParts(t *testing.T) {
	s := play(t, mappings(t)["single"], wal.IdentityDefault, nil, 0, recordTable+`
		begin
		insert clients id=1 name=a_long_name_of_one email=null status=active tax_id=secret balance=5
		commit`)
	c := &counted{memoryMap: s.mem.(memoryMap)}
	s.mem = c
	row, apart := "clients\x001", digests+"clients\x001"
	for _, step := range []struct{ change, read, written string }{
		{"balance=7", row, row},
		{"m_dt=2026-01-01", row, ""},
		{"name=another_long_name", row + " " + apart, apart + " " + row},
		{"balance=8", row, row},
		// What did not come cannot be compared without its digest.
		{"balance=9 name=~", row + " " + apart, row},
		{"balance=10", row, row},
		{"tax_id=other", row, row},
	} {
		c.read, c.written = nil, nil
		for _, line := range []string{"begin", "update clients 1 " + step.change, "commit"} {
			s.line(line)
		}
		if got := strings.Join(c.read, " "); got != step.read {
			t.Errorf("%s: reads %q, want %q", step.change, got, step.read)
		}
		if got := strings.Join(c.written, " "); got != step.written {
			t.Errorf("%s: writes %q, want %q", step.change, got, step.written)
		}
	}
}
