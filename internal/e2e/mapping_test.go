package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/wal"
)

var update = flag.Bool("update", false, "rewrite the golden files of testdata/presets and testdata/payloads")

// TestPresets runs the statements of each testdata/presets/*.txtar in a real
// database and compares what a receiver is told with the golden events: the
// mapping as people get it, read from a file that names a preset or maps entities
// itself, and found good by billhook check. It does so with the replica identity that tables come with and with FULL;
// but for old values that only one of them can know, the events are the same. And
// each script makes every event type that its mapping can.
func TestPresets(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../testdata/presets/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	covered := map[string]bool{}
	for _, file := range files {
		covered[strings.TrimSuffix(filepath.Base(file), ".txtar")] = true
	}
	for _, name := range config.Presets() {
		if !covered[name] {
			t.Errorf("preset %s has no testdata/presets/%[1]s.txtar", name)
		}
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			s := readMappingScript(t, file)
			all := func(url string) string {
				return fmt.Sprintf("version: 1\nhandlers: [{id: 1, name: All, event: \"*\", http: {url: %q}}]\n", url)
			}
			byDefault := s.play(t, "DEFAULT", all)
			s.complete(t, byDefault)
			s.compare(t, "events", s.golden(t, byDefault))
			if full := s.play(t, "FULL", all); len(full) != len(byDefault) {
				t.Errorf("FULL makes other events:\n%s", s.golden(t, full))
			} else {
				for i := range full {
					if wrong := byDefault[i].differs(t, full[i]); wrong != "" {
						t.Errorf("under FULL: %s", wrong)
					}
				}
			}
		})
	}
}

// mappingScript is one file: billhook.yaml without its first lines (a preset, or
// entities), the schema, steps, each a transaction, and golden sections.
type mappingScript struct {
	file    string
	archive *txtar.Archive
	mapping string
	schema  string
	steps   []mappingStep
}

type mappingStep struct{ title, sql string }

func readMappingScript(t *testing.T, file string) *mappingScript {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &mappingScript{file: file, archive: txtar.Parse(b)}
	for _, f := range s.archive.Files {
		text := string(f.Data)
		switch f.Name {
		case "mapping":
			s.mapping = text
		case "schema":
			s.schema = text
		case "steps":
			for line := range strings.Lines(text) {
				if title, ok := strings.CutPrefix(line, "# "); ok {
					s.steps = append(s.steps, mappingStep{title: strings.TrimSpace(title)})
				} else if len(s.steps) > 0 {
					s.steps[len(s.steps)-1].sql += line
				}
			}
		}
	}
	if name, ok := strings.CutPrefix(s.mapping, "preset: "); ok {
		b, err := os.ReadFile(filepath.Join("..", "..", "testdata", "schema", strings.TrimSpace(name)+".sql"))
		if err != nil {
			t.Fatal(err)
		}
		s.schema = string(b) + s.schema
	}
	// A row that is made without a time has the same one in every run.
	s.schema = strings.ReplaceAll(s.schema, "DEFAULT now()", "DEFAULT '2026-01-02 03:04:05.678Z'")
	return s
}

// billhookYAML is the whole file. $DSN and so on are install's.
func (s *mappingScript) billhookYAML(name string) string {
	return "version: 1\nsource: {dsn: \"${DSN}\", slot: " + name + ", publication: " + name + "}\n" +
		"journal: {path: \"${JOURNAL}\"}\nhttp: {listen: \"${LISTEN}\"}\n" + s.mapping
}

// delivery is an event as one handler was told it, with the step that made it.
type delivery struct {
	handler     int
	step        int
	id          event.ID
	contentType string
	body        string
}

// payload is the body in Billhook's own format.
type payload struct {
	Event struct {
		Type   string          `json:"events_id"`
		Object json.RawMessage `json:"object_id"`
		Lane   string          `json:"lane"`
	}
	Data, Changed json.RawMessage
	Unchanged     []string
}

func (d delivery) payload(t *testing.T) payload {
	t.Helper()
	var p payload
	if err := json.Unmarshal([]byte(d.body), &p); err != nil {
		t.Fatalf("payload %s: %v", d.body, err)
	}
	return p
}

