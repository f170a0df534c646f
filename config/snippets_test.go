package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSnippets loads what the documents show as a whole billhook.yaml or handlers.yaml, or
// as handlers of one: readers copy it. A block whose first word after yaml is fragment
// shows less than that.
func TestSnippets(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^( *)```yaml([^\n]*)\n(.*?)^ *```")
	env := func(name string) (string, bool) {
		if strings.Contains(name, "URL") {
			return "https://example.net/", true
		}
		if strings.Contains(name, "DSN") {
			return "postgres://a@b.example.net/c", true
		}
		return "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", true
	}
	loaded := 0
	for _, page := range append(pages, "../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		var own *Billhook // events that the page has shown
		for _, m := range block.FindAllSubmatchIndex(text, -1) {
			sub := func(i int) string { return string(text[m[2*i]:m[2*i+1]]) }
			if strings.HasPrefix(strings.TrimSpace(sub(2)), "fragment") {
				continue
			}
			line := 1 + strings.Count(string(text[:m[0]]), "\n")
			content := dedent(sub(3))
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "handlers.d"), 0o755); err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(dir, "file.yaml")
			switch {
			case regexp.MustCompile(`(?m)^(source|preset|entities):`).MatchString(content) && strings.Contains(content, "version:"):
				_, err = ParseBillhook(name, []byte(content), env)
			case regexp.MustCompile(`(?m)^(handlers|include):`).MatchString(content):
				if !strings.Contains(content, "version:") {
					content = "version: 1\n" + content
				}
				_, err = ParseHandlers(name, []byte(content), env, own)
			case strings.HasPrefix(content, "- id:"):
				_, err = ParseHandlers(name, []byte("version: 1\nhandlers:\n"+content), env, own)
			case strings.HasPrefix(content, "events:"):
				own, err = ParseBillhook(name, []byte("version: 1\nsource: {dsn: \"${DSN}\"}\npreset: generic\n"+content), env)
			default:
				continue
			}
			loaded++
			if err != nil {
				t.Errorf("%s:%d: %v", page, line, strings.ReplaceAll(err.Error(), dir+"/", ""))
			}
		}
	}
	if loaded < 10 {
		t.Errorf("only %d blocks were loaded", loaded)
	}
}

// dedent takes away what all lines of a block begin with.
func dedent(text string) string {
	least := len(text)
	for line := range strings.Lines(text) {
		if trimmed := strings.TrimLeft(line, " "); strings.TrimSpace(trimmed) != "" {
			least = min(least, len(line)-len(trimmed))
		}
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(line[min(least, len(line)-1):])
	}
	return b.String()
}
