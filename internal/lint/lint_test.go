package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
)

const module = "github.com/billhook/billhook"

// pkg is a package as go list and the parser see it.
type pkg struct {
	path    string // without the module's
	imports []string
	tested  []string // imports of its tests
	files   []*ast.File
	tests   []*ast.File
	fset    *token.FileSet
}

func (p *pkg) pos(n ast.Node) string {
	at := p.fset.Position(n.Pos())
	return fmt.Sprintf("%s/%s:%d", p.path, filepath.Base(at.Filename), at.Line)
}

// packages lists and parses all packages of the module.
func packages(t *testing.T) []*pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,CgoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []*pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var listed struct {
			ImportPath, Dir                                              string
			GoFiles, CgoFiles, IgnoredGoFiles, TestGoFiles, XTestGoFiles []string
			Imports, TestImports, XTestImports                           []string
		}
		if err := dec.Decode(&listed); err != nil {
			t.Fatal(err)
		}
		p := &pkg{
			path:    short(listed.ImportPath),
			imports: shorten(listed.Imports), tested: shorten(slices.Concat(listed.TestImports, listed.XTestImports)),
			fset: token.NewFileSet(),
		}
		parse := func(names []string) (files []*ast.File) {
			for _, name := range names {
				f, err := parser.ParseFile(p.fset, filepath.Join(listed.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
				if err != nil {
					t.Fatal(err)
				}
				if !ast.IsGenerated(f) { // what a generator writes is its author's affair
					files = append(files, f)
				}
			}
			return files
		}
		// Files for other systems are ours, too; only their imports are not listed.
		p.files = parse(slices.Concat(listed.GoFiles, listed.CgoFiles, listed.IgnoredGoFiles))
		p.tests = parse(slices.Concat(listed.TestGoFiles, listed.XTestGoFiles))
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatal("go list found no package")
	}
	return all
}

func short(path string) string { return strings.TrimPrefix(path, module+"/") }

func shorten(paths []string) []string {
	out := make([]string, len(paths))
	for i, p := range paths {
		out[i] = short(p)
	}
	return out
}

// within reports whether a package is one of a pattern: "x", "x/..." or "...".
// All patterns but those of other modules and the standard library mean ours.
func within(path, pattern string) bool {
	prefix, deep := strings.CutSuffix(pattern, "...")
	if !deep {
		return path == pattern
	}
	return strings.HasPrefix(path+"/", prefix)
}

func withinAny(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return within(path, p) })
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		for _, problem := range badImports(p, arrows()) {
			t.Error(problem)
		}
	}
}

func badImports(p *pkg, rules []arrow) (problems []string) {
	for _, a := range rules {
		if !within(p.path, a.from) || withinAny(p.path, a.except) {
			continue
		}
		imports := p.imports
		if a.tests {
			imports = slices.Concat(imports, p.tested)
		}
		for _, i := range imports {
			if i != p.path && withinAny(i, a.to) && !withinAny(i, a.allowed) {
				problems = append(problems, fmt.Sprintf("%s imports %s: %s", p.path, i, a.reason))
			}
		}
	}
	return problems
}

func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		for _, problem := range badComment(p) {
			t.Error(problem)
		}
	}
}

// badComment wants one comment that says what the package is and what it
// promises or does not do: two sentences at least.
func badComment(p *pkg) (problems []string) {
	const reason = "the package comment is where a newcomer starts: what it is, what it promises, what it does not do, the names to start with"
	var docs []string
	if len(p.files) == 0 {
		return nil // tests alone
	}
	for _, f := range p.files {
		if f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != "" {
			docs = append(docs, f.Doc.Text())
		}
	}
	switch len(docs) {
	case 0:
		return []string{fmt.Sprintf("%s has no package comment: %s", p.path, reason)}
	case 1:
	default:
		problems = append(problems, fmt.Sprintf("%s has %d package comments: one file holds all of it, so that it is read as one", p.path, len(docs)))
	}
	name := p.files[0].Name.Name
	want, words := "Package "+name+" ", 25
	if name == "main" {
		want, words = "Command "+filepath.Base(p.path)+" ", 12 // its --help says the rest
	}
	if !strings.HasPrefix(docs[0], want) {
		problems = append(problems, fmt.Sprintf("%s: the package comment does not begin with %q: go doc would not show it well", p.path, want))
	}
	if len(strings.Fields(docs[0])) < words {
		problems = append(problems, fmt.Sprintf("%s: the package comment is too short to say it: %s", p.path, reason))
	}
	return problems
}

func TestNoGlobals(t *testing.T) {
	used := map[string]bool{}
	for _, p := range packages(t) {
		for name, pos := range globals(p) {
			if variables()[name] != "" {
				used[name] = true
				continue
			}
			t.Errorf("%s: %s is a package-level variable: a second instance would share it. Make it a field, a constant, or a function that returns it", pos, name)
		}
	}
	for name := range variables() {
		if !used[name] {
			t.Errorf("%s is allowed as a package-level variable, but is none: take it off the list", name)
		}
	}
}

