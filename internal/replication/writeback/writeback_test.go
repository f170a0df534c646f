package writeback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/replication/catalog"
)

const schema = `
	CREATE TYPE mood AS ENUM ('good', 'bad');
	CREATE DOMAIN code AS varchar(8) CHECK (VALUE <> 'evil');
	CREATE TABLE clients (
		id int PRIMARY KEY, name text, short varchar(5), fixed char(4), credit numeric(10,2), big bigint, rate float8, vip boolean,
		doc jsonb, raw json, tags text[], levels int[], docs jsonb[], feeling mood, code code, at timestamptz, day date, local timestamp,
		secret text, twice numeric GENERATED ALWAYS AS (credit * 2) STORED, CHECK (name <> 'refused')
	);
	INSERT INTO clients (id, name, credit) SELECT i, 'Client ' || i, 10 FROM generate_series(1, 40) i;`

// render is not billing's, which this package does not know; the types here need no more.
func render(oid uint32, text []byte) []byte {
	switch oid {
	case 20, 23, 701, 114, 3802:
		return text
	case 16:
		return []byte(map[string]string{"t": "true", "f": "false"}[string(text)])
	}
	return event.AppendJSONString(nil, text)
}

func newWriter(t *testing.T, dsn string) *Writer {
	t.Helper()
	w, err := New(Options{DSN: dsn, Slot: "billhook", Key: []byte("key"), Render: render})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// row makes a Row of "column=json,was" parts.
func row(id string, values ...[3]string) Row {
	r := Row{Table: catalog.Name{Schema: "public", Table: "clients"}, Key: []string{"id"}, Texts: []string{id}}
	for _, v := range values {
		r.Values = append(r.Values, Value{Column: v[0], JSON: json.RawMessage(v[1]), Was: json.RawMessage(v[2])})
	}
	return r
}

func TestApply(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, schema)
	w := newWriter(t, db.DSN)
	for i, c := range []struct {
		column, json, was string
		result            Result
		text              string // of the outcome, a part
		holds             string // afterwards, as text; "NULL"
	}{
		{"name", `"Acme, \"the\" ü"`, `"Client $"`, Applied, "", `Acme, "the" ü`},
		{"name", `null`, `"Client $"`, Applied, "", "NULL"},
		{"name", `12.50`, `"Client $"`, Applied, "", "12.50"},
		{"name", `"x"`, `"Somebody"`, Conflict, `another value of "name"`, "Client $"},
		{"name", `"x"`, `null`, Conflict, `another value of "name"`, "Client $"},
		{"name", `"Client $"`, `"Somebody"`, Unchanged, "", "Client $"},
		{"name", `"refused"`, `"Client $"`, Failed, "violates check constraint", "Client $"},
		{"name", `"a\u0000b"`, `"Client $"`, Failed, "SQLSTATE 22021", "Client $"},
		{"name", `{"a": 1}`, `"Client $"`, Refused, "takes no list and no object", "Client $"},
		{"short", `"fünfe"`, `null`, Applied, "", "fünfe"},
		{"short", `"too long"`, `null`, Failed, "value too long", "NULL"},
		{"fixed", `"ab"`, `null`, Applied, "", "ab"},
		{"credit", `12345.678`, `"10.00"`, Applied, "", "12345.68"},
		{"credit", `"0.10"`, `"10.00"`, Applied, "", "0.10"},
		{"credit", `10.0`, `"99"`, Unchanged, "", "10.00"},
		{"credit", `"lots"`, `"10.00"`, Failed, "invalid input syntax", "10.00"},
		{"credit", `1e99`, `"10.00"`, Failed, "numeric field overflow", "10.00"},
		{"big", `9007199254740993`, `null`, Applied, "", "9007199254740993"},
		{"big", `1.5`, `null`, Failed, "invalid input syntax", "NULL"},
		{"rate", `0.1`, `null`, Applied, "", "0.1"},
		{"vip", `true`, `null`, Applied, "", "true"},
		{"doc", `{"b": [1, 2.50], "a": null}`, `null`, Applied, "", `{"a": null, "b": [1, 2.50]}`},
		{"doc", `"text"`, `null`, Applied, "", `"text"`},
		{"raw", `[1,  2]`, `null`, Applied, "", `[1,  2]`},
		{"tags", `["a", "b,\"c\\", null, ""]`, `null`, Applied, "", `{a,"b,\"c\\",NULL,""}`},
		{"levels", `[[1, 2], [3, 4]]`, `null`, Applied, "", `{{1,2},{3,4}}`},
		{"levels", `["x"]`, `null`, Failed, "invalid input syntax", "NULL"},
		{"tags", `[{"a": 1}]`, `null`, Refused, "a list holds an object", "NULL"},
		{"docs", `[{"a": 1}, [2], null]`, `null`, Applied, "", `{"{\"a\": 1}",[2],NULL}`},
		{"feeling", `"bad"`, `null`, Applied, "", "bad"},
		{"feeling", `"none"`, `null`, Failed, "invalid input value for enum", "NULL"},
		{"code", `"abc"`, `null`, Applied, "", "abc"},
		{"code", `"evil"`, `null`, Failed, "violates check constraint", "NULL"},
		{"at", `"2026-11-23 12:00:00+02"`, `null`, Applied, "", "2026-11-23 10:00:00+00"},
		{"day", `"2026-11-23"`, `null`, Applied, "", "2026-11-23"},
		{"twice", `5`, `"20.00"`, Refused, "is generated", "20.00"},
		{"nosuch", `5`, `null`, Refused, `no column "nosuch"`, ""},
	} {
		id := fmt.Sprint(i + 1)
		dollar := strings.NewReplacer("$", id)
		out, err := w.Apply(t.Context(), row(id, [3]string{c.column, dollar.Replace(c.json), dollar.Replace(c.was)}))
		if err != nil || out.Result != c.result || !strings.Contains(out.Text, c.text) || (out.Text == "") != (c.text == "") {
			t.Errorf("%s = %s: %+v, %v; want %s %q", c.column, c.json, out, err, c.result, c.text)
		}
		if c.holds == "" {
			continue
		}
		if got := pgtest.Value[string](t, db, "SELECT coalesce("+c.column+"::text, 'NULL') FROM clients WHERE id = $1", i+1); strings.TrimSpace(got) != dollar.Replace(c.holds) {
			t.Errorf("%s = %s: the row holds %s, want %s", c.column, c.json, got, dollar.Replace(c.holds))
		}
		// Asked again, as after a crash, it knows what it has written.
		if c.result == Applied {
			if out, err := w.Apply(t.Context(), row(id, [3]string{c.column, dollar.Replace(c.json), dollar.Replace(c.was)})); err != nil || out.Result != Unchanged {
				t.Errorf("%s = %s again: %+v, %v", c.column, c.json, out, err)
			}
		}
	}
	if out, err := w.Apply(t.Context(), row("999", [3]string{"name", `"x"`, `"y"`})); err != nil || out.Result != Conflict || !strings.Contains(out.Text, "not there") {
		t.Errorf("a row that is gone: %+v, %v", out, err)
	}
	// All or nothing.
	out, err := w.Apply(t.Context(), row("40", [3]string{"vip", "true", "null"}, [3]string{"name", `"x"`, `"y"`}))
	if err != nil || out.Result != Conflict || out.Text != `since the event the row has got another value of "name"` {
		t.Errorf("one of two columns: %+v, %v", out, err)
	}
	if !pgtest.Value[bool](t, db, "SELECT vip IS NULL AND name = 'Client 40' FROM clients WHERE id = 40") {
		t.Error("half of an answer was written")
	}
	if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'billhook write-back' AND state = 'idle'"); n != 1 {
		t.Errorf("%d connections are left idle", n)
	}
}

