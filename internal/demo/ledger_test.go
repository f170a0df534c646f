package demo

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/billhook/billhook/internal/pgtest"
)

// TestLedger holds the ledger against what a person reads in the event catalogue.
// Each case is a list of transactions on client 1, who has a balance of 10, an
// account 1 and a package 1 that is new; and the events, "|" between transactions
// and sorted by type within one.
func TestLedger(t *testing.T) {
	const setup = `
		INSERT INTO currencies VALUES (1, 'USD', 1);
		INSERT INTO companies (name) VALUES ('Main'), ('Other');
		INSERT INTO custom_fields (field_key, title) VALUES ('a', 'A'), ('b', 'B'), ('c', 'C');
		INSERT INTO packages (name, currencies_id) VALUES ('Flat', 1);
		INSERT INTO clients (companies_id, name, currencies_id) VALUES (1, 'Acme', 1);
		INSERT INTO clients_balances VALUES (1, 10);
		INSERT INTO clients_custom_fields VALUES (1, 'a', 'x');
		INSERT INTO accounts (clients_id, name) VALUES (1, 'trunk');
		INSERT INTO clients_packages (clients_id, packages_id) VALUES (1, 1);`
	const balance = "UPDATE clients_balances SET balance = "
	db := pgtest.NewDatabase(t, Schema(), ledgerSQL)
	conn := db.Connect(t)
	for _, c := range []struct {
		name string
		txs  []string
		want string
	}{
		{"an edit", []string{"UPDATE clients SET credit = 5"}, "clients.update 1"},
		{"several edits are one", []string{"UPDATE clients SET credit = 5; UPDATE clients SET credit = 6, m_dt = now()"}, "clients.update 1"},
		{"an edit taken back", []string{"UPDATE clients SET credit = 5; UPDATE clients SET credit = 0"}, ""},
		{"an ignored column", []string{"UPDATE clients SET m_dt = 'epoch'"}, ""},
		{"a column that is not read", []string{"UPDATE clients SET notes = 'x'"}, ""},
		{"a masked column", []string{"UPDATE clients SET tax_id = 'x'"}, "clients.update 1"},
		{"an archive", []string{"UPDATE clients SET status = 'archive', m_dt = 'epoch'"}, "clients.archive 1"},
		{"an archive with an edit", []string{"UPDATE clients SET status = 'archive', name = 'x'"}, "clients.archive 1, clients.update 1"},
		{"archived twice", []string{"UPDATE clients SET status = 'archive'", "UPDATE clients SET status = 'archive'"}, "clients.archive 1"},
		{"restored", []string{"UPDATE clients SET status = 'archive'", "UPDATE clients SET status = 'active'"}, "clients.archive 1 | clients.update 1"},
		{"disabled", []string{"UPDATE clients SET status = 'disabled'"}, "clients.update 1"},
		{
			"a sign-up is one create, whatever follows in its transaction",
			[]string{`INSERT INTO clients (companies_id, name, currencies_id) VALUES (1, 'New', 1);
				INSERT INTO clients_balances VALUES (2, 0);
				UPDATE clients SET credit = 7 WHERE id = 2;
				INSERT INTO clients_custom_fields VALUES (2, 'a', '1'), (2, 'b', '2')`},
			"clients.create 2",
		},
		{
			"a client who came and went",
			[]string{"INSERT INTO clients (companies_id, name, currencies_id) VALUES (1, 'New', 1); DELETE FROM clients WHERE id = 2"},
			"",
		},
		{
			"a client is deleted with all that hangs on it",
			[]string{"DELETE FROM clients"},
			"clients.accounts.delete 1, clients.delete 1, clients.packages.close 1",
		},

		{"down through zero", []string{balance + "-1"}, "clients.balance_zero 1"},
		{"down to zero", []string{balance + "0"}, "clients.balance_zero 1"},
		{"down to zero, then below", []string{balance + "0", balance + "-1"}, "clients.balance_zero 1"},
		{"down to zero, then up", []string{balance + "0", balance + "1"}, "clients.balance_zero 1 | clients.balance_notzero 1"},
		{"below, then further", []string{balance + "-1", balance + "-2"}, "clients.balance_zero 1"},
		{"below, then up to zero", []string{balance + "-1", balance + "0"}, "clients.balance_zero 1 | clients.balance_notzero 1"},
		{"below, up to zero, then up", []string{balance + "-1", balance + "0", balance + "1"}, "clients.balance_zero 1 | clients.balance_notzero 1"},
		{
			"below, up to zero, then below",
			[]string{balance + "-1", balance + "0", balance + "-1"},
			"clients.balance_zero 1 | clients.balance_notzero 1 | clients.balance_zero 1",
		},
		{"at zero something else moves", []string{balance + "0", "UPDATE clients_balances SET balance_accountant = 3"}, "clients.balance_zero 1"},
		{"below, at zero something else moves", []string{balance + "-1", balance + "0", "UPDATE clients_balances SET balance_accountant = 3"}, "clients.balance_zero 1 | clients.balance_notzero 1"},
		{"to and fro in one transaction", []string{balance + "-1;" + balance + "10"}, ""},
		{"to and fro and down", []string{balance + "-1;" + balance + "10;" + balance + "-0.00001"}, "clients.balance_zero 1"},
		{"still above", []string{balance + "0.00001"}, ""},
		{
			"a new client at zero has no side: any move is told",
			[]string{
				"INSERT INTO clients (companies_id, name, currencies_id) VALUES (1, 'New', 1); INSERT INTO clients_balances VALUES (2, 0)",
				balance + "-1 WHERE clients_id = 2",
			},
			"clients.create 2 | clients.balance_zero 2",
		},

		{
			"custom fields are folded",
			[]string{"INSERT INTO clients_custom_fields VALUES (1, 'b', 'y'), (1, 'c', 'z'); UPDATE clients_custom_fields SET value = 'x2' WHERE field_key = 'a'"},
			"clients.custom_fields.update 1",
		},
		{"a custom field set to what it is", []string{"UPDATE clients_custom_fields SET value = 'x'"}, ""},
		{"a custom field cleared", []string{"DELETE FROM clients_custom_fields"}, "clients.custom_fields.update 1"},
		{"a custom field set and cleared", []string{"INSERT INTO clients_custom_fields VALUES (1, 'b', 'y'); DELETE FROM clients_custom_fields WHERE field_key = 'b'"}, ""},
		{"a custom field and the client", []string{"UPDATE clients SET credit = 1; DELETE FROM clients_custom_fields"}, "clients.custom_fields.update 1, clients.update 1"},

		{"an account's life", []string{
			"INSERT INTO accounts (clients_id, name) VALUES (1, 'second')",
			"UPDATE accounts SET port = 5061 WHERE id = 2",
			"UPDATE accounts SET m_dt = 'epoch' WHERE id = 2",
			"DELETE FROM accounts WHERE id = 2",
		}, "clients.accounts.create 2 | clients.accounts.update 2 | clients.accounts.delete 2"},

		{"a package's life", []string{
			"UPDATE clients_packages SET condition = 'activated', status = 'active', period_start_dt = '2026-01-01'",
			"UPDATE clients_packages SET period_start_dt = '2026-02-01'",
			"UPDATE clients_packages SET qty = 2",
			"UPDATE clients_packages SET condition = 'deactivated'",
			"UPDATE clients_packages SET status = 'archive'",
			"DELETE FROM clients_packages",
		}, "clients.packages.activate 1 | clients.packages.renew 1 | clients.packages.deactivate 1 | clients.packages.close 1"},
		{
			"a package that is active at once",
			[]string{"INSERT INTO clients_packages (clients_id, packages_id, condition) VALUES (1, 1, 'activated')"},
			"clients.packages.activate 2, clients.packages.assign 2",
		},
		{"a package is deleted", []string{"DELETE FROM clients_packages"}, "clients.packages.close 1"},

		{"rolled back", []string{balance + "-1; ROLLBACK; BEGIN"}, ""},
		{"rolled back to a savepoint", []string{"SAVEPOINT s; " + balance + "-1; ROLLBACK TO s; UPDATE clients SET credit = 1"}, "clients.update 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			db.Exec(t, `TRUNCATE currencies, companies, custom_fields, ledger.events, ledger.touched, ledger.counters, ledger.sides RESTART IDENTITY CASCADE;
				ALTER TABLE clients DISABLE TRIGGER ledger; ALTER TABLE clients_balances DISABLE TRIGGER ledger;
				ALTER TABLE clients_custom_fields DISABLE TRIGGER ledger; ALTER TABLE accounts DISABLE TRIGGER ledger;
				ALTER TABLE clients_packages DISABLE TRIGGER ledger;`+setup+`
				ALTER TABLE clients ENABLE TRIGGER ledger; ALTER TABLE clients_balances ENABLE TRIGGER ledger;
				ALTER TABLE clients_custom_fields ENABLE TRIGGER ledger; ALTER TABLE accounts ENABLE TRIGGER ledger;
				ALTER TABLE clients_packages ENABLE TRIGGER ledger;`)
			for _, sql := range c.txs {
				db.Exec(t, "BEGIN; "+sql+"; COMMIT")
			}
			entries, err := readLedger(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			// Transactions in their order; within one, the order is nobody's promise.
			slices.SortFunc(entries, func(a, b entry) int {
				return cmp.Or(cmp.Compare(a.xid, b.xid), cmp.Compare(a.typ, b.typ))
			})
			var got strings.Builder
			for i, e := range entries {
				switch {
				case i > 0 && entries[i-1].xid != e.xid:
					got.WriteString(" | ")
				case i > 0:
					got.WriteString(", ")
				}
				fmt.Fprintf(&got, "%s %s", e.typ, e.object)
			}
			if got.String() != c.want {
				t.Errorf("\n got %s\nwant %s", &got, c.want)
			}
		})
	}
}

// TestLedgerOrder runs sessions against each other on few clients and holds the
// ledger's numbers against the order of commits that the server's log tells.
func TestLedgerOrder(t *testing.T) {
	c := pgtest.Start(t, map[string]string{"track_commit_timestamp": "on"})
	db := pgtest.NewDatabaseOn(t, c, Schema(), Seed(6), ledgerSQL)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	drive := traffic{dsn: db.DSN, sessions: 4, limit: rate.NewLimiter(rate.Inf, 1), seed: 7}
	drive.say = func(string) {
		if drive.committed.Load() > 500 {
			cancel()
		}
	}
	if err := drive.run(ctx); err != nil {
		t.Fatal(err)
	}
	conn := db.Connect(t)
	// The timestamp is taken just before the commit record is written, so two
	// commits may share one, but never in one client: its counter is locked.
	var rows, wrong int
	err := conn.QueryRow(t.Context(), `
		SELECT count(*), count(*) FILTER (WHERE at < before) FROM (
			SELECT pg_xact_commit_timestamp(xid::text::xid) AS at,
				lag(pg_xact_commit_timestamp(xid::text::xid)) OVER (PARTITION BY client ORDER BY seq) AS before
			FROM ledger.events) e`).Scan(&rows, &wrong)
	if err != nil {
		t.Fatal(err)
	}
	if rows < 100 || wrong > 0 {
		t.Errorf("%d of %d events are numbered out of commit order", wrong, rows)
	}
	entries, err := readLedger(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	checkBalances(t, conn, entries)
	t.Logf("%d transactions, %d rolled back, %d events", drive.committed.Load(), drive.rolledBack.Load(), len(entries))
}

// checkBalances holds the last balance event of each client against its balance.
func checkBalances(t *testing.T, conn *pgx.Conn, entries []entry) {
	t.Helper()
	last := map[string]string{}
	for _, e := range entries {
		if strings.HasPrefix(e.typ, "clients.balance_") {
			last[e.object] = e.typ
		}
	}
	rows, err := conn.Query(t.Context(), "SELECT clients_id::text, sign(balance)::int FROM clients_balances")
	if err != nil {
		t.Fatal(err)
	}
	var id string
	var sign int
	_, err = pgx.ForEachRow(rows, []any{&id, &sign}, func() error {
		if sign > 0 && last[id] == "clients.balance_zero" || sign < 0 && last[id] == "clients.balance_notzero" {
			t.Errorf("client %s: the last event is %s, the sign of the balance %d", id, last[id], sign)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
