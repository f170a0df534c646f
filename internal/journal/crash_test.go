package journal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// load drives a journal as Billhook does until stop is closed or the journal
// stops: intake with several commits under way, attempts from several workers,
// people who hold and replay, retention. It tells acked of the last transaction
// whose commit was acknowledged, before the next one is.
type load struct {
	j     *Journal
	seed  uint64
	first int // the transaction to begin with
	stop  chan struct{}
	acked func(transaction int)

	mu   sync.Mutex
	work []Queued
	err  error
}

func (l *load) enqueue(q []Queued) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.work = append(l.work, q...)
}

func (l *load) next() (Queued, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.work) == 0 {
		return Queued{}, false
	}
	q := l.work[0]
	l.work = l.work[1:]
	return q, true
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
}

func (l *load) done() bool {
	select {
	case <-l.stop:
		return true
	case <-l.j.Stopped():
		return true
	default:
		return false
	}
}

// run returns the first error that is not the journal's stop.
func (l *load) run() error {
	var wg sync.WaitGroup
	wg.Go(l.intake)
	for w := range 4 {
		wg.Go(func() { l.worker(w) })
	}
	wg.Wait()
	if l.err != nil && !errors.Is(l.err, ErrStopped) {
		return l.err
	}
	return nil
}

func (l *load) intake() {
	r := rand.New(rand.NewPCG(l.seed, 1))
	type under struct {
		n    int
		wait func() error
	}
	var way []under
	for n := l.first; !l.done(); n++ {
		b := l.j.NewBatch()
		b.Begin()
		pieces := 0
		if r.IntN(40) == 0 {
			pieces = r.IntN(4)
		}
		ordinal := 0
		for p := range pieces + 1 {
			for range 1 + r.IntN(20) {
				ordinal++
				object := fmt.Sprint(r.IntN(50))
				plan := []Planned{{Handler: 1}, {Handler: 2, Held: r.IntN(10) == 0}, {Handler: 3}}[:r.IntN(4)]
				if err := b.AddEvent(sample(at(n, ordinal), "clients.update", object), plan); err != nil {
					l.fail(err)
					return
				}
				b.SetMemory([]byte("o/"+object), []byte(strconv.Itoa(n)))
			}
			// The last transaction is remembered, so that memory can be compared
			// with the position.
			b.SetMemory([]byte("last"), []byte(strconv.Itoa(n)))
			if p < pieces {
				if _, err := l.j.CommitPiece(b); err != nil {
					l.fail(err)
					return
				}
				b = l.j.NewBatch()
			}
		}
		b.SetPosition(position(n))
		wait, err := l.j.Commit(b)
		if err != nil {
			l.fail(err)
			return
		}
		way = append(way, under{n, wait})
		for len(way) > 3 || len(way) > 0 && r.IntN(3) == 0 {
			if err := way[0].wait(); err != nil {
				l.fail(err)
				return
			}
			l.acked(way[0].n)
			way = way[1:]
		}
	}
	for _, u := range way {
		if err := u.wait(); err != nil {
			l.fail(err)
			return
		}
		l.acked(u.n)
	}
}

func (l *load) worker(w int) {
	r := rand.New(rand.NewPCG(l.seed, uint64(10+w)))
	ctx := context.Background()
	for !l.done() {
		var err error
		switch {
		case w == 0 && r.IntN(400) == 0:
			_, err = l.j.Hold(ctx, 2)
		case w == 0 && r.IntN(200) == 0:
			var q []Queued
			q, err = l.j.Unhold(ctx, 2)
			l.enqueue(q)
		case w == 0 && r.IntN(50) == 0:
			_, err = l.j.Expire(ctx)
		default:
			q, ok := l.next()
			if !ok {
				continue
			}
			x, xerr := l.j.Execution(q.Execution)
			if errors.Is(xerr, ErrNotFound) {
				continue // expired
			}
			if xerr != nil {
				err = xerr
				break
			}
			o := Outcome{Execution: x.ID, Status: []Status{Pending, Succeeded, Succeeded, Succeeded, Dead}[r.IntN(5)]}
			if x.Status == Pending && x.Attempts > 3 {
				o.Status = Dead
			}
			o.Attempt = &Attempt{Number: x.Attempts + 1, Start: epoch, Error: "e", OK: o.Status == Succeeded, Uncounted: r.IntN(2) == 0}
			if o.Status == Dead && x.DeadOf == 0 {
				o.OnDead = &Planned{Handler: 3, Held: r.IntN(2) == 0}
			}
			var told []Queued
			if told, err = l.j.Record(ctx, o); errors.Is(err, ErrFinal) {
				err = nil
			}
			l.enqueue(told)
			if o.Status == Pending && err == nil {
				l.enqueue([]Queued{q})
			}
			if o.Status == Dead && r.IntN(2) == 0 && err == nil {
				q, err = l.requeue(ctx, x.ID)
			}
		}
		if err != nil {
			l.fail(err)
			return
		}
	}
}

