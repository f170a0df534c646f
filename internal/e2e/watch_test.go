package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/servertest"
)

func deployFile(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

type alertRule struct {
	Alert       string
	Expr        string
	Labels      map[string]string
	Annotations map[string]string
}

func alertRules(t *testing.T) []alertRule {
	t.Helper()
	b, err := os.ReadFile(deployFile(t, "prometheus/alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []alertRule } }
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	var rules []alertRule
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	return rules
}

// TestAlertRules has promtool judge the alerts, and wants a test and a page of the runbook
// for each.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	promtool := servertest.Program(t, "promtool", "prometheus")
	for _, args := range [][]string{
		{"check", "rules", "alerts.yaml"}, {"check", "config", "prometheus.yaml"}, {"test", "rules", "alerts_test.yaml"},
	} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = deployFile(t, "prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	tests, err := os.ReadFile(deployFile(t, "prometheus/alerts_test.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	runbook, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range alertRules(t) {
		if !strings.Contains(string(tests), "alertname: "+r.Alert+"\n") {
			t.Errorf("%s has no test", r.Alert)
		}
		if want := "/docs/runbook.md#" + strings.ToLower(r.Alert); !strings.HasSuffix(r.Annotations["runbook_url"], want) {
			t.Errorf("%s: runbook_url %q, want %s", r.Alert, r.Annotations["runbook_url"], want)
		}
		if !strings.Contains(string(runbook), "\n## "+r.Alert+"\n") {
			t.Errorf("the runbook says nothing of %s", r.Alert)
		}
		if !slices.Contains([]string{"page", "ticket"}, r.Labels["severity"]) || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s: %+v", r.Alert, r)
		}
	}
}

// prometheusAPI asks a Prometheus.
func prometheusAPI(ctx context.Context, address, path string, query url.Values, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/api/v1/"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return errors.New(answer.Error)
	}
	return json.Unmarshal(answer.Data, v)
}

// dashboardQueries are the queries of the dashboard, by the panel's title, as Grafana
// would send them.
func dashboardQueries(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(deployFile(t, "grafana/billhook.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Annotations struct{ List []struct{ Expr string } }
		Panels      []struct {
			ID          int
			Type, Title string
			Description string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	replace := strings.NewReplacer("$__rate_interval", "1m", "$job", ".*", "$instance", ".*")
	queries := map[string][]string{"annotation": {replace.Replace(board.Annotations.List[0].Expr)}}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || p.Type != "row" && (len(p.Targets) == 0 || p.Description == "") {
			t.Errorf("panel %q: %+v", p.Title, p)
		}
		ids[p.ID] = true
		for _, x := range p.Targets {
			queries[p.Title] = append(queries[p.Title], replace.Replace(x.Expr))
		}
	}
	return queries
}

// TestPrometheus has a real Prometheus scrape a running Billhook: every metric that an
// alert or the dashboard names is there, every query can be evaluated, those that must
// show something do, and the alert for a handler that fails fires.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	server := servertest.Program(t, "prometheus", "prometheus")
	db := pgtest.NewDatabaseOn(t, pgtest.Start(t, map[string]string{"max_slot_wal_keep_size": "1GB"}),
		`CREATE TABLE clients (id int PRIMARY KEY, name text, balance numeric NOT NULL)`, "INSERT INTO clients SELECT i, 'x', 10 FROM generate_series(1, 20) i")
	good, bad := newReceiver(t), newReceiver(t)
	bad.failing.Store(100)
	in := install(t, db.DSN, fmt.Sprintf(`version: 1
source: {dsn: "${DSN}", slot: billhook_%[1]s, publication: billhook_%[1]s}
entities: {clients: {table: clients, key: [id], balance: {column: balance}}}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`, db.Name), fmt.Sprintf(`version: 1
handlers:
  - {id: 1, name: Good, event: clients.update, write_back: [name], http: {url: %q}}
  - {id: 2, name: Bad, event: clients.balance_zero, blocking: false, failing_after: 1s, retry: {initial: 200ms, max: 200ms, attempts: 1000}, breaker: {failures: 0}, http: {url: %q}}
  - {id: 3, name: Dying, event: clients.balance_zero, retry: {attempts: 1}, breaker: {failures: 0}, http: {url: %q}}
  - {id: 4, name: No plugin, event: clients.delete, plugin: {path: /usr/bin/true}}
`, good.url, bad.url, bad.url))
	in.start()
	in.waitReady()

	dir := t.TempDir()
	rules, err := os.ReadFile(deployFile(t, "prometheus/alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// An alert fires a minute after; nobody wants to wait for that here.
	write(t, filepath.Join(dir, "alerts.yaml"), regexp.MustCompile(`(?m)^        for: .*$`).ReplaceAllString(string(rules), "        for: 0s"))
	write(t, filepath.Join(dir, "prometheus.yaml"), fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [alerts.yaml]
scrape_configs: [{job_name: billhook, static_configs: [{targets: [%q]}]}]
`, in.address))
	address := "127.0.0.1:" + strconv.Itoa(servertest.Port(t))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(server, "--config.file", filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", address)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, dieWithUs()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(tail(filepath.Join(dir, "log"), 20))
		}
	})

	type sample struct {
		Metric map[string]string
		Value  [2]any
	}
	query := func(text string) ([]sample, error) {
		var data struct{ Result []sample }
		err := prometheusAPI(t.Context(), address, "query", url.Values{"query": {text}}, &data)
		return data.Result, err
	}
	n := 0
	eventually(t, time.Minute, func() string {
		n++
		db.Exec(t, "UPDATE clients SET name = $1, balance = -balance WHERE id % 5 = 0", fmt.Sprint(n))
		firing, err := query(`ALERTS{alertstate="firing"}`)
		if err != nil {
			return err.Error()
		}
		var names []string
		for _, s := range firing {
			names = append(names, s.Metric["alertname"]+" "+s.Metric["handler"])
		}
		for _, want := range []string{"BillhookHandlerFailing 2", "BillhookDeadLetters 3", "BillhookPluginDown 4"} {
			if !slices.Contains(names, want) {
				return fmt.Sprintf("%s does not fire, only %v", want, names)
			}
		}
		return ""
	})
	// Nothing else fires for a Billhook that is well but for these.
	firing, err := query(`ALERTS{alertname!~"BillhookHandlerFailing|BillhookDeadLetters|BillhookPluginDown"}`)
	if err != nil || len(firing) > 0 {
		t.Errorf("%v %v", err, firing)
	}

	var metrics []string
	if err := prometheusAPI(t.Context(), address, "label/__name__/values", nil, &metrics); err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\b(billhook|process|go)_[a-z][a-z0-9_]*\b`)
	known := func(where, text string) {
		for _, m := range named.FindAllString(text, -1) {
			// A page names a histogram as a whole; a plugin that does not run has no version, see TestPlugin.
			if !slices.Contains(metrics, m) && !slices.Contains(metrics, m+"_count") && m != "billhook_plugin_info" {
				t.Errorf("%s: there is no metric %s", where, m)
			}
		}
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		known(filepath.Base(page), string(text))
	}
	for _, r := range alertRules(t) {
		known(r.Alert, r.Expr)
		if _, err := query(r.Expr); err != nil {
			t.Errorf("%s: %v", r.Alert, err)
		}
	}
	// What has no value now need not show one.
	mayBeEmpty := regexp.MustCompile(`> 0$|< \+Inf$`)
	for title, list := range dashboardQueries(t) {
		for _, q := range list {
			known(title, q)
			got, err := query(q)
			if err != nil || len(got) == 0 && !mayBeEmpty.MatchString(q) {
				t.Errorf("%s: %d results, %v\n%s", title, len(got), err, q)
			}
		}
	}
	in.stop()
}

// TestDiagnosis takes a privilege away under a running Billhook, which looks at what it
// stands on and names the remedy.
func TestDiagnosis(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.NewDatabase(t), 5)
	in := install(t, b.role(), benchYAML(b.db.Name), "version: 1\nhandlers: []\n")
	in.start()
	in.waitReady()
	type finding struct{ Check, Level, Text, Remedy string }
	look := func() (failed []finding) {
		t.Helper()
		resp, err := http.Post("http://"+in.address+"/api/v1/checks", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var d struct{ Findings []finding }
		if err := json.NewDecoder(resp.Body).Decode(&d); err != nil || resp.StatusCode != http.StatusOK || len(d.Findings) < 10 {
			t.Fatal(resp.Status, err, d)
		}
		for _, f := range d.Findings {
			if f.Level == "FAIL" {
				failed = append(failed, f)
			}
		}
		return failed
	}
	if failed := look(); len(failed) > 0 {
		t.Fatalf("with nothing amiss: %+v", failed)
	}
	if n := in.metric(`billhook_check_findings{level="fail"}`); n != 0 {
		t.Errorf("%v checks fail", n)
	}
	role := pgtest.Value[string](t, b.db, "SELECT grantee FROM information_schema.role_table_grants WHERE table_name = 'pgbench_accounts' AND grantee <> 'postgres' LIMIT 1")
	b.db.Exec(t, fmt.Sprintf("REVOKE SELECT ON pgbench_accounts FROM %q", role))
	failed := look()
	if len(failed) != 1 || !strings.Contains(failed[0].Remedy, "GRANT SELECT") {
		t.Fatalf("%+v", failed)
	}
	if n := in.metric(`billhook_check_findings{level="fail"}`); n != 1 {
		t.Errorf("%v checks fail", n)
	}
	if code, body, err := in.get("/readyz"); err != nil || code != http.StatusOK || !strings.Contains(string(body), "fail "+failed[0].Check) {
		t.Errorf("%d %s %v", code, body, err)
	}
	b.db.Exec(t, failed[0].Remedy)
	if failed := look(); len(failed) > 0 {
		t.Fatalf("after the remedy: %+v", failed)
	}
	var last struct{ Findings []finding }
	in.getJSON("/api/v1/checks", &last)
	if len(last.Findings) < 10 {
		t.Errorf("%+v", last)
	}
}

// TestUnit has systemd judge the unit: nothing in it is unknown, its program is there, and
// it takes from the service what was promised.
func TestUnit(t *testing.T) {
	t.Parallel()
	analyze := servertest.Program(t, "systemd-analyze", "systemd")
	text, err := os.ReadFile(deployFile(t, "systemd/billhook.service"))
	if err != nil {
		t.Fatal(err)
	}
	const program = "ExecStart=/usr/local/bin/billhook run "
	if !strings.Contains(string(text), program) {
		t.Fatalf("the unit does not have %q", program)
	}
	unit := strings.Replace(string(text), "/usr/local/bin/billhook", os.Getenv("BILLHOOK_E2E_BIN"), 1)
	judge := func(unit string, args ...string) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), "billhook.service")
		write(t, file, unit)
		out, err := exec.Command(analyze, append(args, file)...).CombinedOutput()
		if err != nil {
			return fmt.Sprintf("%s\n%v", out, err)
		}
		return string(out)
	}
	if out := judge(unit, "verify", "--man=no"); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	if out := judge(strings.Replace(unit, "NoNewPrivileges=", "NoNewPrivilege=", 1), "verify", "--man=no"); !strings.Contains(out, "Unknown key") {
		t.Errorf("a mistake in the unit is not told: %q", out)
	}
	// In tenths; 100 would be a service that may do all.
	const exposure = "--threshold=33"
	if out := judge(unit, "security", "--no-pager", "--offline=true", exposure); !strings.Contains(out, "Overall exposure level") || strings.Contains(out, "exit status") {
		t.Errorf("systemd-analyze security: %s", out)
	}
	if out := judge(strings.Replace(unit, "CapabilityBoundingSet=\n", "", 1), "security", "--no-pager", "--offline=true", exposure); !strings.Contains(out, "exit status") {
		t.Errorf("a service that may do more is not told: %s", out)
	}
}

// TestCompose has a Postgres of its own run what the container of deploy/docker/compose.yaml
// runs at its first start, and Billhook begin with the files that stand there.
func TestCompose(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil)
	db := pgtest.NewDatabaseOn(t, c)
	folder := deployFile(t, "docker")
	for _, file := range []string{filepath.Join(folder, "..", "..", "testdata", "schema", "generic.sql"), filepath.Join(folder, "postgres", "20-rows.sql"), filepath.Join(folder, "postgres", "30-attach.sql")} {
		cmd := exec.Command("psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", "--dbname", db.DSN, "--file", file)
		cmd.Env = append(os.Environ(), "BILLHOOK_DB_PASSWORD=compose")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", file, err, out)
		}
	}
	var box postbox
	server := httptest.NewServer(&box)
	defer server.Close()
	text := func(name string) string {
		b, err := os.ReadFile(filepath.Join(folder, "billhook", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	billhook := strings.NewReplacer("${BILLHOOK_DSN}", "${DSN}", "/var/lib/billhook/journal", "${JOURNAL}", "0.0.0.0:8321", "${LISTEN}").Replace(text("billhook.yaml"))
	billhook, _, _ = strings.Cut(billhook, "  tokens:") // those of the harness do
	handlers := strings.NewReplacer("http://receiver", server.URL, "secret_env: CRM_SECRET", "secret: whsec_Y29tcG9zZSBpcyBmb3IgdHJ5aW5nIGl0IG91dCE=").Replace(text("handlers.yaml"))
	in := install(t, c.URL("billhook", "compose", db.Name), billhook, handlers)
	if out, err := in.command("check", "--config", in.config, "--handlers", in.handlers).CombinedOutput(); err != nil {
		t.Fatalf("billhook check: %v\n%s", err, out)
	}
	in.start()
	in.waitReady()
	if out, err := in.command("status", "--alive", "--url", "http://"+in.address).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("billhook status --alive: %v\n%s", err, out)
	}
	db.Exec(t, "UPDATE clients SET balance = -1 WHERE id = 1")
	db.Exec(t, "UPDATE clients SET balance = 1 WHERE id IN (1, 3)")
	eventually(t, time.Minute, func() string {
		if list := box.all(t); len(list) != 6 {
			return fmt.Sprintf("%d calls", len(list))
		}
		return ""
	})
	in.stop()
	if out, err := in.command("status", "--alive", "--url", "http://"+in.address).CombinedOutput(); err == nil || !strings.Contains(string(out), "is it running?") {
		t.Errorf("billhook status --alive when it does not run: %v\n%s", err, out)
	}
}

// TestAttachByHand: the DBA's own two files do what they say, on the schema they are for.
func TestAttachByHand(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil)
	schema, err := os.ReadFile(filepath.Join("..", "..", "testdata", "schema", "jerasoft.sql"))
	if err != nil {
		t.Fatal(err)
	}
	db := pgtest.NewDatabaseOn(t, c, string(schema))
	psql := func(name string, args ...string) {
		t.Helper()
		args = append([]string{"--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", "--dbname", db.DSN, "--file", deployFile(t, name)}, args...)
		if out, err := exec.Command("psql", args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	psql("sql/attach.sql", "--variable=password=it's a secret")
	var box postbox
	server := httptest.NewServer(&box)
	defer server.Close()
	in := install(t, c.URL("billhook", "it's a secret", db.Name),
		"version: 1\nsource: {dsn: \"${DSN}\", create: false}\npreset: jerasoft\njournal: {path: \"${JOURNAL}\"}\nhttp: {listen: \"${LISTEN}\"}\n",
		"version: 1\nhandlers: [{id: 1, name: All, event: '*', http: {url: '"+server.URL+"'}}]\n")
	if out, err := in.command("check", "--config", in.config, "--handlers", in.handlers).CombinedOutput(); err != nil || strings.Contains(string(out), "WARN") {
		t.Fatalf("billhook check: %v\n%s", err, out)
	}
	in.start()
	in.waitReady()
	db.Exec(t, "INSERT INTO currencies VALUES (1, 'EUR', 1)")
	db.Exec(t, "INSERT INTO companies (name) VALUES ('Carrier')")
	db.Exec(t, "INSERT INTO clients (companies_id, name, currencies_id) VALUES (1, 'Acme', 1)")
	eventually(t, time.Minute, func() string {
		if list := box.all(t); len(list) != 1 {
			return fmt.Sprintf("%d calls", len(list))
		}
		return ""
	})
	in.stop()
	psql("sql/detach.sql")
	if left := pgtest.Value[int](t, db, `SELECT ((SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication) +
		(SELECT count(*) FROM pg_roles WHERE rolname = 'billhook'))::int`); left != 0 {
		t.Errorf("%d things are left", left)
	}
}
