package replication

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/wal"
)

// follower runs a Client and consumes what it passes on, as intake would: whole
// transactions, in memory instead of in a journal.
type follower struct {
	t      testing.TB
	client *Client
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of Run, after done

	mu       sync.Mutex
	changes  []string // of committed transactions, in order
	commits  []wal.Commit
	sessions []*Session
	notify   chan struct{}
	block    chan struct{} // when not nil, the consumer stands still until it is closed
	confirm  bool
}

// options are those of a client of the database, with names of their own.
func options(t testing.TB, db *pgtest.Database, tables ...string) Options {
	o := Options{DSN: db.DSN, Slot: db.Name, Publication: "p", Create: true, PollInterval: 100 * time.Millisecond}
	for _, table := range tables {
		var x Table
		x.Schema, x.Name.Table = "public", table
		o.Tables = append(o.Tables, x)
	}
	if os.Getenv("BILLHOOK_TEST_LOG") != "" {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return o
}

func newClient(t testing.TB, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// follow starts to follow and returns when the stream has begun.
func follow(t testing.TB, o Options) *follower {
	t.Helper()
	f := start(t, o)
	f.waitPhase(Streaming)
	return f
}

// start is follow without waiting.
func start(t testing.TB, o Options) *follower {
	t.Helper()
	return launch(t, o, true)
}

// launch is start with a consumer that may confirm nothing.
func launch(t testing.TB, o Options, confirm bool) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{t: t, client: newClient(t, o), cancel: cancel, done: make(chan struct{}), notify: make(chan struct{}, 1), confirm: confirm}
	out := make(chan *Chunk, 1)
	consumed := make(chan struct{})
	go func() {
		defer close(f.done)
		f.err = f.client.Run(ctx, out)
		close(out)
		<-consumed
	}()
	go func() {
		defer close(consumed)
		f.consume(out)
	}()
	t.Cleanup(f.stop)
	return f
}

func (f *follower) stop() {
	f.cancel()
	<-f.done
}

func (f *follower) consume(out <-chan *Chunk) {
	var session *Session
	var d *wal.Decoder
	var open []string
	inside := false
	for c := range out {
		f.mu.Lock()
		block, confirm := f.block, f.confirm
		f.mu.Unlock()
		if block != nil {
			<-block
		}
		if c.Session() != session {
			session, d, open, inside = c.Session(), new(wal.Decoder), nil, false
			d.Doubt(session.Doubted...)
			f.mu.Lock()
			f.sessions = append(f.sessions, session)
			f.mu.Unlock()
		}
		for frame, ok := c.Next(); ok; frame, ok = c.Next() {
			fr, err := wal.ParseFrame(frame)
			if err != nil {
				f.t.Error(err)
				continue
			}
			if fr.Kind == wal.FrameKeepalive {
				if !inside && confirm {
					f.client.Confirm(fr.WALEnd)
				}
				continue
			}
			m, err := d.Decode(fr.Data)
			if err != nil {
				f.t.Error(err)
				continue
			}
			switch m.Kind {
			case wal.KindBegin:
				open, inside = nil, true
			case wal.KindChange:
				open = append(open, changeText(m.Change))
			case wal.KindOrigin:
				open = append(open, "origin "+m.Origin.Name)
			case wal.KindLogical:
				if text := fmt.Sprintf("message %s: %s", m.Logical.Prefix, m.Logical.Content); m.Logical.Transactional {
					open = append(open, text)
				} else {
					f.mu.Lock()
					f.changes = append(f.changes, text)
					f.mu.Unlock()
				}
			case wal.KindTruncate:
				open = append(open, fmt.Sprintf("truncate %d", len(m.Truncate.Relations)))
			case wal.KindCommit:
				inside = false
				f.mu.Lock()
				f.changes = append(f.changes, open...)
				f.commits = append(f.commits, m.Commit)
				f.mu.Unlock()
				if confirm {
					f.client.Confirm(m.Commit.EndLSN)
				}
			}
		}
		c.Release()
		select {
		case f.notify <- struct{}{}:
		default:
		}
	}
}

// changeText writes a change as "update clients (id=1 a=x) -> (id=1 a=y)".
func changeText(c wal.Change) string {
	tuple := func(t wal.Tuple) string {
		var s []string
		for i, v := range t {
			name := c.Relation.Columns[i].Name
			switch v.Kind {
			case wal.Text:
				text := string(v.Text)
				if len(text) > 20 {
					text = fmt.Sprintf("%d bytes", len(text))
				}
				s = append(s, name+"="+text)
			case wal.Null:
				s = append(s, name+" null")
			case wal.Unchanged:
				s = append(s, name+" unchanged")
			}
		}
		return "(" + strings.Join(s, " ") + ")"
	}
	s := c.Op.String() + " " + c.Relation.Name
	if c.Old != nil {
		s += " " + tuple(c.Old)
	}
	if c.New != nil {
		if c.Old != nil {
			s += " ->"
		}
		s += " " + tuple(c.New)
	}
	return s
}

func (f *follower) got() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.changes...)
}

// wait polls until ok or half a minute has passed.
func (f *follower) wait(what string, ok func() bool) {
	f.t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-f.notify:
		case <-tick.C:
		case <-deadline:
			got := f.got()
			f.t.Fatalf("waited in vain for %s; state %+v; got %d changes, last of all %q", what, f.client.State(), len(got), got[max(0, len(got)-5):])
		}
	}
}

func (f *follower) waitPhase(p Phase) {
	f.t.Helper()
	f.wait("phase "+p.String(), func() bool {
		if s := f.client.State(); s.Phase == Failed && p != Failed {
			f.t.Fatalf("Run failed: %v", s.Err)
		}
		return f.client.State().Phase == p
	})
}

// expect waits for exactly these changes since the start.
func (f *follower) expect(want ...string) {
	f.t.Helper()
	f.wait(fmt.Sprintf("%d changes", len(want)), func() bool { return len(f.got()) >= len(want) })
	got := f.got()
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			f.t.Fatalf("change %d:\n got %s\nwant %s", i, g, w)
		}
	}
}

// dsn changes a connection URL.
func dsn(t testing.TB, s string, change func(u *url.URL)) string {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	change(u)
	return u.String()
}

// resume is where a journal that holds all that was confirmed would stand.
func (f *follower) resume() Position {
	s := f.session()
	return Position{
		SystemID: s.SystemID, Timeline: s.Timeline, Slot: s.Slot, Publication: s.Publication,
		PublicationOID: s.PublicationOID, LSN: f.client.confirmed(),
	}
}

func (f *follower) session() *Session { return f.client.State().Session }