// globals returns the package-level variables that are neither blank, embedded,
// sentinel errors nor regular expressions, by "package.name".
func globals(p *pkg) map[string]string {
	found := map[string]string{}
	for _, f := range p.files {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				if embedded(g.Doc) || embedded(v.Doc) {
					continue
				}
				for i, name := range v.Names {
					if name.Name == "_" || i < len(v.Values) && constant(v.Values[i]) {
						continue
					}
					found[p.path+"."+name.Name] = p.pos(name)
				}
			}
		}
	}
	return found
}

func embedded(doc *ast.CommentGroup) bool {
	return doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// constant reports whether a value is made once and does not change: a sentinel
// error, a compiled regular expression or template.
func constant(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	switch selector(call.Fun) {
	case "errors.New", "fmt.Errorf", "regexp.MustCompile", "template.Must":
		return true
	}
	return false
}

func selector(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return ""
	}
	return x.Name + "." + s.Sel.Name
}

func TestCode(t *testing.T) {
	for _, p := range packages(t) {
		for _, problem := range badCode(p, pure()[p.path]) {
			t.Error(problem)
		}
	}
}

// badCode finds what no package does.
func badCode(p *pkg, isPure bool) (problems []string) {
	say := func(n ast.Node, text string) { problems = append(problems, p.pos(n)+": "+text) }
	for _, f := range p.files {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					say(n, "init: what a package does is done when it is called; register in the wiring, where it can be read")
				}
			case *ast.GoStmt:
				if isPure {
					say(n, "a goroutine in a package that is a function of its arguments: who would wait for it?")
				}
			case *ast.SelectorExpr:
				switch selector(n) {
				case "slog.Default", "slog.SetDefault", "slog.Debug", "slog.Info", "slog.Warn", "slog.Error":
					say(n, "the global logger: a *slog.Logger comes in through Options")
				case "prometheus.MustRegister", "prometheus.Register", "prometheus.DefaultRegisterer", "prometheus.DefaultGatherer":
					say(n, "the global registry: a prometheus.Registerer comes in through Options")
				case "http.DefaultClient", "http.DefaultServeMux", "http.HandleFunc", "http.Handle":
					if f.Name.Name != "main" {
						say(n, "shared state of net/http: make a client or a mux of your own")
					}
				case "os.Exit":
					if f.Name.Name != "main" {
						say(n, "only a main function ends the process: return an error")
					}
				}
			}
			return true
		})
	}
	for _, f := range p.tests {
		ast.Inspect(f, func(n ast.Node) bool {
			if c, ok := n.(*ast.CallExpr); ok {
				if s, ok := c.Fun.(*ast.SelectorExpr); ok && selector(s) == "synctest.Test" {
					return false // time there is its own
				}
			}
			if s, ok := n.(*ast.SelectorExpr); ok && selector(s) == "time.Sleep" {
				say(n, "a sleep in a test is too short on a busy machine and too long on all others: wait for a signal, poll with a deadline, or use testing/synctest")
			}
			return true
		})
	}
	return problems
}

func TestWords(t *testing.T) {
	used := map[string]bool{}
	for _, p := range packages(t) {
		for name, found := range avoided(p) {
			allowed := p.path + " " + found.word
			if names()[allowed] != "" {
				used[allowed] = true
				continue
			}
			t.Errorf("%s: %s: the word %q is not one of ours (say: %s): one word for one idea, everywhere", found.pos, name, found.word, words()[found.word])
		}
	}
	for allowed := range names() {
		if !used[allowed] {
			t.Errorf("%q is allowed, but nobody says it: take it off the list", allowed)
		}
	}
}

type avoidedWord struct{ pos, word string }

// avoided returns the declared names of a package that have an avoided word in
// them, by "package.name" or "package.Type.name".
func avoided(p *pkg) map[string]avoidedWord {
	found := map[string]avoidedWord{}
	look := func(n ast.Node, scope, name string) {
		for _, w := range split(name) {
			if words()[w] != "" {
				found[p.path+"."+scope+name] = avoidedWord{p.pos(n), w}
			}
		}
	}
	for _, w := range strings.FieldsFunc(p.path, func(r rune) bool { return r == '/' || r == '-' }) {
		if words()[w] != "" && len(p.files) > 0 {
			found[p.path] = avoidedWord{p.pos(p.files[0]), w}
		}
	}
	fields := func(scope string, list *ast.FieldList) {
		if list == nil {
			return
		}
		for _, f := range list.List {
			for _, n := range f.Names {
				look(n, scope, n.Name)
			}
		}
	}
	for _, f := range p.files {
		file := filepath.Base(p.fset.Position(f.Pos()).Filename)
		for _, w := range strings.FieldsFunc(strings.TrimSuffix(file, ".go"), func(r rune) bool { return r == '_' || r == '-' }) {
			if words()[w] != "" {
				found[p.path+"/"+file] = avoidedWord{p.pos(f), w}
			}
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				scope := ""
				if d.Recv != nil && len(d.Recv.List) == 1 {
					scope = receiver(d.Recv.List[0].Type) + "."
				}
				look(d, scope, d.Name.Name)
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						look(s, "", s.Name.Name)
						switch typ := s.Type.(type) {
						case *ast.StructType:
							fields(s.Name.Name+".", typ.Fields)
						case *ast.InterfaceType:
							fields(s.Name.Name+".", typ.Methods)
						}
					case *ast.ValueSpec:
						for _, n := range s.Names {
							look(n, "", n.Name)
						}
					}
				}
			}
		}
	}
	return found
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// split takes a name apart into lower-case words: "parseURLPath" is parse, url,
// path.
func split(name string) (parts []string) {
	var word []rune
	flush := func() {
		if len(word) > 0 {
			parts = append(parts, strings.ToLower(string(word)))
			word = nil
		}
	}
	runes := []rune(name)
	for i, r := range runes {
		switch {
		case r == '_':
			flush()
			continue
		case unicode.IsUpper(r) && i > 0 && (!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])):
			flush()
		}
		word = append(word, r)
	}
	flush()
	return parts
}

