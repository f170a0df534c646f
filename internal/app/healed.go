package app

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/billhook/billhook/internal/journal"
)

// Healed is a stretch of the source's log that was never heard and whose net events
// reconcile has found.
type Healed struct {
	At time.Time `json:"at"`
	// From is where the journal ended, To where the new slot begins. They are on
	// different servers when the generations differ.
	From        string         `json:"from"`
	To          string         `json:"to"`
	Generations [2]uint32      `json:"generations"` // before and after
	Why         string         `json:"why,omitempty"`
	Events      map[string]int `json:"events"`  // by type
	Handled     int            `json:"handled"` // of them for some handler
	// Skipped are the tables that could not be compared.
	Skipped []string `json:"skipped,omitempty"`
}

// healedKey is where the last gaps that were healed stand in memory, and maxHealed how
// many of them. Row keys never start with 0.
const (
	healedKey = "\x00healed"
	maxHealed = 50
)

func healedOf(r *Reconciled, before, after journal.Position) Healed {
	h := Healed{
		At: time.Now().UTC(), From: r.From, To: r.To, Generations: [2]uint32{before.Generation, after.Generation},
		Why: r.Why, Events: map[string]int{}, Handled: r.Handled,
	}
	for _, e := range r.Events {
		h.Events[string(e.Type)] = e.Count
	}
	for _, t := range r.Tables {
		if t.Skipped != "" {
			h.Skipped = append(h.Skipped, t.Name)
		}
	}
	return h
}

// readHealed returns the gaps that were healed, the oldest first.
func readHealed(b *journal.Batch) ([]Healed, error) {
	list, err := readMemory[[]Healed](b, healedKey)
	if err != nil || list == nil {
		return nil, err
	}
	return *list, nil
}

func addHealed(b *journal.Batch, h Healed) error {
	list, err := readHealed(b)
	if err != nil {
		return err
	}
	list = append(list, h)
	return setMemory(b, healedKey, list[max(0, len(list)-maxHealed):])
}

// readMemory reads a value that stands in memory under a key of ours, nil if none does.
func readMemory[T any](b *journal.Batch, key string) (*T, error) {
	text, ok, err := b.Memory([]byte(key))
	if err == nil && !ok {
		return nil, nil
	}
	v := new(T)
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of the journal: %w", key[1:], err)
	}
	return v, nil
}

func setMemory(b *journal.Batch, key string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s of the journal: %w", key[1:], err)
	}
	b.SetMemory([]byte(key), text)
	return nil
}

// commit writes one batch and waits until it is durable.
func commit(j *journal.Journal, fill func(*journal.Batch) error) error {
	b := j.NewBatch()
	if err := fill(b); err != nil {
		b.Discard()
		return err
	}
	wait, err := j.Commit(b)
	if err != nil {
		b.Discard()
	} else {
		err = wait()
	}
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}
