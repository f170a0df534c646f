// Package catalog reads what a Postgres 14 to 18 server says about itself: its
// settings, slots, publications, tables and privileges.
//
// It promises plain reads: one statement per function, no lock beyond a SELECT's,
// no writes, names that are never put into SQL text; and that each works over a
// replication connection too, which knows the simple protocol only.
//
// It judges nothing. Whether a table is fit to be published is asked of the values
// it returns; what to do about it is for the caller to say.
//
// Start with ReadServer and ReadTables.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/wal"
)

// Querier is a *pgx.Conn, a pool or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Settings are those of a session that decide how values are written as text. All
// sessions that read rows or stream them set these, so that what one has remembered
// can be compared with what another brings, whatever role and database have set.
func Settings() map[string]string {
	return map[string]string{
		"DateStyle":          "ISO, MDY",
		"IntervalStyle":      "postgres",
		"TimeZone":           "UTC",
		"extra_float_digits": "3",
		"bytea_output":       "hex",
		"client_encoding":    "UTF8",
		"lc_monetary":        "C",
		"search_path":        "pg_catalog", // names in regclass and like values come with their schema
	}
}

// Server is the server and the role that is connected to it.
type Server struct {
	VersionNum int // server_version_num, such as 150018
	Version    string
	Database   string
	InRecovery bool // a standby
	Current    wal.LSN

	Role        string
	Superuser   bool
	Replication bool // may use slots: the attribute, or superuser
	CreateInDB  bool // CREATE on the database, which CREATE PUBLICATION takes

	WALLevel             string
	MaxSlots, UsedSlots  int
	MaxSenders           int
	UsedSenders          int
	SenderTimeout        time.Duration // wal_sender_timeout, 0: none
	MaxSlotKeep          int64         // max_slot_wal_keep_size in bytes, -1: no limit
	IdleSlotTimeout      time.Duration // idle_replication_slot_timeout (18), 0: none
	DecodingWorkMem      int64         // logical_decoding_work_mem in bytes
	SynchronousStandbys  string        // synchronous_standby_names
	SyncedStandbySlots   string        // synchronized_standby_slots (17)
	MaxPreparedTransacts int
}

// ReadServer reads the server's side.
func ReadServer(ctx context.Context, q Querier) (Server, error) {
	var s Server
	var current string
	var timeout, idle int64
	err := row(ctx, q, "the server's settings", `
		SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_database(), pg_is_in_recovery(),
			(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text,
			current_user::text, r.rolsuper, r.rolsuper OR r.rolreplication, has_database_privilege(current_database(), 'CREATE'),
			current_setting('wal_level'), current_setting('max_replication_slots')::int,
			(SELECT count(*) FROM pg_catalog.pg_replication_slots)::int,
			current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_catalog.pg_stat_replication)::int,
			coalesce((SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'), 0),
			coalesce((SELECT CASE WHEN setting::bigint < 0 THEN -1 ELSE setting::bigint * 1024 * 1024 END FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'), -1),
			coalesce((SELECT CASE unit WHEN 's' THEN setting::bigint WHEN 'ms' THEN setting::bigint / 1000 WHEN 'min' THEN setting::bigint * 60 END
				FROM pg_catalog.pg_settings WHERE name = 'idle_replication_slot_timeout'), 0),
			coalesce((SELECT setting::bigint * 1024 FROM pg_catalog.pg_settings WHERE name = 'logical_decoding_work_mem'), 0),
			current_setting('synchronous_standby_names'), coalesce(current_setting('synchronized_standby_slots', true), ''),
			current_setting('max_prepared_transactions')::int
		FROM pg_catalog.pg_roles r WHERE r.rolname = current_user`, nil,
		&s.VersionNum, &s.Version, &s.Database, &s.InRecovery, &current,
		&s.Role, &s.Superuser, &s.Replication, &s.CreateInDB,
		&s.WALLevel, &s.MaxSlots, &s.UsedSlots, &s.MaxSenders, &s.UsedSenders,
		&timeout, &s.MaxSlotKeep, &idle, &s.DecodingWorkMem, &s.SynchronousStandbys, &s.SyncedStandbySlots, &s.MaxPreparedTransacts)
	if err != nil {
		return Server{}, err
	}
	s.SenderTimeout = time.Duration(timeout) * time.Millisecond
	s.IdleSlotTimeout = time.Duration(idle) * time.Second
	s.Current, err = wal.ParseLSN(current)
	return s, err
}

