package plugins_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDocs builds the plugin that docs/plugins.md shows.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/plugins.md")
	if err != nil {
		t.Fatal(err)
	}
	_, sample, _ := strings.Cut(string(text), "```go\n")
	sample, _, ok := strings.Cut(sample, "```\n")
	if !ok {
		t.Fatal("there is no sample in Go")
	}
	sample += "\n// block speaks with the switch.\nfunc block(context.Context, Config, string, string) ([]byte, error) { return nil, nil }\n"
	dir := t.TempDir()
	file, bin := filepath.Join(dir, "main.go"), filepath.Join(dir, "switch")
	if err := os.WriteFile(file, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", bin, file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	schema, err := exec.Command(bin, "-schema").Output()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"$schema":"https://json-schema.org/draft/2020-12/schema","allOf":[{"anyOf":[{"required":["secret"]},{"required":["secret_file"]}]}],"properties":{"server":{"type":"string","minLength":1,"description":"host:port of the switch"},"secret":{"type":"string","writeOnly":true},"connect":{`
	if !strings.HasPrefix(string(schema), want) {
		t.Errorf("its schema is\n%s\nwant\n%s", schema, want)
	}
	about, err := exec.Command(bin).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(about), "switch 1.0.0 is a plugin of Billhook, which starts it") {
		t.Errorf("%v\n%s", err, about)
	}
}
