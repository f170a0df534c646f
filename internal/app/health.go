package app

import (
	"fmt"
	"maps"
	"slices"

	"github.com/billhook/billhook/internal/intake"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/web"
)

// status is what the status page has beside the checks.
func (a *App) status() map[string]any {
	return map[string]any{"reconciled": append([]Healed{}, a.healed...), "missed": a.missed.Load(), "memory": append([]intake.Filling{}, a.intake.Fillings()...)}
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

	if r := a.reload.Load(); r != nil && r.err != nil {
		add("handlers", true, "the file was refused, the last good one is in force: "+r.err.Error())
	} else {
		add("handlers", true, fmt.Sprintf("%d in force", len(*a.handlers.Load())))
	}
	return checks
}
