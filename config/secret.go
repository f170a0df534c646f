package config

import (
	"fmt"
	"io"
	"log/slog"
)

const masked = "***"

// Secret is text that must not be seen: whatever prints, marshals or logs it gets
// "***", or nothing when it is empty. Reveal gives the text to the one place that
// sends it.
type Secret struct {
	// A pointer, since fmt prints a string inside a struct that it was given a wrong
	// verb for, and asks no method.
	text *string
}

// NewSecret hides text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Reveal returns the text.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.text == nil }

// String returns "***".
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return masked
}

// GoString returns "***" too.
func (s Secret) GoString() string { return s.String() }

// Format prints "***" for every verb, also for wrong ones.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText returns "***".
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON returns "***" in quotes.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }

// MarshalYAML returns "***".
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// LogValue returns "***".
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Object is a free-form mapping, kept as a JSON object for a plugin that judges
// it by its own rules. It may hold secrets, so it prints as Secret does; Reveal
// gives the JSON.
type Object struct{ json Secret }

// NewObject keeps a JSON object.
func NewObject(json []byte) Object { return Object{NewSecret(string(json))} }

// Reveal returns the JSON object, or nil when there is none.
func (o Object) Reveal() []byte {
	if o.IsZero() {
		return nil
	}
	return []byte(o.json.Reveal())
}

// IsZero reports whether there is no mapping.
func (o Object) IsZero() bool { return o.json.IsZero() }

// String returns "***".
func (o Object) String() string { return o.json.String() }

// GoString returns "***" too.
func (o Object) GoString() string { return o.String() }

// Format prints "***" for every verb, also for wrong ones.
func (o Object) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, o.String()) }

// MarshalJSON returns "***" in quotes.
func (o Object) MarshalJSON() ([]byte, error) { return o.json.MarshalJSON() }

// MarshalYAML returns "***".
func (o Object) MarshalYAML() (any, error) { return o.String(), nil }

// LogValue returns "***".
func (o Object) LogValue() slog.Value { return slog.StringValue(o.String()) }
