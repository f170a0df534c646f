package replication

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/wal"
)

// A connection that is up may still bring nothing, or not all. What shows that is
// looked at from beside it, over a plain connection, every PollInterval:
//
//	publication   dropped or made again: the server's error at the next change, and
//	              from Postgres 18 on not even that. Ends Run. Altered so that it
//	              sends less: no server tells. A Fault, since a stop would bring
//	              nothing back.
//	partitions    attached or detached: Postgres 14 goes on with what it knew when
//	              it first met the table, so the connection is made anew.
//	slot          running out of the WAL that the server may keep for it. A Fault.
//	position      the server's, to hold the stream's own against: stream.stalled.

// Fault names something that keeps changes from coming, or soon will, while the
// connection is up. It labels a metric.
type Fault string

// The faults.
const (
	FaultPublication Fault = "publication" // it sends less than it did at first
	FaultSlot        Fault = "slot"        // the server will soon give it up
	FaultStalled     Fault = "stalled"     // the server's position moves on, what it sends does not
)

func faults() []Fault { return []Fault{FaultPublication, FaultSlot, FaultStalled} }

// setFault notes a fault, or with no text its end, and tells of the change.
func (c *Client) setFault(f Fault, text string) {
	c.mu.Lock()
	old := c.faults[f]
	if text == "" {
		delete(c.faults, f)
	} else {
		c.faults[f] = text
	}
	c.mu.Unlock()
	c.metrics.faults.WithLabelValues(string(f)).Set(oneIf(text != ""))
	switch {
	case text == old:
	case text == "":
		c.log.Info("fault has ended", "fault", string(f), "was", old)
	default:
		c.log.Error("changes are missing, or soon will be", "fault", string(f), "err", text)
	}
}

// halt ends Run with an error that a look from beside has found.
func (c *Client) halt(e *Error) {
	c.mu.Lock()
	end := c.endSession
	c.mu.Unlock()
	if end != nil {
		end(e)
	}
}

// poll looks at the slot and the publication from time to time, over a connection
// of its own.
func (c *Client) poll(ctx context.Context) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			closeConn(conn)
		}
	}()
	failing := false
	ticker := time.NewTicker(c.options.PollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			if conn == nil {
				var err error
				if conn, err = c.connect(ctx, false); err != nil {
					return err
				}
			}
			err := c.look(ctx, conn)
			if err != nil {
				closeConn(conn)
				conn = nil
			}
			return err
		}()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.metrics.slotPollFailures.Inc()
			if !failing {
				c.log.Warn("look at slot and publication", "err", c.target.classify(err).Text)
			}
		}
		failing = err != nil
	}
}

// look reads the slot and the publication once.
func (c *Client) look(ctx context.Context, conn *pgx.Conn) error {
	slot, found, err := catalog.ReadSlot(ctx, conn, c.options.Slot)
	if err != nil {
		return err
	}
	now := time.Now()
	c.metrics.setSlot(slot, found, now)
	c.server(slot.Current)
	c.mu.Lock()
	c.state.Slot, c.state.SlotPolled = slot, now
	first, want, session, streaming := c.first, c.want, c.state.Session, c.state.Phase == Streaming
	c.mu.Unlock()
	c.setFault(FaultSlot, endangered(slot))
	if first == nil {
		return nil // not attached yet
	}
	p, found, err := catalog.ReadPublication(ctx, conn, c.options.Publication)
	switch {
	case err != nil:
		return err
	case !found:
		c.halt(fatal(ReasonPublicationMissing, "publication %q was dropped; what was changed since cannot be sent to slot %q any more: make the publication again, then `billhook reconcile` finds what was missed and makes a new slot", c.options.Publication, c.options.Slot))
	case want.PublicationOID != 0 && p.OID != want.PublicationOID:
		c.halt(c.target.publicationRemade())
	default:
		lacks := narrowed(*first, p, c.options.Tables)
		text := ""
		if len(lacks) > 0 {
			text = fmt.Sprintf("publication %q was altered and %s; what is changed meanwhile makes no events, then or later: put it back as it was, then `billhook reconcile --apply` finds what was missed", p.Name, strings.Join(lacks, ", "))
		}
		c.setFault(FaultPublication, text)
		if err := c.looked(slot.Current, p, lacks); err != nil {
			return err
		}
	}
	if !streaming || len(session.leaves) == 0 || session.ServerVersion >= 150000 {
		return nil // or the next connection has the partitions as they are
	}
	tables, _, err := catalog.ReadTables(ctx, conn, names(c.options.Tables))
	if err != nil {
		return err
	}
	if !slices.Equal(leaves(tables), session.leaves) {
		c.halt(transient(ReasonPartitions, "partitions of mapped tables were attached or detached, which Postgres before 15 does not notice while it streams: what was written to attached ones a moment ago may be missing; the connection is made anew"))
	}
	return nil
}

// leaves are the partitions of tables, sorted.
func leaves(tables []catalog.Table) []uint32 {
	var l []uint32
	for _, t := range tables {
		for _, leaf := range t.Leaves {
			l = append(l, leaf.OID)
		}
	}
	slices.Sort(l)
	return l
}

// endangered says that a slot has used up most of the WAL that the server may keep
// for it, "" when it has not.
func endangered(s catalog.Slot) string {
	if s.Name == "" || s.Lost() || math.IsInf(s.SafeBytes, 1) {
		return ""
	}
	safe := max(s.SafeBytes, 0)
	if s.WALStatus != "unreserved" && safe >= (safe+float64(s.RetainedBytes))/5 {
		return ""
	}
	return fmt.Sprintf("slot %q is lost after %.0f MB more of WAL (wal_status %s): raise max_slot_wal_keep_size", s.Name, safe/1e6, s.WALStatus)
}

