package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/servertest"
)

// TestScript runs testdata/script/*.txtar at the top: what people get wrong, and
// what the program says to it. Each script has a folder of its own with
// billhook.yaml and handlers.yaml (its own, or the plain ones below), named by
// the program's environment variables, and these commands beside testscript's:
//
//	database [file.sql]    make a database, with the plain schema or that of a file; sets
//	                       DSN (of a role with REPLICATION and SELECT), ADMIN (of the
//	                       superuser), DATABASE, ROLE, SLOT, PORT
//	server name=value...   make the database of this script on a server of its own
//	sql statement          run a statement as superuser
//	until statement        wait until a query, which gives one boolean, gives true
//	hold                   keep a transaction open that has written, until release
//	exits code prog args   run a program and want this exit code; with -u first, as a user
//	                       without privileges
//	ready                  wait until the instance in the background is ready
//	untouched              want that no slot, no publication and no journal is there
func TestScript(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for dir := root; dir != filepath.Clean(os.TempDir()) && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { // for users without privileges
			t.Fatal(err)
		}
	}
	bin := filepath.Join(root, "billhook")
	copyProgram(t, bin)
	// Scripts wait for their turn among the other tests, and the clock runs meanwhile.
	deadline := time.Now().Add(time.Hour)
	if end, ok := t.Deadline(); ok {
		deadline = end.Add(-30 * time.Second)
	}
	testscript.Run(t, testscript.Params{
		Dir:                filepath.Join("..", "..", "testdata", "script"),
		WorkdirRoot:        root,
		RequireUniqueNames: true,
		Deadline:           deadline,
		Setup: func(env *testscript.Env) error {
			tb, ok := env.T().(testing.TB)
			if !ok {
				return errors.New("testscript's T is no testing.TB")
			}
			env.Values["t"] = tb
			for name, text := range map[string]string{"billhook.yaml": plainBillhook, "handlers.yaml": plainHandlers} {
				path := filepath.Join(env.WorkDir, name)
				if _, err := os.Stat(path); err == nil {
					continue
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					return err
				}
			}
			env.Setenv("PATH", filepath.Dir(bin)+":/usr/local/bin:/usr/bin:/bin")
			env.Setenv("BILLHOOK_CONFIG", "billhook.yaml")
			env.Setenv("BILLHOOK_HANDLERS", "handlers.yaml")
			env.Setenv("JOURNAL", filepath.Join(env.WorkDir, "journal"))
			env.Setenv("LISTEN", "127.0.0.1:"+strconv.Itoa(servertest.Port(tb)))
			env.Setenv("SLOT", "billhook")
			env.Setenv("DSN", "host=127.0.0.1 port=1 user=billhook dbname=billing sslmode=disable")
			return nil
		},
		// [postgres15] holds on that version and later ones.
		Condition: func(condition string) (bool, error) {
			version, ok := strings.CutPrefix(condition, "postgres")
			from, err := strconv.Atoi(version)
			if !ok || err != nil {
				return false, fmt.Errorf("unknown condition %q", condition)
			}
			return pgtest.Shared(t).Version() >= from, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"database": func(ts *testscript.TestScript, _ bool, args []string) {
				makeDatabase(ts, pgtest.NewDatabase(tbOf(ts)), args)
			},
			"server": func(ts *testscript.TestScript, _ bool, args []string) {
				settings := map[string]string{}
				for _, a := range args {
					name, value, _ := strings.Cut(a, "=")
					settings[name] = value
				}
				pg := pgtest.Start(tbOf(ts), settings)
				makeDatabase(ts, pgtest.NewDatabaseOn(tbOf(ts), pg), nil)
			},
			"sql": func(ts *testscript.TestScript, _ bool, args []string) {
				databaseOf(ts).Exec(tbOf(ts), strings.Join(args, " "))
			},
			"until": func(ts *testscript.TestScript, _ bool, args []string) {
				databaseOf(ts).WaitFor(tbOf(ts), strings.Join(args, " "))
			},
			"hold":      hold,
			"exits":     exits,
			"ready":     func(ts *testscript.TestScript, _ bool, _ []string) { waitUntilReady(ts) },
			"untouched": untouched,
		},
	})
}

