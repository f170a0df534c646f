// Command bench measures how fast Billhook drains a backlog, beside pg_recvlogical
// draining the same backlog of the same server in the same run, and prints ratios.
//
// The backlog is recorded once per case; each run drains a copy of its slot. What
// is measured is the whole binary with its rules on: decoding, deriving, memory,
// journal. No handler matches, so none is called. Times are wall clock until the
// last transaction is durable; CPU is that of the consumer's process and of the
// walsender that feeds it, from /proc; memory is the consumer's peak. Then come
// deliveries and latency beside a bare client, a large journal, and handlers that are
// programs beside os/exec and go-plugin alone.
//
//	go run ./internal/bench            # a million changes per case, a few minutes
//	go run ./internal/bench -changes 100000 -runs 1
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/billhook/billhook/internal/demo/cluster"
	"github.com/billhook/billhook/internal/wal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := bench{}
	flag.IntVar(&b.changes, "changes", 1_000_000, "changes per backlog")
	flag.IntVar(&b.clients, "clients", 200_000, "rows of the clients table")
	flag.IntVar(&b.runs, "runs", 3, "runs per consumer; the median counts")
	flag.StringVar(&b.only, "only", "", "run only cases whose name contains this")
	flag.StringVar(&b.profile, "profile", "", "folder for Billhook's CPU profiles")
	url := flag.String("post", "", "be a client: post standard input to this URL, -changes times")
	atATime := flag.Int("at-a-time", 1, "requests of the client under way")
	bare := flag.Bool("bare", false, "as client, use net/http alone instead of Billhook's handler")
	kind := flag.String("serve", "", "be a plugin, with Billhook's package plugins or with go-plugin alone")
	flag.Parse()
	if *kind != "" {
		serve(*kind)
		return
	}
	run := b.run
	if *url != "" {
		run = func(ctx context.Context) error { return post(ctx, *url, b.changes, *atATime, *bare) }
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	changes, clients, runs int
	only, profile          string

	dir      string // of the binary, the journals and the configuration
	handlers string // name of handlers.yaml there
	binary   string
	c        *cluster.Cluster
	conn     *pgx.Conn
}

// result is one drain.
type result struct {
	seconds   float64
	consumer  float64 // CPU seconds
	walsender float64
	rss       int64 // bytes, peak
}

// workload is one backlog.
type workload struct {
	name     string
	identity string // ALTER TABLE ... REPLICA IDENTITY
	sql      string // makes changes; $1 is how many
}

func (b *bench) workloads() []workload {
	return []workload{
		{name: "1 update per transaction, default identity, memory on", identity: "DEFAULT", sql: "CALL one_by_one(%d)"},
		{name: "1 update per transaction, full identity", identity: "FULL", sql: "CALL one_by_one(%d)"},
		{name: "mixed inserts, updates, deletes, 1 to 5 per transaction, default identity", identity: "DEFAULT", sql: "CALL mixed(%d)"},
		{name: "one transaction of half as many updates, default identity", identity: "DEFAULT", sql: "CALL at_once(%d)"},
	}
}

const schema = `
CREATE TABLE clients (
	id bigint PRIMARY KEY, companies_id bigint, name text, status text, role text, currencies_id int,
	balance numeric(18,5), credit numeric(18,5), tax_id text, c_company text, c_address text, c_city text,
	c_state text, c_country text, c_zip_code text, c_email text, c_email_tech text, c_email_billing text,
	orig_rate_table bigint, term_rate_table bigint, invoice_no_tpl text, c_dt timestamptz, m_dt timestamptz
);
CREATE PROCEDURE one_by_one(n int) LANGUAGE plpgsql AS $$
DECLARE rows int := (SELECT count(*) FROM clients);
BEGIN
	FOR i IN 1..n LOOP
		UPDATE clients SET balance = 1000 + (i % 99991) / 100.0 WHERE id = 1 + (i * 7919::bigint) % rows;
		COMMIT;
	END LOOP;
END $$;
CREATE PROCEDURE mixed(n int) LANGUAGE plpgsql AS $$
DECLARE rows int := (SELECT count(*) FROM clients); i int := 0; k int; next bigint := 100000000;
BEGIN
	WHILE i < n LOOP
		FOR k IN 1..1 + i % 5 LOOP
			i := i + 1;
			IF i % 4 = 0 THEN
				next := next + 1;
				INSERT INTO clients SELECT next, companies_id, name, status, role, currencies_id, balance, credit, tax_id, c_company, c_address, c_city, c_state, c_country, c_zip_code, c_email, c_email_tech, c_email_billing, orig_rate_table, term_rate_table, invoice_no_tpl, c_dt, m_dt FROM clients WHERE id = 1 + i % rows;
			ELSIF i % 20 = 1 AND next > 100000001 THEN
				DELETE FROM clients WHERE id = next - 1;
			ELSE
				UPDATE clients SET balance = 1000 + (i % 99991) / 100.0, m_dt = now() WHERE id = 1 + (i * 7919::bigint) % rows;
			END IF;
		END LOOP;
		COMMIT;
	END LOOP;
END $$;
CREATE PROCEDURE at_once(n int) LANGUAGE plpgsql AS $$
DECLARE rows int := (SELECT count(*) FROM clients WHERE id < 100000000); done int := 0;
BEGIN
	WHILE done < n / 2 LOOP
		UPDATE clients SET balance = balance + 1 WHERE id <= least(rows, n / 2 - done);
		done := done + least(rows, n / 2 - done);
	END LOOP;
END $$;
`

