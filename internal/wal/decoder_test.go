package wal_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/billhook/billhook/internal/wal"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata/wal")

// TestDecoderGolden compares what the recordings say with the text beside them.
func TestDecoderGolden(t *testing.T) {
	for name, stream := range recorded(t) {
		var d wal.Decoder
		var got strings.Builder
		for _, data := range stream {
			m, err := d.Decode(data)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			describe(&got, m)
		}
		file := filepath.Join(recordings, name+".golden")
		if *update {
			if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want) {
			t.Errorf("%s differs from %s; got:\n%s", name, file, got.String())
		}
	}
}

// describe writes one message as a line, with long values cut.
func describe(w *strings.Builder, m *wal.Message) {
	fmt.Fprintf(w, "%v", m.Kind)
	switch m.Kind {
	case wal.KindBegin:
		fmt.Fprintf(w, " xid=%d", m.Begin.XID)
	case wal.KindChange:
		c := m.Change
		fmt.Fprintf(w, " %v %s.%s", c.Op, c.Relation.Schema, c.Relation.Name)
		for _, side := range []struct {
			name  string
			tuple wal.Tuple
		}{{[]string{"", "key", "old"}[c.OldKind], c.Old}, {"new", c.New}} {
			if side.tuple == nil {
				continue
			}
			fmt.Fprintf(w, " %s(", side.name)
			for i, v := range side.tuple {
				if i > 0 {
					w.WriteString(", ")
				}
				fmt.Fprintf(w, "%s=", c.Relation.Columns[i].Name)
				switch v.Kind {
				case wal.Text:
					s := string(v.Text)
					if len(s) > 80 {
						s = fmt.Sprintf("%s... %d bytes", s[:20], len(s))
					}
					fmt.Fprintf(w, "%q", s)
				default:
					w.WriteString([]string{"unknown", "null", "unchanged"}[v.Kind])
				}
			}
			w.WriteString(")")
		}
	case wal.KindTruncate:
		for _, r := range m.Truncate.Relations {
			fmt.Fprintf(w, " %s.%s", r.Schema, r.Name)
		}
		fmt.Fprintf(w, " cascade=%t restart=%t", m.Truncate.Cascade, m.Truncate.RestartIdentity)
	case wal.KindLogical:
		fmt.Fprintf(w, " transactional=%t %q %q", m.Logical.Transactional, m.Logical.Prefix, m.Logical.Content)
	case wal.KindRelation:
		what := "first"
		switch m.Previous {
		case nil:
		case m.Relation:
			what = "same"
		default:
			what = "changed"
		}
		fmt.Fprintf(w, " %s %s.%s identity=%c", what, m.Relation.Schema, m.Relation.Name, m.Relation.Identity)
		for _, c := range m.Relation.Columns {
			fmt.Fprintf(w, " %s", c.Name)
			if c.Key {
				w.WriteString("*")
			}
		}
	case wal.KindType:
		fmt.Fprintf(w, " %s.%s", m.Type.Schema, m.Type.Name)
	case wal.KindOrigin:
		fmt.Fprintf(w, " %q %v", m.Origin.Name, m.Origin.CommitLSN)
	}
	w.WriteString("\n")
}

// TestDecoderAgainstPglogrepl decodes the recordings twice and compares.
func TestDecoderAgainstPglogrepl(t *testing.T) {
	for name, stream := range recorded(t) {
		t.Run(name, func(t *testing.T) {
			var d wal.Decoder
			for i, data := range stream {
				m, err := d.Decode(data)
				if err != nil {
					t.Fatal(err)
				}
				if diff := compare(m, data); diff != "" {
					t.Errorf("message %d %q: %s", i, data[0], diff)
				}
			}
		})
	}
}

