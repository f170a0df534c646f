package main

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"
)

func TestParseTime(t *testing.T) {
	zone := time.FixedZone("", 2*3600)
	now := time.Date(2026, 11, 24, 10, 30, 0, 0, zone)
	for text, want := range map[string]string{
		"":                          "0001-01-01T00:00:00Z",
		"2026-11-23T10:00:00Z":      "2026-11-23T10:00:00Z",
		"2026-11-23T10:00:00+05:00": "2026-11-23T05:00:00Z",
		"2026-11-23 10:00":          "2026-11-23T08:00:00Z",
		"2026-11-23 10:00:07":       "2026-11-23T08:00:07Z",
		"2026-11-23":                "2026-11-22T22:00:00Z",
		"2h":                        "2026-11-24T06:30:00Z",
		"90m":                       "2026-11-24T07:00:00Z",
		"7d":                        "2026-11-17T08:30:00Z",
	} {
		got, err := parseTime(text, now)
		if err != nil || got.Format(time.RFC3339) != want {
			t.Errorf("%q: %s, %v; want %s", text, got.Format(time.RFC3339), err, want)
		}
	}
	for _, text := range []string{"yesterday", "-2h", "10", "7w", "2026-13-01", "d", "99999d"} {
		if got, err := parseTime(text, now); err == nil {
			t.Errorf("%q: %s", text, got)
		}
	}
}

// TestPrintRows: a table fits, what is cut shows that it is, and nothing of it reaches
// the terminal but letters.
func TestPrintRows(t *testing.T) {
	table := func(columns int) string {
		var b strings.Builder
		if err := printRows(&b, []string{"ID", "EVENT", "ERROR"}, [][]string{
			{"1", "clients.custom_fields.update", "503\x1b[31m Service\nUnavailable, " + strings.Repeat("x", 80)},
			{"23", "clients.create", ""},
			{"4", "c", "Gerät läuft nicht"},
		}, columns); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	for _, columns := range []int{40, 60, 100} {
		for line := range strings.Lines(table(columns)) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > columns {
				t.Errorf("%d columns of %d: %q", n, columns, line)
			}
		}
	}
	if got, want := table(60), `ID  EVENT                         ERROR
1   clients.custom_fields.update  503 [31m Service Unavaila…
23  clients.create
4   c                             Gerät läuft nicht
`; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := table(40); !strings.Contains(got, "clients.custom_fields…") || !strings.Contains(got, "503 [31m Se…") {
		t.Errorf("got\n%s", got)
	}
	if got := table(0); !strings.Contains(got, strings.Repeat("x", 80)) {
		t.Errorf("cut in a pipe:\n%s", got)
	}
}

func TestPrintYAML(t *testing.T) {
	var b strings.Builder
	if err := printData(&b, "yaml", map[string]any{
		"id": uint64(18446744073709551615), "rate": 0.5, "ok": true, "none": nil, "list": []any{map[string]any{"a": 1}, "true", "12", "<b>\u007f"}, "empty": []int{},
	}); err != nil {
		t.Fatal(err)
	}
	want := `empty: []
id: 18446744073709551615
list:
  - a: 1
  - "true"
  - "12"
  - "<b>\x7F"
none: null
ok: true
rate: 0.5
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
}

// TestCopyLines: an export that was cut is never taken for a whole one.
func TestCopyLines(t *testing.T) {
	long := strings.Repeat("y", 200<<10)
	for _, c := range []struct {
		name string
		in   io.Reader
		n    int64
		err  error
	}{
		{"whole", strings.NewReader("{}\n{}\n"), 2, nil},
		{"nothing", strings.NewReader(""), 0, nil},
		{"long ones", strings.NewReader(long + "\n" + long + "\n"), 2, nil},
		{"bytes one by one", iotest.OneByteReader(strings.NewReader("{}\n{}\n")), 2, nil},
		{"cut in a line", strings.NewReader("{}\n{"), 1, io.ErrUnexpectedEOF},
		{"cut in a long one", strings.NewReader(long), 0, io.ErrUnexpectedEOF},
		{"cut between", io.MultiReader(strings.NewReader("{}\n"), iotest.ErrReader(io.ErrUnexpectedEOF)), 1, io.ErrUnexpectedEOF},
	} {
		var out strings.Builder
		n, err := copyLines(&out, c.in, nil)
		if n != c.n || !errors.Is(err, c.err) {
			t.Errorf("%s: %d, %v", c.name, n, err)
		}
	}
	var out strings.Builder
	if _, err := copyLines(&out, strings.NewReader(long+"\n"), nil); err != nil || out.String() != long+"\n" {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
}

// TestTyped: a script that Billhook calls has its handler's id in the environment. That
// does not select what the script replays.
func TestTyped(t *testing.T) {
	t.Setenv("BILLHOOK_HANDLER", "3")
	t.Setenv("BILLHOOK_RATE", "7")
	cmd := executionsReplayCommand()
	if err := fromEnvironment(cmd.Flags()); err != nil {
		t.Fatal(err)
	}
	if got := cmd.Flags().Lookup("handler").Value.String(); got != "0" {
		t.Errorf("--handler is %s", got)
	}
	if got := cmd.Flags().Lookup("rate").Value.String(); got != "7" {
		t.Errorf("--rate is %s", got)
	}
}
