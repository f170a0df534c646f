package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/billhook/billhook/internal/wal"
)

// maxStatusInterval is the longest time between two status updates, and
// confirmInterval how soon one follows a new durable position.
const (
	maxStatusInterval = 10 * time.Second
	confirmInterval   = time.Second
	writeTimeout      = 10 * time.Second
	stopTimeout       = 2 * time.Second
)

// longestMessage is more than Postgres can send: 1 GB of row twice over does not
// fit its own buffers.
const longestMessage = 1<<30 + 1<<20

// stream is one replication connection from START_REPLICATION to its end. All of
// it belongs to the goroutine that calls run.
type stream struct {
	client   *Client
	session  *Session
	conn     net.Conn
	gatherer *gatherer // nil when this connection cannot
	interval time.Duration
	silence  time.Duration // without a byte for that long the connection is given up

	buf  *buffer // being filled
	used int     // bytes in it
	seen int     // bytes of it that are whole messages, scanned

	started    bool // the server has switched to COPY
	replyAsked bool
	dry        bool // the last read left nothing behind

	lastRead   time.Time
	lastStatus time.Time
	sent       wal.LSN // durable position of the last status
	commitTime int64   // of the last BEGIN or COMMIT seen, Postgres microseconds
	sendTime   int64   // of the last frame seen
	lastEnd    wal.LSN // end of the last whole transaction seen
	walEnd     wal.LSN // of the last keepalive seen
	passedEnd  wal.LSN // lastEnd, of what the consumer has taken
	movedAt    time.Time
	goal       wal.LSN // the server's position when it was first seen ahead since movedAt; 0: it is not
	status     []byte
	unhook     func() // ends the context's hold on the read deadline
}

// run starts replication and passes chunks on until the context ends (nil) or
// the connection does (an error to be classified).
func (s *stream) run(ctx context.Context, out chan<- *Chunk) error {
	// A read in progress is interrupted by a deadline in the past. The loop sets
	// its own deadline first and looks at the context after, so that one of the two
	// is always seen.
	hooked := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(hooked)
		_ = s.conn.SetReadDeadline(time.Unix(1, 0))
	})
	s.unhook = func() {
		if !unhook() {
			<-hooked
		}
	}
	defer unhook()

	buf, err := s.nextBuffer(ctx)
	if err != nil {
		return err
	}
	s.buf = buf
	defer func() {
		if s.buf != nil {
			s.buf.release()
		}
	}()

	if err := s.begin(); err != nil {
		return err
	}
	s.lastRead, s.lastStatus = time.Now(), time.Now()
	for {
		n, err := s.read(ctx)
		if ctx.Err() != nil {
			return s.finish()
		}
		if err != nil {
			return err
		}
		if n > 0 {
			if err := s.scan(); err != nil {
				return err
			}
			if s.replyAsked {
				s.replyAsked = false
				if err := s.sendStatus(false); err != nil {
					return err
				}
			}
			s.adapt()
			if err := s.pass(ctx, out); err != nil {
				if ctx.Err() != nil {
					return s.finish()
				}
				return err
			}
		}
		if err := s.tick(); err != nil {
			return err
		}
	}
}

// begin sends START_REPLICATION; the answer is met in scan.
func (s *stream) begin() error {
	options := []string{"proto_version '1'", "publication_names " + literal(quoteIdentifier(s.session.Publication))}
	if s.session.ServerVersion >= 140000 {
		options = append(options, "messages 'true'")
	}
	q := pgproto3.Query{String: fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL %s (%s)",
		quoteIdentifier(s.session.Slot), s.session.Start, strings.Join(options, ", "))}
	b, err := q.Encode(nil)
	if err != nil {
		return err
	}
	return s.write(b)
}

