//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/servertest"
)

// peersSchema is a small billing.
const peersSchema = `
	CREATE TABLE clients (id int PRIMARY KEY, name text, balance numeric(20,6) NOT NULL DEFAULT 10, status text NOT NULL DEFAULT 'active');
	CREATE PUBLICATION p FOR TABLE clients`

// installPeers sets Billhook up before that database.
func installPeers(t *testing.T, handlers string) (*pgtest.Database, *instance) {
	t.Helper()
	db := pgtest.NewDatabase(t, peersSchema)
	_, dsn := db.Role(t, "REPLICATION", "GRANT SELECT ON clients TO $role")
	in := install(t, dsn, `version: 1
source: {dsn: "${DSN}", slot: `+db.Name+`, publication: p}
entities:
  clients: {table: public.clients, key: [id], balance: {column: balance}, archive: {column: status, value: archived}}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}", edit_handlers: true}
`, "version: 1\ndefaults: {timeout: 10s, retry: {initial: 100ms, max: 1s}}\nhandlers:\n"+handlers)
	in.start()
	in.waitReady()
	return db, in
}

// TestFlask: a receiver that was written for the vendor's product works as it is.
func TestFlask(t *testing.T) {
	t.Parallel()
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import flask").CombinedOutput(); err != nil {
		servertest.Missing(t, fmt.Sprintf("Flask for %s (%s)", python, strings.TrimSpace(string(out))), "python3-flask")
	}
	source, err := os.ReadFile(filepath.Join("testdata", "flask", "receiver.py"))
	if err != nil {
		t.Fatal(err)
	}
	dir, port := servertest.Dir(t), servertest.Port(t)
	script, got := servertest.Write(t, dir, "receiver.py", string(source)), filepath.Join(dir, "got")
	flask := servertest.Start(t, servertest.Options{
		Path: python, Args: []string{script, fmt.Sprint(port), got}, Dir: dir, Ready: servertest.Listening(port),
	})
	url := fmt.Sprintf("http://127.0.0.1:%d/api", port)
	db, in := installPeers(t, fmt.Sprintf("  - {id: 1, name: CRM, event: \"*\", format: provisioning, http: {url: %q}}\n", url))

	db.Exec(t, `INSERT INTO clients (id, name) VALUES (1, 'Acme "é"'), (2, 'Other')`)
	db.Exec(t, "UPDATE clients SET balance = -0.5 WHERE id = 1")
	eventually(t, 20*time.Second, func() string { return executions(in, 3) })
	// It is restarted in the middle, and misses nothing.
	flask.Stop(t)
	db.Exec(t, "UPDATE clients SET balance = 7 WHERE id = 1")
	db.Exec(t, "UPDATE clients SET status = 'archived' WHERE id = 2")
	db.Exec(t, "DELETE FROM clients WHERE id = 2")
	flask.Start(t)
	eventually(t, 30*time.Second, func() string { return executions(in, 6) })

	b, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	byClient := map[float64][]string{}
	for line := range strings.Lines(string(b)) {
		var event [3]any
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatal(err)
		}
		id := event[1].(float64)
		byClient[id] = append(byClient[id], event[0].(string))
	}
	for id, want := range map[float64]string{
		1: "clients.create clients.balance_zero clients.balance_notzero",
		2: "clients.create clients.archive clients.delete",
	} {
		if have := strings.Join(byClient[id], " "); have != want {
			t.Errorf("client %v: %s, want %s", id, have, want)
		}
	}
	resp, err := http.Get(url) // what it knows since it was started again
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	state, err := io.ReadAll(resp.Body)
	if want := `{"1":"some"}`; err != nil || strings.Join(strings.Fields(string(state)), "") != want {
		t.Errorf("the receiver has %s (%v), want %s", state, err, want)
	}
	// It answers with what it got, data and all. Nobody has asked for that to be written.
	if n := pgtest.Value[int64](t, db, "SELECT count(*) FROM clients WHERE id = 1 AND balance = 7"); n != 1 {
		t.Error("the row was changed")
	}
}

// executions says what is missing until n have succeeded.
func executions(in *instance, n int) string {
	in.alive()
	if x := in.executions(); x["succeeded"] != n || len(x) > 1 && x["dead"] > 0 {
		return fmt.Sprintf("executions: %v, want %d that succeeded", x, n)
	}
	return ""
}

// TestKamailio: a balance in the database decides whether Kamailio takes a call.
func TestKamailio(t *testing.T) {
	t.Parallel()
	kamailio, sipsak := servertest.Program(t, "kamailio", "kamailio"), servertest.Program(t, "sipsak", "sipsak")
	source := filepath.Join("..", "..", "plugins", "kamailio")
	cfg, err := os.ReadFile(filepath.Join(source, "testdata", "kamailio.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	const token = "s3cr3t-t0ken"
	dir, port := servertest.Dir(t), servertest.Port(t)
	file := servertest.Write(t, dir, "kamailio.cfg", strings.NewReplacer("PORT", fmt.Sprint(port), "TOKEN", token).Replace(string(cfg)))
	servertest.Start(t, servertest.Options{
		Path: kamailio, Dir: dir, Args: []string{"-f", file, "-DD", "-E", "-Y", dir, "-w", dir, "-m", "32", "-M", "4"},
		Ready: servertest.Listening(port),
	})
	bin := t.TempDir()
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", bin, "./plugins/kamailio")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tokenFile := filepath.Join(bin, "token")
	if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	db, in := installPeers(t, fmt.Sprintf(`
  - id: 1
    name: Block on the switch
    events: [clients.balance_zero, clients.balance_notzero, clients.archive, clients.delete]
    plugin:
      path: %s
      config:
        servers: ["http://127.0.0.1:%d/RPC"]
        token_file: %s
`, filepath.Join(bin, "kamailio"), port, tokenFile))

	call := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, func() string {
			in.alive()
			cmd := exec.Command(sipsak, "-L", "-vvv", "-f", "-", "-s", fmt.Sprintf("sip:100@127.0.0.1:%d", port))
			cmd.Stdin = strings.NewReader(fmt.Sprintf("INVITE sip:100@127.0.0.1 SIP/2.0\r\nFrom: <sip:acme@127.0.0.1>;tag=1\r\nTo: <sip:100@127.0.0.1>\r\n"+
				"Call-ID: %d@127.0.0.1\r\nCSeq: 1 INVITE\r\nContact: <sip:acme@127.0.0.1:5062>\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n", time.Now().UnixNano()))
			out, _ := cmd.CombinedOutput()
			if !strings.Contains(string(out), "\nSIP/2.0 "+want) {
				return fmt.Sprintf("the answer is not %s:\n%s", want, out)
			}
			return ""
		})
	}
	db.Exec(t, "INSERT INTO clients (id, name) VALUES (4711, 'Acme')")
	call("200 OK")
	db.Exec(t, "UPDATE clients SET balance = balance - 10 WHERE id = 4711")
	call("403 Blocked: clients.balance_zero")
	db.Exec(t, "UPDATE clients SET balance = 25 WHERE id = 4711")
	call("200 OK")
	db.Exec(t, "UPDATE clients SET status = 'archived' WHERE id = 4711")
	call("403 Blocked: clients.archive")
}
