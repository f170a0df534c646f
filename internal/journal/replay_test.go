package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func kept(t testing.TB, j *Journal) map[uint64]string {
	t.Helper()
	all := map[uint64]string{}
	if err := j.Replays(func(number uint64, state []byte) error {
		all[number] = string(state)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestCommitReplay(t *testing.T) {
	j := open(t, func(o *Options) { o.bucketIDs = 2 })
	for i := range 5 {
		transaction(t, j, i+1, "clients.update", []string{"1"}, 1)
	}
	for _, id := range []uint64{1, 2, 4} {
		record(t, j, Outcome{Execution: id, Status: Dead, Error: "x"})
	}
	// What is asked for is made, refused, counted and kept in one commit.
	var told map[Refusal]int64
	c := ReplayCommit{Number: 7, Executions: []uint64{1, 3, 4, 99}, State: func(made []Queued, refused map[Refusal]int64) ([]byte, error) {
		told = refused
		return fmt.Append(nil, len(made)), nil
	}}
	q, err := j.CommitReplay(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "made", q, []Queued{{Execution: 6, Lane: "1", Handler: 1}, {Execution: 7, Lane: "1", Handler: 1}})
	want(t, "refused", told, map[Refusal]int64{RefusedGone: 1, RefusedOpen: 1})
	want(t, "kept", kept(t, j), map[uint64]string{7: "2"})
	want(t, "marked", execution(t, j, 4).Replay, uint64(7))
	want(t, "the new one", execution(t, j, 7).ReplayOf, uint64(4))
	want(t, "unreplayed", all(t, j, Query{Status: Dead, Unreplayed: true}), []uint64{2})
	verify(t, j)

	// A second time it is refused, unless asked for.
	if q, err = j.CommitReplay(t.Context(), c); err != nil || len(q) != 0 || told[RefusedReplayed] != 2 {
		t.Fatalf("a second time: %v, %v, %v", q, told, err)
	}
	c.Again, c.Executions, c.Number, c.Forget = true, []uint64{1}, 8, []uint64{7}
	if q, err = j.CommitReplay(t.Context(), c); err != nil || len(q) != 1 {
		t.Fatalf("again: %v, %v", q, err)
	}
	want(t, "marked again", execution(t, j, 1).Replay, q[0].Execution)
	want(t, "kept", kept(t, j), map[uint64]string{8: "1"})

	// A state that cannot be written keeps all of it from happening.
	failed := errors.New("no state")
	c = ReplayCommit{Number: 9, Executions: []uint64{2}, State: func([]Queued, map[Refusal]int64) ([]byte, error) { return nil, failed }}
	if _, err := j.CommitReplay(t.Context(), c); !errors.Is(err, failed) {
		t.Fatal(err)
	}
	if x := execution(t, j, 2); x.Replay != 0 {
		t.Fatalf("replayed as %d all the same", x.Replay)
	}
	c.Executions = make([]uint64, MaxReplayed+1)
	if _, err := j.CommitReplay(t.Context(), c); err == nil {
		t.Fatal("a commit of any size")
	}
	verify(t, j)
}

// TestReplayPowerLoss cuts the power during and after each commit of a replay: what is
// kept of it always says exactly how many were made.
func TestReplayPowerLoss(t *testing.T) {
	const executions, each = 60, 3
	fs := vfs.NewCrashableMem()
	j := open(t, func(o *Options) { o.FS, o.bucketIDs = fs, 16 })
	for i := range executions {
		transaction(t, j, i+1, "clients.update", []string{strconv.Itoa(i % 4)}, 1)
		record(t, j, Outcome{Execution: uint64(i + 1), Status: Dead})
	}
	look := func(clone *vfs.MemFS, acked int, exact bool) {
		t.Helper()
		j, err := Open(Options{mergeAt: 2000, Path: "j", FS: clone})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		}()
		verify(t, j)
		n := 0
		if state, ok := kept(t, j)[1]; ok {
			if n, err = strconv.Atoi(state); err != nil {
				t.Fatal(err)
			}
		}
		if n < acked || exact && n != acked {
			t.Fatalf("%d are told of, %d were acknowledged", n, acked)
		}
		made := all(t, j, Query{Status: Pending, Oldest: true})
		if len(made) != n {
			t.Fatalf("%d were made, %d are told of", len(made), n)
		}
		for i, id := range made {
			if x := execution(t, j, id); x.ReplayOf != uint64(i+1) || execution(t, j, x.ReplayOf).Replay != id {
				t.Fatalf("the replay number %d is %+v", i, x)
			}
		}
	}
	clone := func(per int) *vfs.MemFS {
		return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: per, RNG: rand.New(rand.NewPCG(uint64(per), 3))})
	}
	for done := 0; done < executions; done += each {
		var ids []uint64
		for i := range each {
			ids = append(ids, uint64(done+i+1))
		}
		e, err := j.replay(ReplayCommit{Number: 1, Executions: ids, State: func(made []Queued, _ map[Refusal]int64) ([]byte, error) {
			return strconv.AppendInt(nil, int64(done+len(made)), 10), nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		// On its way to the disk it is there as a whole or not at all.
		look(clone(100), done, false)
		look(clone(done), done, false)
		if err := e.wait(); err != nil {
			t.Fatal(err)
		}
		look(clone(done), done+each, true)
	}
}
