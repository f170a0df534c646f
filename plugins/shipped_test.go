//go:build unix

package plugins_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	files "github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/handler/plugin"
)

var update = flag.Bool("update", false, "write what is generated into docs/plugins-shipped.md")

// TestShippedDocs: the tables in docs/plugins-shipped.md are the plugins' own schemas,
// the files in it those that the tests run, and each example in it is loaded by
// Billhook and taken by its plugin.
func TestShippedDocs(t *testing.T) {
	const doc = "../docs/plugins-shipped.md"
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	names := []string{"kamailio", "radius-disconnect", "nats", "smtp"}
	args := []string{"build", "-o", dir + "/"}
	for _, name := range names {
		args = append(args, "./"+name)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	text := string(b)
	generated := func(mark, content string) {
		t.Helper()
		const end = "<!-- end -->\n"
		before, after, ok := strings.Cut(text, "<!-- "+mark+" -->\n")
		_, after, closed := strings.Cut(after, end)
		if !ok || !closed {
			t.Fatalf("there is no place for the %s", mark)
		}
		text = before + "<!-- " + mark + " -->\n" + content + end + after
	}
	for _, name := range names {
		schema, err := exec.Command(filepath.Join(dir, name), "-schema").Output()
		if err != nil {
			t.Fatal(err)
		}
		generated("table "+name, tables(t, schema))
	}
	const cfg = "plugins/kamailio/testdata/kamailio.cfg"
	file, err := os.ReadFile(filepath.Join("..", cfg))
	if err != nil {
		t.Fatal(err)
	}
	generated("file "+cfg, "\n```\n"+strings.TrimSpace(string(file))+"\n```\n\n")
	switch {
	case text == string(b):
	case *update:
		if err := os.WriteFile(doc, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s is not up to date: go test ./plugins -run TestShippedDocs -update", doc)
	}

	var handlers strings.Builder
	for _, part := range regexp.MustCompile("(?s)```yaml\n(  - id: .*?)```").FindAllStringSubmatch(text, -1) {
		handlers.WriteString(part[1])
	}
	secrets := regexp.MustCompile(`/etc/billhook/[a-z.]+`)
	for _, path := range secrets.FindAllString(handlers.String(), -1) {
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), []byte("a secret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stanzas := secrets.ReplaceAllStringFunc(handlers.String(), func(path string) string { return filepath.Join(dir, filepath.Base(path)) })
	stanzas = strings.ReplaceAll(stanzas, "/usr/local/lib/billhook", dir)
	h, err := files.ParseHandlers("docs", []byte("version: 1\nhandlers:\n"+stanzas), os.LookupEnv, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Handlers) != 5 {
		t.Errorf("%d examples, want 5", len(h.Handlers))
	}
	var tree struct {
		Handlers []struct {
			Plugin struct {
				Path   string
				Config map[string]any
			}
		}
	}
	if err := yaml.Unmarshal([]byte("handlers:\n"+stanzas), &tree); err != nil {
		t.Fatal(err)
	}
	for i, x := range tree.Handlers {
		b, err := json.Marshal(x.Plugin.Config)
		if err != nil {
			t.Fatal(err)
		}
		p, err := plugin.New(plugin.Options{Path: x.Plugin.Path, Config: b, HandlerID: i + 1, HandlerName: "an example", TempDir: "/tmp", OnlyCheck: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Ready(t.Context()); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// property is a key of a configuration as JSON Schema has it.
type property struct {
	Type        string
	Description string
	Enum        []string
	Pattern     string
	WriteOnly   bool   `yaml:"writeOnly"`
	Ref         string `yaml:"$ref"`
	Items       yaml.Node
	Default     string
}

// kind is what is to be written there.
func (p *property) kind() string {
	switch {
	case p.Ref != "":
		return "`" + strings.ToLower(strings.TrimPrefix(p.Ref, "#/$defs/")) + "`"
	case p.WriteOnly:
		return "secret"
	case len(p.Enum) > 0:
		return "`" + strings.Join(p.Enum, "`, `") + "`"
	case p.Pattern != "":
		return "duration"
	case p.Type == "array":
		var of property
		if err := p.Items.Decode(&of); err != nil { // true: anything
			return "list"
		}
		return "list of " + of.kind()
	case p.Type == "object":
		return "mapping of text"
	case p.Type == "boolean":
		return "true or false"
	case p.Type == "string":
		return "text"
	}
	return p.Type
}

// object is a mapping of a configuration as JSON Schema has it.
type object struct {
	Properties yaml.Node
	Required   []string
	AllOf      []struct {
		AnyOf []struct{ Required []string } `yaml:"anyOf"`
	} `yaml:"allOf"`
}

// tables writes a schema as Markdown: its own keys, and those of the mappings in it.
func tables(t *testing.T, schema []byte) string {
	t.Helper()
	var doc struct {
		object `yaml:",inline"`
		Defs   yaml.Node `yaml:"$defs"`
	}
	if err := yaml.Unmarshal(schema, &doc); err != nil { // which keeps the order
		t.Fatal(err)
	}
	var b strings.Builder
	table := func(title string, o *object) {
		fmt.Fprintf(&b, "\n%s\n\n| Key | Type | Meaning |\n|---|---|---|\n", title)
		required := o.Required
		for _, either := range o.AllOf {
			required = append(required, either.AnyOf[0].Required...)
		}
		for i := 0; i < len(o.Properties.Content); i += 2 {
			name := o.Properties.Content[i].Value
			var p property
			if err := o.Properties.Content[i+1].Decode(&p); err != nil {
				t.Fatal(err)
			}
			var meaning []string
			if slices.Contains(required, name) {
				meaning = append(meaning, "Required.")
			}
			if p.Description != "" {
				meaning = append(meaning, p.Description)
			}
			if p.Default != "" {
				meaning = append(meaning, "Default `"+p.Default+"`.")
			}
			text := strings.ReplaceAll(strings.Join(meaning, " "), "|", "\\|")
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, p.kind(), text)
		}
	}
	table("Keys of `config`:", &doc.object)
	for i := 0; i < len(doc.Defs.Content); i += 2 {
		var o object
		if err := doc.Defs.Content[i+1].Decode(&o); err != nil {
			t.Fatal(err)
		}
		table("Keys of `"+strings.ToLower(doc.Defs.Content[i].Value)+"`:", &o)
	}
	return b.String() + "\n"
}