const fill = `
INSERT INTO clients SELECT i, 1 + i % 50, 'Client number ' || i, 'active', 'orig', 1 + i % 3, 1000, 0, 'DE' || i,
	'Company ' || i || ' Telecommunications Limited', i || ' Long Harbour Street, third floor, left door', 'Springfield', 'Northern State', 'Country of Origin',
	lpad(i::text, 8, '0'), 'office' || i || '@client-of-ours.example.net', 'noc' || i || '@client-of-ours.example.net', 'billing' || i || '@client-of-ours.example.net',
	i % 100, i % 200, 'INV-{year}-{number}', now(), now()
FROM generate_series(1, $1::int) i`

const billhookYAML = `version: 1
source: {dsn: "${BENCH_DSN}", slot: billhook, publication: billhook}
entities:
  clients: {table: clients, key: [id], ignore: [m_dt], archive: {column: status, value: archive}, balance: {column: balance}}
journal: {path: "${BENCH_JOURNAL}"}
http: {listen: "${BENCH_LISTEN}", edit_handlers: true}
log: {level: warn}
`

const handlersYAML = `version: 1
handlers:
  - {id: 1, name: Block, event: clients.balance_zero, http: {url: "http://127.0.0.1:9/"}}
  - {id: 2, name: Update, events: [clients.update, clients.archive], http: {url: "http://127.0.0.1:9/"}}
`

