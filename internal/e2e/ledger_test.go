package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/pgtest"
)

// The ledger: one row for each write of a balance, kept by a trigger. Its number
// is taken while the account's row is locked, so that for each account the order
// of numbers is the order of commits; what rolls back is not in it.
const ledgerSQL = `
	CREATE TABLE ledger (seq bigint PRIMARY KEY, xid bigint NOT NULL, aid int NOT NULL, old int NOT NULL, new int NOT NULL);
	CREATE SEQUENCE ledger_seq;
	CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO ledger VALUES (nextval('ledger_seq'), pg_current_xact_id()::text::bigint & 4294967295, NEW.aid, OLD.abalance, NEW.abalance);
		RETURN NULL;
	END $$;
	CREATE TRIGGER keep AFTER UPDATE ON pgbench_accounts FOR EACH ROW EXECUTE FUNCTION keep();`

// entry is a row of the ledger.
type entry struct {
	xid      uint32
	aid      int
	old, new int
}

// expectation is one event that must be told.
type expectation struct {
	xid      uint32
	typ      string
	old, new int
}

func (e expectation) String() string {
	return fmt.Sprintf("%s (%d to %d, transaction %d)", e.typ, e.old, e.new, e.xid)
}

// crossings works out what handlers must be told of each account. A transaction
// counts by its net effect. The two events take turns: which comes next is the
// side that the balance was last on, and at exactly zero, the side that it was
// last told to have gone to. When nothing is known of that, because the balance
// has been zero from the start, any move tells.
func crossings(ledger []entry) map[int][]expectation {
	net := map[int][]entry{} // of each account, one for each transaction
	for _, e := range ledger {
		list := net[e.aid]
		if n := len(list); n > 0 && list[n-1].xid == e.xid {
			list[n-1].new = e.new
			continue
		}
		net[e.aid] = append(list, e)
	}
	const unknown, up, down = 0, 1, -1
	expected := map[int][]expectation{}
	for aid, list := range net {
		side := unknown
		for _, e := range list {
			if e.old == e.new {
				continue
			}
			if e.old > 0 {
				side = up
			} else if e.old < 0 {
				side = down
			}
			var typ string
			switch {
			case side == up && e.new <= 0, side == unknown && e.new < 0:
				typ, side = "clients.balance_zero", down
			case side == down && e.new >= 0, side == unknown && e.new > 0:
				typ, side = "clients.balance_notzero", up
			default:
				continue
			}
			expected[aid] = append(expected[aid], expectation{e.xid, typ, e.old, e.new})
		}
	}
	return expected
}

func TestCrossings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		balances []int // of transactions one after another
		want     string
	}{
		{[]int{0, 5}, "notzero"},
		{[]int{0, -5}, "zero"},
		{[]int{0, 0, 5}, "notzero"},
		{[]int{5, 0}, "zero"},
		{[]int{5, 0, 0, 5}, "zero notzero"},
		{[]int{5, 0, -5}, "zero"},
		{[]int{5, 0, -5, 0}, "zero notzero"},
		{[]int{-5, 0, -5}, "notzero zero"},
		{[]int{-5, 0, 5}, "notzero"},
		{[]int{-5, 5, -5}, "notzero zero"},
		{[]int{5, 0, 0, 0}, "zero"},
		{[]int{5, 4, 1, 9}, ""},
		{[]int{-5, -1}, ""},
	} {
		var ledger []entry
		for i := 1; i < len(c.balances); i++ {
			ledger = append(ledger, entry{uint32(i), 7, c.balances[i-1], c.balances[i]})
		}
		var got []string
		for _, e := range crossings(ledger)[7] {
			got = append(got, strings.TrimPrefix(e.typ, "clients.balance_"))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%v: %q, want %q", c.balances, s, c.want)
		}
	}
	// In one transaction from 5 over -5 to 3: nothing.
	if got := crossings([]entry{{1, 7, 5, -5}, {1, 7, -5, 3}}); len(got) != 0 {
		t.Errorf("a transaction without a net effect: %v", got)
	}
}

// bench is a database with pgbench's tables and the ledger.
type bench struct {
	t  testing.TB
	db *pgtest.Database
}

// newBench makes pgbench's tables at scale 1 and keeps only so many accounts, all
// of them if accounts is 0.
func newBench(t testing.TB, db *pgtest.Database, accounts int, scripts ...string) *bench {
	t.Helper()
	b := &bench{t, db}
	out, err := b.command(t.Context(), "", "--initialize", "--init-steps=dtgp", "--quiet").CombinedOutput()
	if err != nil {
		t.Fatalf("pgbench --initialize: %v\n%s", err, out)
	}
	if accounts > 0 {
		db.Exec(t, fmt.Sprintf("DELETE FROM pgbench_accounts WHERE aid > %d", accounts))
	}
	for _, sql := range append([]string{ledgerSQL}, scripts...) {
		db.Exec(t, sql)
	}
	return b
}

// command is pgbench on this database, with its input.
func (b *bench) command(ctx context.Context, stdin string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.db.Cluster.Program("pgbench"), append(args, b.db.DSN)...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.SysProcAttr = dieWithUs()
	return cmd
}

// crossingScript moves the balances of the first fifty accounts by little, so
// that they cross zero, and touch it, all the time: two accounts in one
// transaction, two writes of one account in it, and some transactions that roll
// back. Accounts are taken in order, so that there is no deadlock.
const crossingScript = `
\set a random(1, 25)
\set b random(26, 50)
\set d random(-3, 3)
\set e random(-6, 6)
\set chance random(1, 10)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :d WHERE aid = :a;
\if :chance <= 6
UPDATE pgbench_accounts SET abalance = abalance + :e WHERE aid = :b;
\endif
\if :chance = 1
UPDATE pgbench_accounts SET abalance = -abalance WHERE aid = :b;
\endif
\if :chance = 10
ROLLBACK;
\else
COMMIT;
\endif
`

