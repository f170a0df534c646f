package app

import (
	"context"
	"errors"
	"fmt"
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
	Force    bool
	Progress func(reconcile.Progress)
}

// Reconciled is what Reconcile found, and did.
type Reconciled struct {
	reconcile.Report
	// Why the slot cannot go on; empty when it can.
	Why string
	// From and To are the positions between which nothing was heard, with Apply.
	From, To string
}

// ErrNotNeeded says that the slot can go on from where the journal ends.
var ErrNotNeeded = errors.New("the slot goes on where the journal ends: nothing was missed, and what is not in the journal yet comes when billhook runs")

// Reconcile compares the mapped tables with memory after a slot was lost, a restore or
// a fail-over. Billhook must not run. With Apply it makes the slot anew, journals what
// was missed, and moves the journal to where the new slot begins: run goes on there.
// Broken off, it can be begun again.
func Reconcile(ctx context.Context, l *Loaded, o ReconcileOptions) (r Reconciled, err error) {
	c := l.Config
	log := l.Options.Logger
	if log == nil {
		log = Logger(c.Log)
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
	_, made, err := build(l.Handlers, nil, columnsOf(l.Mapping), l.Options)
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
	if r.Why, err = client.Renewable(ctx); err != nil {
		return r, err
	}
	if o.Apply && r.Why == "" && !o.Force {
		return r, ErrNotNeeded
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
	options.First = j.LastEvent()
	if options.First.Timeline < renewed.Position.Timeline {
		options.First = event.ID{Timeline: renewed.Position.Timeline}
	}
	if same := renewed.Position.Timeline == position.Timeline; same && position.CommitLSN > options.First.CommitLSN {
		options.First = event.ID{Timeline: position.Timeline, CommitLSN: position.CommitLSN}
	}
	options.First.Ordinal = max(options.First.Ordinal+1, event.FirstOutside)
	if r.Report, err = reconcile.Run(ctx, options); err != nil {
		return r, err
	}
	r.From, r.To = position.EndLSN.String(), renewed.Position.LSN.String()
	position.SystemID, position.Timeline, position.PublicationOID = renewed.Position.SystemID, renewed.Position.Timeline, renewed.Position.PublicationOID
	position.CommitLSN = 0 // the slot begins behind all that was
	if options.First.CommitLSN != 0 {
		position.CommitLSN = options.First.CommitLSN
	}
	position.EndLSN, position.CommitTime = renewed.Position.LSN, time.Now()
	b := j.NewBatch()
	b.SetPosition(position)
	wait, err := j.Commit(b)
	if err == nil {
		err = wait()
	}
	if err != nil {
		return r, fmt.Errorf("write the journal: %w", err)
	}
	log.Info("reconciled", "from", r.From, "to", r.To, "why", r.Why, "events", r.Total(), "handled", r.Handled)
	return r, nil
}

func closeReader(ctx context.Context, r *snapshot.Reader) {
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = r.Close(closing) // nothing is pending on it
}
