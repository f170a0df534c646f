package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSnippets loads what the documents show of billhook.yaml and handlers.yaml: readers
// copy it. Each block must be one that it knows; one that shows less than a whole key of
// either says so, as ```yaml fragment.
func TestSnippets(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	loaded := 0
	for _, page := range append(pages, "../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		n, problems := badSnippets(t, string(text))
		loaded += n
		for _, p := range problems {
			t.Errorf("%s:%s", page, p)
		}
	}
	if loaded < 20 {
		t.Errorf("only %d blocks were loaded", loaded)
	}
}

// TestBadSnippets is the test of the test.
func TestBadSnippets(t *testing.T) {
	block := func(text string) string { return "x\n\n```yaml\n" + text + "```\n" }
	for text, want := range map[string]string{
		block("version: 1\nsource: {dsm: x}\npreset: generic\n"):                              "3: file.yaml:2:10: source.dsm: there is no such key here",
		block("version: 1\nhandlers: [{id: x}]\n"):                                            "handlers[0].id",
		block("  - id: 1\n    name: a\n    event: clients.nosuch\n    script: {path: ./x}\n"): "there is no event type",
		block("events: {clients.x: {entity: nosuch}}\n"):                                      "entity",
		block("nosuch: 1\n"): "3: it is not known what this is",
		block("events: {clients.x: {entity: clients, changes: name}}\n") + block("- {id: 1}\n"):                                                     "it is not known",
		block("events: {clients.x: {entity: clients, changes: name}}\n") + block("- id: 1\n  name: a\n  event: clients.y\n"):                        "there is no event type",
		block("events: {clients.x: {entity: clients, changes: name}}\n") + block("- id: 1\n  name: a\n  event: clients.x\n  script: {path: ./x}\n"): "",
		strings.Replace(block("nosuch: 1\n"), "yaml", "yaml fragment", 1):                                                                           "",
	} {
		if _, got := badSnippets(t, text); want == "" && len(got) > 0 || want != "" && !strings.Contains(strings.Join(got, "\n"), want) {
			t.Errorf("%s\ngives %q, want %q", text, got, want)
		}
	}
}

// badSnippets loads the blocks of a page and says what is wrong with them, by line.
func badSnippets(t *testing.T, page string) (loaded int, problems []string) {
	t.Helper()
	block := regexp.MustCompile("(?ms)^ *```yaml([^\n]*)\n(.*?)^ *```")
	source := regexp.MustCompile(`(?m)^source:`)
	listed := regexp.MustCompile(`(?m)^(handlers|include):`)
	env := func(name string) (string, bool) {
		switch {
		case strings.Contains(name, "URL"):
			return "https://example.net/", true
		case strings.Contains(name, "DSN"):
			return "postgres://a@b.example.net/c", true
		}
		return "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", true
	}
	var own *Billhook // events that the page has shown
	for _, m := range block.FindAllStringSubmatchIndex(page, -1) {
		content := dedent(page[m[4]:m[5]])
		if strings.TrimSpace(page[m[2]:m[3]]) == "fragment" || strings.Contains(content, "\ntests:\n") {
			continue // the latter is of billhook test, whose own tests read it
		}
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "handlers.d"), 0o755); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "file.yaml")
		var err error
		switch {
		case source.MatchString(content):
			_, err = ParseBillhook(name, []byte(content), env)
		case strings.HasPrefix(content, "events:"):
			own, err = ParseBillhook(name, []byte("version: 1\nsource: {dsn: \"${DSN}\"}\npreset: generic\n"+content), env)
		case listed.MatchString(content):
			_, err = ParseHandlers(name, []byte(content), env, own)
		case strings.HasPrefix(content, "- id:"):
			_, err = ParseHandlers(name, []byte("version: 1\nhandlers:\n"+content), env, own)
		default:
			err = errors.New("it is not known what this is: show a whole file, handlers, or events, or write yaml fragment")
		}
		loaded++
		if err != nil {
			line := 1 + strings.Count(page[:m[0]], "\n")
			problems = append(problems, fmt.Sprintf("%d: %s", line, strings.ReplaceAll(err.Error(), dir+"/", "")))
		}
	}
	return loaded, problems
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