// Slot is a row of pg_replication_slots, with its statistics.
type Slot struct {
	Name, Plugin, Type, Database string
	Temporary, TwoPhase          bool
	Active                       bool
	ActivePID                    int // 0 when not active
	Holder                       Holder

	WALStatus          string // reserved, extended, unreserved, lost
	InvalidationReason string // 17 and up, else ""
	Failover, Synced   bool   // 17 and up
	Restart            wal.LSN
	ConfirmedFlush     wal.LSN
	RetainedBytes      int64   // from Restart to the server's position
	SafeBytes          float64 // safe_wal_size, +Inf without a limit

	SpillTransactions, SpillBytes, TotalTransactions, TotalBytes int64

	Current wal.LSN // the server's position when this was read
}

// Lost reports a slot that cannot be read any more.
func (s Slot) Lost() bool { return s.WALStatus == "lost" || s.InvalidationReason != "" }

// Holder is who has an active slot, as far as this role may see.
type Holder struct {
	PID             int
	ApplicationName string
	ClientAddress   string
	Role            string
}

// String returns "pid 4711 (billhook from 10.0.0.7, role cdc)".
func (h Holder) String() string {
	s := fmt.Sprintf("pid %d", h.PID)
	var more []string
	if h.ApplicationName != "" {
		more = append(more, h.ApplicationName)
	}
	if h.ClientAddress != "" {
		more = append(more, "from "+h.ClientAddress)
	}
	what := strings.Join(more, " ")
	if h.Role != "" {
		if what != "" {
			what += ", "
		}
		what += "role " + h.Role
	}
	if what != "" {
		s += " (" + what + ")"
	}
	return s
}

const slotColumns = `
	SELECT s.slot_name::text, coalesce(s.plugin::text, ''), s.slot_type, coalesce(s.database::text, ''), s.temporary, coalesce((to_jsonb(s)->>'two_phase')::boolean, false),
		s.active, coalesce(s.active_pid, 0), coalesce(a.application_name, ''), coalesce(host(a.client_addr), ''), coalesce(a.usename::text, ''),
		coalesce(s.wal_status, ''), coalesce(to_jsonb(s)->>'invalidation_reason', ''),
		coalesce((to_jsonb(s)->>'failover')::boolean, false), coalesce((to_jsonb(s)->>'synced')::boolean, false),
		coalesce(s.restart_lsn, '0/0')::text, coalesce(s.confirmed_flush_lsn, '0/0')::text,
		coalesce(pg_wal_lsn_diff(c.lsn, s.restart_lsn), 0)::bigint, s.safe_wal_size,
		coalesce(t.spill_txns, 0), coalesce(t.spill_bytes, 0), coalesce(t.total_txns, 0), coalesce(t.total_bytes, 0), c.lsn::text
	FROM pg_catalog.pg_replication_slots s
	CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn) c
	LEFT JOIN pg_catalog.pg_stat_replication_slots t ON t.slot_name = s.slot_name
	LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid`

func scanSlot(r pgx.CollectableRow) (Slot, error) {
	var s Slot
	var restart, confirmed, current string
	var safe *int64
	err := r.Scan(&s.Name, &s.Plugin, &s.Type, &s.Database, &s.Temporary, &s.TwoPhase, &s.Active, &s.ActivePID,
		&s.Holder.ApplicationName, &s.Holder.ClientAddress, &s.Holder.Role, &s.WALStatus, &s.InvalidationReason,
		&s.Failover, &s.Synced, &restart, &confirmed, &s.RetainedBytes, &safe,
		&s.SpillTransactions, &s.SpillBytes, &s.TotalTransactions, &s.TotalBytes, &current)
	if err != nil {
		return Slot{}, err
	}
	s.Holder.PID = s.ActivePID
	s.SafeBytes = math.Inf(1)
	if safe != nil {
		s.SafeBytes = float64(*safe)
	}
	if s.WALStatus == "lost" {
		s.RetainedBytes = 0
	}
	for _, p := range []struct {
		text string
		lsn  *wal.LSN
	}{{restart, &s.Restart}, {confirmed, &s.ConfirmedFlush}, {current, &s.Current}} {
		if *p.lsn, err = wal.ParseLSN(p.text); err != nil {
			return Slot{}, err
		}
	}
	return s, nil
}

