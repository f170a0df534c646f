package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/doctor"
	"github.com/billhook/billhook/internal/pgtest"
)

var _ = flag.Bool("update", false, "rewrite golden files")

func updating() bool { return flag.Lookup("update").Value.String() == "true" }

// TestCheckTable compares the table with testdata/check.golden, without what
// differs from one machine to the next.
func TestCheckTable(t *testing.T) {
	db := pgtest.NewDatabase(t, `
		CREATE TABLE clients (id int PRIMARY KEY, name text, status text, balance numeric(20,6));
		CREATE TABLE accounts (id int, clients_id int, login text)`)
	role, dsn := db.Role(t, "", "GRANT SELECT ON accounts TO $role", "CREATE PUBLICATION billhook FOR TABLE clients WITH (publish_via_partition_root = true)")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"billhook.yaml": `version: 1
source: {dsn: "` + dsn + `", slot: golden}
entities:
  clients: {table: public.clients, key: [id], archive: {column: state, value: archive}, balance: {column: balance}}
  accounts: {table: public.accounts, key: [id], client: clients_id}
journal: {path: "` + filepath.Join(dir, "billhook.yaml") + `"}
http: {listen: "127.0.0.1:0"}
`,
		"handlers.yaml": `version: 1
handlers:
  - {id: 1, name: Tell the CRM, event: "clients.*", http: {url: "https://crm.example.org/hook"}}
  - {id: 2, name: Block, event: clients.balance_zero, script: {path: "` + filepath.Join(dir, "block") + `"}}
  - {id: 3, name: Later, event: clients.create, status: disabled, http: {url: "https://later.example.org/"}}
`,
		"block": "#!/bin/sh\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("COLUMNS", "1000") // what is scrubbed decides where lines break; see TestCheckWidth
	t.Setenv("NO_COLOR", "1")
	var out bytes.Buffer
	root := rootCommand()
	root.SetOut(&out)
	root.SetArgs([]string{"check", "--config", filepath.Join(dir, "billhook.yaml"), "--handlers", filepath.Join(dir, "handlers.yaml")})
	if err := root.ExecuteContext(t.Context()); err == nil {
		t.Error("nothing failed")
	}
	got := out.String()
	for _, s := range []struct{ old, by string }{
		{regexp.QuoteMeta(dir), "DIR"},
		{regexp.QuoteMeta(role), "ROLE"},
		{regexp.QuoteMeta(db.Name), "DATABASE"},
		{":" + strconv.Itoa(db.Cluster.Port()), ":PORT"},
		{`Postgres \d+[^\n]*`, "Postgres VERSION"},
		{`\d+ of \d+ are`, "N of M are"},
		{`[\d.]+ .iB are free`, "SPACE are free"},
	} {
		got = regexp.MustCompile(s.old).ReplaceAllString(got, s.by)
	}
	golden(t, "check.golden", got)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if updating() {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./cmd/billhook -update rewrites it); got:\n%s", path, got)
	}
}

// TestCheckWidth: the table fits, down to 40 columns; commands stay on a line, and
// what is wrapped means the same when it is copied.
func TestCheckWidth(t *testing.T) {
	list := []doctor.Finding{
		{Check: "server: wal_level", Level: doctor.Fail, Text: "replica: too little is kept in the WAL for anybody to decode", Remedy: "ALTER SYSTEM SET wal_level = 'logical'; -- and then, when nobody is looking, restart the server"},
		{Check: "table public.clients", Level: doctor.Warn, Text: "b", Remedy: `ALTER TABLE "public"."a name with many a blank in it" REPLICA IDENTITY FULL;`},
		{Check: "journal: folder", Level: doctor.Fail, Text: "c", Remedy: "sudo install -d -o 1000 -m 0700 /var/lib/billhook/somewhere/far/below"},
		{Check: "d", Level: doctor.Skip, Text: "the tables' owner isn't there", Remedy: "let the tables' owner run it"},
	}
	for _, columns := range []int{40, 60, 80, 120} {
		var out bytes.Buffer
		if err := printFindings(&out, list, columns, false); err != nil {
			t.Fatal(err)
		}
		text := out.String()
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			if len(line) > columns && !strings.Contains(line, "sudo") && !strings.Contains(line, "many a blank") {
				t.Errorf("%d columns: a line of %d: %s", columns, len(line), line)
			}
			if strings.Contains(line, "restart") && !strings.Contains(line, "-- ") {
				t.Errorf("%d columns: a comment lost its mark: %s", columns, line)
			}
		}
		for _, whole := range []string{`"public"."a name with many a blank in it"`, "/var/lib/billhook/somewhere/far/below", "sudo install -d -o 1000 -m 0700 /var", "2 failed,"} {
			if !strings.Contains(text, whole) {
				t.Errorf("%d columns: %s is broken:\n%s", columns, whole, text)
			}
		}
		if strings.Contains(text, "\x1b") {
			t.Errorf("%d columns: colours", columns)
		}
	}
	var out bytes.Buffer
	if err := printFindings(&out, list, 80, true); err != nil || !strings.Contains(out.String(), "\x1b[31mFAIL\x1b[0m") {
		t.Errorf("%v: no colour in %q", err, out.String())
	}
}

func TestCheckJSON(t *testing.T) {
	var out bytes.Buffer
	err := encodeFindings(&out, "json", []doctor.Finding{{Check: "a", Level: doctor.OK, Text: "b > c"}, {Check: "d", Level: doctor.Fail, Text: "e", Remedy: "f;\ng;"}})
	const want = `{"findings":[{"check":"a","level":"OK","text":"b > c"},{"check":"d","level":"FAIL","text":"e","remedy":"f;\ng;"}],"counts":{"ok":1,"warn":0,"fail":1,"skip":0}}`
	if got := regexp.MustCompile(`\n *|(:) `).ReplaceAllString(out.String(), "$1"); err != nil || got != want {
		t.Errorf("%v: got %s", err, got)
	}
}