func (b *bench) run(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "billhook-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.binary = filepath.Join(b.dir, "billhook")
	build := exec.CommandContext(ctx, "go", "build", "-o", b.binary, "./cmd/billhook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build billhook: %w\n%s", err, out)
	}
	for name, text := range map[string]string{"billhook.yaml": billhookYAML, "handlers.yaml": handlersYAML} {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	b.c, err = cluster.Start(ctx, cluster.Options{Settings: map[string]string{
		"shared_buffers": "1GB", "max_wal_size": "24GB", "checkpoint_timeout": "1h", "autovacuum": "off",
		"max_replication_slots": "10", "max_wal_senders": "10", "synchronous_commit": "off", "wal_sender_timeout": "60s",
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.c.Close()) }()
	if b.conn, err = pgx.Connect(ctx, b.c.SuperuserURL("postgres")); err != nil {
		return err
	}
	defer b.conn.Close(context.WithoutCancel(ctx))
	if err := b.sql(ctx, schema+deliverSQL); err != nil {
		return err
	}
	if _, err := b.conn.Exec(ctx, fill, b.clients); err != nil {
		return err
	}

	fmt.Printf("Postgres %d, %d CPUs, %s; %d rows of clients, %d changes per backlog, median of %d runs\n\n",
		b.c.Version(), runtime.NumCPU(), runtime.Version(), b.clients, b.changes, b.runs)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, w := range b.workloads() {
		if !strings.Contains(w.name, b.only) {
			continue
		}
		if err := b.workload(ctx, w, table); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		if err := table.Flush(); err != nil {
			return err
		}
		fmt.Println()
	}
	for _, part := range []struct {
		name string
		run  func(context.Context, *tabwriter.Writer) error
	}{{"deliveries", b.deliveries}, {"latency", b.latency}, {"pending", b.backlog}, {"retention", b.retention}, {"console", b.console}, {"programs", b.programs}} {
		if !strings.Contains(part.name, b.only) {
			continue
		}
		if err := part.run(ctx, table); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

func (b *bench) sql(ctx context.Context, sql string) error {
	if _, err := b.conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", strings.SplitN(strings.TrimSpace(sql), "\n", 2)[0], err)
	}
	return nil
}

// workload records a backlog and lets both consumers drain it, in turns.
func (b *bench) workload(ctx context.Context, w workload, table io.Writer) error {
	if err := b.sql(ctx, "ALTER TABLE clients REPLICA IDENTITY "+w.identity); err != nil {
		return err
	}
	// Attach first, so that memory is filled before the backlog, as it would be.
	journal := filepath.Join(b.dir, "attached")
	b.handlers = "handlers.yaml"
	p, err := b.start(ctx, journal, false)
	if err != nil {
		return err
	}
	if err := p.ready(ctx); err != nil {
		return errors.Join(err, p.stop())
	}
	if err := p.stop(); err != nil {
		return err
	}
	if err := b.sql(ctx, "SELECT pg_copy_logical_replication_slot('billhook', 'base')"); err != nil {
		return err
	}
	if err := b.sql(ctx, fmt.Sprintf(w.sql, b.changes)); err != nil {
		return err
	}
	// One more commit that is flushed, so that all of the backlog is sent.
	if err := b.sql(ctx, "SET synchronous_commit = on; UPDATE clients SET balance = balance + 1 WHERE id = 1"); err != nil {
		return err
	}
	var end string
	if err := b.conn.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&end); err != nil {
		return err
	}
	lsn, err := wal.ParseLSN(end)
	if err != nil {
		return err
	}

	results := map[string][]result{}
	for range b.runs {
		r, err := b.recvlogical(ctx, end)
		if err != nil {
			return fmt.Errorf("pg_recvlogical: %w", err)
		}
		results["pg_recvlogical"] = append(results["pg_recvlogical"], r)
		if r, err = b.billhook(ctx, journal, lsn); err != nil {
			return fmt.Errorf("billhook: %w", err)
		}
		results["billhook"] = append(results["billhook"], r)
	}
	for _, slot := range []string{"base", "billhook"} {
		if err := b.sql(ctx, fmt.Sprintf("SELECT pg_drop_replication_slot('%s')", slot)); err != nil {
			return err
		}
	}
	if err := b.sql(ctx, "DROP PUBLICATION billhook; CHECKPOINT"); err != nil {
		return err
	}
	if err := os.RemoveAll(journal); err != nil {
		return err
	}

	changes := float64(b.changes)
	if strings.HasPrefix(w.sql, "CALL at_once") {
		changes /= 2
	}
	peer := median(results["pg_recvlogical"])
	fmt.Println(w.name)
	fmt.Fprintln(table, "\tchanges/s\tratio\tCPU s/1M\tratio\twalsender CPU s/1M\tratio\tpeak MiB\t")
	for _, name := range []string{"pg_recvlogical", "billhook"} {
		r := median(results[name])
		fmt.Fprintf(table, "%s\t%.0f\t%.2f\t%.1f\t%.2f\t%.1f\t%.2f\t%d\t\n", name, changes/r.seconds, peer.seconds/r.seconds,
			r.consumer/changes*1e6, r.consumer/peer.consumer, r.walsender/changes*1e6, r.walsender/peer.walsender, r.rss>>20)
	}
	return nil
}

// median is the run of median duration.
func median(rs []result) result {
	rs = slices.SortedFunc(slices.Values(rs), func(a, b result) int {
		switch {
		case a.seconds < b.seconds:
			return -1
		case a.seconds > b.seconds:
			return 1
		}
		return 0
	})
	return rs[len(rs)/2]
}

func (b *bench) copySlot(ctx context.Context, slot string) error {
	if err := b.dropSlots(ctx, slot); err != nil {
		return err
	}
	return b.sql(ctx, fmt.Sprintf("SELECT pg_copy_logical_replication_slot('base', '%s')", slot))
}

// dropSlots drops the slots with names like that, once their walsenders have noticed that
// nobody reads any more.
func (b *bench) dropSlots(ctx context.Context, like string) error {
	for {
		err := b.sql(ctx, fmt.Sprintf("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE '%s'", like))
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "55006" { // object_in_use
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func (b *bench) recvlogical(ctx context.Context, end string) (result, error) {
	if err := b.copySlot(ctx, "recv"); err != nil {
		return result{}, err
	}
	cmd := b.c.Command(ctx, "pg_recvlogical", "--start", "--no-loop", "--slot", "recv", "--endpos", end, "--file", "/dev/null",
		"-o", "proto_version=1", "-o", "publication_names=billhook", "--dbname", "postgres")
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return result{}, err
	}
	w := b.watch(ctx, "recv", cmd.Process.Pid)
	err := cmd.Wait()
	r := w.finish(time.Since(start))
	usage := cmd.ProcessState
	r.consumer = (usage.UserTime() + usage.SystemTime()).Seconds()
	if err != nil {
		return r, err
	}
	return r, b.sql(ctx, "SELECT pg_drop_replication_slot('recv')")
}

func (b *bench) billhook(ctx context.Context, attached string, end wal.LSN) (result, error) {
	if err := b.copySlot(ctx, "billhook"); err != nil {
		return result{}, err
	}
	journal := filepath.Join(b.dir, "journal")
	if err := os.RemoveAll(journal); err != nil {
		return result{}, err
	}
	if err := os.CopyFS(journal, os.DirFS(attached)); err != nil {
		return result{}, err
	}
	start := time.Now()
	p, err := b.start(ctx, journal, true)
	if err != nil {
		return result{}, err
	}
	w := b.watch(ctx, "billhook", p.cmd.Process.Pid)
	var first wal.LSN
	for {
		lsn, err := p.durable(ctx)
		if err == nil && lsn >= end {
			break
		}
		if first == 0 {
			first = lsn
		}
		// To answer costs what is measured: often only when the end is near.
		pause := 250 * time.Millisecond
		if err == nil && first > 0 && (end-lsn)*20 < end-first {
			pause = 20 * time.Millisecond
		}
		select {
		case <-time.After(pause):
		case <-p.ended:
			return result{}, errors.Join(errors.New("it ended by itself"), p.stop())
		case <-ctx.Done():
			return result{}, errors.Join(ctx.Err(), p.stop())
		}
	}
	r := w.finish(time.Since(start))
	r.consumer = p.cpu()
	return r, p.stop()
}

// process is a running billhook.
type process struct {
	cmd    *exec.Cmd
	listen string
	ended  chan struct{}
	err    error
}

func (b *bench) start(ctx context.Context, journal string, profiled bool) (*process, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	listen := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.binary, "run", "--config", filepath.Join(b.dir, "billhook.yaml"), "--handlers", filepath.Join(b.dir, b.handlers))
	cmd.Env = append(os.Environ(), "BENCH_DSN="+b.c.SuperuserURL("postgres"), "BENCH_JOURNAL="+journal, "BENCH_LISTEN="+listen)
	if profiled && b.profile != "" {
		cmd.Env = append(cmd.Env, "BILLHOOK_CPU_PROFILE="+filepath.Join(b.profile, fmt.Sprintf("cpu-%d.prof", time.Now().Unix())))
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, listen: listen, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

func (p *process) get(ctx context.Context, path string) (int, io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.listen+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	return resp.StatusCode, resp.Body, nil
}

// ready waits until /readyz says so.
func (p *process) ready(ctx context.Context) error {
	for {
		if code, body, err := p.get(ctx, "/readyz"); err == nil {
			_ = body.Close()
			if code == http.StatusOK {
				return nil
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-p.ended:
			return fmt.Errorf("billhook ended: %w", p.err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// durable reads how far the journal is.
func (p *process) durable(ctx context.Context) (wal.LSN, error) {
	_, body, err := p.get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "billhook_intake_durable_lsn_bytes "); ok {
			f, err := strconv.ParseFloat(v, 64)
			return wal.LSN(f), err
		}
	}
	return 0, lines.Err()
}

func (p *process) cpu() float64 { return cpuSeconds(p.cmd.Process.Pid) }

func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return errors.New("billhook did not stop")
	}
	return p.err
}

// watcher samples the walsender of a slot and the memory of its consumer until it
// is told to finish.
type watcher struct {
	done chan struct{}
	out  chan result
}

func (b *bench) watch(ctx context.Context, slot string, consumer int) *watcher {
	w := &watcher{done: make(chan struct{}), out: make(chan result, 1)}
	go func() {
		var r result
		walsender := 0
		conn, err := pgx.Connect(ctx, b.c.SuperuserURL("postgres"))
		if err == nil {
			defer conn.Close(context.WithoutCancel(ctx))
		}
		for {
			if walsender == 0 && err == nil {
				var pid *int
				if conn.QueryRow(ctx, "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&pid) == nil && pid != nil {
					walsender = *pid
				}
			}
			if walsender != 0 {
				r.walsender = max(r.walsender, cpuSeconds(walsender))
			}
			r.rss = max(r.rss, peakRSS(consumer))
			select {
			case <-w.done:
				w.out <- r
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return w
}

func (w *watcher) finish(took time.Duration) result {
	close(w.done)
	r := <-w.out
	r.seconds = took.Seconds()
	return r
}

// cpuSeconds is the CPU time of a process so far, 0 when it is gone.
func cpuSeconds(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100 // USER_HZ
}

// peakRSS is the most memory a process has had, in bytes, 0 when it is gone.
func peakRSS(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			return kib << 10
		}
	}
	return 0
}