// compare parses data with pglogrepl and says where m differs.
func compare(m *wal.Message, data []byte) string {
	ref, err := pglogrepl.Parse(data)
	if err != nil {
		return fmt.Sprintf("pglogrepl: %v", err)
	}
	differ := func(got, want any) string {
		if reflect.DeepEqual(got, want) {
			return ""
		}
		return fmt.Sprintf("got %+v, pglogrepl has %+v", got, want)
	}
	tuples := func(c wal.Change, oldByte uint8, old, new *pglogrepl.TupleData) string {
		wantKind := map[uint8]wal.OldKind{0: wal.OldNone, 'K': wal.OldKey, 'O': wal.OldFull}[oldByte]
		if c.OldKind != wantKind {
			return fmt.Sprintf("old kind %d, pglogrepl has %q", c.OldKind, oldByte)
		}
		if s := compareTuple(c.Old, old, c.OldKind == wal.OldKey); s != "" {
			return "old " + s
		}
		if s := compareTuple(c.New, new, false); s != "" {
			return "new " + s
		}
		return ""
	}
	switch ref := ref.(type) {
	case *pglogrepl.BeginMessage:
		if farTime(m.Begin.CommitTime) {
			ref.CommitTime = m.Begin.CommitTime
		}
		return differ(m.Begin, wal.Begin{CommitLSN: wal.LSN(ref.FinalLSN), CommitTime: ref.CommitTime.UTC(), XID: ref.Xid})
	case *pglogrepl.CommitMessage:
		if farTime(m.Commit.CommitTime) {
			ref.CommitTime = m.Commit.CommitTime
		}
		return differ(m.Commit, wal.Commit{CommitLSN: wal.LSN(ref.CommitLSN), EndLSN: wal.LSN(ref.TransactionEndLSN), CommitTime: ref.CommitTime.UTC()})
	case *pglogrepl.RelationMessage:
		want := wal.Relation{ID: ref.RelationID, Schema: ref.Namespace, Name: ref.RelationName, Identity: wal.Identity(ref.ReplicaIdentity), Columns: []wal.Column{}}
		if want.Schema == "" {
			want.Schema = "pg_catalog"
		}
		for _, c := range ref.Columns {
			want.Columns = append(want.Columns, wal.Column{Name: c.Name, Type: c.DataType, Modifier: c.TypeModifier, Key: c.Flags&1 != 0})
		}
		return differ(*m.Relation, want)
	case *pglogrepl.TypeMessage:
		schema := ref.Namespace
		if schema == "" {
			schema = "pg_catalog"
		}
		return differ(m.Type, wal.Type{ID: ref.DataType, Schema: schema, Name: ref.Name})
	case *pglogrepl.OriginMessage:
		return differ(m.Origin, wal.Origin{CommitLSN: wal.LSN(ref.CommitLSN), Name: ref.Name})
	case *pglogrepl.LogicalDecodingMessage:
		if len(ref.Content) == 0 {
			ref.Content = []byte{}
		}
		return differ(m.Logical, wal.Logical{Transactional: ref.Transactional, LSN: wal.LSN(ref.LSN), Prefix: ref.Prefix, Content: ref.Content})
	case *pglogrepl.TruncateMessage:
		var ids []uint32
		for _, r := range m.Truncate.Relations {
			ids = append(ids, r.ID)
		}
		return differ([]any{ids, m.Truncate.Cascade, m.Truncate.RestartIdentity}, []any{ref.RelationIDs, ref.Option&1 != 0, ref.Option&2 != 0})
	case *pglogrepl.InsertMessage:
		return tuples(m.Change, 0, nil, ref.Tuple)
	case *pglogrepl.UpdateMessage:
		return tuples(m.Change, ref.OldTupleType, ref.OldTuple, ref.NewTuple)
	case *pglogrepl.DeleteMessage:
		return tuples(m.Change, ref.OldTupleType, ref.OldTuple, nil)
	}
	return fmt.Sprintf("pglogrepl made a %T of it", ref)
}

// farTime reports a time beyond the 292 years that pglogrepl can count.
func farTime(t time.Time) bool { return t.Year() < 1720 || t.Year() > 2280 }

func compareTuple(got wal.Tuple, want *pglogrepl.TupleData, key bool) string {
	if want == nil || got == nil {
		if want == nil && got == nil {
			return ""
		}
		return fmt.Sprintf("tuple: got %v, pglogrepl has %v", got, want)
	}
	if len(got) != len(want.Columns) {
		return fmt.Sprintf("tuple of %d columns, pglogrepl has %d", len(got), len(want.Columns))
	}
	for i, c := range want.Columns {
		wantKind := map[uint8]wal.ValueKind{'n': wal.Null, 'u': wal.Unchanged, 't': wal.Text}[c.DataType]
		if key && wantKind == wal.Null {
			wantKind = wal.Unknown
		}
		if got[i].Kind != wantKind || !bytes.Equal(got[i].Text, c.Data) {
			return fmt.Sprintf("column %d: got %v, pglogrepl has %+v", i, got[i], c)
		}
	}
	return ""
}

