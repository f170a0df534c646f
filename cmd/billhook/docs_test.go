package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestDocumentedCommands looks at each line of the documents' shell blocks that calls
// billhook: the command and its flags must be there.
func TestDocumentedCommands(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^ *```sh\n(.*?)^ *```")
	calls := 0
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			for line := range strings.Lines(strings.ReplaceAll(string(m[1]), "\\\n", " ")) {
				args := words(strings.TrimSpace(line))
				if len(args) == 0 || filepath.Base(args[0]) != "billhook" {
					continue
				}
				calls++
				if problem := understood(args[1:]); problem != "" {
					t.Errorf("%s: %s: %s", filepath.Base(page), strings.TrimSpace(line), problem)
				}
			}
		}
	}
	if calls < 30 {
		t.Errorf("only %d calls were found", calls)
	}
	for line, want := range map[string]string{
		"billhook nosuch":                       "is no command",
		"billhook handlers nosuch":              "is no command",
		"billhook run --nosuch x":               "unknown flag: --nosuch",
		`billhook executions list --text "a b"`: "",
		"billhook status":                       "",
	} {
		if got := understood(words(line)[1:]); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// understood says what is wrong with a command line, "" for nothing.
func understood(args []string) string {
	cmd, rest, err := rootCommand().Find(args)
	if err != nil {
		return err.Error()
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err.Error()
	}
	if cmd.HasSubCommands() && (cmd.Flags().NArg() > 0 || cmd.Flags().NFlag() == 0) { // backfill has flags of its own
		return strings.Join(args, " ") + " is no command"
	}
	if err := cmd.Args(cmd, cmd.Flags().Args()); err != nil {
		return err.Error()
	}
	return ""
}

// words are those of a shell's simple command, up to a comment, a pipe or a redirection.
func words(line string) (list []string) {
	word, quote, open := "", byte(0), false
	end := func() {
		if open {
			list = append(list, word)
		}
		word, open = "", false
	}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word += string(c)
		case c == '"' || c == '\'':
			quote, open = c, true
		case c == ' ':
			end()
		case strings.ContainsRune("|>;&#", rune(c)) && !open:
			return list
		default:
			word, open = word+string(c), true
		}
	}
	end()
	return list
}

// TestDocumentedVariables looks for each variable that the documents name: a flag's, or
// one that the sources, the Makefile or what installs for the tests speak of.
func TestDocumentedVariables(t *testing.T) {
	known := map[string]bool{
		// Names that operators give, in examples.
		"BILLHOOK_PASSWORD": true, "BILLHOOK_METRICS_TOKEN": true,
	}
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) { known[variable(f.Name)] = true })
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(rootCommand())
	name := regexp.MustCompile(`\bBILLHOOK_[A-Z][A-Z_]*\b`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		base := d.Name()
		switch {
		case err != nil:
			return err
		case d.IsDir() && (base == "bin" || base == "dist" || base == ".git" || base == ".cache" || base == "testdata"):
			return fs.SkipDir
		case d.IsDir(), strings.HasSuffix(base, "_test.go") && !strings.Contains(path, "pgtest"):
			return nil
		case strings.HasSuffix(base, ".go"), base == "Makefile", base == "setup":
			b, err := os.ReadFile(path)
			for _, n := range name.FindAllString(string(b), -1) {
				known[n] = true
			}
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, page := range append(pages, "../../README.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range name.FindAllString(string(text), -1) {
			found++
			if !known[n] {
				t.Errorf("%s: nothing knows of %s", filepath.Base(page), n)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d variables were found", found)
	}
	if known["BILLHOOK_NOSUCH"] {
		t.Error("every name is known")
	}
}