// narrowed lists what a publication sent at first, of the mapped tables, and no
// longer does.
func narrowed(first, now catalog.Publication, mapped []Table) []string {
	var l []string
	for _, o := range []struct {
		what     string
		was, has bool
	}{{"insert", first.Insert, now.Insert}, {"update", first.Update, now.Update}, {"delete", first.Delete, now.Delete}, {"truncate", first.Truncate, now.Truncate}} {
		if o.was && !o.has {
			l = append(l, "no longer sends "+o.what)
		}
	}
	if first.ViaRoot && !now.ViaRoot {
		l = append(l, "sends partitions under their own names")
	}
	for _, n := range names(mapped) {
		was, ok := first.Table(n)
		if !ok {
			continue
		}
		has, ok := now.Table(n)
		if !ok {
			l = append(l, "no longer holds table "+n.String())
			continue
		}
		if has.RowFilter != was.RowFilter && has.RowFilter != "" {
			l = append(l, fmt.Sprintf("filters rows of %s by %s", n, has.RowFilter))
		}
		var lost []string
		for _, column := range was.Columns {
			// Without a list, a column that is not sent is not there any more.
			if has.Listed && !slices.Contains(has.Columns, column) {
				lost = append(lost, column)
			}
		}
		if len(lost) > 0 {
			l = append(l, fmt.Sprintf("no longer sends %s of %s", strings.Join(lost, ", "), n))
		}
	}
	return l
}

// Look is what a look at the publication has found.
type Look struct {
	// LSN is the server's position just before: what was changed up to there was sent as
	// the publication was at the look before. 0: it is not known.
	LSN         wal.LSN
	Publication catalog.Publication
	// Lacks says what of the mapped tables' changes the publication does not send, or
	// did not for a while since the look before.
	Lacks []string
}

// looked tells of a look, with what the publication lacks of what it sent at first.
func (c *Client) looked(lsn wal.LSN, p catalog.Publication, lacks []string) error {
	if c.options.Looked == nil {
		return nil
	}
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	l := Look{LSN: lsn, Publication: p, Lacks: slices.Clone(lacks)}
	if last != nil {
		for _, lack := range slices.Concat(narrowed(*last, p, c.options.Tables), reset(*last, p, c.options.Tables)) {
			if !slices.Contains(l.Lacks, lack) {
				l.Lacks = append(l.Lacks, lack)
			}
		}
	}
	if err := c.options.Looked(l); err != nil {
		return fmt.Errorf("keep what publication %q sends: %w", p.Name, err)
	}
	c.mu.Lock()
	c.last = &p
	c.mu.Unlock()
	return nil
}

// reset lists what was altered between two looks and is now as it was.
func reset(was, now catalog.Publication, mapped []Table) []string {
	var l []string
	same := was.Insert == now.Insert && was.Update == now.Update && was.Delete == now.Delete && was.Truncate == now.Truncate &&
		was.ViaRoot == now.ViaRoot && was.Owner == now.Owner
	if same && was.Version != 0 && was.Version != now.Version {
		l = append(l, "was altered and put back")
	}
	for _, n := range names(mapped) {
		a, ok := was.Table(n)
		b, okNow := now.Table(n)
		// One that is listed anew in one go, with more columns, was never out.
		if ok && okNow && a.Entry != 0 && b.Entry != 0 && a.Entry != b.Entry && slices.Equal(a.Columns, b.Columns) && a.RowFilter == b.RowFilter {
			l = append(l, "did not hold table "+n.String()+" for a while")
		}
	}
	return l
}

// stalled gives up a connection over which nothing moves although the server's
// position, as the look from beside told it, has. The server may be held back by
// something that a new connection meets again; then the fault stays, and the time
// allowed doubles.
func (s *stream) stalled(now time.Time) error {
	server := wal.LSN(s.client.serverLSN.Load())
	if s.position() >= server {
		s.goal = 0
		return nil
	}
	if s.goal == 0 || s.position() >= s.goal {
		s.goal, s.movedAt = server, now
		return nil
	}
	still := now.Sub(s.movedAt)
	if still <= s.silence {
		return nil
	}
	s.client.doubleSilence()
	s.client.stalledAt = s.position()
	text := fmt.Sprintf("Postgres at %s has written WAL up to %s, but has sent nothing after %s for %s", s.client.target.address, server, s.position(), still.Round(time.Second))
	s.client.setFault(FaultStalled, text+"; look at what its walsender waits for: pg_stat_activity, synchronized_standby_slots")
	return transient(ReasonStalled, "%s; the connection is given up", text)
}

// moved notes that something came which was not there before.
func (s *stream) moved() {
	s.movedAt = s.lastRead
	s.goal = 0
}

// position is how far this connection has come.
func (s *stream) position() wal.LSN { return max(s.lastEnd, s.walEnd) }

// recovered ends what silence and stalling have left behind, once they are over.
func (s *stream) recovered() {
	c := s.client
	if s.lastEnd != 0 {
		c.silence = c.options.silence
	}
	if c.stalledAt != 0 && (s.lastEnd != 0 || s.walEnd > c.stalledAt) {
		c.stalledAt = 0
		c.setFault(FaultStalled, "")
	}
}
