package wal_test

import (
	"context"
	"encoding/binary"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/wal"
)

var record = flag.Bool("record", false, "record testdata/wal anew from a real server")

const recordings = "../../testdata/wal"

// scenes are the recorded streams: each becomes one file. A line of "--" parts
// what runs in one go from what follows; the publication is there from the start.
var scenes = map[string]string{
	"default": `
		CREATE TABLE clients (id int PRIMARY KEY, name text, balance numeric(20,6), custom_fields jsonb, note text);
		ALTER TABLE clients ALTER custom_fields SET STORAGE EXTERNAL;
		--
		INSERT INTO clients VALUES (1, 'Acme', 10.5, jsonb_build_object('k', repeat('x', 9000)), NULL), (2, '', 0, NULL, 'n');
		--
		UPDATE clients SET balance = -0.5 WHERE id = 1;
		--
		UPDATE clients SET id = 3 WHERE id = 1;
		--
		BEGIN; INSERT INTO clients VALUES (4); SAVEPOINT a; UPDATE clients SET name = 'gone'; ROLLBACK TO a; DELETE FROM clients WHERE id = 2; COMMIT;`,
	"full": `
		CREATE TABLE clients (id int PRIMARY KEY, name text, balance numeric, custom_fields text);
		ALTER TABLE clients REPLICA IDENTITY FULL;
		ALTER TABLE clients ALTER custom_fields SET STORAGE EXTERNAL;
		--
		INSERT INTO clients VALUES (1, 'Acme', 'NaN', repeat('x', 9000)), (2, NULL, NULL, NULL);
		--
		UPDATE clients SET balance = 'Infinity' WHERE id = 1;
		--
		UPDATE clients SET id = 5, balance = balance WHERE id = 2;
		--
		DELETE FROM clients;`,
	"index": `
		CREATE TABLE accounts (id int PRIMARY KEY, login text NOT NULL, password text);
		CREATE UNIQUE INDEX accounts_login ON accounts (login);
		ALTER TABLE accounts REPLICA IDENTITY USING INDEX accounts_login;
		--
		INSERT INTO accounts VALUES (1, 'a', 'p'), (2, 'b', NULL);
		--
		UPDATE accounts SET password = 'q' WHERE id = 1;
		--
		UPDATE accounts SET login = 'c' WHERE id = 1;
		--
		DELETE FROM accounts WHERE id = 1;`,
	"types": `
		CREATE TYPE mood AS ENUM ('sad', 'ok', 'so "so"');
		CREATE DOMAIN money_exact AS numeric(30,10) CHECK (VALUE IS NOT NULL);
		CREATE TYPE pair AS (a int, b text);
		CREATE TABLE everything (id uuid, n bigint, m mood, d money_exact, p pair, a text[], r int4range, i inet, b bytea,
			ts timestamp, tz timestamptz, dt date, iv interval, f float8, j json, jb jsonb, t boolean, PRIMARY KEY (id, n));
		--
		INSERT INTO everything VALUES ('6ecd8c99-4036-403d-bf84-cf8400f67836', 9223372036854775807, 'so "so"', 0.1, '(1,"x, y")', '{NULL,"a,b","\"c\""}', '[1,5)',
			'10.0.0.1/8', '\xdeadbeef', '0044-03-15 00:00:00 BC', 'infinity', '-infinity', '1 year 2 days 03:04:05.6', 0.30000000000000004,
			'{"a": 1e400}', '{"a": 12345678901234567890.123456789}', true);
		--
		UPDATE everything SET m = 'sad', n = -1, a = '{}', j = NULL;`,
	"ddl": `
		CREATE TABLE clients (id int PRIMARY KEY, name text); CREATE TABLE other (id int PRIMARY KEY);
		--
		INSERT INTO clients VALUES (1, 'a'); ANALYZE clients; INSERT INTO clients VALUES (2, 'b');
		--
		BEGIN; INSERT INTO clients VALUES (3, 'c'); ALTER TABLE clients ADD credit numeric DEFAULT 5; INSERT INTO clients VALUES (4, 'd', 1);
		ALTER TABLE clients RENAME name TO title; UPDATE clients SET title = 'e' WHERE id = 4; ALTER TABLE clients DROP title; DELETE FROM clients WHERE id = 3; COMMIT;
		--
		ALTER TABLE clients RENAME TO customers; INSERT INTO customers VALUES (5, 2); DROP TABLE other; CREATE TABLE other (id bigint PRIMARY KEY, x int); INSERT INTO other VALUES (1, 1);`,
	"truncate": `
		CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY REFERENCES a); CREATE TABLE c (id serial PRIMARY KEY);
		--
		INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); INSERT INTO c DEFAULT VALUES;
		--
		TRUNCATE a CASCADE;
		--
		TRUNCATE c RESTART IDENTITY; INSERT INTO a VALUES (1);`,
	"logical": `
		CREATE TABLE a (id int PRIMARY KEY);
		--
		SELECT pg_logical_emit_message(true, 'billhook', 'in a transaction'), pg_logical_emit_message(false, 'billhook', E'out of it\n');
		--
		BEGIN; INSERT INTO a VALUES (1); SELECT pg_logical_emit_message(false, 'p', ''); SELECT pg_logical_emit_message(true, 'rolled back', 'x'); ROLLBACK;`,
	"origin": `
		CREATE TABLE a (id int PRIMARY KEY);
		--
		SELECT pg_replication_origin_create('elsewhere_record');
		SELECT pg_replication_origin_session_setup('elsewhere_record');
		BEGIN; SELECT pg_replication_origin_xact_setup('0/ABCDEF', '2026-01-02 03:04:05+00'); INSERT INTO a VALUES (1); COMMIT;
		SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('elsewhere_record');`,
	"partition": `
		CREATE TABLE p (id int, region int, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
		CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);
		ALTER TABLE p REPLICA IDENTITY FULL;
		--
		INSERT INTO p VALUES (1, 1, 'a'), (2, 2, 'b');
		--
		UPDATE p SET v = 'c' WHERE id = 1;
		--
		UPDATE p SET region = 2 WHERE id = 1;
		--
		DELETE FROM p WHERE id = 2;`,
	"copy": `
		CREATE TABLE a (id int PRIMARY KEY, v text);
		--
		INSERT INTO a SELECT g, 'row ' || g FROM generate_series(1, 50) g;
		--
		UPDATE a SET v = v || '!';`,
}

