package billing

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/wal"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// memoryMap is a Memory in a map.
type memoryMap map[string][]byte

func (m memoryMap) Memory(key []byte) ([]byte, bool, error) {
	v, ok := m[string(key)]
	return v, ok, nil
}
func (m memoryMap) SetMemory(key, value []byte) { m[string(key)] = bytes.Clone(value) }
func (m memoryMap) DeleteMemory(key []byte)     { delete(m, string(key)) }

func (m memoryMap) ScanMemory(from, prefix []byte, f func(key, value []byte) (bool, error)) error {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k < string(from) || !strings.HasPrefix(k, string(prefix)) {
			continue
		}
		if more, err := f([]byte(k), m[k]); err != nil || !more {
			return err
		}
	}
	return nil
}

func (m memoryMap) DeleteMemoryPrefix(prefix []byte) {
	maps.DeleteFunc(m, func(k string, _ []byte) bool { return strings.HasPrefix(k, string(prefix)) })
}

// oids of the types the cases use.
var oids = map[string]uint32{
	"int": 20, "text": 25, "numeric": 1700, "bool": 16, "jsonb": 3802, "timestamptz": 1184,
	"text[]": 1009, "int[]": 1007, "float": 701, "uuid": 2950, "enum": 16999, "date": 1082, "timestamp": 1114,
}

// script plays the statements of a case as the server would send them, with the
// chosen replica identity for every table.
type script struct {
	t        *testing.T
	identity wal.Identity
	d        *Deriver
	mem      Timers
	rels     map[string]*wal.Relation
	primary  map[string]bool                 // "table.column" of primary keys
	rows     map[string]map[string]wal.Tuple // table -> key -> row
	lsn      wal.LSN
	now      time.Time // the source's clock
	outside  uint32    // events by the clock since the last transaction
	make     func() *Deriver
	out      strings.Builder
	events   []told
	every    int // spill after so many changes; 0: never
	changes  int
}

// change takes a change and spills when it is time.
func (s *script) change(c *wal.Change) {
	s.d.Change(c)
	if s.changes++; s.every > 0 && s.changes%s.every == 0 {
		if err := s.d.Spill(s.mem); err != nil {
			s.t.Fatalf("spill: %v", err)
		}
		for key, value := range s.mem.(memoryMap) {
			// Of a mapping that masks the column.
			if strings.Contains(string(value), "taxsecret") && len(s.d.mapping.Entities) > 2 {
				s.t.Errorf("a masked text stands in clear under %q", key)
			}
		}
	}
}

func value(s string) wal.Value {
	switch s {
	case "null":
		return wal.Value{Kind: wal.Null}
	case "~":
		return wal.Value{Kind: wal.Unchanged}
	}
	return wal.Value{Kind: wal.Text, Text: []byte(strings.NewReplacer("_", " ", `\n`, "\n").Replace(s))}
}

// table reads "public.clients id:int* name:text": * marks the primary key, + the
// columns of the index identity.
func (s *script) table(line string) {
	f := strings.Fields(line)
	schema, name, _ := strings.Cut(f[0], ".")
	identity := s.identity
	if whole, full := strings.CutSuffix(name, "!full"); full { // under any identity of the others
		name, identity = whole, wal.IdentityFull
	}
	rel := &wal.Relation{ID: uint32(len(s.rels) + 1), Schema: schema, Name: name, Identity: identity}
	for _, c := range f[1:] {
		col, typ, _ := strings.Cut(c, ":")
		pk := strings.HasSuffix(typ, "*")
		typ = strings.TrimSuffix(typ, "*")
		oid, ok := oids[typ]
		if !ok {
			s.t.Fatalf("no type %q", typ)
		}
		s.primary[name+"."+col] = pk
		rel.Columns = append(rel.Columns, wal.Column{Name: col, Type: oid, Modifier: -1, Key: pk || identity == wal.IdentityFull})
	}
	s.rels[name] = rel
	if s.rows[name] == nil {
		s.rows[name] = map[string]wal.Tuple{}
	}
}