// copyProgram puts the program where everybody may run it.
func copyProgram(t testing.TB, to string) {
	t.Helper()
	b, err := os.ReadFile(os.Getenv("BILLHOOK_E2E_BIN"))
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func tbOf(ts *testscript.TestScript) testing.TB { return ts.Value("t").(testing.TB) }

func databaseOf(ts *testscript.TestScript) *pgtest.Database {
	if ts.Getenv("PORT") == "" {
		ts.Fatalf("no database yet")
	}
	return &pgtest.Database{Name: ts.Getenv("DATABASE"), DSN: ts.Getenv("ADMIN")}
}

func makeDatabase(ts *testscript.TestScript, db *pgtest.Database, args []string) {
	schema := plainSchema
	if len(args) > 0 {
		schema = ts.ReadFile(args[0])
	}
	db.Exec(tbOf(ts), schema)
	name, dsn := db.Role(tbOf(ts), "REPLICATION",
		"GRANT CREATE ON DATABASE "+db.Name+" TO $role", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO $role",
		// So that it may make the publication.
		`DO $$ DECLARE t record; BEGIN
			FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' LOOP
				EXECUTE format('ALTER TABLE %I OWNER TO %I', t.relname, '$role');
			END LOOP;
		END $$`)
	for k, v := range map[string]string{
		"DSN": dsn, "ADMIN": db.DSN, "DATABASE": db.Name, "ROLE": name, "SLOT": "billhook_" + db.Name,
		"PORT": strconv.Itoa(db.Cluster.Port()),
	} {
		ts.Setenv(k, v)
	}
}

func hold(ts *testscript.TestScript, _ bool, _ []string) {
	tb := tbOf(ts)
	tx, err := databaseOf(ts).Connect(tb).Begin(tb.Context())
	if err == nil {
		_, err = tx.Exec(tb.Context(), "SELECT pg_current_xact_id()")
	}
	ts.Check(err)
	ts.SetCmd("release", func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(tx.Rollback(tb.Context())) })
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits [-u] code program args...")
	}
	if args[0] == "-u" {
		args = args[1:]
		if os.Getuid() == 0 {
			args = append([]string{args[0], "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, args[1:]...)
		}
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%s: %v", args[1], err)
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

func waitUntilReady(ts *testscript.TestScript) {
	eventually(tbOf(ts), 30*time.Second, func() string {
		resp, err := (&http.Client{Timeout: 5 * time.Second}).Get((&url.URL{Scheme: "http", Host: ts.Getenv("LISTEN"), Path: "/readyz"}).String())
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return resp.Status
		}
		return ""
	})
}

func untouched(ts *testscript.TestScript, _ bool, _ []string) {
	var left []string
	if ts.Getenv("PORT") != "" {
		if o := objects(tbOf(ts), databaseOf(ts)); o != "nothing" {
			left = append(left, o)
		}
	}
	if entries, err := os.ReadDir(ts.Getenv("JOURNAL")); err == nil {
		left = append(left, fmt.Sprintf("the journal's folder with %d entries", len(entries)))
	}
	if len(left) > 0 {
		ts.Fatalf("left behind: %s", strings.Join(left, ", "))
	}
}

const plainSchema = `
	CREATE TABLE clients (id int PRIMARY KEY, name text, status text NOT NULL DEFAULT 'active', balance numeric(20,6) NOT NULL DEFAULT 0);
	CREATE TABLE accounts (id int PRIMARY KEY, clients_id int REFERENCES clients, login text, password text);
	INSERT INTO clients SELECT i, 'Client ' || i FROM generate_series(1, 100) i;`

const plainBillhook = `version: 1
source:
  dsn: ${DSN}
  slot: ${SLOT}
  publication: ${SLOT}
entities:
  clients:
    table: public.clients
    key: [id]
    archive: {column: status, value: archive}
    balance: {column: balance}
  accounts:
    table: public.accounts
    key: [id]
    client: clients_id
    mask: [password]
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`

const plainHandlers = `version: 1
handlers:
  - {id: 1, name: Tell the CRM, event: "clients.*", http: {url: "http://127.0.0.1:1/"}}
`