// TestDecoderTruncated cuts each recorded message at every byte, and makes each
// one byte longer: both must be errors that name the message, and must not
// disturb what follows.
func TestDecoderTruncated(t *testing.T) {
	for name, stream := range recorded(t) {
		var d wal.Decoder
		for _, data := range stream {
			if _, err := d.Decode(append(bytes.Clone(data), 0)); err == nil {
				t.Fatalf("%s: a message %q with a byte too many was taken", name, data[0])
			}
			step := 1 + len(data)/500
			for n := 0; n < len(data); n += step {
				_, err := d.Decode(data[:n:n])
				if err == nil {
					t.Fatalf("%s: a message %q cut to %d of %d bytes was taken", name, data[0], n, len(data))
				}
				if n > 0 && !strings.Contains(err.Error(), "at byte ") {
					t.Fatalf("%s: the error gives no offset: %v", name, err)
				}
			}
			if _, err := d.Decode(data); err != nil {
				t.Fatalf("%s: after bad messages: %v", name, err)
			}
		}
	}
}

// The messages below are made by hand: recorded servers do not send them.
var (
	relationMessage = []byte("R\x00\x00\x00\x07public\x00clients\x00d\x00\x02\x01id\x00\x00\x00\x00\x17\xff\xff\xff\xff\x00name\x00\x00\x00\x00\x19\xff\xff\xff\xff")
	insertMessage   = []byte("I\x00\x00\x00\x07N\x00\x02t\x00\x00\x00\x014n")
)

func TestDecoderErrors(t *testing.T) {
	cases := []struct{ name, data, want string }{
		{"empty", "", "decode pgoutput: message is empty"},
		{"unknown message", "Zabc", `decode pgoutput: unknown message 'Z' of 4 bytes`},
		{"stream start", "S\x00\x00\x00\x01\x01", `decode pgoutput: message 'S' belongs to the streaming of transactions in progress, which was not asked for`},
		{"prepare", "P", `decode pgoutput: message 'P' belongs to two-phase commit, which was not asked for: create the slot without two_phase`},
		{"relation not described", "I\x00\x00\x00\x09N\x00\x00", "decode INSERT at byte 1: relation 9 was not described on this connection"},
		{"truncate of it", "T\x00\x00\x00\x01\x00\x00\x00\x00\x09", "decode TRUNCATE at byte 6: relation 9 was not described on this connection"},
		{"other number of columns", "I\x00\x00\x00\x07N\x00\x03", "decode INSERT at byte 6: a tuple of 3 columns, but public.clients was described with 2"},
		{"no new tuple", "I\x00\x00\x00\x07K\x00\x02nn", "decode INSERT at byte 5: want a new tuple 'N', found 'K'"},
		{"no old tuple", "D\x00\x00\x00\x07N\x00\x02nn", "decode DELETE at byte 5: want an old tuple 'K' or 'O', found 'N'"},
		{"old tuple only", "U\x00\x00\x00\x07O\x00\x02nn", "decode UPDATE at byte 10: truncated, the new tuple of public.clients is missing"},
		{"binary", "I\x00\x00\x00\x07N\x00\x02b\x00\x00\x00\x01xn", `decode INSERT at byte 8: column "id" of public.clients is in binary form, which was not asked for`},
		{"unknown column kind", "I\x00\x00\x00\x07N\x00\x02n!", `decode INSERT at byte 9: column "name" of public.clients has unknown kind '!'`},
		{"huge value", "I\x00\x00\x00\x07N\x00\x02t\xff\xff\xff\xffab", `decode INSERT at byte 9: column "id" of public.clients wants 4294967295 bytes, 2 are left`},
		{"bytes too many", string(insertMessage) + "xy", "decode INSERT at byte 15: 2 bytes too many"},
		{"commit flags", "C\x01" + strings.Repeat("\x00", 24), "decode COMMIT at byte 1: unknown flags 0x1"},
		{"identity", "R\x00\x00\x00\x08s\x00t\x00x\x00\x00", `decode RELATION at byte 9: s.t has unknown replica identity 'x'`},
		{"name without end", "R\x00\x00\x00\x08public", "decode RELATION at byte 5: truncated, a name has no end"},
		{"more columns than bytes", "R\x00\x00\x00\x08s\x00t\x00d\xff\xff", "decode RELATION at byte 12: truncated, want 1 more bytes, 0 are left"},
		{"many truncated", "T\xff\xff\xff\xff\x00", "decode TRUNCATE at byte 6: truncated, want 4 more bytes, 0 are left"},
	}
	var d wal.Decoder
	if _, err := d.Decode(relationMessage); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if m, err := d.Decode([]byte(c.data)); err == nil {
			t.Errorf("%s: got %v, want an error", c.name, m.Kind)
		} else if err.Error() != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, err, c.want)
		}
	}
	if m, err := d.Decode(insertMessage); err != nil || string(m.Change.New[0].Text) != "4" || m.Change.New[1].Kind != wal.Null {
		t.Errorf("after the errors: %+v, %v", m, err)
	}
}

func TestDecoderIgnoresStrayStreamAbort(t *testing.T) {
	var d wal.Decoder
	m, err := d.Decode([]byte("A\x00\x00\x03\x21\x00\x00\x03\x22"))
	if err != nil || m.Kind != wal.KindIgnored {
		t.Fatalf("got %v, %v", m, err)
	}
	if d.Ignored() != 1 {
		t.Errorf("counted %d", d.Ignored())
	}
}

// TestDecoderDoubt takes the recorded delete through a partition root: FULL says
// the root, but the leaf logs its key alone.
func TestDecoderDoubt(t *testing.T) {
	var d wal.Decoder
	deletes := 0
	for _, data := range recorded(t)["partition"] {
		m, err := d.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		if m.Kind == wal.KindRelation && m.Relation.Identity == wal.IdentityFull {
			d.Doubt(m.Relation.ID)
		}
		if m.Kind == wal.KindChange && m.Change.Op == wal.Delete {
			deletes++
			c := m.Change
			if c.OldKind != wal.OldKey || c.Old[0].Kind != wal.Text || c.Old[2].Kind != wal.Unknown {
				t.Errorf("old kind %d, tuple %v", c.OldKind, c.Old)
			}
		}
	}
	if deletes != 2 {
		t.Errorf("%d deletes, want 2", deletes)
	}
}

func TestParseFrame(t *testing.T) {
	k := []byte("k\x00\x00\x00\x16\xb3\x74\xd8\x48\x00\x00\x00\x00\x00\x00\x00\x00\x01")
	f, err := wal.ParseFrame(k)
	if err != nil || f.Kind != wal.FrameKeepalive || f.WALEnd.String() != "16/B374D848" || !f.ReplyRequested || f.SendTime.Format("2006-01-02") != "2000-01-01" {
		t.Errorf("%+v, %v", f, err)
	}
	for _, bad := range []string{"", "k", "w\x00\x00", "x", string(k) + "\x00"} {
		if f, err := wal.ParseFrame([]byte(bad)); err == nil {
			t.Errorf("%q gave %+v", bad, f)
		}
	}
}

// FuzzDecode feeds a stream of messages to one Decoder. It must not panic, and
// where it takes a message, pglogrepl must read the same in it.
func FuzzDecode(f *testing.F) {
	pack := func(stream [][]byte) []byte {
		var b []byte
		for _, data := range stream {
			if len(data) < 2000 {
				b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
				b = append(b, data...)
			}
		}
		return b
	}
	for _, stream := range recorded(f) {
		f.Add(pack(stream))
	}
	f.Add(pack([][]byte{relationMessage, insertMessage}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d wal.Decoder
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			data := b[2 : 2+n : 2+n]
			b = b[2+n:]
			m, err := d.Decode(data)
			if err != nil || m.Kind == wal.KindIgnored {
				continue
			}
			if diff := compare(m, data); diff != "" {
				t.Errorf("message %q: %s", data, diff)
			}
		}
	})
}

func FuzzParseFrame(f *testing.F) {
	f.Add([]byte("k\x00\x00\x00\x16\xb3\x74\xd8\x48\x00\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Add(append([]byte("w"), make([]byte, 30)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := wal.ParseFrame(b)
		if err == nil && frame.Kind != b[0] {
			t.Errorf("%q gave %+v", b, frame)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	streams := recorded(b)
	for _, name := range []string{"copy", "default", "full"} {
		stream := streams[name]
		var d wal.Decoder
		var hot [][]byte
		var size int64
		for _, data := range stream {
			if _, err := d.Decode(data); err != nil {
				b.Fatal(err)
			}
			if strings.IndexByte("IUDBC", data[0]) >= 0 {
				hot = append(hot, data)
				size += int64(len(data))
			}
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(size / int64(len(hot)))
			i := 0
			for b.Loop() {
				if _, err := d.Decode(hot[i]); err != nil {
					b.Fatal(err)
				}
				if i++; i == len(hot) {
					i = 0
				}
			}
		})
	}
}

func TestDecodeAllocates(t *testing.T) {
	for name, stream := range recorded(t) {
		if name == "ddl" {
			continue // its relation changes in mid-stream
		}
		var d wal.Decoder
		for _, data := range stream {
			if _, err := d.Decode(data); err != nil {
				t.Fatal(err)
			}
		}
		for _, data := range stream {
			if strings.IndexByte("IUDBC", data[0]) < 0 {
				continue
			}
			if n := testing.AllocsPerRun(20, func() { _, _ = d.Decode(data) }); n != 0 {
				t.Errorf("%s: message %q costs %v allocations", name, data[0], n)
			}
		}
	}
}
