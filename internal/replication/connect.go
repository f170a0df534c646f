package replication

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/wal"
)

const (
	connectTimeout = 15 * time.Second
	checkTimeout   = 30 * time.Second
	standbyPoll    = time.Second
)

// settings are sent with the connection, so that the text of values does not
// hang on what somebody has set for the role or the database, and no timeout ends
// a slot's creation.
func settings() map[string]string {
	s := catalog.Settings()
	maps.Copy(s, map[string]string{
		"client_min_messages": "warning", // Postgres 18 tells of a skipped publication by a warning
		"statement_timeout":   "0",
		"lock_timeout":        "0",
		"jit":                 "off", // it takes a second over a question to the catalogs

		"idle_in_transaction_session_timeout": "0",
	})
	return s
}

// connect opens a connection for replication commands, or a plain one.
func (c *Client) connect(ctx context.Context, replication bool) (*pgx.Conn, error) {
	config := c.config.Copy()
	for k, v := range settings() {
		config.RuntimeParams[k] = v
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "billhook"
	}
	// A replication connection knows the simple protocol only.
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	dialer := &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 10 * time.Second, Count: 6},
	}
	if replication {
		config.RuntimeParams["replication"] = "database"
	} else {
		config.RuntimeParams["statement_timeout"] = "10000"
	}
	config.DialFunc = dialer.DialContext
	config.OnNotice = nil
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	return pgx.ConnectConfig(ctx, config)
}

// open connects and checks. With wait it stands by while the slot is in use, else
// that is an error. The connection it returns is ready for START_REPLICATION.
func (c *Client) open(ctx context.Context, wait bool) (_ *pgx.Conn, _ *Session, err error) {
	conn, err := c.connect(ctx, true)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			closeConn(conn)
		}
	}()
	c.mu.Lock()
	want := c.want
	c.mu.Unlock()

	session, server, err := c.identify(ctx, conn, want)
	if err != nil {
		return nil, nil, err
	}
	slot, err := c.free(ctx, conn, server, want, wait)
	if err != nil {
		return nil, nil, err
	}
	if c.State().Phase == Standby {
		// Whoever had the slot may have been at work for days.
		c.phase(Connecting, "")
		if session, server, err = c.identify(ctx, conn, want); err != nil {
			return nil, nil, err
		}
	}
	publication, err := c.preparePublication(ctx, conn, session, server, want)
	if err != nil {
		return nil, nil, err
	}
	if slot, err = c.prepareSlot(ctx, conn, session, server, want); err != nil {
		return nil, nil, err
	}
	if slot.Active { // taken a moment ago
		return nil, nil, c.busy(slot)
	}

	c.mu.Lock()
	first := c.first == nil
	c.mu.Unlock()
	if first {
		if err := c.looked(server.Current, publication, nil); err != nil {
			return nil, nil, err
		}
	}

	session.Start = max(slot.ConfirmedFlush, c.confirmed())
	c.mu.Lock()
	c.sessions++
	session.Number = c.sessions
	c.want = Position{
		SystemID: session.SystemID, Timeline: session.Timeline, Slot: session.Slot,
		Publication: session.Publication, PublicationOID: session.PublicationOID, LSN: session.Start,
	}
	if c.first == nil {
		c.first = &publication
	}
	c.state.Session = session
	c.state.Slot, c.state.SlotPolled = slot, time.Now()
	c.mu.Unlock()
	c.metrics.setSlot(slot, true, time.Now())
	c.serverLSN.Store(uint64(slot.Current)) // after a fail-over it may be lower than before
	c.server(slot.Current)
	// What the slot has confirmed needs no confirming by us, but it is where we are.
	c.Confirm(session.Start)
	return conn, session, nil
}

// free looks at the slot, if it is there. While somebody else uses it, it stands
// by, or returns that as an error: nothing is altered under another's hands.
func (c *Client) free(ctx context.Context, conn *pgx.Conn, server catalog.Server, want Position, wait bool) (catalog.Slot, error) {
	for {
		slot, found, err := catalog.ReadSlot(ctx, conn, c.options.Slot)
		if err != nil || !found || !slot.Active {
			return slot, err // the rest is for prepareSlot to judge
		}
		if slot, err = c.checkSlot(ctx, conn, server, want); err != nil {
			return slot, err
		}
		busy := c.busy(slot)
		switch {
		case !slot.Active:
			return slot, nil
		case !wait:
			return slot, busy
		}
		if c.State().Phase != Standby {
			c.failed(busy)
			c.log.Warn("standing by", "err", busy.Text)
		}
		c.phase(Standby, busy.Text)
		select {
		case <-time.After(standbyPoll):
		case <-ctx.Done():
			return slot, ctx.Err()
		}
	}
}

