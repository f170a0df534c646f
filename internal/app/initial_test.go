package app

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/doctor"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/survey"
)

//nolint:gochecknoglobals // a flag of the test binary
var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s, by -update:\n%s", path, got)
	}
}

func schemaFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../testdata/schema", name+".sql"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// psql runs a file as a DBA does.
func psql(t *testing.T, dsn, path string) {
	t.Helper()
	out, err := exec.Command("psql", "-X", "-q", "-v", "password=it's a secret", "-f", path, dsn).CombinedOutput()
	if err != nil {
		t.Fatalf("psql (apt-get install postgresql-client): %v\n%s", err, out)
	}
}

// TestInit looks at databases of all kinds, has a DBA run the SQL, and has the check
// find nothing amiss.
func TestInit(t *testing.T) {
	for _, c := range []struct {
		schema, preset string
		o              InitOptions
	}{
		{schema: "generic", preset: "generic"},
		{schema: "jerasoft", preset: "jerasoft"},
		{schema: "jerasoft-old", preset: "jerasoft-old"},
		{schema: "lago", preset: "lago"},
		{schema: "yeti", preset: "yeti"},
		{schema: "isp"},
		{schema: "telco", o: InitOptions{Accounts: "crm.phone_numbers"}},
		// What is known is guessed at too, to see how good that is.
		{schema: "generic", o: InitOptions{Preset: "none"}},
		{schema: "jerasoft", o: InitOptions{Preset: "none"}},
		{schema: "lago", o: InitOptions{Preset: "none"}},
		{schema: "yeti", o: InitOptions{Preset: "none"}},
	} {
		name := c.schema
		if c.o.Preset != "" {
			name += "-guessed"
		}
		t.Run(name, func(t *testing.T) {
			db := pgtest.NewDatabase(t, schemaFile(t, c.schema))
			o := c.o
			role, dsn := db.Role(t, "") // attach.sql gives it the rest
			o.DSN, o.Role, o.JournalPath, o.ScriptPath = db.DSN, role, filepath.Join(t.TempDir(), "journal"), "/opt/billhook/show-event"
			if os.Geteuid() == 0 {
				o.ScriptPath = filepath.Join(t.TempDir(), "show-event")
			}
			i, err := Init(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if i.Preset != c.preset {
				t.Fatalf("preset %q, want %q", i.Preset, c.preset)
			}
			text := strings.NewReplacer(i.Database, "DATABASE", i.Server, "VERSION", role, "ROLE", o.JournalPath, "JOURNAL").Replace(
				strings.Join(i.Why, "\n") + "\n\nto be looked at:\n" + strings.Join(i.Open, "\n") + "\n\n" + i.Billhook + "\n" + i.SQL)
			if db.Cluster.Version() == 15 {
				golden(t, filepath.Join("../../testdata/init", name+".txt"), text)
			}

			dir := t.TempDir()
			if err := i.Write(dir, false); err != nil {
				t.Fatal(err)
			}
			if err := i.Write(dir, false); err == nil || !strings.Contains(err.Error(), "--force") {
				t.Errorf("written over: %v", err)
			}
			if err := os.WriteFile(o.ScriptPath, []byte(ShowScript), 0o755); err != nil {
				t.Fatal(err)
			}
			psql(t, db.DSN, filepath.Join(dir, "attach.sql"))
			list, err := Check(t.Context(), Options{
				ConfigPath: filepath.Join(dir, "billhook.yaml"), HandlersPath: filepath.Join(dir, "handlers.yaml"),
				Env: func(name string) (string, bool) { return dsn, name == "BILLHOOK_DSN" },
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range list {
				if f.Level == doctor.Fail {
					t.Errorf("%s: %s\n%s", f.Check, f.Text, f.Remedy)
				}
			}
		})
	}
}

// TestInitUnclear: what cannot be known is asked, or said.
func TestInitUnclear(t *testing.T) {
	db := pgtest.NewDatabase(t, `
		CREATE TABLE customers (id int PRIMARY KEY, name text);
		CREATE TABLE clients (id int PRIMARY KEY, name text);
		CREATE TABLE subscriptions (id int PRIMARY KEY, customer_id int REFERENCES customers, client_id int REFERENCES clients);
		CREATE TABLE empty (n int);`)
	o := InitOptions{DSN: db.DSN, JournalPath: "/j", ScriptPath: "/s"}
	_, err := Init(t.Context(), o)
	if err == nil || err.Error() != "which table holds clients: public.clients, public.customers? name it with --clients" {
		t.Error(err)
	}
	var asked bytes.Buffer
	o.Ask = func(question string, choices []survey.Candidate) (int, error) {
		fmt.Fprint(&asked, question)
		for _, c := range choices {
			fmt.Fprint(&asked, " ", c.Table.Name)
		}
		fmt.Fprintln(&asked)
		return 1, nil
	}
	i, err := Init(t.Context(), o)
	if err != nil || !strings.Contains(i.Billhook, "table: public.customers") || !strings.Contains(i.Billhook, "client: customer_id") {
		t.Errorf("%v\n%s", err, i.Billhook)
	}
	if want := "Which table holds the clients? public.clients public.customers\n"; asked.String() != want {
		t.Errorf("asked %s", &asked)
	}
	for _, c := range []struct {
		o    InitOptions
		want string
	}{
		{InitOptions{Clients: "nosuch"}, "--clients nosuch: there is no such table, or it has no primary key"},
		{InitOptions{Clients: "empty"}, "--clients empty: there is no such table, or it has no primary key"},
		{InitOptions{Clients: "none"}, "billhook needs a table of clients: name it with --clients"},
		{InitOptions{Preset: "nosuch"}, `there is no preset "nosuch"; there are generic, jerasoft, jerasoft-old, lago, yeti`},
		{InitOptions{Clients: "clients", Balance: "nosuch"}, "--balance nosuch: table public.clients has no such column"},
		{InitOptions{Clients: "clients", Balance: "nosuch.balance"}, "--balance nosuch.balance: there is no table nosuch"},
		{InitOptions{Clients: "clients", Balance: "subscriptions.nosuch"}, "--balance subscriptions.nosuch: table public.subscriptions has no such column"},
		{InitOptions{Clients: "clients", Balance: "subscriptions.id"}, "nothing says that table public.subscriptions has one row for each client"},
		{InitOptions{Clients: "clients", Balance: "name"}, "--balance name: the column is of type text, which is no number"},
		{InitOptions{Preset: "lago"}, "preset lago does not fit this database: billhook.yaml"},
		{InitOptions{DSN: "postgres://nobody@127.0.0.1:1/x"}, "connect to read tables"},
	} {
		if c.o.DSN == "" {
			c.o.DSN = db.DSN
		}
		if _, err := Init(t.Context(), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
}
