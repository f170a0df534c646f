package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/servertest"
)

// TestInitToUninstall is the first day and the last of whoever meets a database that
// nobody has described: the files are made, a DBA runs the SQL, the check agrees, an
// event is shown, and at the end nothing is left.
func TestInitToUninstall(t *testing.T) {
	t.Parallel()
	schema, err := os.ReadFile("../../testdata/schema/isp.sql")
	if err != nil {
		t.Fatal(err)
	}
	c := pgtest.Start(t, nil) // the role and the slot have fixed names
	db := pgtest.NewDatabaseOn(t, c, string(schema))
	psql := func(text string, args ...string) {
		t.Helper()
		cmd := c.Command(t.Context(), "psql", append(args, "-X", "-q", "-f", "-", db.Name)...)
		cmd.Stdin = strings.NewReader(text) // the server's user may not read our folder
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("psql: %v\n%s\n%s", err, out, text)
		}
	}

	dir := filepath.Join(t.TempDir(), "billhook")
	in := &instance{
		t: t, dir: t.TempDir(), address: "127.0.0.1:" + strconv.Itoa(servertest.Port(t)),
		config: filepath.Join(dir, "billhook.yaml"), handlers: filepath.Join(dir, "handlers.yaml"), log: filepath.Join(t.TempDir(), "log"),
		env: []string{"PATH=" + os.Getenv("PATH")},
	}
	t.Cleanup(func() {
		in.kill()
		in.sound()
		if t.Failed() {
			t.Logf("billhook's log:\n%s", tail(in.log, 60))
		}
	})
	in.says(2, "--dsn is needed", "init")
	in.says(0, "table public.subscriber_services, by its name", "init", "--dsn", db.DSN, "--dir", dir)
	in.says(1, "--force writes over it", "init", "--dsn", db.DSN, "--dir", dir)

	in.env = append(in.env, "BILLHOOK_DSN="+c.URL("billhook", "it's a secret", db.Name), "BILLHOOK_CONFIG="+in.config, "BILLHOOK_HANDLERS="+in.handlers)
	text, err := os.ReadFile(in.config)
	if err != nil {
		t.Fatal(err)
	}
	write(t, in.config, string(text)+fmt.Sprintf("http: {listen: %q}\n", in.address))
	in.says(1, "FAIL", "check") // the role is not there

	attach, err := os.ReadFile(filepath.Join(dir, "attach.sql"))
	if err != nil {
		t.Fatal(err)
	}
	printed := in.says(0, "CREATE ROLE", "sql", "--dsn", db.DSN)
	if printed != string(attach) {
		t.Errorf("billhook sql prints\n%s\nattach.sql is\n%s", printed, attach)
	}
	offline := in.says(0, "CREATE PUBLICATION", "sql", "--dsn", "postgres://billhook@127.0.0.1:1/x")
	if !strings.Contains(offline, `GRANT SELECT ON "public"."subscribers"`) {
		t.Error(offline)
	}
	psql(string(attach), "-v", "password=it's a secret")
	in.says(0, " 0 failed", "check")
	if again := in.says(0, "ALTER ROLE", "sql"); strings.Contains(again, "CREATE") {
		t.Errorf("what is there is made again:\n%s", again)
	}

	in.start()
	in.waitReady()
	db.Exec(t, "UPDATE subscribers SET deposit = -1 WHERE id = 7")
	var page struct {
		Executions []struct {
			ID     int    `json:"id"`
			Event  string `json:"event"`
			Status string `json:"status"`
		} `json:"executions"`
	}
	eventually(t, 20*time.Second, func() string {
		in.alive()
		out, errs, _ := in.ask("executions", "list", "--object", "7", "--status", "succeeded", "--output", "json")
		if err := json.Unmarshal([]byte(out), &page); err != nil {
			return err.Error() + errs
		}
		if len(page.Executions) == 0 {
			return "nothing was shown"
		}
		return ""
	})
	if x := page.Executions[0]; x.Event != "clients.balance_zero" {
		t.Errorf("%+v", page)
	}
	in.says(0, `"deposit": "-1.0000"`, "executions", "show", strconv.Itoa(page.Executions[0].ID))

	in.says(1, "stop it first", "uninstall", "--yes")
	in.stop()
	in.says(0, "would be dropped", "uninstall", "--dry-run")
	in.says(2, "nobody is there to be asked", "uninstall")
	// The role does not own the publication, so that is left to a superuser.
	out := in.says(0, "DROP ROLE", "uninstall", "--yes")
	_, left, ok := strings.Cut(out, "left to a superuser, in database "+db.Name+":\n")
	left, _, _ = strings.Cut(left, "\nleft on this machine")
	if !ok {
		t.Fatal(out)
	}
	psql(left)
	if n := pgtest.Value[int](t, db, `SELECT (SELECT count(*) FROM pg_roles WHERE rolname = 'billhook')
		+ (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)`); n != 0 {
		t.Errorf("%d of role, publication and slot are left", n)
	}
	in.says(0, "nothing that billhook may drop is there", "uninstall", "--dsn", db.DSN)
}
