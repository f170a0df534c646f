package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/billhook/billhook/internal/dispatch"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/intake"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/reconcile"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/snapshot"
)

// ReconcileOptions of Reconcile.
type ReconcileOptions struct {
	// Apply makes the slot anew and journals the missed events. Without it nothing is
	// changed anywhere.
	Apply bool
	// Force applies although the slot could go on.
	Force bool
	// Adopt applies although the server is another cluster than the one that was
	// followed, or was put back.
	Adopt    bool
	Progress func(reconcile.Progress)
}

// Reconciled is what Reconcile found, and did.
type Reconciled struct {
	reconcile.Report
	// Break says why the slot cannot go on, or what may have been missed although it can.
	replication.Break
	// From and To are the positions between which nothing was heard, with Apply.
	From, To string
}

// ErrNotNeeded says that the slot can go on from where the journal ends.
var ErrNotNeeded = errors.New("the slot goes on where the journal ends: nothing was missed, and what is not in the journal yet comes when billhook runs")

// ErrReplaced says that Adopt is needed.
var ErrReplaced = errors.New("if it is indeed the database that the journal knows, in a new cluster or put back, its rows can be compared and it can be followed from here; if it is another one, every row would make an event")

// Reconcile compares the mapped tables with memory after a slot was lost, a restore or
// a fail-over. Billhook must not run. With Apply it makes the slot anew, journals what
// was missed, and moves the journal to where the new slot begins: run goes on there.
// Broken off, it can be begun again.
func Reconcile(ctx context.Context, l *Loaded, o ReconcileOptions) (r Reconciled, err error) {
	c := l.Config
	log := l.Options.Logger
	if log == nil {
		log = logger(c.Log, new(slog.LevelVar))
	}
	j, err := journal.Open(journal.Options{Path: c.Journal.Path, Retention: c.Journal.Retention, Logger: log})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	position, attached := j.Position()
	if !attached {
		return r, fmt.Errorf("the journal in %s has never followed a database: there is nothing to compare with; billhook run begins", c.Journal.Path)
	}
	var missed *Missed
	b := j.NewBatch()
	missed, err = readMemory[Missed](b, missedKey)
	b.Discard()
	if err != nil {
		return r, err
	}
	_, made, err := build(l.Handlers, nil, columnsOf(l.Mapping), nil, l.Options)
	if err != nil {
		return r, err
	}
	defer func() {
		for _, h := range made {
			if h.Call != nil {
				_ = h.Call.Close() // it was never called
			}
		}
	}()
	client, err := replication.New(replication.Options{
		DSN: c.Source.DSN.Reveal(), Slot: c.Source.Slot, Publication: c.Source.Publication,
		Resume: replication.Position{
			SystemID: position.SystemID, Timeline: position.Timeline, Slot: position.Slot,
			Publication: position.Publication, PublicationOID: position.PublicationOID, LSN: position.EndLSN,
		},
		Tables: tables(l.Mapping), Create: c.Source.Create, Failover: c.Source.Failover, Logger: log,
	})
	if err != nil {
		return r, err
	}
	if r.Break, err = client.Renewable(ctx); err != nil {
		return r, err
	}
	if r.Why == "" && missed != nil {
		r.Why = missed.what()
	}
	switch {
	case o.Apply && r.Why == "" && !o.Force:
		return r, ErrNotNeeded
	case o.Apply && r.Replaced && !o.Adopt:
		return r, fmt.Errorf("%s: %w", r.Why, ErrReplaced)
	}
	key, err := intake.Seal(j)
	if err != nil {
		return r, err
	}
	options := reconcile.Options{
		Journal: j, Mapping: l.Mapping, Seal: key, Publication: c.Source.Publication, Logger: log, Progress: o.Progress,
		Plan: func(e *event.Event) []journal.Planned {
			planned, err := dispatch.Plan(made, e)
			if err != nil {
				log.Warn("condition of a handler cannot be judged", "event", e.ID.String(), "err", err)
			}
			return planned
		},
	}
	if !o.Apply {
		if options.Reader, err = snapshot.Open(ctx, c.Source.DSN.Reveal()); err != nil {
			return r, err
		}
		defer closeReader(ctx, options.Reader)
		r.Report, err = reconcile.Run(ctx, options)
		return r, err
	}

	renewed, err := client.Renew(ctx)
	if err != nil {
		return r, err
	}
	defer renewed.Close()
	if options.Reader, err = snapshot.OpenAt(ctx, c.Source.DSN.Reveal(), renewed.Snapshot); err != nil {
		return r, err
	}
	defer closeReader(ctx, options.Reader)
	options.Apply = true
	next := position
	next.Follow(renewed.Position.SystemID, renewed.Position.Timeline, r.Replaced)
	if next.Generation != position.Generation {
		// Before the first event under it, so that a run that is broken off leaves none
		// above the position.
		began := position
		began.Generation = next.Generation
		if err := commit(j, func(b *journal.Batch) error { b.SetPosition(began); return nil }); err != nil {
			return r, err
		}
	}
	options.First = event.ID{Generation: next.Generation, CommitLSN: next.CommitLSN}
	if last := j.LastEvent(); last.Compare(options.First) > 0 {
		options.First = last
	}
	options.First.Ordinal = max(options.First.Ordinal+1, event.FirstOutside)
	next.CommitLSN = options.First.CommitLSN // the slot begins behind all that was
	if r.Report, err = reconcile.Run(ctx, options); err != nil {
		return r, err
	}
	r.From, r.To = position.EndLSN.String(), renewed.Position.LSN.String()
	next.PublicationOID, next.EndLSN, next.CommitTime = renewed.Position.PublicationOID, renewed.Position.LSN, time.Now()
	if err := commit(j, func(b *journal.Batch) error {
		b.SetPosition(next)
		b.DeleteMemory([]byte(missedKey))
		if err := setMemory(b, sentKey, sent{time.Now().UTC(), renewed.Position.LSN, renewed.Publication}); err != nil {
			return err
		}
		return addHealed(b, healedOf(&r, position, next))
	}); err != nil {
		return r, err
	}
	log.Info("reconciled", "from", r.From, "to", r.To, "why", r.Why, "generation", next.Generation, "events", r.Total(), "handled", r.Handled)
	return r, nil
}

func closeReader(ctx context.Context, r *snapshot.Reader) {
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = r.Close(closing) // nothing is pending on it
}
