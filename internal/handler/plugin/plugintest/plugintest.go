//go:build unix

// Package plugintest calls plugins for their tests as Billhook does: it starts the
// program, gives it a configuration and makes attempts, by way of package plugin.
//
// It promises nothing about what the plugin does with them; it fails the test when the
// plugin does not start or refuses its configuration. Start with Start and Event.
package plugintest

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/plugin"
	"github.com/billhook/billhook/internal/wal"
	"github.com/billhook/billhook/plugins"
)

// CaptureLimit is how many bytes of each body a plugin that Start has started captures.
const CaptureLimit = 16 << 10

// Start starts a plugin with a configuration, which is anything that makes a JSON
// object. It ends with the test.
func Start(t testing.TB, path string, config any) handler.Handler {
	t.Helper()
	b, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	h, err := plugin.New(plugin.Options{
		Path: path, Config: b, HandlerID: 7, HandlerName: "a test", TempDir: "/tmp", CaptureLimit: CaptureLimit,
		Logger: slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := h.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return h
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.Logf("plugin: %s", b)
	return len(b), nil
}

// Refused starts a plugin with a configuration that it is to refuse, and returns the
// field and the text that it names first.
func Refused(t testing.TB, path string, config any) (field, text string) {
	t.Helper()
	b, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	h, err := plugin.New(plugin.Options{Path: path, Config: b, HandlerID: 7, HandlerName: "a test", TempDir: "/tmp", OnlyCheck: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var refused *plugin.ConfigError
	if err := h.Ready(ctx); !errors.As(err, &refused) {
		t.Fatalf("%s was taken: %v", b, err)
	}
	return refused.Problems[0].Field, refused.Problems[0].Text
}

// Event returns an event about a client. n tells events apart; data is anything that
// makes a JSON object.
func Event(t testing.TB, n int, eventType, object string, data any) *event.Event {
	t.Helper()
	b, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	id := []byte(object)
	if !json.Valid(id) {
		id = event.AppendJSONString(nil, object)
	}
	return &event.Event{
		ID: event.ID{Generation: 1, CommitLSN: wal.LSN(0x1000 + n), Ordinal: 0}, Type: event.Type(eventType),
		Entity: "clients", Object: object, ObjectJSON: id, Lane: object, XID: 7731,
		CommitTime: time.Date(2026, 11, 23, 10, 15, 0, 0, time.UTC), Source: "billing", Data: b,
	}
}

// Attempt is an event as it is delivered by Billhook.
func Attempt(e *event.Event, attempt int) *handler.Delivery {
	return &handler.Delivery{Event: e, HandlerID: 7, Name: "a test", Attempt: attempt, Body: e.AppendPayload(nil), ContentType: "application/json"}
}

// Delivery is an event as it comes to a plugin, for tests that call it as a Go type.
func Delivery(e *event.Event, attempt int) *plugins.Delivery {
	return &plugins.Delivery{
		EventType: string(e.Type), EventID: e.ID.String(), ObjectID: e.Object, Lane: e.Lane, Attempt: attempt,
		HandlerID: 7, HandlerName: "a test", Payload: e.AppendPayload(nil), ContentType: "application/json",
	}
}

// Env is what a plugin is given that is called as a Go type.
func Env(t testing.TB) plugins.Env {
	return plugins.Env{Logger: slog.New(slog.NewTextHandler(logWriter{t}, nil)), HandlerID: 7, HandlerName: "a test"}
}
