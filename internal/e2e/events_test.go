package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/event"
)

const eventsPage = "../../docs/events.md"

var (
	eventSection = regexp.MustCompile("(?ms)^### `([a-z_.]+)`\n(.*?)```sql\n(.*?)```\n(?:\n```json\n(.*?)```\n)?")
	mappingFence = regexp.MustCompile("(?ms)^```yaml fragment\n(.*?)```\n\n```sql\n(.*?)```\n")
)

// TestEventsReference does what docs/events.md tells: makes its tables, runs its SQL,
// and compares what is sent with what stands there, of every event type that there is.
// -update writes the payloads.
func TestEventsReference(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(eventsPage)
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	head := mappingFence.FindStringSubmatch(page)
	if head == nil {
		t.Fatal("no mapping and schema")
	}
	s := &mappingScript{file: eventsPage, mapping: head[1], schema: head[2]}
	for _, section := range eventSection.FindAllStringSubmatch(page, -1) {
		s.steps = append(s.steps, mappingStep{title: section[1], sql: section[3]})
	}
	list := s.play(t, "DEFAULT", func(url string) string {
		return "version: 1\nhandlers: [{id: 1, name: All, event: '*', http: {url: '" + url + "'}}]\n"
	})
	s.complete(t, list)

	step := -1
	got := eventSection.ReplaceAllStringFunc(page, func(section string) string {
		step++
		m := eventSection.FindStringSubmatch(section)
		var payloads []string
		for _, d := range list {
			if d.step != step {
				continue
			}
			if typ := d.payload(t).Event.Type; typ != m[1] {
				t.Errorf("%s: its SQL makes a %s", m[1], typ)
			}
			payloads = append(payloads, illustrate(d))
		}
		if len(payloads) != 1 {
			t.Errorf("%s: its SQL makes %d events", m[1], len(payloads))
		}
		return fmt.Sprintf("### `%s`\n%s```sql\n%s```\n\n```json\n%s```\n", m[1], m[2], m[3], strings.Join(payloads, ""))
	})
	switch {
	case t.Failed():
	case *update:
		if err := os.WriteFile(eventsPage, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	case got != page:
		t.Errorf("the payloads of %s are others now: run go test ./internal/e2e -run TestEventsReference -update\n%s", eventsPage, got)
	}
}

// illustrate is a payload on three lines, with a time, an id and a position that stay
// the same.
func illustrate(d delivery) string {
	body := plain("billhook", d)
	example, err := event.ParseID("1-16/B374D848-3")
	if err != nil {
		panic(err)
	}
	for _, r := range []struct{ from, to string }{
		{`"(time)"`, `"2026-11-24T10:15:00.123456+00:00"`},
		{`"(id)"`, `"` + example.String() + `"`},
		{`"(lsn)"`, `"` + example.CommitLSN.String() + `"`},
		{`(xid)`, `7731`},
		{`,"data":`, ",\n \"data\": "},
		{`,"changed":`, ",\n \"changed\": "},
		{`,"unchanged":`, ",\n \"unchanged\": "},
		{`{"event":`, `{"event": `},
	} {
		body = strings.Replace(body, r.from, r.to, 1)
	}
	return body + "\n"
}
