package app

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/wal"
)

// slowDisk takes its time to make durable what was written.
type slowDisk struct {
	vfs.FS
	r func(n int) int
}

func (d slowDisk) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return slowFile{f, d}, nil
}

func (d slowDisk) wait() {
	<-time.After(time.Duration(5+d.r(40)) * time.Millisecond)
}

func (d slowDisk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.wrap(d.FS.Create(name, c))
}

func (d slowDisk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return d.wrap(d.FS.OpenReadWrite(name, c, o...))
}

func (d slowDisk) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.wrap(d.FS.ReuseForWrite(from, to, c))
}

type slowFile struct {
	vfs.File
	disk slowDisk
}

func (f slowFile) Sync() error                         { f.disk.wait(); return f.File.Sync() }
func (f slowFile) SyncData() error                     { f.disk.wait(); return f.File.SyncData() }
func (f slowFile) SyncTo(n int64) (bool, error)        { f.disk.wait(); return f.File.SyncTo(n) }
func (f slowFile) Preallocate(int64, int64) error      { return nil }
func (f slowFile) Fd() uintptr                         { return vfs.InvalidFd }
func (f slowFile) Prefetch(offset, length int64) error { return nil }

// power looks, whenever Postgres or a handler is told something, at what would be
// left of the journal if the power failed at that moment.
type power struct {
	t    *testing.T
	path string

	mu     sync.Mutex
	disk   *vfs.MemFS
	floor  wal.LSN // where the slot was when this life began
	told   wal.LSN // confirmed last
	looks  map[string]int
	flips  map[int][]string // by client, the balances told, in order of their first arrival
	bodies map[string]string
}

// cut returns the disk as it is after the power has failed.
func (p *power) cut() *vfs.MemFS {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.disk.CrashClone(vfs.CrashCloneCfg{})
}