// TestApplyKeys writes by keys of several columns, of a partitioned table.
func TestApplyKeys(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `
		CREATE SCHEMA "Odd one";
		CREATE TABLE "Odd one"."Clients" (tenant char(3), "Code" uuid, status text, PRIMARY KEY (tenant, "Code")) PARTITION BY LIST (tenant);
		CREATE TABLE "Odd one".a PARTITION OF "Odd one"."Clients" FOR VALUES IN ('a');
		INSERT INTO "Odd one"."Clients" VALUES ('a', '11111111-1111-1111-1111-111111111111', 'active'), ('a', '22222222-2222-2222-2222-222222222222', 'active')`)
	w := newWriter(t, db.DSN)
	r := Row{
		Table: catalog.Name{Schema: "Odd one", Table: "Clients"}, Key: []string{"tenant", "Code"}, Texts: []string{"a  ", "22222222-2222-2222-2222-222222222222"},
		Values: []Value{{Column: "status", JSON: json.RawMessage(`"blocked"`), Was: json.RawMessage(`"active"`)}},
	}
	if out, err := w.Apply(t.Context(), r); err != nil || out.Result != Applied {
		t.Errorf("%+v, %v", out, err)
	}
	if got := pgtest.Value[string](t, db, `SELECT string_agg(status, ' ' ORDER BY "Code") FROM "Odd one"."Clients"`); got != "active blocked" {
		t.Error(got)
	}
	r.Key, r.Texts = []string{"tenant"}, []string{"a"}
	if out, err := w.Apply(t.Context(), r); err != nil || out.Result != Refused || !strings.Contains(out.Text, "2 rows") {
		t.Errorf("a key that is none: %+v, %v", out, err)
	}
	r.Key = []string{"nosuch"}
	if out, err := w.Apply(t.Context(), r); err != nil || out.Result != Refused {
		t.Errorf("a key that is not there: %+v, %v", out, err)
	}
	r.Table.Table = "gone"
	if out, err := w.Apply(t.Context(), r); err != nil || out.Result != Refused || !strings.Contains(out.Text, "no table") {
		t.Errorf("a table that is not there: %+v, %v", out, err)
	}
}