// read reads into the buffer and waits no longer than until something else is
// due. At a deadline it returns 0 and no error. While gathering it pauses first,
// and then takes all there is, in as many calls as there are full buffers.
func (s *stream) read(ctx context.Context) (int, error) {
	gathering := s.gatherer != nil && s.gatherer.on
	deadline := s.due()
	if gathering && s.dry {
		s.gatherer.rest()
		if s.gatherer.queued() == 0 {
			s.gatherer.end()
			gathering = false
		} else {
			// Below TLS the rest of a record may yet have to come.
			deadline = time.Now().Add(gatherMax)
		}
	}
	if err := s.conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, nil
	}
	n, err := s.conn.Read(s.buf.b[s.used:])
	s.used += n
	s.dry = true
	if gathering && n > 0 {
		for err == nil && s.gatherer.more() {
			if s.used == len(s.buf.b) {
				s.dry = false
				break
			}
			var m int
			m, err = s.conn.Read(s.buf.b[s.used:])
			s.used += m
			n += m
		}
		s.gatherer.cycle += n
	}
	if n > 0 {
		s.lastRead = time.Now()
		s.client.metrics.receivedBytes.Add(float64(n))
		return n, nil // an error comes again with the next read
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if gathering {
			s.gatherer.end()
		}
		return 0, nil
	}
	return 0, err
}

// due returns when the loop must stop waiting for bytes.
func (s *stream) due() time.Time {
	d := s.lastStatus.Add(s.interval)
	if s.client.confirmed() != s.sent || s.lastEnd > s.sent || s.walEnd > s.sent {
		// The consumer may confirm at any moment now.
		if soon := s.lastStatus.Add(confirmInterval); soon.Before(d) {
			d = soon
		}
		if floor := time.Now().Add(confirmInterval / 4); d.Before(floor) {
			d = floor
		}
	}
	return d
}

// tick sends a status update when one is due, and gives a silent connection up.
func (s *stream) tick() error {
	now := time.Now()
	silent := now.Sub(s.lastRead)
	if silent > s.silence {
		s.client.doubleSilence()
		return transient(ReasonSilence, "Postgres at %s has not answered for %s; the connection is given up", s.client.target.address, silent.Round(time.Second))
	}
	if err := s.stalled(now); err != nil {
		return err
	}
	since := now.Sub(s.lastStatus)
	if since >= s.interval || since >= confirmInterval && s.client.confirmed() != s.sent {
		// An answer shows that the server is there, and where it is.
		return s.sendStatus(silent >= s.interval || s.goal != 0)
	}
	return nil
}

func (s *stream) sendStatus(wantReply bool) error {
	durable := s.client.confirmed()
	now := time.Now()
	s.status = appendStatus(s.status[:0], durable, now, wantReply)
	if err := s.write(s.status); err != nil {
		return err
	}
	s.lastStatus, s.sent = now, durable
	s.client.metrics.statusUpdates.Inc()
	s.client.metrics.confirmedLSN.Set(float64(durable))
	return nil
}

func (s *stream) write(b []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := s.conn.Write(b)
	return err
}

// scan walks over the new whole messages: it acts on all that are not CopyData,
// and looks into those as far as it needs for itself.
func (s *stream) scan() error {
	b := s.buf.b[:s.used]
	at, came := s.seen, false
	for len(b)-at >= 5 {
		size := 1 + int(binary.BigEndian.Uint32(b[at+1:]))
		if size < 5 || size > longestMessage {
			return transient(ReasonProtocol, "Postgres at %s sent a message %q that claims %d bytes", s.client.target.address, b[at], size)
		}
		if len(b)-at < size {
			if at+size > len(b) && size > len(s.buf.b) && at == 0 {
				s.buf.grow(size, s.used)
			}
			break
		}
		m := b[at+5 : at+size]
		at += size
		if b[at-size] != 'd' {
			if err := s.other(b[at-size], m); err != nil {
				return err
			}
			continue
		}
		if len(m) < 18 {
			return transient(ReasonProtocol, "Postgres at %s sent a replication frame of %d bytes", s.client.target.address, len(m))
		}
		switch m[0] {
		case 'w':
			came = true
			if len(m) > 25 {
				s.sendTime = int64(binary.BigEndian.Uint64(m[17:]))
				switch {
				case m[25] == 'C' && len(m) == 25+26:
					s.lastEnd = wal.LSN(binary.BigEndian.Uint64(m[25+10:]))
					s.commitTime = int64(binary.BigEndian.Uint64(m[25+18:]))
				case m[25] == 'B' && len(m) == 25+21:
					s.commitTime = int64(binary.BigEndian.Uint64(m[25+9:]))
				}
			}
		case 'k':
			if end := wal.LSN(binary.BigEndian.Uint64(m[1:])); end != s.walEnd {
				s.walEnd = end
				came = true
			}
			s.sendTime = int64(binary.BigEndian.Uint64(m[9:]))
			s.replyAsked = s.replyAsked || m[17] == 1
		}
	}
	s.seen = at
	if came {
		s.moved()
	}
	s.client.progress(s)
	s.recovered()
	return nil
}

