package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/billhook/billhook/plugins"
)

// TestLedger is how a plugin is tested: configuration and handler are plain Go.
func TestLedger(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ledger")
	config, err := plugins.DecodeConfig[Config](fmt.Appendf(nil, `{"file": %q, "currency": "USD"}`, file), "")
	if err != nil {
		t.Fatal(err)
	}
	deliver := func(h plugins.Handler, id, currency string) error {
		_, err := h.Handle(t.Context(), &plugins.Delivery{
			EventType: "clients.balance_zero", EventID: id, ObjectID: "7", Attempt: 1,
			Payload: fmt.Appendf(nil, `{"event": {"events_id": "clients.balance_zero"}, "data": {"balance": "-0.50", "currency": %q}}`, currency),
		})
		return err
	}
	for life := range 2 {
		h, err := newLedger(t.Context(), config, plugins.Env{Logger: slog.New(slog.DiscardHandler), HandlerID: 1})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range [][2]string{{"a", "USD"}, {"a", "USD"}, {"b", "EUR"}, {fmt.Sprint("c", life), "USD"}} {
			if err := deliver(h, d[0], d[1]); err != nil {
				t.Error(err)
			}
		}
		if _, err := h.Handle(t.Context(), &plugins.Delivery{Payload: []byte("no")}); err == nil {
			t.Error("a payload that is none was written")
		}
		if err := h.(*ledger).Close(); err != nil {
			t.Error(err)
		}
	}
	got, err := os.ReadFile(file)
	const line = " clients.balance_zero 7 balance -0.50\n"
	if want := "a" + line + "c0" + line + "c1" + line; err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	for _, bad := range []string{`{}`, `{"file": ""}`, `{"file": "ledger"}`, `{"file": "/x", "colour": 1}`} {
		if c, err := plugins.DecodeConfig[Config]([]byte(bad), ""); err == nil || strings.Contains(err.Error(), "panic") {
			t.Errorf("%s: %+v, %v", bad, c, err)
		}
	}
}