// TestApplyTriggers: triggers see the role's own time zone and path, what they make of
// a value is known when it is written again, and what they forbid is not written.
func TestApplyTriggers(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `
		CREATE TABLE clients (id int PRIMARY KEY, name text, local timestamp, at timestamptz);
		CREATE TABLE notes (text text);
		INSERT INTO clients VALUES (1, 'a', NULL, '2026-06-01 10:00:00+00'), (2, 'never', NULL, NULL);
		CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			NEW.name := upper(NEW.name); NEW.local := '2026-06-01 10:00:00+00'::timestamptz;
			INSERT INTO notes VALUES (NEW.name);
			IF OLD.name = 'never' THEN RETURN NULL; END IF;
			IF NEW.name = 'BAD' THEN RAISE EXCEPTION 'not this one'; END IF;
			RETURN NEW;
		END $$;
		CREATE TRIGGER touch BEFORE UPDATE ON clients FOR EACH ROW EXECUTE FUNCTION touch()`)
	_, dsn := db.Role(t, "", "GRANT SELECT, UPDATE ON clients TO $role", "GRANT INSERT ON notes TO $role", "ALTER ROLE $role SET TimeZone = 'Asia/Tokyo'")
	w := newWriter(t, dsn)
	for range 2 { // a connection is used again
		want := Applied
		if pgtest.Value[string](t, db, "SELECT name FROM clients WHERE id = 1") == "BLOCKED" {
			want = Unchanged
		}
		if out, err := w.Apply(t.Context(), row("1", [3]string{"name", `"blocked"`, `"a"`}, [3]string{"at", `"2026-06-01 19:00:00"`, `"2026-06-01 10:00:00+00"`})); err != nil || out.Result != want {
			t.Errorf("%+v, %v; want %s", out, err, want)
		}
	}
	if got := pgtest.Value[string](t, db, "SELECT name || ' ' || local FROM clients WHERE id = 1"); got != "BLOCKED 2026-06-01 19:00:00" {
		t.Error(got)
	}
	if out, err := w.Apply(t.Context(), row("1", [3]string{"name", `"bad"`, `"BLOCKED"`})); err != nil || out.Result != Failed || !strings.Contains(out.Text, "not this one") {
		t.Errorf("a trigger that refuses: %+v, %v", out, err)
	}
	if out, err := w.Apply(t.Context(), row("2", [3]string{"name", `"x"`, `"never"`})); err != nil || out.Result != Refused || !strings.Contains(out.Text, "trigger") {
		t.Errorf("a trigger that does not let it be: %+v, %v", out, err)
	}
}

