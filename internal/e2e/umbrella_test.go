package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/demo/cluster"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/wal"
)

// TestUmbrella follows a server that forgets: whenever the slot has moved on, the WAL
// that it no longer needs is removed, so nothing that was confirmed too early comes
// again. Meanwhile random transactions run, and in random order Billhook is killed,
// its connections are cut, stalled and swallowed, the server crashes and restarts,
// and from Postgres 17 on fails over to a standby. At the end handlers must have got
// what the model says, and all along the slot must not have been told more than the
// journal holds, nor have kept more WAL than a few segments.
//
// BILLHOOK_UMBRELLA_FOR is how long that goes on; make nightly has it go on for long.
func TestUmbrella(t *testing.T) {
	t.Parallel()
	lasts := 10 * time.Second
	if text := os.Getenv("BILLHOOK_UMBRELLA_FOR"); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := newSeed(t)
	chance := rand.New(rand.NewPCG(seed, 2))
	between := func(low, high int) time.Duration {
		return time.Duration(low+chance.IntN(high-low)) * time.Millisecond
	}

	u := newUpstream(t)
	r := newReceiver(t)
	r.failing.Store(5)
	in := install(t, u.wired.DSN, fmt.Sprintf(modelYAML, u.db.Name), fmt.Sprintf(`version: 1
defaults:
  retry: {attempts: 10000, initial: 20ms, max: 200ms, factor: 2, jitter: 0.5}
handlers: [{id: 1, name: All, event: "*", http: {url: %q}}]
`, r.url))
	in.start()
	in.waitReady()
	if u.standby != nil {
		u.synced(t, "billhook_"+u.db.Name)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	left := new(atomic.Int64)
	left.Store(1 << 60)
	var sessions, pruning sync.WaitGroup
	defer sessions.Wait()
	defer cancel()
	for i := range 4 {
		r := rand.New(rand.NewPCG(seed, uint64(100+i)))
		sessions.Go(func() {
			if err := modelSession(ctx, u.front, r, left, 4*time.Millisecond); err != nil {
				t.Error(err)
			}
		})
	}
	p := &pruner{slot: "billhook_" + u.db.Name, db: u.front, in: in}
	pruneCtx, stopPruning := context.WithCancel(t.Context())
	defer pruning.Wait()
	defer stopPruning()
	pruning.Go(func() { p.run(pruneCtx) })

	blows := map[string]func(){
		"kill": func() {
			in.alive()
			in.kill()
			p.dead(t, in)
			pause(t, between(0, 300))
			in.start()
		},
		"cut": func() {
			u.wire.down()
			u.wire.up()
		},
		"stall": func() {
			u.wire.ill(stalled...)
			pause(t, between(100, 1500))
			u.wire.heal()
		},
		"hole": func() {
			u.wire.ill(swallowing...)
			pause(t, between(50, 500))
			u.wire.heal()
		},
		"crash":   func() { u.restart(t, cluster.Immediate) },
		"restart": func() { u.restart(t, cluster.Fast) },
	}
	deck := []string{"kill", "kill", "kill", "kill", "cut", "cut", "stall", "hole", "crash", "restart"}
	if u.standby != nil {
		blows["fail-over"] = func() { u.failOver(t, p.slot) }
	}
	done := map[string]int{}
	// On a busy machine it goes on until the server has forgotten something.
	end, latest := time.Now().Add(lasts), time.Now().Add(lasts+time.Minute)
	goesOn := func() bool {
		now := time.Now()
		return now.Before(end) || p.removed.Load() == 0 && now.Before(latest)
	}
	for round := 1; round == 1 || goesOn(); round++ {
		hand := slices.Clone(deck)
		if round == 1 && u.standby != nil {
			hand = append(hand, "fail-over")
		}
		chance.Shuffle(len(hand), func(i, j int) { hand[i], hand[j] = hand[j], hand[i] })
		for _, name := range hand {
			if round > 1 && !goesOn() {
				break
			}
			pause(t, between(100, 1300))
			blows[name]()
			done[name]++
			// Every other blow meets a server that has forgotten something since the one
			// before; the others come quickly.
			if before := p.removed.Load(); chance.IntN(2) == 0 {
				_ = waitFor(t, 5*time.Second, func() string { // or the machine is busy
					if p.removed.Load() > before {
						return ""
					}
					return "nothing is forgotten yet"
				})
			}
		}
	}
	left.Store(0)
	sessions.Wait()
	r.failing.Store(0)
	in.waitReady()
	b := &bench{t, u.db}
	b.caughtUp(in, 2*time.Minute)

	told := expect(t, u.db)
	came := r.all(t)
	wrong, events := judge(told, came)
	wrong = append(wrong, unanswered(came)...)
	for _, w := range wrong[:min(len(wrong), maxReasons)] {
		t.Error(w)
	}
	for status, n := range in.executions() {
		if status != "succeeded" && n > 0 {
			t.Errorf("%d executions are %s", n, status)
		}
	}
	transactions := pgtest.Value[int](t, u.db, "SELECT count(DISTINCT xid)::int FROM seen")

	// Nothing is kept for us any more. That takes some rounds: the slot moves on over
	// what is decoded after a checkpoint.
	eventually(t, 30*time.Second, func() string {
		in.alive()
		if now := p.kept.Load(); now > quietWAL {
			return fmt.Sprintf("the slot keeps %d bytes of WAL although all is confirmed", now)
		}
		return ""
	})
	stopPruning()
	pruning.Wait()
	in.stop()

	t.Logf("%s; %d checkpoints after a switch removed %d segments of WAL, the slot was looked at %d times and kept at most %d MB; %d transactions, %d events in %d requests; BILLHOOK_E2E_SEED=%d",
		counts(done), p.prunes, p.removed.Load(), p.looks, p.most>>20, transactions, events, len(came), seed)
	for _, w := range p.wrong[:min(len(p.wrong), maxReasons)] {
		t.Error(w)
	}
	if p.most > mostWAL {
		t.Errorf("the slot kept %d bytes of WAL at some time", p.most)
	}
	// A position is confirmed once in a second.
	if p.compared < 5 || p.removed.Load() < 1 || events < 200 {
		t.Errorf("only %d positions compared, %d segments removed and %d events: this proves little", p.compared, p.removed.Load(), events)
	}
}

// What the slot may keep, in segments of 16 MB: each look that finds it moved begins
// a new one, and what is open then, or not yet decoded, needs those before.
const (
	mostWAL  = 12 << 24
	quietWAL = 3 << 24
)

// counts writes what was done, such as "2 cut, 4 kill".
func counts(done map[string]int) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(done)) {
		list = append(list, fmt.Sprintf("%d %s", done[name], name))
	}
	return strings.Join(list, ", ")
}

