// Package demo shows Billhook at work on a machine that has nothing but a
// Postgres server: a throwaway database with a realistic billing schema, traffic
// as a billing system makes it, an HTTP server that plays the CRM, a script that
// plays the switch, and Billhook between them.
//
// It promises that what it reports at the end was counted twice: triggers in the
// database keep a ledger of every event that must come, by rules written apart
// from Billhook's own, and the run fails unless the CRM and the switch got
// exactly these, each client's in commit order, and no id stands for two events.
//
// It does not know how Billhook is put together: Options.Attach starts it.
//
// Start with Run.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"
	"gopkg.in/yaml.v3"

	"github.com/billhook/billhook/internal/demo/cluster"
)

// Options says what to show. Attach is required.
type Options struct {
	Attach Attach
	// Config is a billhook.yaml for the demo's schema, Handlers a handlers.yaml whose
	// http handlers call the CRM and whose scripts are the switch; see
	// AttachConfig.Env for what they may refer to. Defaults: config/billhook.example.yaml
	// and handlers.example.yaml.
	Config   []byte
	Handlers []byte

	For      time.Duration // how long traffic runs; 0: until the context ends
	Clients  int           // that are there from the start; default 200
	Rate     float64       // transactions per second; default 25
	Sessions int           // of the billing application; default 4
	Seed     uint64        // of the traffic's chance
	// Refuse is how many of 1,000 events the CRM answers 503 at their first attempt,
	// so that retries show; default 20.
	Refuse uint32
	// Drain is how long to wait at the end until all events are in; default 60 s.
	Drain time.Duration

	Out   io.Writer // where it is shown; default: nowhere
	Color bool      // Out is a terminal
	// Postgres says what server to start. Its settings are the demo's own.
	Postgres cluster.Options
}

// Attach starts Billhook and returns when it streams, so that every later change
// is told; ctx bounds the starting only. The demo calls Stop of what it returns.
type Attach func(ctx context.Context, c AttachConfig) (*Attached, error)

// AttachConfig says what to attach to what.
type AttachConfig struct {
	Config   string // path of billhook.yaml
	Handlers string // path of handlers.yaml
	Dir      string // a folder for the journal, empty at the start
	Listen   string // where Billhook's own HTTP server listens, host:port
	OwnerDSN string // the database as its owner: for tests, not for Billhook
	// Env is what both files refer to as ${NAME}:
	//
	//	BILLHOOK_DSN   the database, as the least-privilege role
	//	RECEIVER_URL   the CRM, such as http://127.0.0.1:40123
	//	SWITCH_SCRIPT  path of the script
	//	SWITCH_DIR     the script's argument
	//	CRM_SECRET     a signing secret
	Env map[string]string
}

// Attached is a running Billhook.
type Attached struct {
	Console string // URL of the console
	// Executions counts executions by handler and status, as Billhook sees them.
	// It may be nil; then the demo asks only the database and the receivers.
	Executions func(context.Context) ([]ExecutionCount, error)
	// Failed gives the error when Billhook ends by itself. It may be nil.
	Failed <-chan error
	// Stop ends Billhook and returns when it has ended.
	Stop func(context.Context) error
}

// ExecutionCount is how many executions of a handler are in a status.
type ExecutionCount struct {
	Handler int
	Status  string // pending, held, succeeded, dead, skipped, cancelled
	N       int64
}

// DifferenceError says how what arrived differs from the ledger.
type DifferenceError struct{ Differences []string }

func (e *DifferenceError) Error() string {
	const most = 20
	shown := e.Differences[:min(len(e.Differences), most)]
	text := fmt.Sprintf("the ledger and the receivers differ in %d points:\n  %s", len(e.Differences), strings.Join(shown, "\n  "))
	if n := len(e.Differences) - len(shown); n > 0 {
		text += fmt.Sprintf("\n  and %d more", n)
	}
	return text
}

