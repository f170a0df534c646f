package replication

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/demo/cluster"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/wal"
)

var (
	benchChanges = flag.Int("changes", 50_000, "size of the backlog that the drain benchmark reads")
	benchRuns    = flag.Int("runs", 1, "how often each reader drains it")
)

// BenchmarkDrain drains one backlog of single-row balance updates, one per
// transaction, with pg_recvlogical and with a Client that decodes and counts, and
// prints the ratio. It is one measurement, not a loop over b.N:
//
//	go test ./internal/replication -run - -bench Drain -changes 1000000 -runs 3
func BenchmarkDrain(b *testing.B) {
	if testing.Short() {
		b.Skip("takes a server of its own")
	}
	for _, identity := range []string{"FULL", "DEFAULT"} {
		b.Run(identity, func(b *testing.B) { benchmarkDrain(b, identity) })
	}
}

func benchmarkDrain(b *testing.B, identity string) {
	c, err := cluster.Start(b.Context(), cluster.Options{Settings: map[string]string{
		"shared_buffers": "256MB", "max_wal_size": "8GB", "checkpoint_timeout": "1h", "autovacuum": "off", "synchronous_commit": "off",
		"max_replication_slots": "50", "max_wal_senders": "50",
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	db := pgtest.NewDatabaseOn(b, c, clientsTable, "ALTER TABLE clients REPLICA IDENTITY "+identity, "CREATE PUBLICATION p FOR TABLE clients")
	db.Exec(b, "SELECT pg_create_logical_replication_slot('base', 'pgoutput')")
	// One procedure that commits after each row: a client's round trips would take
	// longer than all the rest.
	db.Exec(b, fmt.Sprintf(`CREATE PROCEDURE backlog() LANGUAGE plpgsql AS $$ BEGIN
		FOR i IN 1..%d LOOP UPDATE clients SET balance = balance - 0.01 WHERE id = 1 + i %% 1000; COMMIT; END LOOP; END $$`, *benchChanges))
	db.Exec(b, "CALL backlog()")
	// With synchronous_commit off the end may not be written yet.
	db.Exec(b, "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'end', ''); CHECKPOINT")
	end := pgtest.Value[string](b, db, "SELECT pg_current_wal_lsn()::text")

	readers := []struct {
		name string
		run  func(b *testing.B, db *pgtest.Database, slot, end string) (cpu time.Duration)
	}{
		{"decoding alone", func(b *testing.B, db *pgtest.Database, slot, end string) time.Duration {
			db.Exec(b, "SELECT count(*) FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'p')", slot)
			return 0
		}},
		{"pg_recvlogical", drainRecvlogical},
		{"plain", func(b *testing.B, db *pgtest.Database, slot, end string) time.Duration {
			return drainClient(b, db, slot, true)
		}},
		{"billhook", func(b *testing.B, db *pgtest.Database, slot, end string) time.Duration {
			return drainClient(b, db, slot, false)
		}},
	}
	best := map[string]float64{}
	for run := range *benchRuns {
		for i, r := range readers {
			slot := fmt.Sprintf("s%d_%d", run, i)
			db.Exec(b, "SELECT pg_copy_logical_replication_slot('base', $1)", slot)
			server := serverCPU(b, db)
			began := time.Now()
			cpu := r.run(b, db, slot, end)
			rate := float64(*benchChanges) / time.Since(began).Seconds()
			best[r.name] = max(best[r.name], rate)
			db.WaitFor(b, "SELECT count(*) = 0 FROM pg_stat_replication")
			server = serverCPU(b, db) - server
			b.Logf("%-7s %-14s %8.0f changes/s, CPU s per 1M: reader %5.2f, server %5.2f", identity, r.name, rate,
				cpu.Seconds()*1e6/float64(*benchChanges), server.Seconds()*1e6/float64(*benchChanges))
			db.Exec(b, "SELECT pg_drop_replication_slot($1)", slot)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(best["billhook"], "changes/s")
	b.ReportMetric(best["billhook"]/best["pg_recvlogical"], "x_pg_recvlogical")
	b.ReportMetric(best["plain"]/best["pg_recvlogical"], "plain_x_pg_recvlogical")
}

func drainRecvlogical(b *testing.B, db *pgtest.Database, slot, end string) time.Duration {
	cmd := db.Cluster.Command(b.Context(), "pg_recvlogical", "-d", db.Name, "-S", slot, "--start", "--no-loop", "-E", end, "-f", "/dev/null",
		"-F", "0", "-o", "proto_version=1", "-o", "publication_names=p", "-o", "messages=true")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if _, ok := err.(*exec.ExitError); !ok || !strings.Contains(stderr.String(), "end position") {
			b.Fatalf("pg_recvlogical: %v\n%s", err, stderr.String())
		}
	}
	return cmd.ProcessState.SystemTime() + cmd.ProcessState.UserTime()
}

// drainClient counts the changes up to the logical message "end".
func drainClient(b *testing.B, db *pgtest.Database, slot string, plain bool) time.Duration {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	client, err := New(Options{DSN: db.DSN, Slot: slot, Publication: "p", PlainReads: plain})
	if err != nil {
		b.Fatal(err)
	}
	out := make(chan *Chunk, 1)
	ran := make(chan error, 1)
	before := cpuTime(b)
	go func() { ran <- client.Run(ctx, out) }()
	changes, chunks, size := 0, 0, 0
	var d wal.Decoder
	for ended := false; !ended; {
		var c *Chunk
		select {
		case c = <-out:
		case err := <-ran:
			b.Fatalf("Run returned: %v", err)
		}
		chunks++
		size += c.Size()
		for f, ok := c.Next(); ok; f, ok = c.Next() {
			fr, err := wal.ParseFrame(f)
			if err != nil {
				b.Fatal(err)
			}
			if fr.Kind != wal.FrameData {
				continue
			}
			m, err := d.Decode(fr.Data)
			if err != nil {
				b.Fatal(err)
			}
			switch m.Kind {
			case wal.KindChange:
				changes++
			case wal.KindCommit:
				client.Confirm(m.Commit.EndLSN)
			case wal.KindLogical:
				ended = ended || m.Logical.Prefix == "end"
			}
		}
		c.Release()
	}
	used := cpuTime(b) - before
	cancel()
	for done := false; !done; {
		select {
		case c := <-out:
			c.Release()
		case err := <-ran:
			if done = true; err != nil {
				b.Fatal(err)
			}
		}
	}
	if changes != *benchChanges {
		b.Fatalf("%d changes, want %d", changes, *benchChanges)
	}
	b.Logf("        %d chunks of %d KB", chunks, size/chunks>>10)
	return used
}

// serverCPU is what the server's processes that have ended used, walsenders above
// all.
func serverCPU(b *testing.B, db *pgtest.Database) time.Duration {
	pid := pgtest.Value[string](b, db, "SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)")
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		b.Log(err)
		return 0
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int
	for _, f := range fields[13:15] { // cutime, cstime, in 1/100 s
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// clientsTable is a billing clients table of believable width: about 480 bytes of
// text a row.
const clientsTable = `
	CREATE TABLE clients (id int PRIMARY KEY, name text NOT NULL, companies_id int, status text, balance numeric(20,6) NOT NULL,
		credit numeric(20,6), currency text, c_company text, c_address text, c_email text, c_phone text, tax_id text, notes text,
		timezone text, lang text, taxes_profiles_id int, payment_terms_id int, invoices_templates_id int, auto_invoicing boolean,
		low_balance_notify boolean, c_dt timestamp, m_dt timestamp, archived boolean);
	INSERT INTO clients SELECT g, 'Client number ' || g, 1, 'active', 1000, 50, 'USD', 'Company of client ' || g, '17 Long Street, Some Town, County ' || g,
		'billing' || g || '@client.example.com', '+1 555 ' || g, 'TAX' || g, repeat('note ', 30), 'Europe/London', 'en', 3, 4, 5, true, true,
		'2026-01-02 03:04:05', '2026-02-03 04:05:06', false FROM generate_series(1, 1000) g;`

// BenchmarkTrickle measures the time from a commit's return to the change in the
// consumer's hands, at about 200 transactions a second: it must not wait for what
// helps under backlog.
func BenchmarkTrickle(b *testing.B) {
	db := pgtest.NewDatabase(b, clientsTable)
	f := follow(b, options(b, db, "clients"))
	conn := db.Connect(b)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var delays []time.Duration
	for b.Loop() {
		<-tick.C
		n := len(f.got())
		if _, err := conn.Exec(b.Context(), "UPDATE clients SET balance = balance - 1 WHERE id = 1"); err != nil {
			b.Fatal(err)
		}
		committed := time.Now()
		for len(f.got()) == n {
			<-f.notify
		}
		delays = append(delays, time.Since(committed))
	}
	slices.Sort(delays)
	b.ReportMetric(float64(delays[len(delays)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(delays[len(delays)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(0, "ns/op")
}