// other acts on a message that is not CopyData.
func (s *stream) other(kind byte, m []byte) error {
	address := s.client.target.address
	switch kind {
	case 'E':
		var e pgproto3.ErrorResponse
		if err := e.Decode(m); err != nil {
			return transient(ReasonProtocol, "Postgres at %s sent an error that cannot be read: %v", address, err)
		}
		return pgconn.ErrorResponseToPgError(&e)
	case 'N':
		var n pgproto3.NoticeResponse
		if err := n.Decode(m); err != nil {
			return transient(ReasonProtocol, "Postgres at %s sent a notice that cannot be read: %v", address, err)
		}
		return s.client.notice((*pgproto3.ErrorResponse)(&n))
	case 'W': // CopyBothResponse
		s.started = true
		s.client.streaming(s.session)
		return nil
	case 'S', 'A': // a setting was reloaded; LISTEN does not concern us
		return nil
	case 'c', 'C', 'Z', 'H', 'I':
		return transient(ReasonServerStopped, "Postgres at %s ended the stream", address)
	}
	return transient(ReasonProtocol, "Postgres at %s sent an unknown message %q", address, kind)
}

// notice finds among the server's notices the one that matters: Postgres 18
// warns, where older ones fail, that it skips the changes of a publication that
// did not exist at their position.
func (c *Client) notice(n *pgproto3.ErrorResponse) error {
	warning := n.SeverityUnlocalized == "WARNING" || n.SeverityUnlocalized == "" && n.Severity == "WARNING"
	if warning && (n.Routine == "LoadPublications" || strings.Contains(n.Message, "skipped loading publication")) {
		e := c.target.publicationUnseen()
		e.Err = pgconn.ErrorResponseToPgError(n)
		return e
	}
	c.log.Debug("notice from the server", "severity", n.Severity, "text", n.Message, "sqlstate", n.Code)
	return nil
}

// adapt decides after a read how the next one waits.
func (s *stream) adapt() {
	if s.gatherer == nil || s.commitTime == 0 {
		return
	}
	switch lag := time.Duration(s.sendTime-s.commitTime) * time.Microsecond; {
	case lag >= gatherBegin:
		s.gatherer.begin()
	case lag < gatherEnd:
		s.gatherer.end()
	}
}

// pass hands the whole messages on and goes on with a buffer that holds the rest.
func (s *stream) pass(ctx context.Context, out chan<- *Chunk) error {
	if s.seen == 0 {
		if s.used == len(s.buf.b) {
			return fmt.Errorf("buffer of %d bytes is full without a whole message", s.used) // cannot be: scan grows it
		}
		return nil
	}
	next, err := s.nextBuffer(ctx)
	if err != nil {
		return err
	}
	rest := copyRest(next, s.buf.b[s.seen:s.used])
	chunk := &Chunk{session: s.session, buf: s.buf, data: s.buf.b[:s.seen], size: s.seen}
	s.buf, s.used, s.seen = next, rest, 0
	if s.used >= 5 {
		// The rest may be the beginning of a message that is longer than the buffer.
		if err := s.scan(); err != nil {
			chunk.Release()
			return err
		}
	}

	select {
	case out <- chunk:
	default:
		if err := s.waitWhile(ctx, func(timer <-chan time.Time) bool {
			select {
			case out <- chunk:
				return true
			case <-timer:
			case <-ctx.Done():
			}
			return false
		}); err != nil {
			chunk.Release()
			return err
		}
	}
	s.passedEnd = s.lastEnd
	s.client.metrics.chunks.Inc()
	return nil
}

