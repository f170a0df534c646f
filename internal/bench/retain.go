package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/wal"
)

const (
	keep     = 24 * time.Hour
	recorded = 512 // attempts recorded at a time
)

// retention fills a journal with executions that succeeded, lets their retention pass,
// and has them dropped while intake goes on: what that takes, and how long it makes a
// commit wait.
func (b *bench) retention(ctx context.Context, table *tabwriter.Writer) (err error) {
	var ahead atomic.Int64 // how far the journal's clock is ahead of ours
	j, err := journal.Open(journal.Options{
		Path: filepath.Join(b.dir, "old"), Retention: keep,
		Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	start := time.Now()
	if err := fillOld(ctx, j, b.changes, 1, succeeded); err != nil {
		return err
	}
	filled := time.Since(start)
	size, err := folderSize(filepath.Join(b.dir, "old"))
	if err != nil {
		return err
	}

	ahead.Store(int64(2 * keep))
	next := b.changes
	quiet, err := commits(j, &next, 2000, nil)
	if err != nil {
		return err
	}
	var dropped int64
	var took time.Duration
	expired := make(chan error, 1)
	go func() {
		start := time.Now()
		var err error
		dropped, err = j.Expire(ctx)
		took = time.Since(start)
		expired <- err
	}()
	busy, err := commits(j, &next, 2000, expired)
	if err != nil {
		return err
	}
	at := func(d []time.Duration, share float64) time.Duration {
		return d[int(share*float64(len(d)-1))].Round(10 * time.Microsecond)
	}
	fmt.Printf("%d executions are older than retention\n", b.changes)
	fmt.Fprintf(table, "journaled and recorded, one by one\t%.0f/s\t\n", float64(b.changes)/filled.Seconds())
	fmt.Fprintf(table, "journal\t%d MiB\t\n", size>>20)
	fmt.Fprintf(table, "dropped\t%d in %v\t\n", dropped, took.Round(100*time.Microsecond))
	fmt.Fprintf(table, "commits of intake before: p50, p99, longest\t%v\t%v\t%v\t\n", at(quiet, .5), at(quiet, .99), at(quiet, 1))
	fmt.Fprintf(table, "meanwhile and right after\t%v\t%v\t%v\t\n", at(busy, .5), at(busy, .99), at(busy, 1))
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// folderSize is the sum of the sizes of the files in a folder, in bytes.
func folderSize(path string) (n int64, err error) {
	err = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // compacted away meanwhile
		}
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}

func oldEvent(n int) *event.Event {
	id := strconv.Itoa(1 + n%10_000)
	return &event.Event{
		ID: event.ID{Generation: 1, CommitLSN: wal.LSN(1 + n), Ordinal: 1}, Type: "clients.update", Entity: "clients",
		Object: id, Lane: id, ObjectJSON: []byte(id), CommitTime: time.Now(), Source: "billing",
		Data:    fmt.Appendf(nil, `{"id":%s,"name":"Client number %[1]s","status":"active","balance":"%d.00000","c_address":"%[1]s Long Harbour Street, third floor, left door"}`, id, n),
		Changed: fmt.Appendf(nil, `{"balance":{"old":"%d.00000","new":"%d.00000"}}`, n-1, n),
	}
}

// fillOld fills j with count executions of some handlers, of each of which outcome says
// what became of it at once.
func fillOld(ctx context.Context, j *journal.Journal, count, handlers int, outcome func(execution uint64) journal.Outcome) error {
	for n := 0; n < count; {
		from := n
		batch := j.NewBatch()
		for ; n < min(from+20_000, count); n++ {
			if err := batch.AddEvent(oldEvent(n), []journal.Planned{{Handler: 1 + n%handlers}}); err != nil {
				return err
			}
		}
		wait, err := j.Commit(batch)
		if err == nil {
			err = wait()
		}
		if err != nil {
			return err
		}
		var id atomic.Uint64
		id.Store(uint64(from))
		g, ctx := errgroup.WithContext(ctx)
		for range recorded {
			g.Go(func() error {
				for {
					x := id.Add(1)
					if x > uint64(n) {
						return nil
					}
					_, err := j.Record(ctx, outcome(x))
					if err != nil {
						return err
					}
				}
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// succeeded is the outcome of an execution whose first attempt is accepted.
func succeeded(execution uint64) journal.Outcome {
	return journal.Outcome{Execution: execution, Status: journal.Succeeded, Attempt: &journal.Attempt{
		Number: 1, Start: time.Now(), Duration: time.Millisecond, OK: true, Code: 200, SentPayload: true,
		Request:  handler.Exchange{Head: []string{"POST http://127.0.0.1:8080/provisioning", "Content-Type: application/json"}},
		Response: handler.Exchange{Head: []string{"HTTP/1.1 204 No Content"}},
	}}
}

// commits journals n events, or more until something has ended, one after another, and
// returns how long each took to be durable, sorted.
func commits(j *journal.Journal, next *int, n int, until <-chan error) ([]time.Duration, error) {
	var took []time.Duration
	for ended := until == nil; len(took) < n || !ended; {
		batch := j.NewBatch()
		start := time.Now()
		err := batch.AddEvent(oldEvent(*next), []journal.Planned{{Handler: 1}})
		*next++
		if err != nil {
			return nil, err
		}
		wait, err := j.Commit(batch)
		if err == nil {
			err = wait()
		}
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
		select {
		case err := <-until:
			if err != nil {
				return nil, err
			}
			ended, until = true, nil
		default:
		}
	}
	slices.Sort(took)
	return took, nil
}