// TestRecord writes testdata/wal when asked to.
func TestRecord(t *testing.T) {
	if !*record {
		t.Skip("only with -record")
	}
	for name, script := range scenes {
		frames := recordScene(t, script)
		var file []byte
		for _, f := range frames {
			file = binary.BigEndian.AppendUint32(file, uint32(len(f)))
			file = append(file, f...)
		}
		if err := os.WriteFile(filepath.Join(recordings, name+".stream"), file, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func recordScene(t *testing.T, script string) [][]byte {
	t.Helper()
	steps := strings.Split(script, "\n\t\t--\n")
	db := pgtest.NewDatabase(t, steps[0])
	db.Exec(t, "CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)")
	db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", db.Name)
	conn := db.Connect(t)
	for _, s := range steps[1:] {
		if _, err := conn.PgConn().Exec(t.Context(), s).ReadAll(); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	db.Exec(t, "SELECT pg_logical_emit_message(false, 'end', '')")
	return drain(t, db)
}

// drain streams what the database's slot has, up to the logical message "end".
func drain(t testing.TB, db *pgtest.Database) [][]byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	config, err := pgx.ParseConfig(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, &config.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	err = pglogrepl.StartReplication(ctx, conn, db.Name, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'p'", "messages 'true'"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var frames [][]byte
	for {
		m, err := conn.ReceiveMessage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cd, ok := m.(*pgproto3.CopyData)
		if !ok {
			t.Fatalf("the server sent %#v", m)
		}
		f, err := wal.ParseFrame(cd.Data)
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == wal.FrameData && f.Data[0] == 'M' && strings.Contains(string(f.Data), "end\x00") {
			return frames
		}
		frames = append(frames, append([]byte(nil), cd.Data...))
	}
}

// recorded returns the pgoutput messages of each recording.
func recorded(t testing.TB) map[string][][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(recordings, "*.stream"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings in %s: %v", recordings, err)
	}
	streams := make(map[string][][]byte)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".stream")
		for len(b) > 0 {
			n := binary.BigEndian.Uint32(b)
			f, err := wal.ParseFrame(b[4 : 4+n])
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if f.Kind == wal.FrameData {
				streams[name] = append(streams[name], f.Data)
			}
			b = b[4+n:]
		}
	}
	return streams
}