func (s *script) key(rel *wal.Relation, tuple wal.Tuple) string {
	var parts []string
	for i, c := range rel.Columns {
		if s.primary[rel.Name+"."+c.Name] {
			parts = append(parts, string(tuple[i].Text))
		}
	}
	return strings.Join(parts, ",")
}

func (s *script) set(rel *wal.Relation, tuple wal.Tuple, assignments []string) {
	for _, a := range assignments {
		col, v, ok := strings.Cut(a, "=")
		i := slices.IndexFunc(rel.Columns, func(c wal.Column) bool { return c.Name == col })
		if !ok || i < 0 {
			s.t.Fatalf("bad assignment %q to %s", a, rel.Name)
		}
		tuple[i] = value(v)
	}
}

// old is the old tuple that the identity sends.
func (s *script) old(rel *wal.Relation, row wal.Tuple, keyChanged, deleted bool) (wal.Tuple, wal.OldKind) {
	if rel.Identity == wal.IdentityFull {
		return row, wal.OldFull
	}
	if !keyChanged && !deleted {
		return nil, wal.OldNone
	}
	out := make(wal.Tuple, len(row))
	for i, c := range rel.Columns {
		if c.Key {
			out[i] = row[i]
		}
	}
	return out, wal.OldKey
}

func (s *script) line(line string) {
	t := s.t
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "begin":
		s.lsn += 0x100
		s.outside = 0
		s.d.Begin(1, wal.Begin{CommitLSN: s.lsn, XID: uint32(s.lsn / 0x100), CommitTime: s.now})
		return
	case "own": // what Billhook itself has made
		s.d.Own()
		return
	case "now": // what time it is, for later transactions and fills
		s.now = s.time(rest)
		return
	case "clock": // it is that late now: what has fallen due fires
		s.now = s.time(rest)
		s.fire()
		return
	case "pending":
		n, err := s.d.Pending(s.mem)
		due, ok, err2 := s.d.Due(s.mem)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		fmt.Fprintf(&s.out, "pending %d", n)
		if ok {
			fmt.Fprintf(&s.out, ", next %s", due.UTC().Format(time.RFC3339Nano))
		}
		fmt.Fprintln(&s.out)
		return
	case "filled": // there was nothing to fill
		s.d.SetFilling(false)
		return
	case "restart":
		s.d = s.make()
		return
	case "commit":
		if err := s.d.Commit(s.mem, s.emit); err != nil {
			t.Fatalf("commit: %v", err)
		}
		return
	case "table":
		s.table(rest)
		return
	case "truncate":
		s.d.Truncate(s.rels[rest])
		clear(s.rows[rest])
		return
	case "fill":
		rel := s.rels[rest]
		s.d.SetFilling(true)
		s.d.SetNow(s.now)
		if err := s.d.Attend(rel, s.mem); err != nil {
			t.Fatal(err)
		}
		for _, row := range s.rows[rest] {
			if err := s.d.Fill(rel, row, s.mem); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.d.Filled(rel, s.mem); err != nil {
			t.Fatal(err)
		}
		s.d.SetFilling(false)
		return
	case "backfill": // of an entity, where a condition holds
		s.backfill(rest)
		return
	case "silently": // rows that were there before Billhook
		f := strings.Fields(rest)
		rel := s.rels[f[0]]
		row := make(wal.Tuple, len(rel.Columns))
		for i := range row {
			row[i] = wal.Value{Kind: wal.Null}
		}
		s.set(rel, row, f[1:])
		s.rows[f[0]][s.key(rel, row)] = row
		return
	}
	if !slices.Contains([]string{"insert", "update", "delete"}, verb) {
		t.Fatalf("no statement %q", line)
	}
	f := strings.Fields(rest)
	rel := s.rels[f[0]]
	if rel == nil {
		t.Fatalf("no table in %q", line)
	}
	switch verb {
	case "insert":
		row := make(wal.Tuple, len(rel.Columns))
		for i := range row {
			row[i] = wal.Value{Kind: wal.Null}
		}
		s.set(rel, row, f[1:])
		s.rows[f[0]][s.key(rel, row)] = row
		s.change(&wal.Change{Op: wal.Insert, Relation: rel, New: row})
	case "update":
		was, ok := s.rows[f[0]][f[1]]
		if !ok {
			t.Fatalf("no row %q in %q", f[1], line)
		}
		sent := slices.Clone(was)
		s.set(rel, sent, f[2:])
		row := slices.Clone(sent)
		for i := range row {
			if row[i].Kind == wal.Unchanged {
				row[i] = was[i]
			}
		}
		delete(s.rows[f[0]], f[1])
		key := s.key(rel, row)
		s.rows[f[0]][key] = row
		c := &wal.Change{Op: wal.Update, Relation: rel, New: sent}
		c.Old, c.OldKind = s.old(rel, was, key != f[1], false)
		s.change(c)
	case "delete":
		was, ok := s.rows[f[0]][f[1]]
		if !ok {
			t.Fatalf("no row %q in %q", f[1], line)
		}
		delete(s.rows[f[0]], f[1])
		c := &wal.Change{Op: wal.Delete, Relation: rel}
		c.Old, c.OldKind = s.old(rel, was, false, true)
		s.change(c)
	}
}

// backfill tells all that the rows stand for, without a look at memory.
func (s *script) backfill(rest string) {
	entity, where, _ := strings.Cut(rest, " ")
	d := s.make()
	st := Standing{Entity: entity, Time: s.now}
	for _, m := range d.tables {
		for _, r := range m.rules {
			if e, err := d.Backfills(r.Event); err == nil && e == entity && !slices.Contains(st.Types, r.Event) {
				st.Types = append(st.Types, r.Event)
			}
		}
	}
	st.Types = append(st.Types, "clients.custom_fields.update")
	if where != "" {
		st.Where = mustCondition(s.t, where)
	}
	for _, table := range d.EntityTables(entity) {
		rows := Rows{Relation: s.rels[table.Name]}
		if rows.Relation == nil {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(s.rows[table.Name])) {
			rows.Tuples = append(rows.Tuples, slices.Clone(s.rows[table.Name][key]))
		}
		st.Rows = append(st.Rows, rows)
	}
	key, _, _ := d.RowColumns(st.Rows[0].Relation)
	named := map[string]bool{}
	for _, t := range st.Rows[0].Tuples {
		var texts []string
		for _, i := range key {
			texts = append(texts, string(t[i].Text))
		}
		named[d.RowName(entity, texts)] = true
	}
	err := d.Backfill(st, func(row []byte, e *event.Event) error {
		if !named[string(row)] || e.Origin != event.OriginBackfill {
			s.t.Errorf("row %q is none of those there were, or origin %q", row, e.Origin)
		}
		e.ID = event.ID{Generation: 1, CommitLSN: s.lsn, Ordinal: event.FirstOutside + s.outside}
		s.outside++
		return s.emit(e)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) time(text string) time.Time {
	at, err := time.Parse("2006-01-02 15:04:05.999999999", text)
	if err != nil {
		s.t.Fatal(err)
	}
	return at
}

// fire tells what has fallen due, few at a time.
func (s *script) fire() {
	for n := 2; n == 2; {
		var err error
		n, err = s.d.Fire(s.mem, s.now, 2, func() event.ID {
			s.outside++
			return event.ID{Generation: 1, CommitLSN: s.lsn, Ordinal: event.FirstOutside + s.outside - 1}
		}, s.emit)
		if err != nil {
			s.t.Fatalf("fire: %v", err)
		}
	}
	if due, ok, err := s.d.Due(s.mem); err != nil || ok && !due.After(s.now) {
		s.t.Errorf("after firing what was due at %v the next is due at %v, %v", s.now, due, err)
	}
}

// told is an event as a receiver sees it.
type told struct {
	Event struct {
		ID     string `json:"id"`
		Type   string `json:"events_id"`
		Object any    `json:"object_id"`
		Lane   string `json:"lane"`
	}
	Data      map[string]any
	Changed   map[string]map[string]any
	Unchanged []string
}

// differs reports how two events of one transaction under two identities differ,
// apart from what only one of them can know: old values, and values that did not
// come.
func (a told) differs(b told) string {
	if a.Event != b.Event {
		return fmt.Sprintf("%v, not %v", b.Event, a.Event)
	}
	for col, v := range a.Data {
		if w, ok := b.Data[col]; ok && fmt.Sprint(v) != fmt.Sprint(w) {
			return fmt.Sprintf("%s: data.%s is %v, not %v", a.Event.ID, col, w, v)
		}
	}
	if len(a.Changed) != len(b.Changed) {
		return fmt.Sprintf("%s: changed is %v, not %v", a.Event.ID, b.Changed, a.Changed)
	}
	for col, v := range a.Changed {
		w, ok := b.Changed[col]
		if !ok || fmt.Sprint(v["new"]) != fmt.Sprint(w["new"]) {
			return fmt.Sprintf("%s: changed.%s is %v, not %v", a.Event.ID, col, w, v)
		}
	}
	return ""
}

func (s *script) emit(e *event.Event) error {
	var seen told
	if err := json.Unmarshal(e.AppendPayload(nil), &seen); err != nil {
		s.t.Errorf("payload is not JSON: %v: %s", err, e.AppendPayload(nil))
	}
	s.events = append(s.events, seen)
	fmt.Fprintf(&s.out, "%s %s object=%s lane=%s", e.ID, e.Type, e.ObjectJSON, e.Lane)
	if e.ID.Ordinal >= event.FirstOutside {
		fmt.Fprintf(&s.out, " dt=%s", e.CommitTime.Format(time.RFC3339Nano))
	}
	fmt.Fprintln(&s.out)
	fmt.Fprintf(&s.out, "\tdata    %s\n", e.Data)
	if string(e.Changed) != "{}" {
		fmt.Fprintf(&s.out, "\tchanged %s\n", e.Changed)
	}
	if len(e.Unchanged) > 0 {
		fmt.Fprintf(&s.out, "\tunchanged %s\n", strings.Join(e.Unchanged, " "))
	}
	return nil
}

func mustCondition(t *testing.T, text string) *expr.Condition {
	t.Helper()
	c, err := expr.CompileRow(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustNumber(t *testing.T, text string) *expr.Number {
	t.Helper()
	n, err := expr.CompileNumber(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustZone(t *testing.T, name string) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

func mustDecimal(t *testing.T, text string) Decimal {
	t.Helper()
	d, err := ParseDecimal(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// mappings are the mappings that cases name in their first comment line.
func mappings(t *testing.T) map[string]Mapping {
	public := func(name string) Table { return Table{"public", name} }
	side := public("clients_balances")
	fields := public("clients_custom_fields")
	accounts := Entity{Name: Accounts, Table: public("accounts"), Key: []string{"id"}, Client: []string{"clients_id"}, Mask: []string{"password"}, Ignore: []string{"m_dt"}}
	packages := Entity{
		Name: Packages, Table: public("clients_packages"), Key: []string{"id"}, Client: []string{"clients_id"},
		Activate:   &Test{Becomes: &Predicate{Column: "condition", Values: []string{"activated"}}},
		Deactivate: &Test{Becomes: &Predicate{Column: "condition", Values: []string{"deactivated"}}},
		Renew:      &Test{Moves: &Move{Column: "period_start_dt"}},
		Close:      &Test{Becomes: &Predicate{Column: "status", Values: []string{"archive"}}},
	}
	return map[string]Mapping{
		"side": {Source: "billing", Entities: []Entity{
			{
				Name: Clients, Table: public("clients"), Key: []string{"id"}, Ignore: []string{"m_dt"}, Mask: []string{"tax_id"}, Exclude: []string{"notes"},
				Archive:      &Test{Becomes: &Predicate{Column: "status", Values: []string{"archive"}}},
				Balance:      &Balance{Table: &side, Key: []string{"clients_id"}, Amount: mustNumber(t, "balance")},
				CustomFields: &CustomFields{Table: &fields, Client: []string{"clients_id"}, Name: "field_key", Value: "value"},
			},
			accounts, packages,
		}},
		"single": {Source: "billing", Entities: []Entity{
			{
				Name: Clients, Table: public("clients"), Key: []string{"id"}, Ignore: []string{"m_dt"}, Mask: []string{"tax_id"}, Exclude: []string{"notes"},
				Archive:      &Test{Becomes: &Predicate{Column: "deleted_at", Set: true}},
				Balance:      &Balance{Amount: mustNumber(t, "balance")},
				CustomFields: &CustomFields{Columns: []string{"custom_fields"}},
			},
			accounts,
		}, Rules: []Rule{
			{Event: "clients.low_balance", Entity: Clients, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "balance"), Value: mustDecimal(t, "10"), Below: true, OnCreate: true}},
			{Event: "clients.moved", Entity: Clients, On: OnUpdate, Test: Test{When: mustCondition(t, "old.companies_id != new.companies_id")}},
		}},
		"rules": {Source: "billing", Entities: []Entity{
			{
				Name: Clients, Table: public("clients"), Key: []string{"id"}, Truncate: true,
				Archive: &Test{Becomes: &Predicate{Column: "phone", Unset: true}},
				Balance: &Balance{Amount: mustNumber(t, "balance + credit"), Value: mustDecimal(t, "5"), Hysteresis: mustDecimal(t, "2.5")},
			},
			{Name: Accounts, Table: public("accounts"), Key: []string{"id"}, Client: []string{"clients_id"}},
		}, Rules: []Rule{
			{Event: "accounts.low", Entity: Accounts, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "amount"), Value: mustDecimal(t, "-1"), Below: true, PerChange: true}},
			{Event: "accounts.well", Entity: Accounts, On: OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "amount"), Value: mustDecimal(t, "-1"), PerChange: true}},
		}},
		"clock": {Source: "billing", Zone: mustZone(t, "Europe/Berlin"), Entities: []Entity{
			{
				Name: Clients, Table: public("clients"), Key: []string{"id"}, Mask: []string{"tax_id"}, Exclude: []string{"notes"},
				Archive: &Test{At: "leaves_on"},
			},
			{
				Name: Packages, Table: public("clients_packages"), Key: []string{"id"}, Client: []string{"clients_id"}, Mask: []string{"secret", "pin"},
				Close: &Test{At: "stop_dt", When: mustCondition(t, `new.condition != "cancelled"`)},
			},
		}, Rules: []Rule{
			{Event: "packages.due", Entity: Packages, Test: Test{At: "renew_due"}},
			{Event: "packages.due_locked", Entity: Packages, Test: Test{At: "renew_due", When: mustCondition(t, `op == "clock" && has(new.pin) && new.pin == "0000"`)}},
		}},
		"settle": {Source: "billing", Entities: []Entity{
			{
				Name: Clients, Table: public("clients"), Key: []string{"id"}, Mask: []string{"tax_id"},
				Balance: &Balance{Amount: mustNumber(t, "balance"), Settle: 30 * time.Second},
			},
			{Name: Accounts, Table: public("accounts"), Key: []string{"id"}, Client: []string{"clients_id"}},
		}, Rules: []Rule{
			{Event: "accounts.low", Entity: Accounts, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "amount"), Value: mustDecimal(t, "10"), Below: true, OnCreate: true, PerChange: true, Settle: time.Minute}, Test: Test{When: mustCondition(t, `new.name != "test" && !has(old.nosuch)`)}},
			{Event: "accounts.well", Entity: Accounts, On: OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "amount"), Value: mustDecimal(t, "10"), OnCreate: true, PerChange: true, Settle: time.Minute}},
			{Event: "accounts.at_once", Entity: Accounts, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "amount"), Value: mustDecimal(t, "10"), Below: true}},
		}},
		"joint": {Source: "billing", Entities: []Entity{
			{
				Name: Clients, Table: public("clients"), Key: []string{"id"},
				Balance: &Balance{Table: &side, Key: []string{"clients_id"}, Amount: mustNumber(t, "balance + credit")},
			},
		}, Rules: []Rule{
			{Event: "clients.low", Entity: Clients, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "balance + credit - reserve"), Value: mustDecimal(t, "10"), Below: true, OnCreate: true, Settle: time.Minute}},
			{Event: "clients.in_debt", Entity: Clients, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "clients_balances.balance"), Value: mustDecimal(t, "-50"), Below: true}},
			{Event: "clients.credit_gone", Entity: Clients, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "clients.credit"), Below: true}},
		}},
		"timed": {Source: "billing", Entities: []Entity{
			{
				Name: Clients, Table: public("clients"), Key: []string{"id"}, Mask: []string{"tax_id"},
				Balance: &Balance{Table: &side, Key: []string{"clients_id"}, Amount: mustNumber(t, "clients_balances.balance + credit"), Settle: 13 * 24 * time.Hour},
			},
			{Name: Accounts, Table: public("accounts"), Key: []string{"id"}, Client: []string{"clients_id"}},
			{
				Name: Packages, Table: public("clients_packages"), Key: []string{"id"}, Client: []string{"clients_id"},
				Close: &Test{At: "period_start_dt", When: mustCondition(t, `new.condition != "new"`)},
			},
		}, Rules: []Rule{
			{Event: "accounts.low", Entity: Accounts, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "amount"), Below: true, OnCreate: true, PerChange: true, Settle: 20 * 24 * time.Hour}},
			{Event: "accounts.well", Entity: Accounts, On: OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "amount"), OnCreate: true, PerChange: true, Settle: 20 * 24 * time.Hour}},
			{Event: "clients.low", Entity: Clients, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "clients.balance"), Value: mustDecimal(t, "5"), Below: true, Settle: time.Hour}},
		}},
		"events": {Source: "billing", Entities: []Entity{
			{
				Name: Clients, Table: public("clients"), Key: []string{"id"}, Ignore: []string{"m_dt"},
				Balance: &Balance{Amount: mustNumber(t, "balance"), OnCreate: true},
			},
			packages,
		}, Rules: []Rule{
			{Event: "clients.role_term", Entity: Clients, On: OnInsert | OnUpdate, Test: Test{Becomes: &Predicate{Column: "role", Values: []string{"term", "both"}}}},
			{Event: "clients.left", Entity: Clients, On: OnInsert | OnUpdate, Test: Test{Becomes: &Predicate{Column: "deleted_at", Set: true}}},
			{Event: "clients.back", Entity: Clients, On: OnUpdate, Test: Test{Becomes: &Predicate{Column: "deleted_at", Unset: true}}},
			{Event: "clients.renamed", Entity: Clients, On: OnUpdate, Test: Test{Changes: []string{"name", "title"}}},
			{Event: "clients.limit_down", Entity: Clients, On: OnUpdate, Test: Test{Moves: &Move{Column: "credit", Backward: true}}},
			{Event: "clients.limit_up", Entity: Clients, On: OnUpdate, Test: Test{Moves: &Move{Column: "credit"}, When: mustCondition(t, `new.credit - old.credit >= 10`)}},
			{Event: "clients.gone_rich", Entity: Clients, On: OnDelete, Test: Test{When: mustCondition(t, `op == "delete" && 100 < old.balance`)}},
			{Event: "clients.touched", Entity: Clients, On: OnInsert | OnUpdate | OnDelete, Test: Test{When: mustCondition(t, `("m_dt" in changed || op != "update") && tx.xid > 0 && 3 == size("abc")`)}},
			{Event: "clients.debt", Entity: Clients, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "balance"), Value: mustDecimal(t, "-20.5"), Below: true}},
			{Event: "clients.debt_over", Entity: Clients, On: OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "balance"), Value: mustDecimal(t, "-20.5")}},
			{Event: "clients.vip_low", Entity: Clients, On: OnInsert | OnUpdate, Threshold: &Threshold{Amount: mustNumber(t, "balance"), Value: mustDecimal(t, "10"), Below: true}, Test: Test{When: mustCondition(t, `new.role == "both"`)}},
		}},
		"composite": {Source: "billing", Entities: []Entity{
			{
				Name: Clients, Table: public("clients"), Key: []string{"tenant", "code"}, Balance: &Balance{Amount: mustNumber(t, "balance"), OnCreate: true},
				CustomFields: &CustomFields{Table: &fields, Client: []string{"tenant", "code"}, Name: "field", Value: "value"},
			},
		}},
	}
}

