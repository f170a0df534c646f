package journal

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"
	"testing/quick"
	"time"

	"github.com/billhook/billhook/internal/event"
)

// FuzzCodec reads foreign bytes as every kind of value: no panic, and what can be
// read is written as it was.
func FuzzCodec(f *testing.F) {
	f.Add(appendEvent(nil, sample(at(1, 1), "clients.update", "4711")))
	f.Add(appendRow(nil, &Execution{Status: Dead, Type: "t", LastError: "e", Created: epoch}))
	f.Add(appendAttempt(nil, &Attempt{Start: epoch, Error: "e"}))
	p := position(3)
	f.Add(appendPosition(nil, &p))
	f.Add(appendBucketRow(nil, &bucket{first: 1, created: epoch}, epoch))
	f.Add((&stage{merging: true}).row(nil))
	f.Add([]byte("\x01\x00\x02a/\x02\x03a/1\x01v\x01\x03b/1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// A varint may be written longer than need be, so what is compared is
		// the second writing.
		again := func(once []byte, read func([]byte) ([]byte, error)) {
			twice, err := read(once)
			if err != nil || !bytes.Equal(once, twice) {
				t.Fatalf("%x became %x, %v", once, twice, err)
			}
		}
		for _, read := range []func([]byte) ([]byte, error){
			func(b []byte) ([]byte, error) {
				e, err := decodeEvent(at(1, 1), b)
				if err != nil {
					return nil, err
				}
				return appendEvent(nil, e), nil
			},
			func(b []byte) ([]byte, error) {
				x, err := decodeRow(1, b)
				return appendRow(nil, &x), err
			},
			func(b []byte) ([]byte, error) {
				a, err := decodeAttempt(1, b)
				return appendAttempt(nil, &a), err
			},
			func(b []byte) ([]byte, error) {
				p, err := decodePosition(b)
				return appendPosition(nil, &p), err
			},
			func(b []byte) ([]byte, error) {
				bk, err := decodeBucketRow(1, b)
				if err != nil {
					return nil, err
				}
				return appendBucketRow(nil, bk, bk.finished), nil
			},
			func(b []byte) ([]byte, error) {
				s, err := decodeStage(b)
				if err != nil {
					return nil, err
				}
				return s.row(nil), nil
			},
		} {
			if once, err := read(b); err == nil {
				again(once, read)
			}
		}
		if lane, id, ok := laneOf(b); ok {
			_, _ = lane, id
		}
		_, _ = parseStamp(string(b))
		o := newOverlay()
		_ = readDelta(&o, b)
	})
}

func TestCodecRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	moment := func() time.Time {
		if r.IntN(3) == 0 {
			return time.Time{}
		}
		return time.UnixMicro(r.Int64N(1<<55) - 1<<54).UTC()
	}
	check := func(x Execution, a Attempt, p Position, e event.Event) bool {
		x.ID, x.Status = 9, Statuses()[r.IntN(6)]
		x.Handler &= 0x7FFFFFFF
		x.Attempts &= 0x7FFFFFFF
		x.NextAt, x.Created, x.Finished, x.CommitTime = moment(), moment(), moment(), moment()
		gotX, err := decodeRow(9, appendRow(nil, &x))
		if err != nil || gotX != x {
			t.Errorf("got %+v, %v\nwant %+v", gotX, err, x)
		}
		a.Number, a.Start = 3, moment()
		a.Request.Truncated &= 0x7FFFFFFF
		a.Response.Truncated &= 0x7FFFFFFF
		for _, ex := range []*[]string{&a.Request.Head, &a.Response.Head} {
			if len(*ex) == 0 {
				*ex = nil
			}
		}
		for _, b := range []*[]byte{&a.Request.Body, &a.Response.Body, (*[]byte)(&e.ObjectJSON), (*[]byte)(&e.Data), (*[]byte)(&e.Changed)} {
			if len(*b) == 0 {
				*b = nil
			}
		}
		gotA, err := decodeAttempt(3, appendAttempt(nil, &a))
		if err != nil || !reflect.DeepEqual(gotA, a) {
			t.Errorf("got %+v, %v\nwant %+v", gotA, err, a)
		}
		p.CommitTime = moment()
		gotP, err := decodePosition(appendPosition(nil, &p))
		if err != nil || gotP != p {
			t.Errorf("got %+v, %v\nwant %+v", gotP, err, p)
		}
		e.CommitTime = moment()
		gotE, err := decodeEvent(e.ID, appendEvent(nil, &e))
		if err != nil || !reflect.DeepEqual(*gotE, e) {
			t.Errorf("got %+v, %v\nwant %+v", gotE, err, e)
		}
		return !t.Failed()
	}
	// Times cannot be made up by reflection, so the shapes are made by hand.
	type shape struct {
		Type, Object, Lane, Error   string
		Handler, Priority, Attempts int
		Code                        int
		Duration                    time.Duration
		Replay                      uint64
		Body, Data                  []byte
		Head                        []string
		Truncated                   int64
		ID                          event.ID
	}
	err := quick.Check(func(s shape) bool {
		x := Execution{
			Event: s.ID, Type: event.Type(s.Type), Object: s.Object, Lane: s.Lane, LastError: s.Error, Handler: s.Handler,
			Priority: s.Priority, Attempts: s.Attempts, LastCode: s.Code, LastDuration: s.Duration, ReplayOf: s.Replay,
			Uncounted: s.Handler & 1, DeadOf: s.Replay * uint64(s.Handler&1),
		}
		a := Attempt{Duration: s.Duration, OK: s.Code > 0, Permanent: s.Code&1 == 1, Uncounted: s.Code&2 == 2, SentPayload: s.Body == nil, Error: s.Error, Code: s.Code}
		a.Request.Head, a.Request.Body, a.Request.Truncated = s.Head, s.Body, s.Truncated
		a.Response.Body = s.Data
		p := Position{SystemID: s.Type, Timeline: s.ID.Generation, Generation: s.ID.Ordinal, Slot: s.Object, Publication: s.Lane, CommitLSN: s.ID.CommitLSN}
		e := event.Event{
			ID: s.ID, Type: event.Type(s.Type), Entity: s.Error, Object: s.Object, Lane: s.Lane, XID: s.ID.Ordinal,
			Source: s.Type, ObjectJSON: s.Body, Data: s.Data, Changed: s.Body,
		}
		return check(x, a, p, e)
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// No text is found under the posting list of another.
func TestPostingLists(t *testing.T) {
	long := string(bytes.Repeat([]byte("x"), 100))
	texts := []string{"", "1", "11", "\x00", "1\x00", long, long + "1", long[:64], long[:65], long[:32] + "\xff"}
	for _, a := range texts {
		for _, b := range texts {
			p := appendTextList(nil, 1, postingLane, a)
			k := appendID(appendTextList(nil, 1, postingLane, b), 7)
			if bytes.HasPrefix(k, p) != (a == b) {
				t.Errorf("%q is found under %q", b, a)
			}
			if lane, id, ok := laneOf(appendID(appendLanePrefix(nil, b), 7)); !ok || lane != b || id != 7 {
				t.Errorf("lane %q became %q, %d", b, lane, id)
			}
		}
	}
}
