package ruletest

import (
	"os"
	"regexp"
	"testing"
)

// TestDocs reads the tests that docs/testing.md shows.
func TestDocs(t *testing.T) {
	const page = "../../docs/testing.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllSubmatch(text, -1)
	if len(blocks) == 0 {
		t.Fatalf("%s shows no tests", page)
	}
	for _, b := range blocks {
		if _, err := Load(page, b[1]); err != nil {
			t.Error(err)
		}
	}
}
