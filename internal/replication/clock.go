package replication

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/wal"
)

// Clock asks the server what time it is and how far its log is, over a connection of
// its own that stays open until Close. It is for one goroutine at a time.
type Clock struct {
	client *Client
	conn   *pgx.Conn
}

// Clock returns a Clock, which is not connected yet.
func (c *Client) Clock() *Clock { return &Clock{client: c} }

// clockQuery gives a moment, and a position in the log below which every transaction
// lies that was committed by then. A commit that did not wait for the disk
// (synchronous_commit = off) may be missing from the flushed log for three times
// wal_writer_delay, so the moment lies that far back.
const clockQuery = `SELECT pg_catalog.clock_timestamp() - 3 * pg_catalog.current_setting('wal_writer_delay')::interval, pg_catalog.pg_current_wal_flush_lsn()::text`

// Read returns a moment by the server's clock, and a position in its log: whoever has
// seen all below it has seen every transaction that was committed by that moment. It
// takes 10 s at most.
func (k *Clock) Read(ctx context.Context) (upTo wal.LSN, at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	defer func() {
		if err != nil {
			k.Close()
			err = fmt.Errorf("ask the server what time it is: %w", k.client.target.classify(err))
		}
	}()
	if k.conn == nil {
		if k.conn, err = k.client.connect(ctx, false); err != nil {
			return 0, time.Time{}, err
		}
	}
	var position string
	if err := k.conn.QueryRow(ctx, clockQuery).Scan(&at, &position); err != nil {
		return 0, time.Time{}, err
	}
	upTo, err = wal.ParseLSN(position)
	return upTo, at, err
}

// Close ends the connection, if there is one. Read opens it again.
func (k *Clock) Close() {
	if k.conn != nil {
		closeConn(k.conn)
		k.conn = nil
	}
}
