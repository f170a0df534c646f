package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/billhook/billhook/config"
)

// Both files may hold anything: loading ends with a value or with errors that have
// a text, never with a panic.

func FuzzLoadBillhook(f *testing.F) {
	seed(f, "billhook.yaml", "billhook.example.yaml")
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := config.ParseBillhook(filepath.Join(t.TempDir(), "billhook.yaml"), text, fuzzEnv)
		judge(t, b != nil, err)
		if err == nil {
			yamlOf(t, b)
			b.At("entities.clients.balance.column")
			b.EventTypes()
		}
	})
}

func FuzzLoadHandlers(f *testing.F) {
	seed(f, "handlers.yaml", "../handlers.example.yaml")
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := config.ParseHandlers(filepath.Join(t.TempDir(), "handlers.yaml"), text, fuzzEnv, nil)
		judge(t, h != nil, err)
		if err != nil {
			return
		}
		yamlOf(t, h)
		for _, x := range h.Handlers {
			if len(x.Events) == 0 || x.Kind() == "" || x.Timeout <= 0 || x.Retry.Attempts < 1 || x.Concurrency < 1 || x.Pos.Line == 0 {
				t.Errorf("an incomplete handler passes: %+v", x)
			}
			for line := range 3 {
				x.When.At(line, line)
			}
		}
	})
}

func judge(t *testing.T, value bool, err error) {
	t.Helper()
	if value == (err != nil) {
		t.Fatalf("value %v, error %v", value, err)
	}
	var all config.Errors
	if err != nil && (!errors.As(err, &all) || len(all) == 0) {
		t.Fatalf("the error is %T: %v", err, err)
	}
	for _, e := range all {
		if e.Problem == "" || e.File == "" {
			t.Errorf("an error says nothing: %+v", e)
		}
	}
}

func fuzzEnv(name string) (string, bool) { return "value of " + name, name != "UNSET" }

func seed(f *testing.F, name, example string) {
	text, err := os.ReadFile(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	cases, err := filepath.Glob(golden + "/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range cases {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			if file.Name == name {
				f.Add(file.Data)
			}
		}
	}
	for _, odd := range []string{"", "---\n---", "{", "a: &a [*a]", "? [a]\n: b", "!!binary x", "%YAML 1.1\n---\n", "\xef\xbb\xbfversion: 1", "version: 1\r\nhandlers: []\r\n", "a: \"\\ud800\"", "\u2028: |2\n  x"} {
		f.Add([]byte(odd))
	}
}