func copyRest(b *buffer, rest []byte) int {
	if len(rest) > len(b.b) {
		b.grow(len(rest), 0)
	}
	return copy(b.b, rest)
}

// nextBuffer takes a buffer from the pool, and waits for one while all are out.
func (s *stream) nextBuffer(ctx context.Context) (*buffer, error) {
	p := s.client.pool
	var b *buffer
	select {
	case b = <-p.free:
	default:
		err := s.waitWhile(ctx, func(timer <-chan time.Time) bool {
			select {
			case b = <-p.free:
				return true
			case <-timer:
			case <-ctx.Done():
			}
			return false
		})
		if err != nil {
			return nil, err
		}
	}
	return p.ready(b), nil
}

// waitWhile calls try until it succeeds and sends status updates meanwhile, so
// that a consumer that takes its time costs no connection. Nothing is read, so
// silence counts from its end.
func (s *stream) waitWhile(ctx context.Context, try func(timer <-chan time.Time) bool) error {
	timer := time.NewTimer(confirmInterval)
	defer timer.Stop()
	defer func() { s.lastRead = time.Now(); s.moved() }()
	for !try(timer.C) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.lastRead = time.Now()
		s.moved()
		if s.started {
			if err := s.tick(); err != nil {
				return err
			}
		}
		timer.Reset(confirmInterval)
	}
	return nil
}

// finish ends the stream in order: what was passed on gets a moment to become
// durable, then the last position is told and COPY is closed. It always returns
// nil, since the caller wanted the end.
func (s *stream) finish() error {
	s.unhook()
	end := time.Now().Add(s.client.options.stopTimeout)
	timer := time.NewTimer(s.client.options.stopTimeout)
	defer timer.Stop()
wait:
	for s.client.confirmed() < s.passedEnd {
		select {
		case <-s.client.moved:
		case <-timer.C:
			break wait
		}
	}
	if !s.started || s.sendStatus(false) != nil || s.write([]byte{'c', 0, 0, 0, 4}) != nil {
		return nil
	}
	// The server sends what it had begun, then its own CopyDone and ReadyForQuery.
	if end = end.Add(stopTimeout); s.conn.SetReadDeadline(end) != nil {
		return nil
	}
	if s.gatherer != nil {
		s.gatherer.end()
	}
	s.drain()
	_ = s.write([]byte{'X', 0, 0, 0, 4})
	return nil
}

// drain reads messages away until ReadyForQuery, an error or the deadline.
func (s *stream) drain() {
	b := s.buf.b
	if s.seen > 0 { // what a blocked consumer never took
		s.used = copy(b, b[s.seen:s.used])
		s.seen = 0
	}
	skip := 0 // bytes of a long message still to come
	for {
		for s.used-s.seen >= 5 && skip == 0 {
			if b[s.seen] == 'Z' || b[s.seen] == 'E' {
				return
			}
			skip = 1 + int(binary.BigEndian.Uint32(b[s.seen+1:]))
			n := min(skip, s.used-s.seen)
			s.seen += n
			skip -= n
		}
		s.used = copy(b, b[s.seen:s.used])
		s.seen = 0
		n, err := s.conn.Read(b[s.used:])
		if err != nil {
			return
		}
		if skip > 0 {
			k := min(skip, n)
			skip -= k
			copy(b, b[k:n])
			n -= k
		}
		s.used += n
	}
}

// quoteIdentifier quotes a name for SQL and for the replication grammar alike.
func quoteIdentifier(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// literal quotes a string for the replication grammar.
func literal(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }
