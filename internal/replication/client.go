package replication

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/internal/backoff"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/wal"
)

// Options says what to follow and how. DSN, Slot and Publication are required.
type Options struct {
	// DSN is a connection string as libpq takes it, for a role with REPLICATION.
	// It must lead to the server itself, not to a pooler.
	DSN         string
	Slot        string
	Publication string

	// Resume is where the journal stands; the zero value is a first attach.
	Resume Position

	// Tables are those that the mapping names. The publication must hold them. On
	// a first attach with Create, a missing publication, table of it, or slot is
	// made; publication before slot.
	Tables []Table
	Create bool
	// Failover makes the slot one that standbys keep (Postgres 17 and later).
	Failover bool

	// Sent is the publication as the last Look of an earlier process had it; nil: that
	// is not known.
	Sent *catalog.Publication
	// Looked is told of each look at the publication, from one goroutine at a time, and
	// returns when it has kept what it has to keep. After an error the next look tells
	// the same again. nil: nobody wants to know.
	Looked func(Look) error

	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: metrics go nowhere

	Buffers      int           // of 1 MB each, that may be on their way to the consumer; 0: 4
	PollInterval time.Duration // of looking at slot and publication; 0: 15 s
	PlainReads   bool          // never gather: see gather.go

	bufferSize  int           // tests only
	silence     time.Duration // tests only
	stopTimeout time.Duration // tests only
}

// Table is one table to publish.
type Table struct {
	catalog.Name
	// Columns are those that may leave the database; nil for all. The columns of
	// the replica identity are always added. Before Postgres 15, and for a table
	// with REPLICA IDENTITY FULL, all columns are sent.
	Columns []string
	// Exclude are columns that must not leave the database, as far as the above lets
	// them stay. A column that is added to the table later is then not sent either,
	// until the publication is altered.
	Exclude []string
}

// Position is where a journal stands, and in what.
type Position struct {
	SystemID       string
	Timeline       uint32
	Slot           string
	Publication    string
	PublicationOID uint32  // 0: not compared
	LSN            wal.LSN // the durable position
}

// IsZero reports a journal that has never been attached.
func (p Position) IsZero() bool { return p == Position{} }

// Phase is what a Client is doing.
type Phase uint8

// The phases.
const (
	Stopped    Phase = iota // Run was not called, or has returned without an error
	Connecting              // dialing, checking, or waiting to try again
	Standby                 // the slot is in use by somebody else
	Streaming
	Failed // Run has returned with an error
)

func phases() []Phase { return []Phase{Stopped, Connecting, Standby, Streaming, Failed} }

// String returns "connecting" and so on.
func (p Phase) String() string {
	switch p {
	case Stopped:
		return "stopped"
	case Connecting:
		return "connecting"
	case Standby:
		return "standby"
	case Streaming:
		return "streaming"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// State is a Client at one moment, for health and for people.
type State struct {
	Phase   Phase
	Since   time.Time
	Detail  string // what it waits for; "" for nothing
	Err     error  // the last failure, an *Error; kept while streaming again
	ErrTime time.Time
	Session *Session // the current or last one, nil before the first

	ServerLSN    wal.LSN   // the server's position when last told
	Received     wal.LSN   // end of the last transaction or keepalive received
	Confirmed    wal.LSN   // given to Confirm
	LastReceived time.Time // when bytes last came
	LastCommit   time.Time // commit time of the last transaction received, the server's clock

	Slot       catalog.Slot // as last polled; zero before that
	SlotPolled time.Time
	Reconnects int
	// Faults say what keeps changes from coming although the connection is up.
	Faults map[Fault]string
}

// Client follows one slot. It is long-lived: Run reconnects for ever. All methods
// but Run may be called from any goroutine at any time.
type Client struct {
	options Options
	config  *pgx.ConnConfig
	target  target
	log     *slog.Logger
	metrics *metrics
	pool    *pool

	durable atomic.Uint64
	moved   chan struct{} // of capacity 1: durable has changed

	received, serverLSN      atomic.Uint64
	lastReceived, lastCommit atomic.Int64 // Unix microseconds

	mu         sync.Mutex // guards what follows
	state      State
	want       Position // what the next connection must find
	sessions   int
	first      *catalog.Publication // as the first session found or made it
	last       *catalog.Publication // as of the last look that was told
	faults     map[Fault]string
	endSession context.CancelCauseFunc

	// Only Run's goroutine touches these.
	silence   time.Duration // of the next session
	stalledAt wal.LSN       // where it last stalled; 0: it has moved on
}

// New checks the options and parses the DSN. It does not connect.
func New(o Options) (*Client, error) {
	if o.Slot == "" || o.Publication == "" {
		return nil, fatal(ReasonConfiguration, "source.slot and source.publication must have a name")
	}
	if !validSlot(o.Slot) {
		return nil, fatal(ReasonConfiguration, "source.slot %q: a slot's name has 1 to 63 characters out of a-z, 0-9 and _", o.Slot)
	}
	config, err := pgx.ParseConfig(o.DSN)
	if err != nil {
		return nil, target{}.classify(err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Buffers == 0 {
		o.Buffers = 4
	}
	if o.PollInterval == 0 {
		o.PollInterval = 15 * time.Second
	}
	if o.bufferSize == 0 {
		o.bufferSize = 1 << 20
	}
	if o.stopTimeout == 0 {
		o.stopTimeout = stopTimeout
	}
	c := &Client{
		options: o,
		config:  config,
		target: target{
			address: net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))),
			user:    config.User, database: config.Database, slot: o.Slot, publication: o.Publication,
		},
		log:     o.Logger,
		metrics: newMetrics(o.Registerer),
		pool:    newPool(max(o.Buffers, 2)+1, o.bufferSize),
		moved:   make(chan struct{}, 1),
		want:    o.Resume,
		last:    o.Sent,
		faults:  map[Fault]string{},
		silence: o.silence,
	}
	c.durable.Store(uint64(o.Resume.LSN))
	c.received.Store(uint64(o.Resume.LSN))
	c.state.Since = time.Now()
	c.metrics.setPhase(Stopped)
	return c, nil
}

// validSlot goes by Postgres' rule for slot names.
func validSlot(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 63
}

// Confirm tells that all up to lsn is durable here and may be forgotten by the
// server. It must be a position that the server gave: the EndLSN of a commit, or
// a keepalive's WALEnd when all before it is durable and no transaction is open.
// And the journal must hold it first: a journal found behind its slot at the next
// start counts as a gap. A lower position than before is ignored. Confirm does
// not block; the next status update, within a second or so, carries it.
func (c *Client) Confirm(lsn wal.LSN) {
	for {
		old := c.durable.Load()
		if uint64(lsn) <= old {
			return
		}
		if c.durable.CompareAndSwap(old, uint64(lsn)) {
			break
		}
	}
	select {
	case c.moved <- struct{}{}:
	default:
	}
}

func (c *Client) confirmed() wal.LSN { return wal.LSN(c.durable.Load()) }

// State returns what the Client is doing.
func (c *Client) State() State {
	c.mu.Lock()
	s := c.state
	s.Faults = maps.Clone(c.faults)
	c.mu.Unlock()
	s.ServerLSN = wal.LSN(c.serverLSN.Load())
	s.Received = wal.LSN(c.received.Load())
	s.Confirmed = c.confirmed()
	if v := c.lastReceived.Load(); v != 0 {
		s.LastReceived = time.UnixMicro(v)
	}
	if v := c.lastCommit.Load(); v != 0 {
		s.LastCommit = time.UnixMicro(v)
	}
	return s
}

// Attach connects once, makes all checks, creates what is missing and allowed,
// and disconnects. It fails where Run would wait: a slot in use and an unreachable
// server are errors. Call it before Run to fail early, with one clear error.
func (c *Client) Attach(ctx context.Context) (*Session, error) {
	conn, session, err := c.open(ctx, false)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.target.classify(err)
	}
	closeConn(conn)
	return session, nil
}