// unanswered names events that came, but never to an end.
func unanswered(came []arrival) (wrong []string) {
	accepted := map[string]bool{}
	for _, a := range came {
		accepted[a.id] = accepted[a.id] || a.accepted
	}
	for _, a := range came {
		if !accepted[a.id] {
			wrong = append(wrong, fmt.Sprintf("event %s was refused, and did not come again: %.200s", a.id, a.body))
			accepted[a.id] = true
		}
	}
	return wrong
}

// upstream is a server and, from Postgres 17 on, a standby of it that keeps a copy of
// the slot. Billhook reaches whichever is the primary by way of wire, all others by
// way of front.
type upstream struct {
	pg       *cluster.Cluster
	standby  *pgtest.Copy // nil before 17
	promoted bool

	db           *pgtest.Database // on the primary of now
	front, wired *pgtest.Database // the same wherever it is
	wire         *wire
	ahead        *pgtest.Proxy
}

func newUpstream(t *testing.T) *upstream {
	t.Helper()
	u := &upstream{pg: pgtest.Start(t, map[string]string{
		"min_wal_size": "32MB", "max_wal_size": "64MB", "wal_recycle": "off", "wal_init_zero": "off",
	})}
	scripts := []string{modelSQL}
	if u.pg.Version() >= 17 {
		scripts = append(scripts, "SELECT pg_create_physical_replication_slot('standby', true)")
	}
	u.db = pgtest.NewDatabaseOn(t, u.pg, scripts...)
	if u.pg.Version() >= 17 {
		u.standby = pgtest.NewCopy(t, u.pg)
		u.standby.Set(t, map[string]string{"hot_standby_feedback": "on", "sync_replication_slots": "on", "wal_retrieve_retry_interval": "100ms"})
		u.standby.Follow(t, "standby", u.db.Name)
		u.standby.Start(t)
		// What the standby has not got is not told to Billhook.
		if err := u.pg.Set(map[string]string{"synchronized_standby_slots": "standby"}); err != nil {
			t.Fatal(err)
		}
	}
	u.ahead, u.wire = pgtest.NewProxy(t, u.pg.Port()), newWire(t, local(u.pg.Port()))
	_, ahead, err := net.SplitHostPort(u.ahead.Address)
	if err != nil {
		t.Fatal(err)
	}
	behind := func(port string) *pgtest.Database {
		return &pgtest.Database{Cluster: u.pg, Name: u.db.Name, DSN: u.db.DSN + "&port=" + port}
	}
	u.front, u.wired = behind(ahead), behind(u.wire.port())
	return u
}

