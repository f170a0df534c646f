package demo

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// entry is one event that the ledger in the database expects.
type entry struct {
	client int64
	xid    uint32
	typ    string
	object string
}

// readLedger returns what the ledger expects, each client's events in commit
// order.
func readLedger(ctx context.Context, conn *pgx.Conn) ([]entry, error) {
	rows, err := conn.Query(ctx, "SELECT client, xid, type, object FROM ledger.events ORDER BY client, seq")
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	entries, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e entry, err error) {
		var xid int64
		err = row.Scan(&e.client, &xid, &e.typ, &e.object)
		e.xid = uint32(xid)
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	return entries, nil
}

// blockedClients returns the clients whose last balance event says zero: those
// the switch must have blocked.
func blockedClients(entries []entry) map[string]bool {
	blocked := map[string]bool{}
	for _, e := range entries {
		switch e.typ {
		case "clients.balance_zero":
			blocked[e.object] = true
		case "clients.balance_notzero":
			delete(blocked, e.object)
		}
	}
	return blocked
}

// eventTypes is every event type that the ledger knows.
func eventTypes() []string {
	return []string{
		"clients.create", "clients.update", "clients.delete", "clients.archive",
		"clients.custom_fields.update", "clients.balance_zero", "clients.balance_notzero",
		"clients.accounts.create", "clients.accounts.update", "clients.accounts.delete",
		"clients.packages.assign", "clients.packages.activate", "clients.packages.deactivate",
		"clients.packages.renew", "clients.packages.close",
	}
}