// Run streams into out until the context ends (nil) or something happens that
// only a person can help with (an *Error of class Fatal); all else it tries again
// for ever. When the context ends it stops reading, gives what was passed on a
// moment to be confirmed, and says good-bye to the server; it takes 4 s at most.
// The consumer should go on until Run has returned. Run does not close out. It is
// called once.
func (c *Client) Run(ctx context.Context, out chan<- *Chunk) error {
	var polling sync.WaitGroup
	defer polling.Wait()
	pollCtx, stopPolling := context.WithCancel(ctx)
	defer stopPolling()
	polling.Go(func() { c.poll(pollCtx) })

	schedule := backoff.Schedule{Initial: 250 * time.Millisecond, Max: 30 * time.Second, Factor: 2, Jitter: 0.5}
	failures := 0
	for {
		c.phase(Connecting, "")
		began := time.Now()
		err := c.session(ctx, out)
		if ctx.Err() != nil {
			c.phase(Stopped, "")
			return nil
		}
		e := c.target.classify(err)
		if e.Class == Fatal {
			c.failed(e)
			c.phase(Failed, e.Text)
			return e
		}
		c.phase(Connecting, e.Text) // before it is counted: whoever sees the count sees no old phase
		c.failed(e)
		failures++
		if time.Since(began) > 15*time.Second {
			failures = 1
		}
		delay := schedule.Delay(failures+1, rand.Uint64())
		if e.Class == Wait {
			// The holder may have connected between the check and START_REPLICATION.
			delay = time.Second
		}
		c.log.Warn("replication connection", "err", e.Text, "reason", string(e.Reason), "retry_in", delay.Round(time.Millisecond))
		c.phase(Connecting, "next try "+time.Now().Add(delay).Format(time.TimeOnly)+" after: "+e.Text)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
}

// session is one connection, from dialing to its end, which halt may bring about.
func (c *Client) session(ctx context.Context, out chan<- *Chunk) (err error) {
	outer := ctx
	ctx, end := context.WithCancelCause(ctx)
	c.mu.Lock()
	c.endSession = end
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.endSession = nil
		c.mu.Unlock()
		if outer.Err() == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		end(nil)
	}()
	conn, session, err := c.open(ctx, true)
	if err != nil {
		return err
	}
	if err := conn.PgConn().SyncConn(ctx); err != nil {
		closeConn(conn)
		return err
	}
	hijacked, err := conn.PgConn().Hijack()
	if err != nil {
		closeConn(conn)
		return err
	}
	defer hijacked.Conn.Close()

	timeout := session.senderTimeout
	s := &stream{
		client: c, session: session, conn: hijacked.Conn,
		interval: maxStatusInterval, silence: c.silence,
	}
	if timeout > 0 {
		s.interval = min(timeout/3, maxStatusInterval)
	}
	if s.silence == 0 {
		s.silence = max(2*timeout, time.Minute)
	}
	if !c.options.PlainReads {
		s.gatherer = newGatherer(hijacked.Conn)
	}
	return s.run(ctx, out)
}

// doubleSilence gives the next connection more time, until a transaction has come
// over one: a server that is busy inside a huge one may be silent for long.
func (c *Client) doubleSilence() {
	if c.silence == 0 {
		c.silence = time.Minute
	}
	c.silence = min(2*c.silence, time.Hour)
}

// streaming notes that the server has begun to send.
func (c *Client) streaming(s *Session) {
	c.phase(Streaming, "")
	c.log.Info("streaming", "slot", s.Slot, "lsn", s.Start.String(), "server", s.ServerVersion, "session", s.Number)
}

// progress notes what the stream has just seen.
func (c *Client) progress(s *stream) {
	m := c.metrics
	now := s.lastRead
	c.lastReceived.Store(now.UnixMicro())
	m.lastReceived.Set(seconds(now))
	if s.commitTime != 0 {
		t := time.UnixMicro(s.commitTime + postgresEpoch)
		c.lastCommit.Store(t.UnixMicro())
		m.lastCommit.Set(seconds(t))
	}
	if s.sendTime != 0 {
		m.clockSkew.Set(seconds(time.UnixMicro(s.sendTime+postgresEpoch)) - seconds(now))
	}
	received := max(s.lastEnd, s.walEnd)
	c.received.Store(max(c.received.Load(), uint64(received)))
	m.receivedLSN.Set(float64(received))
	c.server(received)
}

// server notes the server's WAL position.
func (c *Client) server(lsn wal.LSN) {
	for {
		old := c.serverLSN.Load()
		if old >= uint64(lsn) {
			break
		}
		if c.serverLSN.CompareAndSwap(old, uint64(lsn)) {
			break
		}
	}
	current := c.serverLSN.Load()
	c.metrics.serverLSN.Set(float64(current))
	if confirmed := c.durable.Load(); confirmed != 0 && confirmed < current {
		c.metrics.lag.Set(float64(current - confirmed))
	} else {
		c.metrics.lag.Set(0)
	}
}

func (c *Client) phase(p Phase, detail string) {
	c.mu.Lock()
	if c.state.Phase != p {
		c.state.Phase, c.state.Since = p, time.Now()
	}
	c.state.Detail = detail
	c.mu.Unlock()
	c.metrics.setPhase(p)
}

func (c *Client) failed(e *Error) {
	c.mu.Lock()
	c.state.Err, c.state.ErrTime = e, time.Now()
	c.state.Reconnects++
	c.mu.Unlock()
	c.metrics.reconnects.WithLabelValues(string(e.Reason)).Inc()
}

// closeConn closes a connection without waiting long.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