// TestApplyWaits: what may pass is an error, so that it is asked again.
func TestApplyWaits(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, schema)
	name, dsn := db.Role(t, "", "GRANT SELECT ON clients TO $role", "GRANT UPDATE (name) ON clients TO $role")
	w := newWriter(t, dsn)
	code := func(err error) string {
		if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
			return pe.Code
		}
		return ""
	}
	// One column alone may be written.
	if out, err := w.Apply(t.Context(), row("1", [3]string{"name", `"x"`, `"Client 1"`})); err != nil || out.Result != Applied {
		t.Errorf("with UPDATE on the column alone: %+v, %v", out, err)
	}
	if out, err := w.Apply(t.Context(), row("1", [3]string{"vip", `true`, `null`})); code(err) != "42501" {
		t.Errorf("without UPDATE on the column: %+v, %v", out, err)
	}
	db.Exec(t, "GRANT UPDATE (vip) ON clients TO "+name)
	if out, err := w.Apply(t.Context(), row("1", [3]string{"vip", `true`, `null`})); err != nil || out.Result != Applied {
		t.Errorf("when it was granted: %+v, %v", out, err)
	}

	// A lock of the application's.
	tx, err := db.Connect(t).Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "UPDATE clients SET name = 'held' WHERE id = 2")
	}
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if out, err := w.Apply(t.Context(), row("2", [3]string{"name", `"x"`, `"Client 2"`})); code(err) != "55P03" || time.Since(began) > 4*time.Second {
		t.Errorf("a row that is locked: %+v, %v after %s", out, err, time.Since(began))
	}
	if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.usename = $1", name); n != 0 {
		t.Errorf("%d locks are still held", n)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := w.Apply(t.Context(), row("2", [3]string{"name", `"x"`, `"Client 2"`})); err != nil || out.Result != Conflict {
		t.Errorf("a row that was changed meanwhile: %+v, %v", out, err)
	}

	// A connection that has died while nobody used it.
	db.Exec(t, "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = $1", name)
	if out, err := w.Apply(t.Context(), row("3", [3]string{"name", `"x"`, `"Client 3"`})); err != nil || out.Result != Applied {
		t.Errorf("after the connection has died: %+v, %v", out, err)
	}

	// All at once, over two connections.
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			id := fmt.Sprint(10 + i)
			if out, err := w.Apply(t.Context(), row(id, [3]string{"name", `"x"`, `"Client ` + id + `"`})); err != nil || out.Result != Applied {
				t.Errorf("row %s: %+v, %v", id, out, err)
			}
		})
	}
	all.Wait()
	if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_stat_activity WHERE usename = $1", name); n > maxConns {
		t.Errorf("%d connections", n)
	}

	// Nobody there.
	away := newWriter(t, "host=127.0.0.1 port=1 user=billhook dbname=billing sslmode=disable")
	if out, err := away.Apply(t.Context(), row("1")); err == nil {
		t.Errorf("without a server: %+v", out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Apply(ctx, row("5", [3]string{"name", `"x"`, `"Client 5"`})); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestParseValues(t *testing.T) {
	for _, c := range []struct{ in, want, err string }{
		{`{}`, "", ""},
		{`{"b": 1.50, "a": null, "c": {"x": [1]}}`, `b=1.50 a=null c={"x": [1]}`, ""},
		{`{"a": 1, "b": 2, "a": 3}`, "", `column "a" is in it twice`},
		{`[1]`, "", "not an object"},
		{`"a"`, "", "not an object"},
		{`{"a": 1`, "", "not valid JSON"},
		{`{"a"`, "", "not valid JSON"},
		{``, "", "not an object"},
	} {
		values, err := ParseValues(json.RawMessage(c.in))
		var got []string
		for _, v := range values {
			got = append(got, v.Column+"="+string(v.JSON))
		}
		if text := strings.Join(got, " "); text != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %s, %v", c.in, text, err)
		}
	}
}

// FuzzText wants that no JSON value breaks the text that is made of it.
func FuzzText(f *testing.F) {
	for _, seed := range []string{`null`, `1.50`, `"a"`, `[1, ["b,\""], null]`, `{"a": 1}`, `[[[[[[[[[[1]]]]]]]]]]`, ` true `} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !json.Valid(b) {
			return
		}
		for _, s := range []shape{scalar, document, list, documents} {
			v := Value{Column: "c", JSON: b}
			text, err := v.text(s)
			if err == nil && s == document && text != nil && !json.Valid(text) {
				t.Errorf("%q becomes %q", b, text)
			}
		}
	})
}

func TestMarks(t *testing.T) {
	key := []byte("a key of this journal")
	const xid = 3<<32 | 7731
	good := mark(key, "billhook", xid)
	if !Marks(key, "billhook", 7731, []byte(good)) {
		t.Fatalf("%q is not known", good)
	}
	_, rest, _ := strings.Cut(good, " ")
	for what, ok := range map[string]bool{
		"another transaction":       Marks(key, "billhook", 7732, []byte(good)),
		"another slot":              Marks(key, "other", 7731, []byte(good)),
		"another key":               Marks([]byte("a key of that journal"), "billhook", 7731, []byte(good)),
		"no key":                    Marks(nil, "billhook", 7731, []byte(mark(nil, "billhook", xid))),
		"another epoch":             Marks(key, "billhook", 7731, []byte(strings.Replace(good, fmt.Sprint(xid), "7731", 1))),
		"a transaction's id beside": Marks(key, "billhook", 7732, []byte(strings.Replace(good, fmt.Sprint(xid), fmt.Sprint(xid+1), 1))),
		"cut":                       Marks(key, "billhook", 7731, []byte(good[:len(good)-2])),
		"another slot's text":       Marks(key, "other", 7731, []byte("other "+rest)),
		"empty":                     Marks(key, "billhook", 7731, nil),
	} {
		if ok {
			t.Errorf("%s: taken for ours", what)
		}
	}
}