// TestCases plays every case in testdata under each replica identity. The events
// must be the same under all; only the old values that a payload can show differ,
// and the golden text has those of the default identity.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("../../testdata/billing/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			ar := txtar.Parse(b)
			var steps, want []byte
			for _, f := range ar.Files {
				switch f.Name {
				case "steps":
					steps = f.Data
				case "events":
					want = f.Data
				}
			}
			name, _, _ := strings.Cut(strings.TrimPrefix(string(ar.Comment), "mapping: "), "\n")
			name, only, _ := strings.Cut(name, " ")
			mapping, ok := mappings(t)[name]
			if !ok {
				t.Fatalf("%s: no mapping %q", file, name)
			}
			play := func(identity wal.Identity) (string, []told) {
				s := play(t, mapping, identity, nil, 0, string(steps))
				for _, every := range []int{1, 2, 3} {
					s.same(play(t, mapping, identity, s, every, string(steps)))
				}
				return s.out.String(), s.events
			}
			got, events := play(wal.IdentityDefault)
			if *update {
				for i := range ar.Files {
					if ar.Files[i].Name == "events" {
						ar.Files[i].Data = []byte(got)
					}
				}
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(want) {
				t.Errorf("events under the default identity:\n%s\nwant:\n%s", got, want)
			}
			if only == "(default identity only)" {
				return // FULL knows more here
			}
			for _, identity := range []wal.Identity{wal.IdentityFull, wal.IdentityIndex} {
				text, others := play(identity)
				if len(others) != len(events) {
					t.Errorf("under identity %c %d events, not %d:\n%s", identity, len(others), len(events), text)
					continue
				}
				for i := range events {
					if diff := events[i].differs(others[i]); diff != "" {
						t.Errorf("under identity %c: %s", identity, diff)
					}
				}
			}
		})
	}
}

