package replication

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/wal"
)

// TestStatusBytes decodes the status update by hand: all three positions are the
// durable one.
func TestStatusBytes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	b := appendStatus(nil, 0x16B374D848, now, true)
	if len(b) != 5+34 || b[0] != 'd' || binary.BigEndian.Uint32(b[1:]) != 38 || b[5] != 'r' {
		t.Fatalf("% x", b)
	}
	for i, name := range []string{"written", "flushed", "applied"} {
		if got := wal.LSN(binary.BigEndian.Uint64(b[6+8*i:])); got != 0x16B374D848 {
			t.Errorf("%s position is %v", name, got)
		}
	}
	if got := time.UnixMicro(int64(binary.BigEndian.Uint64(b[30:])) + postgresEpoch); !got.Equal(now) {
		t.Errorf("clock is %v", got)
	}
	if b[38] != 1 {
		t.Error("no reply is asked for")
	}
	if b := appendStatus(nil, 0, now, false); b[38] != 0 {
		t.Error("a reply is asked for")
	}
}

func TestStreamIdentities(t *testing.T) {
	db := pgtest.NewDatabase(t, `
		CREATE TABLE d (id int PRIMARY KEY, v text, big text);
		CREATE TABLE f (id int PRIMARY KEY, v text, big text);
		CREATE TABLE i (id int PRIMARY KEY, k text NOT NULL, v text);
		CREATE UNIQUE INDEX i_k ON i (k);
		ALTER TABLE f REPLICA IDENTITY FULL;
		ALTER TABLE i REPLICA IDENTITY USING INDEX i_k;
		ALTER TABLE d ALTER big SET STORAGE EXTERNAL;
		ALTER TABLE f ALTER big SET STORAGE EXTERNAL;`)
	f := follow(t, options(t, db, "d", "f", "i"))
	db.Exec(t, `
		INSERT INTO d VALUES (1, 'a', repeat('x', 9000)), (2, NULL, '');
		INSERT INTO f VALUES (1, 'a', repeat('x', 9000));
		INSERT INTO i VALUES (1, 'k', 'a');
		UPDATE d SET v = 'b' WHERE id = 1;
		UPDATE d SET id = 3 WHERE id = 1;
		UPDATE f SET v = 'b';
		UPDATE i SET v = 'b';
		UPDATE i SET k = 'l';
		DELETE FROM d; DELETE FROM f; DELETE FROM i;
		TRUNCATE d, f;`)
	f.expect(
		"insert d (id=1 v=a big=9000 bytes)", "insert d (id=2 v null big=)",
		"insert f (id=1 v=a big=9000 bytes)", "insert i (id=1 k=k v=a)",
		"update d (id=1 v=b big unchanged)", "update d (id=1) -> (id=3 v=b big unchanged)",
		"update f (id=1 v=a big=9000 bytes) -> (id=1 v=b big unchanged)",
		"update i (id=1 k=k v=b)", "update i (k=k) -> (id=1 k=l v=b)",
		"delete d (id=2)", "delete d (id=3)", "delete f (id=1 v=b big=9000 bytes)", "delete i (k=l)",
		"truncate 2")
	if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_publication_tables WHERE pubname = 'p'"); n != 3 {
		t.Errorf("%d tables published", n)
	}
	s := f.session()
	if !s.SlotCreated || s.Number != 1 || s.Database != db.Name || s.Start.IsZero() || s.PublicationOID == 0 || s.Timeline == 0 {
		t.Errorf("session %+v", s)
	}
}
