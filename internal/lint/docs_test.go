package lint

import (
	"fmt"
	"go/ast"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// TestDocs follows every link of the documents to a file and a heading that are there,
// wants every page to be found from the README, and every test that a page names to exist.
func TestDocs(t *testing.T) {
	root := os.DirFS(filepath.Join("..", ".."))
	tests := map[string]bool{}
	for _, p := range packages(t) {
		for _, f := range p.tests {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
					tests[fn.Name.Name] = true
				}
			}
		}
	}
	if len(tests) < 100 {
		t.Fatalf("only %d tests were found", len(tests))
	}
	for _, problem := range badDocs(t, root, tests) {
		t.Error(problem)
	}
}

var (
	named     = regexp.MustCompile(`\bTest[A-Z][A-Za-z0-9]*\b`)
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading   = regexp.MustCompile(`(?m)^#{1,6} +(.*?) *$`)
	fence     = regexp.MustCompile("(?ms)^ *```.*?^ *```[ \t]*$")
	notInName = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
)

func badDocs(t testing.TB, root fs.FS, tests map[string]bool) (problems []string) {
	t.Helper()
	text := map[string]string{} // by file, without what stands in fences
	pages, err := fs.Glob(root, "docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	top, err := fs.Glob(root, "*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(pages, top...) {
		b, err := fs.ReadFile(root, name)
		if err != nil {
			t.Fatal(err)
		}
		text[name] = fence.ReplaceAllString(string(b), "")
	}
	leads := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(text)) {
		for _, m := range link.FindAllStringSubmatch(text[name], -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			to := name
			if file != "" {
				to = path.Join(path.Dir(name), file)
			}
			if _, err := fs.Stat(root, to); err != nil {
				problems = append(problems, fmt.Sprintf("%s links to %s, which is not there", name, m[1]))
				continue
			}
			leads[name] = append(leads[name], to)
			if page, ok := text[to]; ok && anchor != "" && !slices.Contains(anchors(page), anchor) {
				problems = append(problems, fmt.Sprintf("%s links to %s, and %s has no such heading", name, m[1], to))
			}
		}
		for _, test := range named.FindAllString(text[name], -1) {
			if !tests[test] {
				problems = append(problems, fmt.Sprintf("%s names %s, and there is no such test", name, test))
			}
		}
	}
	reached := []string{"README.md"}
	for i := 0; i < len(reached); i++ {
		for _, to := range leads[reached[i]] {
			if !slices.Contains(reached, to) {
				reached = append(reached, to)
			}
		}
	}
	for _, page := range pages {
		if !slices.Contains(reached, page) {
			problems = append(problems, page+" is not to be found from README.md: link to it")
		}
	}
	return problems
}

// anchors are the names of a page's headings, as GitHub makes them.
func anchors(page string) (names []string) {
	seen := map[string]int{}
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		name := strings.ReplaceAll(notInName.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")
		seen[name]++
		if n := seen[name]; n > 1 {
			name = fmt.Sprintf("%s-%d", name, n-1)
		}
		names = append(names, name)
	}
	return names
}

// TestBadDocs is the test of the test.
func TestBadDocs(t *testing.T) {
	page := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	got := badDocs(t, fstest.MapFS{
		"README.md":     page("# A\n[b](docs/b.md#two-words-its)\n[c](docs/b.md#none)\n[d](docs/none.md)\n[x](https://example.net/y)\n```sh\n[not](a link)\n# no heading\n```\n[e](#no-heading)"),
		"docs/b.md":     page("## Two words: `it's`\n## Two words: its\n[up](../README.md#a) [again](#two-words-its-1) TestGood TestGone"),
		"docs/alone.md": page("x"),
	}, map[string]bool{"TestGood": true})
	want := []string{
		"README.md links to docs/b.md#none, and docs/b.md has no such heading",
		"README.md links to docs/none.md, which is not there",
		"README.md links to #no-heading, and README.md has no such heading",
		"docs/b.md names TestGone, and there is no such test",
		"docs/alone.md is not to be found from README.md: link to it",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