// Run shows Billhook until o.For has passed or ctx ends, then waits until all is
// delivered, compares and writes the summary. It leaves nothing behind. The error
// is a *DifferenceError when something was missed, doubled or out of order.
func Run(ctx context.Context, o Options) (err error) {
	o.setDefaults()
	subscribers, err := readSubscribers(o.Handlers)
	if err != nil {
		return err
	}
	// An interrupt ends the traffic; everything else ends in order after it.
	work := context.WithoutCancel(ctx)
	out := newScreen(o.Out, o.Color)

	out.print("Starting a throwaway Postgres ...\n")
	pg, err := cluster.Start(ctx, o.Postgres)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.Close()) }()
	dir, err := os.MkdirTemp("", "billhook-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	dsn, err := createDatabase(ctx, pg, o.Clients)
	if err != nil {
		return err
	}
	out.print("Postgres %d on 127.0.0.1:%d, database billing, %d clients.\n", pg.Version(), pg.Port(), o.Clients)

	came := newArrivals()
	crm, err := startReceiver(came, o.Refuse, func(a arrival, answer int) {
		c, note := cyan, ""
		if answer != 200 {
			c, note = yellow, fmt.Sprintf(", answers %d", answer)
		} else if a.attempt > 1 {
			c, note = yellow, fmt.Sprintf(", attempt %d", a.attempt)
		}
		out.happened(c == yellow, c, "crm", fmt.Sprintf("<- %s of %s%s", a.typ, a.object, note))
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, crm.close(work)) }()
	sw, err := startSwitch(work, filepath.Join(dir, "switch"), came, func(a arrival) {
		switch a.typ {
		case "clients.balance_zero":
			out.happened(true, red, "switch", "blocks client "+a.object)
		case "clients.balance_notzero":
			out.happened(true, green, "switch", "lets client "+a.object+" in again")
		default:
			out.happened(false, plain, "switch", fmt.Sprintf("<- %s of %s", a.typ, a.object))
		}
	})
	if err != nil {
		return err
	}
	closeSwitch := once(sw.close)
	defer func() { err = errors.Join(err, closeSwitch()) }()

	attached, err := attach(ctx, o, pg, crm, sw, dir)
	if err != nil {
		return err
	}
	stop := once(func() error {
		ctx, cancel := context.WithTimeout(work, 30*time.Second)
		defer cancel()
		if err := attached.Stop(ctx); err != nil {
			return fmt.Errorf("stop Billhook: %w", err)
		}
		return nil
	})
	defer func() { err = errors.Join(err, stop()) }()
	out.print("Billhook is attached. Console: %s\n\n", out.paint(bold, attached.Console))

	// The traffic, until its time is over, it is interrupted, or Billhook ends.
	t := &traffic{
		dsn: dsn, sessions: o.Sessions, limit: rate.NewLimiter(rate.Limit(o.Rate), 1), seed: o.Seed,
		say: func(text string) { out.happened(false, dim, "billing", text) },
	}
	if err := drive(ctx, o, t, attached, came, out); err != nil {
		return err
	}

	out.print("\nTraffic has ended: %d transactions committed, %d rolled back. Waiting for what is under way ...\n",
		t.committed.Load(), t.rolledBack.Load())
	conn, err := pgx.Connect(work, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(work)
	ledger, err := readLedger(work, conn)
	if err != nil {
		return err
	}
	drainErr := drain(work, o.Drain, conn, attached, came, ledger, subscribers)
	var counts []ExecutionCount
	if attached.Executions != nil {
		if counts, err = attached.Executions(work); err != nil {
			return errors.Join(drainErr, fmt.Errorf("count executions: %w", err))
		}
	}
	// Stopped before the comparison, so that what came too much has come.
	if err := errors.Join(stop(), closeSwitch()); err != nil {
		return errors.Join(drainErr, err)
	}

	all, problems, _ := came.snapshot()
	var tables strings.Builder
	if err := summary(&tables, ledger, subscribers, all, counts); err != nil {
		return err
	}
	out.print("%s\n", tables.String())
	differences := slices.Concat(problems, compare(ledger, subscribers, all))
	blocked, err := sw.blocked()
	if err != nil {
		return err
	}
	if keepsSwitch(subscribers) {
		differences = append(differences, compareSwitch(blockedClients(ledger), blocked)...)
	}
	if len(differences) > 0 {
		return errors.Join(drainErr, &DifferenceError{differences})
	}
	if drainErr != nil {
		return drainErr
	}
	out.print("%s The ledger in the database and the receivers agree: %d events, %d executions, nothing missed,\n"+
		"nothing out of order, no id for two events; the switch blocks the %d clients that it must.\n",
		out.paint(green, "OK"), len(ledger), tally(all, 0).events, len(blocked))
	return out.err
}

// once returns a function that calls f the first time and does nothing after it.
func once(f func() error) func() error {
	called := false
	return func() error {
		if called {
			return nil
		}
		called = true
		return f()
	}
}

func (o *Options) setDefaults() {
	if o.Config == nil {
		o.Config = configExample
	}
	if o.Handlers == nil {
		o.Handlers = handlersExample
	}
	if o.Clients == 0 {
		o.Clients = 200
	}
	if o.Rate == 0 {
		o.Rate = 25
	}
	if o.Sessions == 0 {
		o.Sessions = 4
	}
	if o.Drain == 0 {
		o.Drain = time.Minute
	}
	if o.Refuse == 0 {
		o.Refuse = 20
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	// The standby's status is due every third of the timeout: often, so that the
	// end of the demo does not wait for it.
	settings := map[string]string{"wal_sender_timeout": "6s"}
	maps.Copy(settings, o.Postgres.Settings)
	o.Postgres.Settings = settings
}

// rolePassword is the password of the role billhook in the throwaway database.
const rolePassword = "billhook"

// createDatabase makes the database billing with its clients, ledger and
// least-privilege role, and returns the owner's connection URL.
func createDatabase(ctx context.Context, pg *cluster.Cluster, clients int) (dsn string, err error) {
	admin, err := pgx.Connect(ctx, pg.SuperuserURL("postgres"))
	if err != nil {
		return "", err
	}
	defer admin.Close(ctx)
	if _, err := admin.Exec(ctx, "CREATE DATABASE billing"); err != nil {
		return "", fmt.Errorf("create the billing database: %w", err)
	}
	dsn = pg.SuperuserURL("billing")
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	for _, script := range []struct{ name, sql string }{
		{"schema", Schema()}, {"clients", Seed(clients)}, {"ledger", ledgerSQL}, {"role", Role(rolePassword)},
	} {
		// The simple protocol takes a script of many statements.
		if _, err := conn.PgConn().Exec(ctx, script.sql).ReadAll(); err != nil {
			return "", fmt.Errorf("create the billing database: %s: %w", script.name, err)
		}
	}
	return dsn, nil
}

// attach writes the files and starts Billhook on them.
func attach(ctx context.Context, o Options, pg *cluster.Cluster, crm *receiver, sw *theSwitch, dir string) (*Attached, error) {
	c := AttachConfig{
		Config:   filepath.Join(dir, "billhook.yaml"),
		Handlers: filepath.Join(dir, "handlers.yaml"),
		Dir:      filepath.Join(dir, "journal"),
		Listen:   listenAddress(),
		OwnerDSN: pg.SuperuserURL("billing"),
		Env: map[string]string{
			"BILLHOOK_DSN":  pg.URL("billhook", rolePassword, "billing"),
			"RECEIVER_URL":  crm.url(),
			"SWITCH_SCRIPT": sw.script(),
			"SWITCH_DIR":    sw.dir,
			"CRM_SECRET":    crmSecret,
		},
	}
	for path, data := range map[string][]byte{c.Config: o.Config, c.Handlers: o.Handlers} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, fmt.Errorf("write the demo's configuration: %w", err)
		}
	}
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the journal's folder: %w", err)
	}
	attached, err := o.Attach(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("attach Billhook: %w", err)
	}
	return attached, nil
}

// listenAddress is Billhook's usual address, or a free port when somebody has it.
func listenAddress() string {
	const usual = "127.0.0.1:8321"
	l, err := net.Listen("tcp", usual)
	if err != nil {
		return "127.0.0.1:0"
	}
	if l.Close() != nil {
		return "127.0.0.1:0"
	}
	return usual
}

// drive runs the traffic and, now and then, writes how things stand.
func drive(ctx context.Context, o Options, t *traffic, attached *Attached, came *arrivals, out *screen) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if o.For > 0 {
		ctx, cancel = context.WithTimeout(ctx, o.For)
		defer cancel()
	}
	done := make(chan error, 1)
	go func() { done <- t.run(ctx) }()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case err := <-attached.Failed:
			cancel()
			return errors.Join(fmt.Errorf("billhook ended by itself: %w", err), <-done)
		case <-tick.C:
			all, _, _ := came.snapshot()
			n := tally(all, 0)
			out.happened(true, bold, "demo", fmt.Sprintf("%d transactions, %d executions, %d retries, %s from commit to handler (p99 %s); %d lines not shown",
				t.committed.Load(), n.events, n.refused, shortDuration(quantile(n.latencies, 0.5)), shortDuration(quantile(n.latencies, 0.99)), out.leftOut()))
		}
	}
}

// drain waits until Billhook has confirmed to Postgres all that was committed,
// the receivers have accepted as many executions as the ledger asks for, and none
// is pending. What has not come within the limit is an error.
func drain(ctx context.Context, limit time.Duration, conn *pgx.Conn, attached *Attached, came *arrivals, ledger []entry, subscribers []subscriber) error {
	var end string
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&end); err != nil {
		return err
	}
	wait := func(what string, ready func() (bool, string, error)) error {
		deadline := time.NewTimer(limit)
		defer deadline.Stop()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			_, _, changed := came.snapshot()
			ok, state, err := ready()
			if ok || err != nil {
				return err
			}
			select {
			case <-changed:
			case <-tick.C:
			case err := <-attached.Failed:
				return fmt.Errorf("billhook ended by itself: %w", err)
			case <-deadline.C:
				return fmt.Errorf("after %v still waiting %s: %s", limit, what, state)
			}
		}
	}
	err := wait("for Billhook to confirm all transactions", func() (ok bool, state string, err error) {
		err = conn.QueryRow(ctx, `SELECT COALESCE(bool_and(confirmed_flush_lsn >= $1::pg_lsn), false), COALESCE(max(confirmed_flush_lsn)::text, 'no slot')
			FROM pg_replication_slots WHERE database = current_database()`, end).Scan(&ok, &state)
		return ok, "confirmed " + state + " of " + end, err
	})
	if err != nil {
		return err
	}
	err = wait("for the handlers", func() (bool, string, error) {
		all, _, _ := came.snapshot()
		var got, want int
		for _, s := range subscribers {
			if s.some {
				continue // how many it gets is for its condition to say
			}
			got += tally(all, s.id).events
			for _, e := range ledger {
				if s.wants(e.typ) {
					want++
				}
			}
		}
		return got >= want, fmt.Sprintf("%d of %d executions", got, want), nil
	})
	if err != nil || attached.Executions == nil {
		return err
	}
	return wait("for pending executions", func() (bool, string, error) {
		counts, err := attached.Executions(ctx)
		if err != nil {
			return false, "", fmt.Errorf("count executions: %w", err)
		}
		var pending int64
		for _, c := range counts {
			if c.Status == "pending" {
				pending += c.N
			}
		}
		return pending == 0, fmt.Sprintf("%d pending", pending), nil
	})
}

// readSubscribers reads from handlers.yaml who wants what, by itself: it takes
// nothing from Billhook on trust.
func readSubscribers(handlers []byte) ([]subscriber, error) {
	var file struct {
		Defaults struct {
			Blocking *bool
		}
		Handlers []struct {
			ID       int
			Name     string
			Event    string
			Events   []string
			Status   string
			When     string
			Blocking *bool
			HTTP     map[string]any
			Script   map[string]any
		}
	}
	if err := yaml.Unmarshal(handlers, &file); err != nil {
		return nil, fmt.Errorf("read the demo's handlers: %w", err)
	}
	var subscribers []subscriber
	for _, h := range file.Handlers {
		s := subscriber{
			id: h.ID, name: h.Name, patterns: h.Events, ordered: true,
			some: h.When != "", enabled: h.Status == "" || h.Status == "enabled",
		}
		for _, blocking := range []*bool{file.Defaults.Blocking, h.Blocking} {
			if blocking != nil {
				s.ordered = *blocking
			}
		}
		if h.Event != "" {
			s.patterns = append(s.patterns, h.Event)
		}
		switch {
		case h.HTTP != nil:
			s.kind = "http"
			_, s.signs = h.HTTP["secret_env"]
		case h.Script != nil:
			s.kind = "script"
		default:
			s.kind, s.enabled = "plugin", false // nobody receives for it
		}
		for _, p := range s.patterns {
			if s.enabled && !slices.ContainsFunc(eventTypes(), func(typ string) bool { return matches(p, typ) }) {
				return nil, fmt.Errorf("handler %d (%s) asks for %s, which the demo's ledger does not know", s.id, s.name, p)
			}
		}
		subscribers = append(subscribers, s)
	}
	return subscribers, nil
}

// keepsSwitch reports whether the switch is told both when to block a client and
// when to let it in again.
func keepsSwitch(subscribers []subscriber) bool {
	told := func(typ string) bool {
		return slices.ContainsFunc(subscribers, func(s subscriber) bool { return s.kind == "script" && !s.some && s.wants(typ) })
	}
	return told("clients.balance_zero") && told("clients.balance_notzero")
}

// compareSwitch returns how the switch's state differs from what it must be.
func compareSwitch(want, got map[string]bool) []string {
	var diffs []string
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if !got[id] {
			diffs = append(diffs, fmt.Sprintf("the switch lets client %s in, whose balance is gone", id))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(got)) {
		if !want[id] {
			diffs = append(diffs, fmt.Sprintf("the switch blocks client %s, whose balance is good", id))
		}
	}
	return diffs
}