func (l *load) requeue(ctx context.Context, id uint64) (Queued, error) {
	q, err := l.j.Requeue(ctx, []uint64{id})
	l.enqueue(q)
	if err != nil || len(q) == 0 {
		return Queued{}, err
	}
	return q[0], nil
}

// intact checks a journal that was cut off, whose commits up to the transaction
// acked were acknowledged. It returns the last transaction in it.
func intact(t testing.TB, j *Journal, acked int) int {
	t.Helper()
	verify(t, j)
	p, ok := j.Position()
	if !ok {
		if acked > 0 {
			t.Fatalf("no position, %d was acknowledged", acked)
		}
		return 0
	}
	n := int(p.CommitLSN / 100)
	if n < acked {
		t.Fatalf("position is at transaction %d, %d was acknowledged", n, acked)
	}
	b := j.NewBatch()
	defer b.Discard()
	v, _, err := b.Memory([]byte("last"))
	if err != nil || string(v) != strconv.Itoa(n) {
		t.Fatalf("memory is at transaction %q, the position at %d: %v", v, n, err)
	}
	if j.lastEvent.CommitLSN != p.CommitLSN {
		t.Fatalf("last event %v, position %v", j.lastEvent, p.CommitLSN)
	}
	return n
}

func crashOptions(o *Options) {
	o.memTable, o.bucketIDs, o.Retention = 128<<10, 3000, time.Nanosecond
}

// TestPowerLoss cuts the power again and again: of what was not synced, some
// blocks are there and some are not.
func TestPowerLoss(t *testing.T) {
	fs := vfs.NewCrashableMem()
	last := 0
	r := rand.New(rand.NewPCG(5, 5))
	for round := range 25 {
		l := &load{seed: uint64(round), first: last + 1, stop: make(chan struct{})}
		var mu sync.Mutex
		acked := last
		l.acked = func(n int) {
			mu.Lock()
			defer mu.Unlock()
			acked = n
		}
		l.j = open(t, func(o *Options) {
			crashOptions(o)
			o.FS, o.OnDurable = fs, l.enqueue
		})
		end := time.AfterFunc(time.Duration(20+r.IntN(60))*time.Millisecond, func() { close(l.stop) })
		var clone *vfs.MemFS
		var floor int
		cut := make(chan struct{})
		time.AfterFunc(time.Duration(10+r.IntN(60))*time.Millisecond, func() {
			defer close(cut)
			mu.Lock()
			floor = acked
			mu.Unlock()
			clone = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: rand.New(rand.NewPCG(uint64(round), 2))})
		})
		if err := l.run(); err != nil {
			t.Fatal(err)
		}
		<-cut
		end.Stop()
		if err := l.j.Close(); err != nil {
			t.Fatal(err)
		}
		fs = clone
		lookOnly(t, fs)
		j, err := Open(Options{mergeAt: 2000, Path: "j", FS: fs})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		last = intact(t, j, floor)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d transactions", last)
}

const killEnv = "BILLHOOK_JOURNAL_KILLED"

// TestKilled runs the load in a child process and kills it, again and again, on
// one folder.
func TestKilled(t *testing.T) {
	if path := os.Getenv(killEnv); path != "" {
		child(path)
		return
	}
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	path := t.TempDir() + "/j"
	last := 0
	r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), killEnv+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acked := last
		lines := bufio.NewScanner(out)
		for n, kill := 0, 20+r.IntN(200); lines.Scan(); n++ {
			if v, ok := strings.CutPrefix(lines.Text(), "acked "); ok {
				acked, _ = strconv.Atoi(v)
			}
			if n == kill {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("round %d: child: %v", round, err)
		}
		j, err := Open(Options{mergeAt: 2000, Path: path})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		last = intact(t, j, acked)
		t.Logf("round %d: acknowledged %d, found %d, %v", round, acked, last, j.Counts())
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func child(path string) {
	l := &load{seed: uint64(time.Now().UnixNano()), stop: make(chan struct{})}
	l.acked = func(n int) { fmt.Println("acked", n) }
	o := Options{mergeAt: 2000, Path: path, OnDurable: l.enqueue}
	crashOptions(&o)
	j, err := Open(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	if p, ok := j.Position(); ok {
		l.first = int(p.CommitLSN / 100)
	}
	l.first++
	l.j = j
	err = l.run() // until killed
	_, _ = io.WriteString(os.Stderr, fmt.Sprint("child ended: ", err, "\n"))
	os.Exit(4)
}
