package config_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"gopkg.in/yaml.v3"

	"github.com/billhook/billhook/config"
)

var update = flag.Bool("update", false, "rewrite the golden files and the schemas")

const golden = "../testdata/config"

// TestGolden loads every case of testdata/config. A case is a txtar archive: the
// files billhook.yaml and handlers.yaml (either or both), env (NAME=value lines),
// any other files they name, and what is wanted: "errors" for a bad case, "billhook"
// and "handlers" for the loaded values as YAML.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob(golden + "/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases in %s: %v", golden, err)
	}
	bad := 0
	for _, file := range cases {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		if strings.HasPrefix(name, "bad-") {
			bad++
		}
		t.Run(name, func(t *testing.T) {
			path, err := filepath.Abs(file)
			if err != nil {
				t.Fatal(err)
			}
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := load(t, archive)
			if isBad := got["errors"] != ""; isBad != strings.HasPrefix(name, "bad-") {
				t.Errorf("a case is called bad-* when and only when it has errors; it has %q", got["errors"])
			}
			if *update {
				writeGolden(t, path, archive, got)
				return
			}
			for _, f := range archive.Files {
				if want, ok := got[f.Name]; ok && want != string(f.Data) {
					t.Errorf("%s:\n--- got\n%s--- want\n%s", f.Name, want, f.Data)
				}
				delete(got, f.Name)
			}
			for f, text := range got {
				if text != "" {
					t.Errorf("the case does not say that it wants %s:\n%s", f, text)
				}
			}
		})
	}
	if bad < 40 {
		t.Errorf("%d bad cases, want at least 40", bad)
	}
}

// load unpacks a case into a folder, loads its files there and returns errors and
// values as text.
func load(t *testing.T, archive *txtar.Archive) map[string]string {
	t.Helper()
	lookup := unpack(t, archive)
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}

	got := map[string]string{}
	note := func(what string, value any, err error) {
		if err != nil {
			got["errors"] += err.Error() + "\n"
			return
		}
		var b bytes.Buffer
		e := yaml.NewEncoder(&b)
		e.SetIndent(2)
		if err := e.Encode(value); err != nil {
			t.Fatal(err)
		}
		got[what] = strings.ReplaceAll(b.String(), dir, "$DIR")
	}
	var b *config.Billhook
	if _, missing := os.Stat("billhook.yaml"); missing == nil {
		b, err = config.LoadBillhook("billhook.yaml", lookup)
		note("billhook", b, err)
	}
	if _, missing := os.Stat("handlers.yaml"); missing == nil {
		h, err := config.LoadHandlers("handlers.yaml", lookup, b)
		note("handlers", h, err)
	}
	if got["errors"] != "" {
		return map[string]string{"errors": got["errors"]}
	}
	return got
}

// unpack writes a case's files into a folder, goes there, and returns its environment.
func unpack(t *testing.T, archive *txtar.Archive) config.Lookup {
	t.Helper()
	dir := t.TempDir()
	env := map[string]string{}
	for _, f := range archive.Files {
		switch f.Name {
		case "errors", "billhook", "handlers":
		case "env":
			for line := range strings.Lines(string(f.Data)) {
				name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
				env[name] = strings.ReplaceAll(value, `\n`, "\n")
			}
		default:
			path := filepath.Join(dir, f.Name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Chdir(dir)
	return func(name string) (string, bool) { v, ok := env[name]; return v, ok }
}

func writeGolden(t *testing.T, path string, archive *txtar.Archive, got map[string]string) {
	t.Helper()
	var files []txtar.File
	for _, f := range archive.Files {
		if f.Name != "errors" && f.Name != "billhook" && f.Name != "handlers" {
			files = append(files, f)
		}
	}
	for _, name := range []string{"errors", "billhook", "handlers"} {
		if text := got[name]; text != "" {
			files = append(files, txtar.File{Name: name, Data: []byte(text)})
		}
	}
	archive.Files = files
	if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}
