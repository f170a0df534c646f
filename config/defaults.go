package config

import "time"

// The defaults of both files. A mapping starts from these before its own keys are
// read; a handler starts from the file's Defaults. docs/configuration.md and the
// JSON Schemas show the same values, and tests hold them to it.

func (b *Billhook) setDefaults() {
	b.Source.setDefaults()
	b.Journal.setDefaults()
	b.Dispatch.setDefaults()
	b.HTTP.setDefaults()
	b.Log.setDefaults()
}

func (s *Source) setDefaults() {
	*s = Source{Name: "billing", Slot: "billhook", Publication: "billhook", Create: true, Failover: true, TimeZone: "UTC", FillRate: Rate{Count: 50_000, Per: time.Second}}
}

func (j *Journal) setDefaults() {
	*j = Journal{Path: "/var/lib/billhook", Retention: 30 * 24 * time.Hour}
}

func (d *Dispatch) setDefaults() { *d = Dispatch{Concurrency: 64, Grace: 10 * time.Second} }

func (l *Listener) setDefaults() { *l = Listener{Listen: "127.0.0.1:8321"} }

func (l *Log) setDefaults() { *l = Log{Level: "info", Format: "text"} }

func (t *Token) setDefaults() { *t = Token{Role: Viewer} }

func (u *User) setDefaults() { *u = User{Role: Viewer} }

func (b *Balance) setDefaults() { *b = Balance{Value: "0", Sides: Sides{Hysteresis: "0"}} }

func (t *Threshold) setDefaults() { *t = Threshold{Sides: Sides{Hysteresis: "0"}} }

func (m *Moves) setDefaults() { *m = Moves{Direction: Forward} }

func (h *Handlers) setDefaults() { h.Defaults.setDefaults() }

func (*included) setDefaults() {}

func (d *Defaults) setDefaults() {
	*d = Defaults{
		Timeout:   10 * time.Second,
		Blocking:  true,
		OnFailure: Continue,
		Format:    FormatBillhook,
		Capture:   64 << 10,

		FailingAfter: 10 * time.Minute,
		Breaker:      new(Breaker),
	}
	d.Retry.setDefaults()
	d.Breaker.setDefaults()
}

func (r *Retry) setDefaults() {
	*r = Retry{Attempts: 10, Initial: time.Second, Max: 15 * time.Minute, Factor: 2, Jitter: 0.2}
}

func (b *Breaker) setDefaults() {
	*b = Breaker{Failures: 5, Pause: 10 * time.Second, Max: 5 * time.Minute}
}

// setDefaults is for a handler on its own, as the JSON Schema shows it; the loader
// calls inherit.
func (h *Handler) setDefaults() {
	var d Defaults
	d.setDefaults()
	h.inherit(d)
}

func (h *Handler) inherit(d Defaults) {
	*h = Handler{
		Priority:    1,
		Status:      Enabled,
		Blocking:    d.Blocking,
		OnFailure:   d.OnFailure,
		Format:      d.Format,
		ContentType: "application/json",
		Timeout:     d.Timeout,
		Retry:       d.Retry,
		Concurrency: d.Concurrency,
		Rate:        d.Rate,
		Capture:     d.Capture,
		Collapse:    None,

		FailingAfter: d.FailingAfter,
	}
	if d.Breaker != nil {
		b := *d.Breaker
		h.Breaker = &b
	}
}

// setConcurrency fills what depends on the kind of handler.
func (h *Handler) setConcurrency() {
	switch {
	case h.Concurrency > 0:
	case h.Script != nil:
		h.Concurrency = 4
	default:
		h.Concurrency = 16
	}
}

func (h *HTTP) setDefaults() { *h = HTTP{Method: "POST", ConnectTimeout: 5 * time.Second} }

func (t *TLS) setDefaults() { *t = TLS{MinVersion: "1.2"} }

func (s *Script) setDefaults() { *s = Script{KillGrace: 5 * time.Second} }