// begin takes note of where the slot is before anything runs.
func (p *power) begin(db *pgtest.Database) {
	p.t.Helper()
	at, err := wal.ParseLSN(pgtest.Value[string](p.t, db, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.floor = at
}

// left opens what would be left.
func (p *power) left(what string, look func(*journal.Journal)) {
	p.looks[what]++
	j, err := journal.Open(journal.Options{Path: p.path, FS: p.disk.CrashClone(vfs.CrashCloneCfg{}), Cache: 1 << 20, MemoryCache: 1 << 20})
	if err != nil {
		p.t.Errorf("after a loss of power: %v", err)
		return
	}
	look(j)
	if err := j.Close(); err != nil {
		p.t.Errorf("after a loss of power: %v", err)
	}
}

// sent is told of what Billhook sends to the server.
func (p *power) sent(kind byte, body []byte) {
	if kind != 'd' || len(body) != 34 || body[0] != 'r' {
		return
	}
	written, flushed, applied := wal.LSN(binary.BigEndian.Uint64(body[1:])), wal.LSN(binary.BigEndian.Uint64(body[9:])), wal.LSN(binary.BigEndian.Uint64(body[17:]))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks["status"]++
	if written != flushed || applied != flushed {
		p.t.Errorf("a status update says written %s, flushed %s, applied %s", written, flushed, applied)
	}
	if flushed < p.told {
		p.t.Errorf("%s is confirmed after %s", flushed, p.told)
	}
	if flushed == p.told || flushed <= p.floor {
		return
	}
	p.told = flushed
	p.left("confirmation", func(j *journal.Journal) {
		if at, _ := j.Position(); at.EndLSN < flushed {
			p.t.Errorf("%s is confirmed, a loss of power would leave %s", flushed, at.EndLSN)
		}
	})
}

// ServeHTTP is the handler's other end.
func (p *power) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	var payload struct {
		Event struct {
			ID       string `json:"id"`
			ObjectID int    `json:"object_id"`
		}
		Data struct{ Balance string }
	}
	id, err2 := event.ID{}, json.Unmarshal(body, &payload)
	if err2 == nil {
		id, err2 = event.ParseID(payload.Event.ID)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err2 != nil {
		p.t.Errorf("%v: %s", err2, body)
		return
	}
	was, again := p.bodies[payload.Event.ID]
	if !again {
		p.bodies[payload.Event.ID] = string(body)
		n := payload.Event.ObjectID
		p.flips[n] = append(p.flips[n], payload.Data.Balance)
	} else if was != string(body) {
		p.t.Errorf("two bodies under one id:\n\t%s\n\t%s", was, body)
	}
	p.looks["request"]++
	if p.looks["request"]%10 == 0 {
		p.left("call", func(j *journal.Journal) {
			if _, err := j.Event(id); err != nil {
				p.t.Errorf("a handler is called with event %s, a loss of power would leave none: %v", payload.Event.ID, err)
			}
		})
	}
	w.WriteHeader(http.StatusNoContent)
}

// TestPower runs Billhook on a disk that is slow to make durable what was written.
// Each time when Postgres is told a position, and when a handler is called, it looks
// at what a loss of power would leave at that moment: the position must be in the
// journal, and so must the event. Postgres is told positions often, since Billhook
// is asked for them after many of the messages that it gets. Then the power fails,
// and all goes on with what was left.
//
// Every transaction turns the balance of a client over, so each is one event, and
// the balance counts them.
func TestPower(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var chanceMu sync.Mutex
	chance := rand.New(rand.NewPCG(seed, 1))
	random := func(n int) int {
		chanceMu.Lock()
		defer chanceMu.Unlock()
		return chance.IntN(n)
	}
	const clients = 12
	pg := pgtest.Start(t, nil)
	db := pgtest.NewDatabaseOn(t, pg, "CREATE TABLE clients (id int PRIMARY KEY, balance numeric NOT NULL); CREATE TABLE other (n int)",
		"INSERT INTO clients SELECT i, 1 FROM generate_series(1, 12) i")
	proxy := pgtest.NewProxy(t, pg.Port())
	dir := t.TempDir()
	p := &power{t: t, path: filepath.Join(dir, "journal"), disk: vfs.NewCrashableMem(), looks: map[string]int{}, flips: map[int][]string{}, bodies: map[string]string{}}
	proxy.Observe(p.sent)
	proxy.Filter(func(kind byte, body []byte) pgtest.Verdict {
		if kind == 'd' && body[0] == 'w' && random(2) == 0 {
			return pgtest.Ask
		}
		return pgtest.Pass
	})
	receiver := httptest.NewServer(p)
	defer receiver.Close()

	_, port, err := net.SplitHostPort(proxy.Address)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"billhook.yaml": fmt.Sprintf(`version: 1
source: {dsn: %q, slot: power, publication: power}
entities:
  clients: {table: public.clients, key: [id], balance: {column: balance}}
journal: {path: %q}
`, db.DSN+"&port="+port, p.path),
		"handlers.yaml": fmt.Sprintf("version: 1\nhandlers: [{id: 1, name: All, events: [clients.balance_zero, clients.balance_notzero], http: {url: %q}}]\n", receiver.URL),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// start begins a life; its end is the loss of power.
	start := func() (end func()) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		disk := p.disk
		p.mu.Unlock()
		l, err := Load(Options{
			ConfigPath: filepath.Join(dir, "billhook.yaml"), HandlersPath: filepath.Join(dir, "handlers.yaml"),
			Logger: slog.New(slog.DiscardHandler), Listener: listener, Standby: true,
			journal: func(o *journal.Options) { o.FS = slowDisk{disk, random} },
		})
		if err != nil {
			t.Fatal(err)
		}
		a, err := New(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		p.begin(db)
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		poll(t, func() string {
			for _, c := range a.Ready() {
				if !c.OK {
					return c.Name + ": " + c.Text
				}
			}
			return ""
		})
		return func() {
			proxy.Hole()
			left := p.cut()
			proxy.Cut()
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			proxy.Heal()
			p.mu.Lock()
			p.disk = left
			p.mu.Unlock()
		}
	}
	end := start()
	written := make([]int, clients+1)
	conn := db.Connect(t)
	for life := range 3 {
		until := time.After(time.Duration(1500+random(1000)) * time.Millisecond)
		tick := time.NewTicker(8 * time.Millisecond)
		for on := true; on; {
			select {
			case <-until:
				on = false
			case <-tick.C:
				n := 1 + random(clients)
				written[n]++
				if _, err := conn.Exec(t.Context(), "UPDATE clients SET balance = $2 WHERE id = $1", n, flip(written[n])); err != nil {
					t.Fatal(err)
				}
				// What nobody follows moves the end of the WAL, of which keepalives tell.
				if _, err := conn.Exec(t.Context(), "INSERT INTO other VALUES ($1)", n); err != nil {
					t.Fatal(err)
				}
			}
		}
		tick.Stop()
		if life < 2 {
			end()
			end = start()
		}
	}
	defer func() { end() }()

	poll(t, func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		for n := 1; n <= clients; n++ {
			if len(p.flips[n]) < written[n] {
				return fmt.Sprintf("client %d: %d of %d events came, the last with balance %s", n, len(p.flips[n]), written[n], p.flips[n][max(0, len(p.flips[n])-1):])
			}
		}
		return ""
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	for n := 1; n <= clients; n++ {
		for i, balance := range p.flips[n] {
			if want := strconv.Itoa(flip(i + 1)); balance != want {
				t.Errorf("client %d: event %d has balance %s, want %s", n, i+1, balance, want)
				break
			}
		}
	}
	t.Logf("looked: %v", p.looks)
	if p.looks["confirmation"] < 20 || p.looks["call"] < 20 {
		t.Errorf("looked only: %v", p.looks)
	}
}

// flip is the balance of a client after so many transactions.
func flip(n int) int {
	if n%2 == 1 {
		return -n
	}
	return n
}

// poll waits until f returns "", which says what is still wrong.
func poll(t *testing.T, f func() (wrong string)) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		wrong := f()
		if wrong == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after a minute: %s", wrong)
		}
	}
}