// run runs so many transactions, half of them pgbench's own TPC-B, in four
// sessions at a rate per second.
func (b *bench) run(transactions, rate int) {
	b.t.Helper()
	const sessions = 4
	cmd := b.command(b.t.Context(), crossingScript,
		"--client="+strconv.Itoa(sessions), "--jobs=2", "--no-vacuum", "--rate="+strconv.Itoa(rate),
		"--transactions="+strconv.Itoa((transactions+sessions-1)/sessions), "--builtin=tpcb-like@1", "--file=-@1")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("pgbench: %v\n%s", err, out)
	}
}

// traffic is pgbench without an end, started again when the server is.
type traffic struct {
	cancel context.CancelFunc
	done   chan struct{}
	runs   int
}

func (b *bench) traffic(rate int, args ...string) *traffic {
	ctx, cancel := context.WithCancel(b.t.Context())
	tr := &traffic{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(tr.done)
		for ctx.Err() == nil {
			var out bytes.Buffer
			cmd := b.command(ctx, crossingScript, append([]string{
				"--client=4", "--jobs=2", "--no-vacuum", "--rate=" + strconv.Itoa(rate), "--time=3600", "--file=-@1",
			}, args...)...)
			cmd.Stdout, cmd.Stderr = &out, &out
			_ = cmd.Run() // ends when the server is restarted, or we have had enough
			tr.runs++
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	b.t.Cleanup(tr.stop)
	return tr
}

// stop ends the traffic and waits until the server has ended its sessions.
func (tr *traffic) stop() {
	tr.cancel()
	<-tr.done
}

// settled waits until no session of pgbench is left: what one that was killed was
// in the middle of has committed or rolled back.
func (b *bench) settled() {
	b.t.Helper()
	b.db.WaitFor(b.t, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pgbench')")
}

// ledger reads the whole ledger.
func (b *bench) ledger() []entry {
	b.t.Helper()
	rows, err := b.db.Connect(b.t).Query(b.t.Context(), "SELECT xid, aid, old, new FROM ledger ORDER BY seq")
	if err != nil {
		b.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e entry, err error) {
		var xid int64
		err = row.Scan(&xid, &e.aid, &e.old, &e.new)
		e.xid = uint32(xid)
		return e, err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

// expected is what handlers must have been told by now, and how much that is.
func (b *bench) expected() (map[int][]expectation, int) {
	b.t.Helper()
	expected := crossings(b.ledger())
	n := 0
	for _, list := range expected {
		n += len(list)
	}
	return expected, n
}

// slot reads one value of the replication slot.
func (b *bench) slot(column string) string {
	b.t.Helper()
	return pgtest.Value[string](b.t, b.db, "SELECT "+column+"::text FROM pg_replication_slots WHERE slot_name = 'billhook_"+b.db.Name+"'")
}

// caughtUp waits until all that is committed now is durable in the journal, and
// every execution has ended.
func (b *bench) caughtUp(in *instance, within time.Duration) {
	b.t.Helper()
	now := pgtest.Value[string](b.t, b.db, "SELECT pg_current_wal_lsn()::text")
	eventually(b.t, within, func() string {
		in.alive()
		if !pgtest.Value[bool](b.t, b.db, "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2", now, "billhook_"+b.db.Name) {
			return "the slot is at " + b.slot("confirmed_flush_lsn") + ", the server was at " + now
		}
		return ""
	})
	eventually(b.t, within, func() string {
		in.alive()
		if n := in.executions()["pending"]; n > 0 {
			return fmt.Sprintf("%d executions are pending", n)
		}
		return ""
	})
}

// attach installs an instance for the bench: everything about clients goes to a
// receiver, and what is about their balance to a script after it.
func (b *bench) attach(dsn string, r *receiver, s *script) *instance {
	b.t.Helper()
	return install(b.t, dsn, benchYAML(b.db.Name), fmt.Sprintf(`version: 1
defaults:
  timeout: 10s
  retry: {attempts: 10000, initial: 20ms, max: 200ms, factor: 2, jitter: 0.5}
handlers:
  - {id: 1, name: Tell the CRM, event: "clients.*", priority: 1, http: {url: %q, secret: whsec_ZW5kIHRvIGVuZCBlbmQgdG8gZW5kIGVuZA==}}
  - {id: 2, name: Tell the switch, events: [clients.balance_zero, clients.balance_notzero], priority: 2, script: {path: %q}}
`, r.url+"/told", s.path))
}

func benchYAML(name string) string {
	return `version: 1
source:
  dsn: ${DSN}
  slot: billhook_` + name + `
  publication: billhook_` + name + `
entities:
  clients:
    table: public.pgbench_accounts
    key: [aid]
    balance: {column: abalance}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
log: {level: info, format: text}
`
}

// role makes the role that the documentation asks for, and no more, and returns
// its DSN. The publication is the tables' owner's to make, as is the slot ours.
func (b *bench) role() string {
	b.t.Helper()
	_, dsn := b.db.Role(b.t, "REPLICATION",
		"GRANT SELECT ON pgbench_accounts TO $role",
		"CREATE PUBLICATION billhook_"+b.db.Name+" FOR TABLE pgbench_accounts")
	return dsn
}

// objects are what Billhook has made in the database, for tests of what stays.
func objects(t testing.TB, db *pgtest.Database) string {
	t.Helper()
	return pgtest.Value[string](t, db, `
		SELECT coalesce(string_agg(x, ', ' ORDER BY x), 'nothing') FROM (
			SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()
			UNION ALL SELECT 'publication ' || pubname FROM pg_publication) o (x)`)
}
