package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"

	"github.com/billhook/billhook/internal/handler"
	httphandler "github.com/billhook/billhook/internal/handler/http"
	"github.com/billhook/billhook/internal/wal"
)

// Deliveries: source, Billhook, receiver and this program share the machine. The peer
// is a bare net/http client that posts the same body to the same receiver, with as many
// requests under way, and keeps nothing; it is a process of its own, as Billhook is. For
// latency it is a loop that reads the stream and posts each change.

const deliverSQL = `
CREATE PROCEDURE renames(n int, rows int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..n LOOP
		UPDATE clients SET name = '#' || i || '#' WHERE id = 1 + (i * 7919::bigint) % rows;
		COMMIT;
	END LOOP;
END $$;
`

const deliverYAML = `version: 1
defaults: {breaker: {pause: 1s, max: 1s}}
handlers:
  - {id: 1, name: Update, event: clients.update, concurrency: %d, http: {url: %q}}
`

// sink is a receiver that counts.
type sink struct {
	listener    net.Listener
	server      *http.Server
	n           atomic.Int64
	first, last atomic.Int64                     // Unix nanoseconds
	body        atomic.Pointer[[]byte]           // one of those that came
	at          atomic.Pointer[func(number int)] // told of the number between # in each body
}

func newSink(address string) (*sink, error) {
	s := &sink{}
	var err error
	if s.listener, err = net.Listen("tcp", address); err != nil {
		return nil, err
	}
	s.server = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.server.Serve(s.listener) }() // until close
	return s, nil
}

func (s *sink) url() string { return "http://" + s.listener.Addr().String() + "/" }

func (s *sink) close() error { return s.server.Close() }

func (s *sink) reset() {
	s.n.Store(0)
	s.first.Store(0)
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	now := time.Now().UnixNano()
	s.first.CompareAndSwap(0, now)
	s.last.Store(now)
	if s.body.Load() == nil {
		s.body.Store(&body)
	}
	if f := s.at.Load(); f != nil {
		if _, rest, ok := bytes.Cut(body, []byte("#")); ok {
			text, _, _ := bytes.Cut(rest, []byte("#"))
			if n, err := strconv.Atoi(string(text)); err == nil {
				(*f)(n)
			}
		}
	}
	s.n.Add(1)
	w.WriteHeader(http.StatusNoContent)
}

// rate is the requests per second between the first and the last.
func (s *sink) rate() float64 {
	return float64(s.n.Load()-1) / time.Duration(s.last.Load()-s.first.Load()).Seconds()
}