// postbox is an HTTP server that keeps every body as it came.
type postbox struct {
	mu   sync.Mutex
	list []delivery
	bad  []string
}

func (p *postbox) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	d := delivery{contentType: r.Header.Get("Content-Type"), body: string(body)}
	var err1, err2 error
	d.handler, err1 = strconv.Atoi(r.Header.Get("Billhook-Handler"))
	d.id, err2 = event.ParseID(r.Header.Get("Webhook-Id"))
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := errors.Join(err, err1, err2); err != nil {
		p.bad = append(p.bad, err.Error())
	}
	p.list = append(p.list, d)
}

func (p *postbox) all(t *testing.T) []delivery {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.bad {
		t.Error(b)
	}
	return slices.Clone(p.list)
}

// play runs the steps with a replica identity of all tables, and returns what was
// delivered, in commit order and by handler. handlersYAML writes the file for the
// URL of a receiver; of handlers that it tells elsewhere the executions must
// succeed as well.
func (s *mappingScript) play(t *testing.T, identity string, handlersYAML func(url string) string) []delivery {
	t.Helper()
	db := pgtest.NewDatabase(t, s.schema, fmt.Sprintf(`
		DO $$
		DECLARE r regclass;
		BEGIN
			FOR r IN SELECT c.oid FROM pg_class c WHERE relkind = 'r' AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) LOOP
				EXECUTE format('ALTER TABLE %%s REPLICA IDENTITY %s', r);
			END LOOP;
		END $$`, identity))
	var box postbox
	server := httptest.NewServer(&box)
	defer server.Close()
	in := install(t, db.DSN, s.billhookYAML(db.Name), handlersYAML(server.URL))
	if out, err := in.command("check", "--config", in.config, "--handlers", in.handlers).CombinedOutput(); err != nil {
		t.Fatalf("billhook check: %v\n%s", err, out)
	}
	in.start()
	in.waitReady()
	var ends []wal.LSN
	for _, step := range s.steps {
		db.Exec(t, step.sql)
		lsn, err := wal.ParseLSN(pgtest.Value[string](t, db, "SELECT pg_current_wal_insert_lsn()::text"))
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, lsn)
	}

	// The last step makes an event: all is told when that one is and nothing is
	// pending.
	var list []delivery
	eventually(t, time.Minute, func() string {
		in.alive()
		list = box.all(t)
		last := -1
		for i := range list {
			list[i].step, _ = slices.BinarySearchFunc(ends, list[i].id.CommitLSN, wal.LSN.Compare)
			last = max(last, list[i].step)
		}
		if last < len(s.steps)-1 {
			return fmt.Sprintf("no event of the last step, but of step %d", last)
		}
		for status, n := range in.executions() {
			if status != "succeeded" && n > 0 {
				return fmt.Sprintf("%d executions are %s", n, status)
			}
		}
		return ""
	})
	list = box.all(t)
	for i := range list {
		list[i].step, _ = slices.BinarySearchFunc(ends, list[i].id.CommitLSN, wal.LSN.Compare)
	}
	in.stop()
	slices.SortFunc(list, func(a, b delivery) int { return cmp.Or(a.id.Compare(b.id), cmp.Compare(a.handler, b.handler)) })
	for i := 1; i < len(list); i++ {
		if list[i].id == list[i-1].id && list[i].handler == list[i-1].handler {
			t.Errorf("handler %d was told %s twice", list[i].handler, list[i].id)
		}
	}
	return list
}

// golden is the events as the file has them.
func (s *mappingScript) golden(t *testing.T, list []delivery) string {
	var b strings.Builder
	for i, step := range s.steps {
		fmt.Fprintf(&b, "# %s\n", step.title)
		for _, d := range list {
			if d.step != i {
				continue
			}
			e := d.payload(t)
			fmt.Fprintf(&b, "%s %s lane=%s\n\tdata    %s\n", e.Event.Type, e.Event.Object, e.Event.Lane, e.Data)
			if string(e.Changed) != "{}" {
				fmt.Fprintf(&b, "\tchanged %s\n", e.Changed)
			}
			if len(e.Unchanged) > 0 {
				fmt.Fprintf(&b, "\tunchanged %s\n", strings.Join(e.Unchanged, " "))
			}
		}
	}
	return b.String()
}

