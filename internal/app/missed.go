package app

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/wal"
)

// Missed tells that the publication did not send all for a while: what was changed
// meanwhile is in no stream, and nothing but reconcile finds it. It stands until that
// has been applied.
type Missed struct {
	// Since is when the publication was last seen to send all, From where the server was.
	Since time.Time `json:"since"`
	From  string    `json:"from"`
	What  []string  `json:"what"` // what is known of it, at most maxWhat
}

// String says it all, with the remedy.
func (m *Missed) String() string {
	return m.what() + "; stop billhook, and `billhook reconcile --apply` finds what the tables still show of them"
}

func (m *Missed) what() string {
	return fmt.Sprintf("changes after %s (%s) may have been missed: the publication %s", m.From, m.Since.UTC().Format(time.RFC3339), strings.Join(m.What, ", "))
}

// sent is the publication as it was last seen to send all.
type sent struct {
	At          time.Time           `json:"at"`
	LSN         wal.LSN             `json:"lsn"`
	Publication catalog.Publication `json:"publication"`
}

// Where they stand in memory. Row keys never start with 0.
const (
	missedKey = "\x00missed"
	sentKey   = "\x00sent"

	maxWhat = 20
)

// readMissed reads what an earlier process has kept.
func (a *App) readMissed(b *journal.Batch) error {
	var err error
	if a.sent, err = readMemory[sent](b, sentKey); err != nil {
		return err
	}
	m, err := readMemory[Missed](b, missedKey)
	if err == nil && m != nil {
		a.tell(m)
	}
	return err
}

func (a *App) tell(m *Missed) {
	a.missed.Store(m)
	a.metrics.missed.Set(1)
	a.log.Error("changes may have been missed", "since", m.Since, "from", m.From, "err", m.String())
}

// looked keeps what a look at the publication has found. While something may have been
// missed, the last look before that stays: all after it is in doubt.
func (a *App) looked(l replication.Look) error {
	old := a.missed.Load()
	if len(l.Lacks) == 0 {
		if old != nil || l.LSN == 0 {
			return nil
		}
		s := &sent{time.Now().UTC(), l.LSN, l.Publication}
		if err := commit(a.journal, func(b *journal.Batch) error { return setMemory(b, sentKey, s) }); err != nil {
			return err
		}
		a.sent = s
		return nil
	}
	m := &Missed{}
	switch {
	case old != nil:
		*m = *old
	case a.sent != nil:
		m.Since, m.From = a.sent.At, a.sent.LSN.String()
	default: // a journal of before such looks were kept
		position, _ := a.journal.Position()
		m.Since, m.From = position.CommitTime, position.EndLSN.String()
	}
	m.What = slices.Clone(m.What)
	for _, lack := range l.Lacks {
		if !slices.Contains(m.What, lack) && len(m.What) < maxWhat {
			m.What = append(m.What, lack)
		}
	}
	if old != nil && len(m.What) == len(old.What) {
		return nil
	}
	if err := commit(a.journal, func(b *journal.Batch) error { return setMemory(b, missedKey, m) }); err != nil {
		return err
	}
	a.tell(m)
	return nil
}