// restart stops and starts the primary.
func (u *upstream) restart(t *testing.T, m cluster.Mode) {
	t.Helper()
	if u.promoted {
		u.standby.Restart(t, m)
	} else if err := u.pg.Restart(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// synced waits until the standby has a copy of the slot that outlives the primary. It
// looks for one every so often, less so when there is nothing new.
func (u *upstream) synced(t *testing.T, slot string) {
	t.Helper()
	there := u.standby.Database(t, u.db.Name)
	eventually(t, 90*time.Second, func() string {
		u.db.Exec(t, "SELECT pg_log_standby_snapshot()")
		if !pgtest.Value[bool](t, there, "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND synced AND NOT temporary AND invalidation_reason IS NULL)", slot) {
			return "the standby has no copy of the slot"
		}
		return ""
	})
}

// failOver has the primary crash, promotes the standby, and leads all there. The
// standby has kept a copy of the slot.
func (u *upstream) failOver(t *testing.T, slot string) {
	t.Helper()
	u.synced(t, slot)
	there := u.standby.Database(t, u.db.Name)
	if err := u.pg.Stop(cluster.Immediate); err != nil {
		t.Fatal(err)
	}
	u.standby.Promote(t)
	u.db, u.promoted = there, true
	u.ahead.Point(u.standby.Port())
	u.ahead.Cut()
	u.wire.point(local(u.standby.Port()))
}

// pruner has the server forget what the slot does not need, whenever the slot has
// moved on, and holds the slot against the journal.
type pruner struct {
	slot string
	db   *pgtest.Database
	in   *instance

	kept    atomic.Int64 // WAL that the slot keeps, in bytes
	removed atomic.Int64 // segments

	// Of run, to be read after it.
	looks, compared, prunes int
	most                    int64 // of kept
	wrong                   []string

	confirmed wal.LSN
	oldest    string // segment
}

// run looks until ctx ends. The server may be away meanwhile.
func (p *pruner) run(ctx context.Context) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		look, cancel := context.WithTimeout(ctx, 5*time.Second)
		if conn == nil || conn.IsClosed() {
			c, err := pgx.Connect(look, p.db.DSN)
			if err != nil {
				cancel()
				continue
			}
			conn = c
		}
		if err := p.look(look, conn); err != nil {
			_ = conn.Close(look) // it is being restarted
		}
		cancel()
	}
}

func (p *pruner) look(ctx context.Context, conn *pgx.Conn) error {
	var text string
	var kept int64
	if err := conn.QueryRow(ctx, "SELECT confirmed_flush_lsn::text, (pg_current_wal_lsn() - restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = $1", p.slot).Scan(&text, &kept); err != nil {
		return err
	}
	confirmed, err := wal.ParseLSN(text)
	if err != nil {
		return err
	}
	p.looks++
	p.kept.Store(kept)
	p.most = max(p.most, kept)
	// Read after the slot was, so it must not be behind. It is 0 until something has
	// become durable in this life.
	if durable, err := p.in.readMetric("billhook_intake_durable_lsn_bytes"); err == nil && durable > 0 {
		p.compared++
		if wal.LSN(durable) < confirmed {
			p.wrong = append(p.wrong, fmt.Sprintf("the slot has %s confirmed, the journal has %s", confirmed, wal.LSN(durable)))
		}
	}
	if confirmed == p.confirmed {
		return nil
	}
	p.confirmed = confirmed
	for _, sql := range []string{"SELECT pg_switch_wal()", "CHECKPOINT"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	p.prunes++
	var oldest string
	if err := conn.QueryRow(ctx, "SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'").Scan(&oldest); err != nil {
		return err
	}
	if p.oldest != "" && oldest > p.oldest && oldest[:8] == p.oldest[:8] {
		p.removed.Add(int64(segment(oldest) - segment(p.oldest)))
	}
	p.oldest = oldest
	return nil
}

// segment numbers a file of WAL, on whichever timeline.
func segment(name string) int {
	log, _ := strconv.ParseUint(name[8:16], 16, 32)
	n, _ := strconv.ParseUint(name[16:], 16, 32)
	return int(log<<8 | n)
}

// dead compares the slot with the journal of an instance that was killed, by a copy of
// it.
func (p *pruner) dead(t *testing.T, in *instance) {
	t.Helper()
	text := pgtest.Value[string](t, p.db, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", p.slot)
	confirmed, err := wal.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "journal")
	if err := os.CopyFS(path, os.DirFS(in.journal)); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(journal.Options{Path: path, Cache: 1 << 20, MemoryCache: 1 << 20})
	if err != nil {
		t.Fatalf("open the journal of a killed instance: %v", err)
	}
	if at, _ := j.Position(); at.EndLSN < confirmed {
		t.Errorf("after a kill the slot has %s confirmed, the journal has %s", confirmed, at.EndLSN)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}