// compare holds a text to the golden section of that name.
func (s *mappingScript) compare(t *testing.T, section, got string) {
	t.Helper()
	i := slices.IndexFunc(s.archive.Files, func(f txtar.File) bool { return f.Name == section })
	switch {
	case !*update && i < 0:
		t.Errorf("%s has no section %s", s.file, section)
	case !*update:
		if want := string(s.archive.Files[i].Data); got != want {
			t.Errorf("%s:\n%s\nwant:\n%s", section, got, want)
		}
	default:
		if i < 0 {
			i = len(s.archive.Files)
			s.archive.Files = append(s.archive.Files, txtar.File{Name: section})
		}
		s.archive.Files[i].Data = []byte(got)
		if err := os.WriteFile(s.file, txtar.Format(s.archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// complete demands that every event type that the mapping can make has come.
func (s *mappingScript) complete(t *testing.T, list []delivery) {
	t.Helper()
	env := func(name string) (string, bool) {
		v, ok := map[string]string{"DSN": "host=localhost", "JOURNAL": "/tmp/journal", "LISTEN": "127.0.0.1:0"}[name]
		return v, ok
	}
	b, err := config.ParseBillhook("billhook.yaml", []byte(s.billhookYAML("billhook")), env)
	if err != nil {
		t.Fatal(err)
	}
	came := map[string]bool{}
	for _, d := range list {
		came[d.payload(t).Event.Type] = true
	}
	for _, typ := range b.EventTypes() {
		// A handler may name the types that the mapping can make, and no others.
		_, err := config.ParseHandlers("handlers.yaml", []byte("version: 1\nhandlers: [{id: 1, name: a, event: "+typ.Name+", script: {path: ./x}}]\n"), env, b)
		if possible := err == nil; possible != came[typ.Name] {
			t.Errorf("%s: the mapping can make it: %v; the steps have made it: %v", typ.Name, possible, came[typ.Name])
		}
	}
}

// differs says how two events differ apart from old values, and apart from what
// only one of them knows of a row.
func (d delivery) differs(t *testing.T, other delivery) string {
	e, o := d.payload(t), other.payload(t)
	if d.step != other.step || e.Event.Type != o.Event.Type || e.Event.Lane != o.Event.Lane || !bytes.Equal(e.Event.Object, o.Event.Object) {
		return fmt.Sprintf("step %d: %s %s lane=%s, not step %d: %s %s lane=%s", other.step, o.Event.Type, o.Event.Object, o.Event.Lane, d.step, e.Event.Type, e.Event.Object, e.Event.Lane)
	}
	var a, b struct {
		data    map[string]json.RawMessage
		changed map[string]struct{ Old, New json.RawMessage }
	}
	for _, part := range []struct {
		text json.RawMessage
		into any
	}{{e.Data, &a.data}, {o.Data, &b.data}, {e.Changed, &a.changed}, {o.Changed, &b.changed}} {
		if err := json.Unmarshal(part.text, part.into); err != nil {
			return err.Error()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.data)) {
		if v, ok := b.data[name]; ok && !bytes.Equal(v, a.data[name]) {
			return fmt.Sprintf("%s %s: data.%s is %s, not %s", o.Event.Type, o.Event.Object, name, v, a.data[name])
		} else if !ok {
			return fmt.Sprintf("%s %s: data.%s is missing", o.Event.Type, o.Event.Object, name)
		}
	}
	if x, y := slices.Sorted(maps.Keys(a.changed)), slices.Sorted(maps.Keys(b.changed)); !slices.Equal(x, y) {
		return fmt.Sprintf("%s %s: changed has %v, not %v", o.Event.Type, o.Event.Object, y, x)
	}
	for name, v := range a.changed {
		w := b.changed[name]
		if !bytes.Equal(v.New, w.New) || v.Old != nil && !bytes.Equal(v.Old, w.Old) {
			return fmt.Sprintf("%s %s: changed.%s is %s to %s, not %s to %s", o.Event.Type, o.Event.Object, name, cmp.Or(string(w.Old), "?"), w.New, cmp.Or(string(v.Old), "?"), v.New)
		}
	}
	return ""
}
