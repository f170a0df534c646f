package billing

import (
	"slices"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// What was missed of an amount over two tables comes out when either table is
// compared with memory.
func TestCompareTwoTables(t *testing.T) {
	s := play(t, mappings(t)["joint"], wal.IdentityDefault, nil, 0, `filled
		table public.clients id:int* name:text credit:numeric reserve:numeric
		table public.clients_balances clients_id:int* balance:numeric updated_dt:timestamptz
		begin
		insert clients id=1 name=a credit=5 reserve=0
		insert clients id=2 name=b credit=5 reserve=0
		insert clients id=3 name=c credit=5 reserve=0
		insert clients_balances clients_id=1 balance=20
		insert clients_balances clients_id=2 balance=20
		insert clients_balances clients_id=3 balance=20
		commit`)
	compare := func(table string, gone [][]string, rows ...[]string) []string {
		t.Helper()
		rel := s.rels[table]
		if key, ok := s.d.Comparable(rel); !ok || len(key) != 1 {
			t.Fatalf("%s cannot be compared", table)
		}
		c := Difference{Relation: rel, ID: event.ID{Generation: 1, CommitLSN: s.lsn, Ordinal: event.FirstOutside}, Gone: gone, Time: s.now}
		for _, texts := range rows {
			var tuple wal.Tuple
			for _, text := range texts {
				tuple = append(tuple, value(text))
			}
			c.Rows = append(c.Rows, tuple)
		}
		var got []string
		_, err := s.d.Compare(c, s.mem, func(e *event.Event) error {
			if strings.HasPrefix(string(e.Type), "clients.balance") {
				got = append(got, string(e.Type)+" "+e.Object)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s.lsn += 0x100
		return got
	}
	for _, step := range []struct {
		got, want []string
	}{
		{compare("clients_balances", nil, []string{"1", "-20", "null"}, []string{"2", "20", "null"}), []string{"clients.balance_zero 1"}},
		{compare("clients", nil, []string{"1", "a", "21", "0"}, []string{"2", "b", "-40", "0"}), []string{"clients.balance_notzero 1", "clients.balance_zero 2"}},
		{compare("clients_balances", [][]string{{"3"}}, []string{"2", "41", "null"}), []string{"clients.balance_notzero 2"}},
		{compare("clients_balances", nil, []string{"3", "-41", "null"}), []string{"clients.balance_zero 3"}},
	} {
		if !slices.Equal(step.got, step.want) {
			t.Errorf("%v, want %v", step.got, step.want)
		}
	}
}
