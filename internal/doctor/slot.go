package doctor

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/replication/catalog"
)

const (
	checkRetained = "slot: retained WAL"
	checkWriters  = "slot: open transactions"
)

func (r *report) slot(f *facts) {
	if f.slot == nil {
		sql := "SELECT pg_create_logical_replication_slot(" + literal(r.o.Slot) + ", 'pgoutput');"
		if r.o.Failover && f.server.VersionNum >= 170000 {
			sql = "SELECT pg_create_logical_replication_slot(" + literal(r.o.Slot) + ", 'pgoutput', failover => true);"
		}
		if f.publication == nil {
			sql = "-- after the publication:\n" + sql
		}
		if !r.o.Create {
			r.add(checkSlot, Fail, sql, "%q is not there, and source.create is false", r.o.Slot)
		} else {
			r.add(checkSlot, OK, "", "%q will be made", r.o.Slot)
		}
		return
	}
	s := f.slot
	drop := "SELECT pg_drop_replication_slot(" + literal(s.Name) + ");"
	const another = "source: {slot: billhook_2} # or any other name that is not taken"
	switch {
	case s.Type != "logical":
		r.add(checkSlot, Fail, another, "%q is a physical slot, of a standby or a backup", s.Name)
		return
	case s.Plugin != "pgoutput":
		r.add(checkSlot, Fail, another, "%q belongs to another plugin: %s", s.Name, s.Plugin)
		return
	case s.Database != f.server.Database:
		r.add(checkSlot, Fail, another, "%q belongs to another database: %s", s.Name, s.Database)
		return
	case s.Temporary:
		r.add(checkSlot, Fail, another, "%q is a temporary slot of %s", s.Name, s.Holder)
		return
	case s.Lost():
		r.add(checkSlot, Fail, drop+"\n-- if billhook has followed it, rather run billhook reconcile: it finds what was missed and makes the slot anew", "%q is lost: the server has removed WAL that it needs (%s)", s.Name, orElse(strings.ReplaceAll(s.InvalidationReason, "_", " "), "max_slot_wal_keep_size was exceeded"))
		return
	case s.ConfirmedFlush.IsZero() && !s.Active:
		r.add(checkSlot, Fail, drop, "%q was never finished by whoever made it", s.Name)
		return
	case s.Active && r.holder != "" && r.ours(s.Holder):
		r.add(checkSlot, OK, "", "%q is in use by %s: the billhook that runs here as %s", s.Name, s.Holder, r.holder)
	case s.Active:
		r.add(checkSlot, Warn, "source: {slot: billhook_2} # unless that is this billhook, on another machine", "%q is in use by %s, and no billhook runs on this machine with this journal: a start would end, or wait with --standby", s.Name, s.Holder)
	default:
		r.add(checkSlot, OK, "", "%q is there and free", s.Name)
	}
	if r.o.Failover && !s.Failover && f.server.VersionNum >= 170000 {
		r.add(checkSlot, Warn, "psql 'dbname="+s.Database+" replication=database' -c 'ALTER_REPLICATION_SLOT "+s.Name+" (FAILOVER true)' # while nobody uses it", "source.failover is true, but slot %q was made without it: standbys keep no copy of it", s.Name)
	}
	r.retained(f)
}

// ours reports whether the holder of a slot looks like the billhook of this
// configuration.
func (r *report) ours(h catalog.Holder) bool {
	config, err := pgx.ParseConfig(r.o.DSN)
	if err != nil {
		return false
	}
	return h.ApplicationName == orElse(config.RuntimeParams["application_name"], "billhook") && h.Role == config.User
}

func (r *report) retained(f *facts) {
	s := f.slot
	text := bytes(s.RetainedBytes) + " are kept for it"
	if s.SpillBytes > 0 {
		text += fmt.Sprintf("; %s of large transactions went through the server's disk so far", bytes(s.SpillBytes))
	}
	if math.IsInf(s.SafeBytes, 1) {
		r.add(checkRetained, OK, "", "%s", text)
		return
	}
	limit := max(f.server.MaxSlotKeep, 0)
	remedy := fmt.Sprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dMB';\nSELECT pg_reload_conf();\n-- or start billhook, so that it reads on", max(2*limit>>20, 1024))
	left := int64(max(s.SafeBytes, 0))
	if s.WALStatus == "unreserved" || left < limit/5 {
		r.add(checkRetained, Warn, remedy, "%s; the slot is lost after %s more (wal_status %s)", text, bytes(left), s.WALStatus)
		return
	}
	r.add(checkRetained, OK, "", "%s; the slot is lost after %s more", text, bytes(left))
}

// writers tells of transactions that the creation of a slot would wait for.
func (r *report) writers(ctx context.Context, conn *pgx.Conn, f *facts) {
	if f.slot != nil || f.server.WALLevel != "logical" || f.server.InRecovery {
		return
	}
	writers, err := catalog.ReadWriters(ctx, conn)
	if err != nil {
		r.add(checkWriters, Skip, "", "%s", oneLine(err))
		return
	}
	blind := ""
	if all, err := collect[bool](ctx, conn, "SELECT pg_has_role('pg_read_all_stats', 'USAGE')"); err == nil && len(all) == 1 && !all[0] {
		blind = ", as far as role " + f.server.Role + " may see"
	}
	found := false
	for _, w := range writers {
		if w.Age < r.o.patience && w.Prepared == "" {
			continue // it will have ended by then
		}
		who, remedy := fmt.Sprintf("the prepared transaction %q of role %s", w.Prepared, w.Role), "ROLLBACK PREPARED "+literal(w.Prepared)+"; -- only if it was forgotten"
		if w.Prepared == "" {
			who = fmt.Sprintf("pid %d (%s)", w.PID, orElse(w.ApplicationName, "without a name"))
			remedy = fmt.Sprintf("SELECT pg_terminate_backend(%d); -- only if it was forgotten", w.PID)
		}
		found = true
		r.add(checkWriters, Warn, remedy, "the slot cannot be made before a transaction ends that has written: %s, open for %s", who, w.Age.Round(time.Second))
	}
	if !found {
		r.add(checkWriters, OK, "", "none that the slot would wait for%s", blind)
	}
}
