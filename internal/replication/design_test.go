package replication

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDesign: what DESIGN.md names as shown by a test is there.
func TestDesign(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for pkg, dir := range map[string]string{"": ".", "intake": "../intake", "doctor": "../doctor", "wal": "../wal", "e2e": "../e2e"} {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(source), -1) {
				have[strings.TrimPrefix(pkg+"."+m[1], ".")] = true
			}
		}
	}
	rows := 0
	for line := range strings.Lines(string(b)) {
		if !regexp.MustCompile(`^\| \d`).MatchString(line) {
			continue
		}
		rows++
		cells := strings.Split(line, "|")
		for _, name := range regexp.MustCompile(`(\w+\.)?Test\w+`).FindAllString(cells[len(cells)-2], -1) {
			if !have[name] {
				t.Errorf("no test %s: %s", name, line)
			}
		}
	}
	if rows != 45 {
		t.Errorf("%d rows", rows)
	}
}
