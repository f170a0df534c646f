package app

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/billhook/billhook/internal/intake"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/web"
)

// status is what the status page has beside the checks.
func (a *App) status() map[string]any {
	return map[string]any{
		"reconciled": append([]Healed{}, a.healed...), "missed": a.missed.Load(), "memory": append([]intake.Filling{}, a.intake.Fillings()...),
		"replication": a.replication(), "oldest_pending": a.oldestPending(), "started": a.started.UTC(),
		"journal": map[string]any{"bytes": a.journal.Size()},
	}
}

func (a *App) oldestPending() *time.Time {
	t, ok := a.journal.OldestPending()
	if !ok {
		return nil
	}
	t = t.UTC()
	return &t
}

// replicationStatus is where the stream stands, for people and for scripts.
type replicationStatus struct {
	Phase       string `json:"phase"`
	Slot        string `json:"slot"`
	Publication string `json:"publication"`
	Database    string `json:"database,omitempty"`
	Server      int    `json:"server_version,omitempty"` // such as 150018
	Confirmed   string `json:"confirmed_lsn,omitempty"`
	// Lag is how many bytes of WAL the server is ahead of what is confirmed.
	Lag        uint64     `json:"lag_bytes"`
	LastCommit *time.Time `json:"last_commit,omitempty"` // by the server's clock
	// Retained is how much WAL the slot keeps, in bytes; -1: not known.
	Retained  int64  `json:"retained_bytes"`
	WALStatus string `json:"wal_status,omitempty"`
	Failure   string `json:"failure,omitempty"` // the last one, while it does not stream
}

func (a *App) replication() replicationStatus {
	s := a.client.State()
	r := replicationStatus{Phase: s.Phase.String(), Slot: a.loaded.Config.Source.Slot, Publication: a.loaded.Config.Source.Publication, Retained: -1}
	if s.Session != nil {
		r.Database, r.Server = s.Session.Database, s.Session.ServerVersion
	}
	if !s.Confirmed.IsZero() {
		r.Confirmed = s.Confirmed.String()
		if s.ServerLSN > s.Confirmed {
			r.Lag = uint64(s.ServerLSN - s.Confirmed)
		}
	}
	if !s.LastCommit.IsZero() {
		t := s.LastCommit.UTC()
		r.LastCommit = &t
	}
	if !s.SlotPolled.IsZero() {
		r.Retained, r.WALStatus = s.Slot.RetainedBytes, s.Slot.WALStatus
	}
	if s.Phase != replication.Streaming && s.Err != nil {
		r.Failure = s.Err.Error()
	}
	return r
}

// Ready is what /readyz stands on: the stream flows, the journal takes writes,
// memory is filled. A refused handlers.yaml is told but does not make Billhook
// unready: the last good one is in force. Nor do changes that may have been missed:
// the stream flows, and to take Billhook out of service would not bring them back.
func (a *App) Ready() []web.Check {
	var checks []web.Check
	add := func(name string, ok bool, text string) *web.Check {
		checks = append(checks, web.Check{Name: name, OK: ok, Text: text})
		return &checks[len(checks)-1]
	}

	s := a.client.State()
	text := s.Phase.String()
	if s.Detail != "" {
		text += ": " + s.Detail
	}
	if s.Phase != replication.Streaming && s.Err != nil {
		text += ": " + s.Err.Error()
	}
	if s.Phase == replication.Streaming {
		text += fmt.Sprintf(" from slot %s, confirmed %s", a.loaded.Config.Source.Slot, s.Confirmed)
	}
	for _, f := range slices.Sorted(maps.Keys(s.Faults)) {
		text += "; " + s.Faults[f]
	}
	add("replication", s.Phase == replication.Streaming && len(s.Faults) == 0, text)

	if m := a.missed.Load(); m != nil {
		add("changes", true, m.String())
	} else {
		add("changes", true, "none known to be missed")
	}

	switch err, blocked := a.journal.Err(), a.intake.Blocked(); {
	case err != nil:
		add("journal", false, err.Error())
	case blocked != "":
		add("journal", false, blocked)
	default:
		add("journal", true, "takes writes")
	}

	switch n := a.intake.TablesToFill(); {
	case a.fillErr.Load() != nil:
		add("memory", false, *a.fillErr.Load())
	case n < 0:
		add("memory", false, "not looked at yet")
	case n > 0:
		text, rows, estimated := "tables are being read, and until then the first change of a row that was there before may make no event", int64(0), int64(0)
		for _, f := range a.intake.Fillings() {
			if !f.Done {
				text += "; " + f.String()
			}
			rows, estimated = rows+f.Rows, estimated+max(f.Rows, f.Estimated)
		}
		check := add("memory", false, text)
		if estimated > 0 {
			share := float64(rows) / float64(estimated)
			check.Share = &share
		}
	default:
		add("memory", true, "filled")
	}

	if d := a.diagnoses.last.Load(); d != nil {
		add("doctor", true, d.String())
	}

	if r := a.reload.Load(); r != nil && r.err != nil {
		add("handlers", true, "the file was refused, the last good one is in force: "+r.err.Error())
	} else {
		add("handlers", true, fmt.Sprintf("%d in force", len(*a.handlers.Load())))
	}
	return checks
}