func (c *Client) busy(slot catalog.Slot) *Error {
	return &Error{Class: Wait, Reason: ReasonSlotActive, Text: fmt.Sprintf("replication slot %q is in use by %s; only one Billhook can follow it", c.options.Slot, slot.Holder)}
}

// identify makes sure that this is the server that was followed before, and one
// that can be followed.
func (c *Client) identify(ctx context.Context, conn *pgx.Conn, want Position) (*Session, catalog.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	system, err := pglogrepl.IdentifySystem(ctx, conn.PgConn())
	if err != nil {
		return nil, catalog.Server{}, err
	}
	server, err := catalog.ReadServer(ctx, conn)
	if err != nil {
		return nil, server, err
	}
	switch {
	case server.VersionNum < 140000:
		return nil, server, fatal(ReasonServerUnfit, "the server is Postgres %s; 14 or later is needed", server.Version)
	case server.WALLevel != "logical":
		return nil, server, walLevel("wal_level is " + strconv.Quote(server.WALLevel))
	case server.InRecovery && server.VersionNum < 160000:
		return nil, server, fatal(ReasonServerUnfit, "the server at %s is a standby, which Postgres %s cannot decode from; let source.dsn name the primary", c.target.address, server.Version)
	}
	timeline := uint32(system.Timeline)
	for _, d := range []struct{ what, had, has string }{
		{"slot", want.Slot, c.options.Slot},
		{"publication", want.Publication, c.options.Publication},
	} {
		if d.had != "" && d.had != d.has {
			return nil, server, fatal(ReasonIdentityChanged, "the journal was filled from %s %q, but source.%s is %q; put the name back, or start with a new journal", d.what, d.had, d.what, d.has)
		}
	}
	if want.SystemID != "" && want.SystemID != system.SystemID {
		return nil, server, fatal(ReasonIdentityChanged, "the server at %s is another database cluster (system identifier %s) than the journal was filled from (%s); correct source.dsn; if this is the same database in a new cluster, `billhook reconcile` finds what was missed and can go on from here", c.target.address, system.SystemID, want.SystemID)
	}
	if want.Timeline != 0 && want.Timeline < timeline {
		if err := c.followed(ctx, conn, want, timeline); err != nil {
			return nil, server, err
		}
	}
	if want.Timeline > timeline {
		return nil, server, fatal(ReasonIdentityChanged, "the server at %s is on timeline %d, but the journal was filled on %d: there was a fail-over or a restore, and the same positions may mean other transactions; `billhook reconcile` finds what differs and can go on from here", c.target.address, timeline, want.Timeline)
	}
	if want.LSN > server.Current {
		return nil, server, fatal(ReasonAhead, "the journal is at %s, but the server at %s only at %s: the database was put back to an earlier state; `billhook reconcile` finds what differs and can go on from here", want.LSN, c.target.address, server.Current)
	}
	return &Session{
		SystemID: system.SystemID, Timeline: timeline, Database: server.Database, ServerVersion: server.VersionNum,
		Slot: c.options.Slot, Publication: c.options.Publication, PID: conn.PgConn().PID(),
		senderTimeout: server.SenderTimeout,
	}, server, nil
}

// followed makes sure that a newer timeline goes on from what the journal holds:
// that all of the journal was committed before the timelines parted. Then the same
// positions mean the same transactions, and a slot that was there before (a
// failover slot, or a copy of one) can go on. Otherwise the journal holds what the
// database has lost.
func (c *Client) followed(ctx context.Context, conn *pgx.Conn, want Position, timeline uint32) error {
	history, err := pglogrepl.TimelineHistory(ctx, conn.PgConn(), int32(timeline))
	if err != nil {
		return fmt.Errorf("read the history of timeline %d: %w", timeline, err)
	}
	parted, err := partedAt(string(history.Content), want.Timeline)
	if err != nil {
		return fmt.Errorf("read the history of timeline %d: %w", timeline, err)
	}
	if parted.IsZero() {
		return fatal(ReasonIdentityChanged, "the server at %s is on timeline %d, which does not come from timeline %d, that the journal was filled on: it is another copy of the database; `billhook reconcile` finds what was missed and goes on from here", c.target.address, timeline, want.Timeline)
	}
	if want.LSN > parted {
		return fatal(ReasonIdentityChanged, "the server at %s is on timeline %d, but the journal was filled on %d: there was a fail-over or a restore at %s, and the journal is at %s, so it holds events of transactions that the database has lost in between; `billhook reconcile` finds what was missed and goes on from here", c.target.address, timeline, want.Timeline, parted, want.LSN)
	}
	c.log.Info("the server is on a new timeline that goes on from what the journal holds", "timeline", timeline, "before", want.Timeline, "parted", parted.String(), "lsn", want.LSN.String())
	return nil
}