// play plays steps with a new Deriver, which spills after every so many changes.
// Layouts are numbered as in like, if that is given.
func play(t *testing.T, mapping Mapping, identity wal.Identity, like *script, every int, steps string) *script {
	t.Helper()
	s := &script{
		t: t, identity: identity, mem: memoryMap{}, rels: map[string]*wal.Relation{}, primary: map[string]bool{}, rows: map[string]map[string]wal.Tuple{}, every: every,
		now: time.Date(2026, 11, 23, 10, 15, 0, 123456000, time.UTC),
	}
	s.make = func() *Deriver {
		d, err := New(mapping, Options{
			Notice: func(n Notice) { fmt.Fprintf(&s.out, "notice: %s\n", n.Text) },
			Broken: func(t event.Type, err error) { fmt.Fprintf(&s.out, "broken: %s: %v\n", t, err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		if every%2 == 1 {
			d.tx.spilled.limit = 4 // the places of few rows are in RAM
		}
		return d
	}
	s.d = s.make()
	if like != nil {
		for _, key := range []string{layoutsKey, formsKey} {
			if ids, ok, _ := like.mem.Memory([]byte(key)); ok {
				s.mem.SetMemory([]byte(key), ids)
			}
		}
	}
	for line := range strings.Lines(steps) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "#") {
			fmt.Fprintln(&s.out, line)
			continue
		}
		s.line(line)
	}
	return s
}

func TestSplitKey(t *testing.T) {
	for _, c := range []struct {
		parts []string
		n     int
	}{
		{[]string{"4711"}, 1},
		{[]string{`a,b\c`}, 1},
		{[]string{""}, 1},
		{[]string{"a", "b"}, 2},
		{[]string{"", ""}, 2},
		{[]string{`a,b`, `\`, `,\,`}, 3},
		{[]string{"ä,ö", "x"}, 2},
	} {
		got, ok := SplitKey(JoinKey(c.parts), c.n)
		if !ok || !slices.Equal(got, c.parts) {
			t.Errorf("%q becomes %q (%v)", c.parts, got, ok)
		}
	}
	for _, text := range []string{"a", "a,b,c", `a,b\`} {
		if got, ok := SplitKey(text, 2); ok {
			t.Errorf("%q is taken for the two parts %q", text, got)
		}
	}
}