// ReadSlot reads one slot; found is false when there is none of that name.
func ReadSlot(ctx context.Context, q Querier, name string) (s Slot, found bool, err error) {
	rows, err := q.Query(ctx, slotColumns+` WHERE s.slot_name = $1`, name)
	if err == nil {
		s, err = pgx.CollectExactlyOneRow(rows, scanSlot)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return Slot{}, false, nil
	}
	if err != nil {
		return Slot{}, false, fmt.Errorf("read replication slot %q: %w", name, err)
	}
	return s, true, nil
}

// ReadSlots reads all slots of the server.
func ReadSlots(ctx context.Context, q Querier) ([]Slot, error) {
	rows, err := q.Query(ctx, slotColumns+` ORDER BY s.slot_name`)
	if err != nil {
		return nil, fmt.Errorf("read replication slots: %w", err)
	}
	slots, err := pgx.CollectRows(rows, scanSlot)
	if err != nil {
		return nil, fmt.Errorf("read replication slots: %w", err)
	}
	return slots, nil
}

// Transaction is one that another has to wait for.
type Transaction struct {
	PID             int
	ApplicationName string // "" where this role may not see it, as are the next two
	Role            string
	State           string
	Age             time.Duration // 0 where unknown
	Query           string        // its last statement, cut to 200 characters
	Prepared        string        // the gid of a prepared transaction; it has no PID
}

// ReadBlockers reads which transactions a backend waits for: what holds back the
// creation of a slot.
func ReadBlockers(ctx context.Context, q Querier, pid uint32) ([]Transaction, error) {
	rows, err := q.Query(ctx, `
		SELECT b.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, ''), coalesce(a.state, ''),
			coalesce(extract(epoch FROM now() - a.xact_start), 0)::float8, coalesce(left(a.query, 200), '')
		FROM unnest(pg_blocking_pids($1)) AS b(pid) LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
		ORDER BY a.xact_start`, int32(pid))
	if err != nil {
		return nil, fmt.Errorf("read what pid %d waits for: %w", pid, err)
	}
	ts, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (Transaction, error) {
		var t Transaction
		var age float64
		err := r.Scan(&t.PID, &t.ApplicationName, &t.Role, &t.State, &age, &t.Query)
		t.Age = time.Duration(age * float64(time.Second))
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("read what pid %d waits for: %w", pid, err)
	}
	return ts, nil
}

// ReadWriters reads the transactions that have written and are still open, oldest
// first, prepared ones included: a slot made now waits for all of them. Ages and
// names of other roles' transactions take the privileges of pg_read_all_stats;
// without them those transactions are missing here.
func ReadWriters(ctx context.Context, q Querier) ([]Transaction, error) {
	rows, err := q.Query(ctx, `
		SELECT pid, coalesce(application_name, ''), coalesce(usename::text, ''), coalesce(state, ''),
			extract(epoch FROM now() - xact_start)::float8 AS age, coalesce(left(query, 200), ''), ''
		FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
		UNION ALL
		SELECT 0, '', owner::text, 'prepared', extract(epoch FROM now() - prepared)::float8, '', gid FROM pg_catalog.pg_prepared_xacts
		ORDER BY age DESC NULLS LAST`)
	if err != nil {
		return nil, fmt.Errorf("read open transactions: %w", err)
	}
	ts, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (Transaction, error) {
		var t Transaction
		var age *float64
		err := r.Scan(&t.PID, &t.ApplicationName, &t.Role, &t.State, &age, &t.Query, &t.Prepared)
		if age != nil {
			t.Age = time.Duration(*age * float64(time.Second))
		}
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("read open transactions: %w", err)
	}
	return ts, nil
}

// row reads the one row of a query.
func row(ctx context.Context, q Querier, what, sql string, args []any, dest ...any) error {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	_, err = pgx.CollectExactlyOneRow(rows, func(r pgx.CollectableRow) (struct{}, error) {
		return struct{}{}, r.Scan(dest...)
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}
