package config_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/billhook/billhook/config"
)

// TestExamples loads the example files as the demo does.
func TestExamples(t *testing.T) {
	env := map[string]string{
		"BILLHOOK_DSN":  "postgres://billhook:hunter2@127.0.0.1:5432/billing",
		"RECEIVER_URL":  "http://127.0.0.1:40123",
		"CRM_SECRET":    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
		"SWITCH_SCRIPT": "/usr/local/bin/switch",
		"SWITCH_DIR":    "/tmp/switch",
	}
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	b, err := config.LoadBillhook("billhook.example.yaml", lookup)
	if err != nil {
		t.Fatal(err)
	}
	h, err := config.LoadHandlers("../handlers.example.yaml", lookup, b)
	if err != nil {
		t.Fatal(err)
	}

	told := map[string]int{}
	for _, e := range config.Catalogue() {
		for i := range h.Handlers {
			if h.Handlers[i].Matches(e.Name) {
				told[e.Name]++
			}
		}
		if told[e.Name] == 0 && !strings.HasSuffix(e.Name, ".truncate") && e.Needs != "entities.accounts.balance" {
			t.Errorf("the example does nothing on %s", e.Name)
		}
	}
	if first := h.Handlers[0]; first.Script.Path != "/usr/local/bin/switch" || !slices.Equal(first.Script.Args, []config.Text{"/tmp/switch"}) {
		t.Errorf("the first handler runs %s %q", first.Script.Path, first.Script.Args)
	}

	// The comment at its top promises that a preset does the same.
	short, err := config.ParseBillhook("short.yaml", []byte("version: 1\nsource: {dsn: \"${BILLHOOK_DSN}\"}\npreset: jerasoft\n"), lookup)
	if err != nil {
		t.Fatal(err)
	}
	long := b.Entities.Clients
	long.Mask, long.Exclude = nil, nil // what an installation adds
	if got, want := yamlOf(t, short.Entities), yamlOf(t, b.Entities); got != want {
		t.Errorf("the preset maps\n%s\nthe example\n%s", got, want)
	}
}

// TestExamplesSayWhatTheyNeed names each variable that the examples refer to and
// that is not set, with its place.
func TestExamplesSayWhatTheyNeed(t *testing.T) {
	_, err := config.LoadHandlers("../handlers.example.yaml", os.LookupEnv, nil)
	for _, name := range []string{"RECEIVER_URL", "CRM_SECRET", "SWITCH_SCRIPT", "SWITCH_DIR"} {
		if _, set := os.LookupEnv(name); !set && (err == nil || !strings.Contains(err.Error(), "variable "+name+" is not set")) {
			t.Errorf("no error says that %s is not set: %v", name, err)
		}
	}
}
