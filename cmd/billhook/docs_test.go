package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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