// partedAt returns where a timeline ended, by the history of a later one; zero if
// that does not come from it. A line of it has the timeline, its end and the reason.
func partedAt(history string, timeline uint32) (wal.LSN, error) {
	for line := range strings.Lines(history) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != strconv.FormatUint(uint64(timeline), 10) {
			continue
		}
		return wal.ParseLSN(f[1])
	}
	return 0, nil
}

// checkSlot reads the slot and makes sure that it can serve us.
func (c *Client) checkSlot(ctx context.Context, conn *pgx.Conn, server catalog.Server, want Position) (catalog.Slot, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	slot, found, err := catalog.ReadSlot(ctx, conn, c.options.Slot)
	switch {
	case err != nil:
		return slot, err
	case !found:
		return slot, c.target.slotMissing()
	case slot.Type != "logical" || slot.Plugin != "pgoutput":
		return slot, fatal(ReasonSlotUnfit, "replication slot %q is not one for pgoutput (%s %s); choose another name for source.slot", slot.Name, slot.Type, slot.Plugin)
	case slot.Database != server.Database:
		return slot, fatal(ReasonSlotUnfit, "replication slot %q belongs to database %q, but source.dsn leads to %q", slot.Name, slot.Database, server.Database)
	case slot.Temporary:
		return slot, fatal(ReasonSlotUnfit, "replication slot %q is a temporary one; choose another name for source.slot", slot.Name)
	case slot.Synced && server.InRecovery:
		return slot, fatal(ReasonSlotUnfit, "replication slot %q on this standby is a copy that is kept in step with the primary; let source.dsn name the primary", slot.Name)
	case slot.Lost():
		why := slot.InvalidationReason
		if why == "" {
			why = "it fell too far behind: max_slot_wal_keep_size"
		}
		return slot, fatal(ReasonSlotLost, "replication slot %q is lost, the server has removed WAL that it needs (%s); `billhook reconcile` finds what was missed and makes a new one", slot.Name, why)
	case slot.ConfirmedFlush.IsZero() && !slot.Active:
		return slot, fatal(ReasonSlotUnfit, "replication slot %q was never finished by whoever made it; drop it: SELECT pg_drop_replication_slot('%s')", slot.Name, slot.Name)
	case !want.LSN.IsZero() && slot.ConfirmedFlush > max(want.LSN, c.confirmed()):
		return slot, fatal(ReasonGap, "transactions are missing: the journal ends at %s, but slot %q has moved on to %s, so what was committed between the two will not be sent; if somebody advanced the slot or the journal is an old copy, `billhook reconcile` finds what was missed and goes on from here", max(want.LSN, c.confirmed()), slot.Name, slot.ConfirmedFlush)
	}
	return slot, nil
}

// doubted lists the published partitioned tables that claim full old rows: some
// leaf may not have them, if not today then the one that is attached next month,
// which has the default identity unless somebody thinks of it.
func doubted(tables []catalog.Table, p catalog.Publication) []uint32 {
	var ids []uint32
	for _, t := range tables {
		if p.ViaRoot && t.Kind == 'p' && t.Identity == wal.IdentityFull {
			ids = append(ids, t.OID)
		}
	}
	return ids
}

// names lists what catalog.ReadTables takes.
func names(tables []Table) []catalog.Name {
	var l []catalog.Name
	for _, t := range tables {
		if !slices.Contains(l, t.Name) {
			l = append(l, t.Name)
		}
	}
	return l
}

func joinNames(l []catalog.Name) string {
	s := make([]string, len(l))
	for i, n := range l {
		s[i] = n.String()
	}
	return strings.Join(s, ", ")
}