// wait waits until n requests have come.
func (s *sink) wait(ctx context.Context, p *process, n int64) error {
	for s.n.Load() < n {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-p.ended:
			return errors.Join(errors.New("billhook ended by itself"), p.err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// client has another process post n bodies, so many at a time, with Billhook's handler or
// with net/http alone.
func client(ctx context.Context, s *sink, body []byte, n, concurrency int, bare bool) (result, error) {
	self, err := os.Executable()
	if err != nil {
		return result{}, err
	}
	s.reset()
	cmd := exec.CommandContext(ctx, self, "-post", s.url(), "-changes", strconv.Itoa(n), "-at-a-time", strconv.Itoa(concurrency), fmt.Sprint("-bare=", bare))
	cmd.Stdin, cmd.Stderr = bytes.NewReader(body), os.Stderr
	if err := cmd.Run(); err != nil {
		return result{}, fmt.Errorf("client: %w", err)
	}
	return result{seconds: 1 / s.rate(), consumer: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()}, nil
}

// post posts what is on standard input n times, so many at a time.
func post(ctx context.Context, url string, n, concurrency int, bare bool) error {
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	call := alone(url, body, concurrency)
	if !bare {
		h, err := httphandler.New(httphandler.Options{URL: url, IdleConnections: concurrency, Version: "bench"})
		if err != nil {
			return err
		}
		defer h.Close()
		d := handler.Delivery{Event: oldEvent(1), HandlerID: 1, Name: "Update", Attempt: 1, Body: body, ContentType: "application/json"}
		call = func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			_, err := h.Handle(ctx, &d)
			return err
		}
	}
	var left atomic.Int64
	left.Store(int64(n))
	g, ctx := errgroup.WithContext(ctx)
	for range concurrency {
		g.Go(func() error {
			for left.Add(-1) >= 0 {
				if err := call(ctx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// alone posts with net/http alone.
func alone(url string, body []byte, concurrency int) func(context.Context) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: concurrency}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, resp.Body) // so that the connection is used again
		return resp.Body.Close()
	}
}

// attached attaches a journal, records a backlog of so many renames, and returns the
// journal's folder and the end of the backlog.
func (b *bench) attached(ctx context.Context, changes, rows int) (journal string, end wal.LSN, detach func() error, err error) {
	b.handlers = "handlers.yaml"
	if err := b.sql(ctx, "ALTER TABLE clients REPLICA IDENTITY DEFAULT"); err != nil {
		return "", 0, nil, err
	}
	journal = filepath.Join(b.dir, "attached")
	p, err := b.start(ctx, journal, false)
	if err != nil {
		return "", 0, nil, err
	}
	if err := errors.Join(p.ready(ctx), p.stop()); err != nil {
		return "", 0, nil, err
	}
	if err := b.sql(ctx, "SELECT pg_copy_logical_replication_slot('billhook', 'base')"); err != nil {
		return "", 0, nil, err
	}
	if changes > 0 {
		if err := b.sql(ctx, fmt.Sprintf("CALL renames(%d, %d)", changes, rows)); err != nil {
			return "", 0, nil, err
		}
	}
	if err := b.sql(ctx, "SET synchronous_commit = on; UPDATE clients SET m_dt = now() WHERE id = 1"); err != nil {
		return "", 0, nil, err
	}
	var text string
	if err := b.conn.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&text); err != nil {
		return "", 0, nil, err
	}
	if end, err = wal.ParseLSN(text); err != nil {
		return "", 0, nil, err
	}
	return journal, end, func() error {
		return errors.Join(
			b.dropSlots(ctx, "%"),
			b.sql(ctx, "DROP PUBLICATION billhook"), os.RemoveAll(journal))
	}, nil
}

// resume starts Billhook on a copy of the attached journal, with the sink as its handler.
func (b *bench) resume(ctx context.Context, attached, url string, concurrency int) (*process, error) {
	if err := b.copySlot(ctx, "billhook"); err != nil {
		return nil, err
	}
	journal := filepath.Join(b.dir, "journal")
	if err := os.RemoveAll(journal); err != nil {
		return nil, err
	}
	if err := os.CopyFS(journal, os.DirFS(attached)); err != nil {
		return nil, err
	}
	b.handlers = "deliver.yaml"
	if err := os.WriteFile(filepath.Join(b.dir, b.handlers), fmt.Appendf(nil, deliverYAML, concurrency, url), 0o600); err != nil {
		return nil, err
	}
	return b.start(ctx, journal, true)
}

func (b *bench) deliveries(ctx context.Context, table *tabwriter.Writer) error {
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer s.close()
	for _, w := range []struct {
		name        string
		concurrency []int
		n, rows     int
	}{
		{"deliveries over HTTP, as many at a time, every execution durable", []int{1, 16, 64}, b.changes / 20, b.clients},
		{"10,000 events of one client, one after another", []int{1}, min(10_000, b.changes), 1},
	} {
		journal, _, detach, err := b.attached(ctx, w.n, w.rows)
		if err != nil {
			return err
		}
		fmt.Println(w.name)
		fmt.Fprintln(table, "\tat a time\tdeliveries/s\tratio\tCPU s/1M\tpeak MiB\t")
		for _, c := range w.concurrency {
			var ours, peers, handlers []result
			for range b.runs {
				s.reset()
				p, err := b.resume(ctx, journal, s.url(), c)
				if err != nil {
					return err
				}
				if err := s.wait(ctx, p, int64(w.n)); err != nil {
					return errors.Join(err, p.stop())
				}
				r := result{seconds: 1 / s.rate(), consumer: p.cpu(), rss: peakRSS(p.cmd.Process.Pid)}
				if err := p.stop(); err != nil {
					return err
				}
				ours = append(ours, r)
				body := *s.body.Load()
				if r, err = client(ctx, s, body, w.n, c, true); err != nil {
					return err
				}
				peers = append(peers, r)
				if r, err = client(ctx, s, body, w.n, c, false); err != nil {
					return err
				}
				handlers = append(handlers, r)
			}
			peer := median(peers)
			for _, row := range []struct {
				name string
				result
			}{{"net/http client", peer}, {"the handler, without a journal", median(handlers)}, {"billhook", median(ours)}} {
				rss := ""
				if row.rss > 0 {
					rss = strconv.FormatInt(row.rss>>20, 10)
				}
				fmt.Fprintf(table, "%s\t%d\t%.0f\t%.2f\t%.1f\t%s\t\n", row.name, c, 1/row.seconds, peer.seconds/row.seconds, row.consumer/float64(w.n)*1e6, rss)
			}
		}
		if err := errors.Join(table.Flush(), detach()); err != nil {
			return err
		}
		fmt.Println()
	}
	return nil
}

// latency measures from just before a transaction is sent until its handler has it.
func (b *bench) latency(ctx context.Context, table *tabwriter.Writer) error {
	const rate, seconds = 200, 10
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer s.close()
	journal, _, detach, err := b.attached(ctx, 0, 0)
	if err != nil {
		return err
	}
	first := 0 // of the numbers of a trickle: no name is the one before
	trickle := func() ([]time.Duration, error) {
		var mu sync.Mutex
		defer func() { first += rate * seconds }()
		sent := make([]time.Time, rate*seconds)
		took := make([]time.Duration, 0, len(sent))
		at := func(n int) {
			now := time.Now()
			mu.Lock()
			defer mu.Unlock()
			if n -= first; n >= 0 && n < len(sent) && !sent[n].IsZero() {
				took = append(took, now.Sub(sent[n]))
			}
		}
		s.at.Store(&at)
		defer s.at.Store(nil)
		conn, err := pgx.Connect(ctx, b.c.SuperuserURL("postgres"))
		if err != nil {
			return nil, err
		}
		defer conn.Close(context.WithoutCancel(ctx))
		if _, err := conn.Exec(ctx, "SET synchronous_commit = on"); err != nil {
			return nil, err
		}
		tick := time.NewTicker(time.Second / rate)
		defer tick.Stop()
		for i := range sent {
			<-tick.C
			mu.Lock()
			sent[i] = time.Now()
			mu.Unlock()
			if _, err := conn.Exec(ctx, "UPDATE clients SET name = $1 WHERE id = $2", fmt.Sprintf("#%d#", first+i), 1+i%b.clients); err != nil {
				return nil, err
			}
		}
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			done := len(took) >= len(sent)
			mu.Unlock()
			if done {
				break
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if len(took) < len(sent) {
			return nil, fmt.Errorf("%d of %d came", len(took), len(sent))
		}
		slices.Sort(took)
		return took, nil
	}

	quiet := func() {
		for before := int64(-1); before != s.n.Load(); {
			before = s.n.Load()
			time.Sleep(time.Second)
		}
	}
	log, err := os.Create(filepath.Join(b.dir, "loop"))
	if err != nil {
		return err
	}
	defer log.Close()
	var loops [2][]time.Duration
	var disk []time.Duration
	for i, log := range []*os.File{nil, log} {
		stop, err := b.loop(ctx, s.url(), log, &disk)
		if err != nil {
			return err
		}
		quiet() // what came before is told again
		loops[i], err = trickle()
		if err = errors.Join(err, stop()); err != nil {
			return fmt.Errorf("smallest loop: %w", err)
		}
	}
	slices.Sort(disk)
	peer := loops[0]
	p, err := b.resume(ctx, journal, s.url(), 16)
	if err != nil {
		return err
	}
	if err := p.ready(ctx); err != nil {
		return errors.Join(err, p.stop())
	}
	quiet() // what the loops were told of comes first
	ours, err := trickle()
	if err = errors.Join(err, p.stop()); err != nil {
		return fmt.Errorf("billhook: %w", err)
	}
	fmt.Printf("from a transaction to its handler at %d transactions/s\n", rate)
	fmt.Fprintln(table, "\tp50\tp99\tratio of p50\tof p99\t")
	at := func(d []time.Duration, share float64) time.Duration { return d[int(share*float64(len(d)-1))] }
	for _, row := range []struct {
		name string
		took []time.Duration
	}{{"stream and post, nothing durable", peer}, {"the same, each change on the disk first", loops[1]}, {"of that, the disk", disk}, {"billhook", ours}} {
		fmt.Fprintf(table, "%s\t%v\t%v\t%.2f\t%.2f\t\n", row.name, at(row.took, .5).Round(10*time.Microsecond), at(row.took, .99).Round(10*time.Microsecond),
			float64(at(row.took, .5))/float64(at(peer, .5)), float64(at(row.took, .99))/float64(at(peer, .99)))
	}
	if err := errors.Join(table.Flush(), detach()); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// loop is the smallest thing that tells of changes: it posts each as it came. With log
// it appends each to it first and waits until that is on the disk, else it keeps nothing.
// What the disk took is added to disk until stop returns.
func (b *bench) loop(ctx context.Context, url string, log *os.File, disk *[]time.Duration) (stop func() error, err error) {
	if err := b.copySlot(ctx, "loop"); err != nil {
		return nil, err
	}
	config, err := pgconn.ParseConfig(b.c.SuperuserURL("postgres"))
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	front := conn.Frontend()
	front.Send(&pgproto3.Query{String: `START_REPLICATION SLOT loop LOGICAL 0/0 (proto_version '1', publication_names 'billhook')`})
	if err := front.Flush(); err != nil {
		return nil, err
	}
	loopCtx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- func() error {
			for {
				m, err := conn.ReceiveMessage(loopCtx)
				if err != nil {
					return err
				}
				switch m := m.(type) {
				case *pgproto3.ErrorResponse:
					return pgconn.ErrorResponseToPgError(m)
				case *pgproto3.CopyData:
					f, err := wal.ParseFrame(m.Data)
					if err != nil {
						return err
					}
					if f.Kind != wal.FrameData || f.Data[0] != 'U' {
						continue
					}
					if log != nil {
						start := time.Now()
						_, err := log.Write(f.Data)
						if err := errors.Join(err, syscall.Fdatasync(int(log.Fd()))); err != nil {
							return err
						}
						*disk = append(*disk, time.Since(start))
					}
					resp, err := http.Post(url, "application/octet-stream", bytes.NewReader(f.Data)) //nolint:gosec,noctx // the smallest loop
					if err != nil {
						return err
					}
					_, _ = io.Copy(io.Discard, resp.Body) // so that the connection is used again
					_ = resp.Body.Close()
				}
			}
		}()
	}()
	return func() error {
		cancel()
		err := <-ended
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		_ = conn.Close(context.WithoutCancel(ctx)) // it was interrupted in the middle
		return err
	}, nil
}

// backlog has a receiver that is down for as many events as there are changes.
func (b *bench) backlog(ctx context.Context, table *tabwriter.Writer) error {
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		return err
	}
	address, url := s.listener.Addr().String(), s.url()
	if err := s.close(); err != nil {
		return err
	}
	journal, end, detach, err := b.attached(ctx, b.changes, b.clients)
	if err != nil {
		return err
	}
	start := time.Now()
	p, err := b.resume(ctx, journal, url, 64)
	if err != nil {
		return err
	}
	for {
		if lsn, err := p.durable(ctx); err == nil && lsn >= end {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-p.ended:
			return errors.Join(errors.New("billhook ended by itself"), p.err)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), p.stop())
		}
	}
	taken := time.Since(start)
	pending := peakRSS(p.cmd.Process.Pid)
	quiet, err := p.searches(ctx, 200)
	if err != nil {
		return errors.Join(err, p.stop())
	}
	start = time.Now()
	if s, err = newSink(address); err != nil {
		return errors.Join(err, p.stop())
	}
	defer s.close()
	for s.n.Load() == 0 { // until the breaker has noticed
		time.Sleep(10 * time.Millisecond)
	}
	busy, err := p.searches(ctx, 200)
	if err == nil {
		err = s.wait(ctx, p, int64(b.changes))
	}
	drained := time.Since(start)
	r := result{consumer: p.cpu(), rss: peakRSS(p.cmd.Process.Pid)}
	if err = errors.Join(err, p.stop()); err != nil {
		return err
	}
	fmt.Printf("%d executions of %d clients wait for a receiver that is down\n", b.changes, b.clients)
	fmt.Fprintf(table, "taken in\t%.0f/s\t\npeak memory with all pending\t%d MiB\t\nsearch p99\t%v\t\n", float64(b.changes)/taken.Seconds(), pending>>20, quiet.Round(100*time.Microsecond))
	fmt.Fprintf(table, "it is back: delivered\t%.0f/s\t\nsearch p99 meanwhile\t%v\t\npeak memory\t%d MiB\t\nCPU s in all\t%.0f\t\n", float64(b.changes)/drained.Seconds(), busy.Round(100*time.Microsecond), r.rss>>20, r.consumer)
	if err := errors.Join(table.Flush(), detach()); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// searches asks for pages of executions in many ways and returns the p99.
func (p *process) searches(ctx context.Context, n int) (time.Duration, error) {
	queries := []string{"", "?status=pending", "?handler=1&status=pending", "?event=clients.update", "?object=%d", "?lane=%d&status=pending", "?status=dead", "?before=%d000"}
	var took []time.Duration
	for i := range n {
		q := queries[i%len(queries)]
		if bytes.Contains([]byte(q), []byte("%d")) {
			q = fmt.Sprintf(q, 1+i)
		}
		start := time.Now()
		code, body, err := p.get(ctx, "/api/v1/executions"+q)
		if err != nil {
			return 0, err
		}
		_, err = io.Copy(io.Discard, body)
		if err = errors.Join(err, body.Close()); err != nil {
			return 0, err
		}
		if code != http.StatusOK {
			return 0, fmt.Errorf("search %s: status %d", q, code)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)*99/100], nil
}