// TestLocations sees that the packages that rules speak of are there, once the
// repository has them: a rule about a package that was renamed holds nothing.
func TestLocations(t *testing.T) {
	root := filepath.Join("..", "..")
	for name := range maps.Keys(pure()) {
		if _, err := os.Stat(filepath.Join(root, name)); errors.Is(err, fs.ErrNotExist) {
			t.Errorf("there are rules about %s, which is not there", name)
		}
	}
}

// TestRules sees that the rules find what they are for.
func TestRules(t *testing.T) {
	source := func(path, code string) *pkg {
		p := &pkg{path: path, fset: token.NewFileSet()}
		f, err := parser.ParseFile(p.fset, "file.go", code, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		p.files = []*ast.File{f}
		return p
	}
	contains := func(what string, problems []string, want string) {
		t.Helper()
		if want == "" && len(problems) > 0 || want != "" && !strings.Contains(strings.Join(problems, "\n"), want) {
			t.Errorf("%s: found %q, want %q", what, problems, want)
		}
	}

	for _, c := range []struct{ from, to, want string }{
		{"internal/journal", "config", "Options"},
		{"internal/app", "config", ""},
		{"internal/event", "internal/wal", ""},
		{"internal/event", "internal/handler", "leaf"},
		{"internal/billing", "net/http", "function"},
		{"internal/billing", "os", "function"},
		{"internal/dispatch", "github.com/cockroachdb/pebble/v2", "durable"},
		{"internal/journal", "github.com/cockroachdb/pebble/v2", ""},
		{"internal/web", "github.com/jackc/pgx/v5", "connections"},
		{"internal/handler/http", "internal/journal", "one attempt"},
		{"internal/demo", "internal/event", "on trust"},
		{"internal/demo", "internal/demo/cluster", ""},
		{"internal/app", "internal/pgtest", "tests"},
		{"internal/web", "internal/app", "one way"},
	} {
		contains(c.from+" -> "+c.to, badImports(&pkg{path: c.from, imports: []string{c.to}}, arrows()), c.want)
	}

	const long = "// Package x is an example that says at some length what it is, what it promises, what it does not do, and with which name to start when one reads it.\n"
	contains("no comment", badComment(source("x", "package x")), "no package comment")
	contains("a short comment", badComment(source("x", "// Package x is short.\npackage x")), "too short")
	contains("another beginning", badComment(source("x", strings.Replace(long, "Package x", "This", 1)+"package x")), "begin")
	contains("a good comment", badComment(source("x", long+"package x")), "")

	vars := globals(source("x", `package x
		import "errors"
		var errA = errors.New("a")
		var _ error = errA
		//go:embed a
		var a string
		var (
			//go:embed b
			b []byte
			c = map[string]int{}
			d int
		)`))
	if got := slices.Sorted(maps.Keys(vars)); !slices.Equal(got, []string{"x.c", "x.d"}) {
		t.Errorf("globals: %v", got)
	}

	contains("init", badCode(source("x", "package x\nfunc init() {}"), false), "init")
	contains("a goroutine", badCode(source("x", "package x\nfunc f() { go f() }"), true), "wait for it")
	contains("a goroutine elsewhere", badCode(source("x", "package x\nfunc f() { go f() }"), false), "")
	contains("the global logger", badCode(source("x", "package x\nfunc f() { slog.Info(`x`) }"), false), "Options")
	sleep := source("x", "package x\nfunc f() { time.Sleep(1) }")
	sleep.tests, sleep.files = sleep.files, nil
	contains("a sleep in a test", badCode(sleep, false), "busy machine")

	got := slices.Sorted(maps.Keys(avoided(source("x", `package x
		type JobQueue struct { taskID int; hooked bool }
		func (q *JobQueue) ProcessHTTPMessage() {}
		const billhook = 1
		type HookHTTP interface { Record() }`))))
	if want := []string{"x.HookHTTP", "x.HookHTTP.Record", "x.JobQueue", "x.JobQueue.ProcessHTTPMessage", "x.JobQueue.taskID"}; !slices.Equal(got, want) {
		t.Errorf("avoided words: %v, want %v", got, want)
	}
}
