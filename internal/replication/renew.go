package replication

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/wal"
)

// Renewed is a slot that was made anew.
type Renewed struct {
	// Position is where it begins: all that was committed before is in the snapshot.
	Position Position
	// Publication is what it sends from there on.
	Publication catalog.Publication
	// Snapshot can be taken on by other sessions until Close.
	Snapshot string

	conn *pgx.Conn
}

// Close ends the session that keeps the snapshot. The slot stays.
func (r *Renewed) Close() { closeConn(r.conn) }

// Break says why a slot cannot go on from where the journal ends.
type Break struct {
	Why string // empty: it can go on
	// Replaced: the server is another cluster than the one that was followed, or was
	// put back to an earlier state, so that the same positions mean other transactions.
	Replaced bool
}

// Renewable says whether the slot must be made anew to go on, and why: it is lost,
// gone, or cannot send what comes after the journal. An error says that it would not
// help, or that nothing can be told. It changes nothing.
func (c *Client) Renewable(ctx context.Context) (Break, error) {
	conn, err := c.connect(ctx, true)
	if err != nil {
		return Break{}, c.target.classify(err)
	}
	defer closeConn(conn)
	_, _, b, err := c.renewable(ctx, conn)
	return b, err
}

func (c *Client) renewable(ctx context.Context, conn *pgx.Conn) (*Session, catalog.Server, Break, error) {
	want := c.options.Resume
	session, server, err := c.identify(ctx, conn, want)
	if err != nil {
		e := c.target.classify(err)
		if e.Reason != ReasonIdentityChanged && e.Reason != ReasonAhead {
			return nil, server, Break{}, e
		}
		// The tables tell what was missed, whichever cluster they are in; slot and
		// publication must still be those of the journal.
		any := want
		any.SystemID, any.Timeline, any.LSN = "", 0, 0
		if session, server, err = c.identify(ctx, conn, any); err != nil {
			return nil, server, Break{}, c.target.classify(err)
		}
		later := session.SystemID == want.SystemID && session.Timeline > want.Timeline
		return session, server, Break{Why: e.Text, Replaced: !later}, nil
	}
	publication, found, err := catalog.ReadPublication(ctx, conn, c.options.Publication)
	if err != nil {
		return nil, server, Break{}, c.target.classify(err)
	}
	if found && want.PublicationOID != 0 && want.PublicationOID != publication.OID {
		return session, server, Break{Why: fmt.Sprintf("publication %q was dropped and made again", c.options.Publication)}, nil
	}
	_, err = c.checkSlot(ctx, conn, server, want)
	if err == nil {
		return session, server, Break{}, nil
	}
	e := c.target.classify(err)
	switch e.Reason {
	case ReasonSlotMissing, ReasonSlotLost, ReasonGap:
		return session, server, Break{Why: e.Text}, nil
	}
	return nil, server, Break{}, e
}

// Renew drops what is left of the slot and makes it anew, with a snapshot of exactly
// what it will not send. The slot must not be in use.
func (c *Client) Renew(ctx context.Context) (_ *Renewed, err error) {
	conn, err := c.connect(ctx, true)
	if err != nil {
		return nil, c.target.classify(err)
	}
	defer func() {
		if err != nil {
			closeConn(conn)
		}
	}()
	session, server, _, err := c.renewable(ctx, conn)
	if err != nil {
		return nil, err
	}
	want := c.options.Resume
	want.PublicationOID = 0 // it may have been made anew as well: the new slot does not mind
	publication, err := c.preparePublication(ctx, conn, session, server, want)
	if err != nil {
		return nil, c.target.classify(err)
	}
	slot, found, err := catalog.ReadSlot(ctx, conn, c.options.Slot)
	if err != nil {
		return nil, c.target.classify(err)
	}
	if found {
		if slot.Active {
			return nil, &Error{Class: Wait, Reason: ReasonSlotActive, Text: fmt.Sprintf("replication slot %q is in use by %s; stop it first", c.options.Slot, slot.Holder)}
		}
		if _, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot("+literal(c.options.Slot)+")"); err != nil {
			return nil, c.target.classify(err)
		}
		c.log.Info("replication slot dropped, to be made anew", "slot", c.options.Slot)
	}

	sql := "CREATE_REPLICATION_SLOT " + quoteIdentifier(c.options.Slot) + " LOGICAL pgoutput EXPORT_SNAPSHOT"
	if c.options.Failover && server.VersionNum >= 170000 {
		sql = "CREATE_REPLICATION_SLOT " + quoteIdentifier(c.options.Slot) + " LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER true)"
	}
	created := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { c.watchCreation(ctx, conn.PgConn(), created) })
	results, err := conn.PgConn().Exec(context.WithoutCancel(ctx), sql).ReadAll()
	close(created)
	watching.Wait()
	if err != nil {
		return nil, c.target.classify(err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) < 3 {
		return nil, fmt.Errorf("the answer to %q is not understood", strings.Fields(sql)[0])
	}
	row := results[0].Rows[0]
	start, err := wal.ParseLSN(string(row[1]))
	if err != nil {
		return nil, err
	}
	return &Renewed{
		Position: Position{
			SystemID: session.SystemID, Timeline: session.Timeline, Slot: c.options.Slot,
			Publication: session.Publication, PublicationOID: session.PublicationOID, LSN: start,
		},
		Publication: publication, Snapshot: string(row[2]), conn: conn,
	}, nil
}
