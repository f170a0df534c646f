package journal

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestDelta changes memory in commits and in large transactions while merges go on, cuts
// the power again and again, and compares with what each transaction should leave,
// by reads, by scans of a batch, and by a scan of the journal.
func TestDelta(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			fs := vfs.NewCrashableMem()
			options := func(o *Options) { o.FS, o.mergeAt, o.MemoryCache = fs, 1500, 2*cacheMax+4096 }
			j := open(t, options)
			states := []map[string]string{{}} // by transaction
			acked := 0
			key := func() string { return fmt.Sprintf("%c/%02d", 'a'+rune(r.IntN(3)), r.IntN(60)) }
			// look compares all there is with a state.
			look := func(j *Journal, b *Batch, state map[string]string) {
				t.Helper()
				got := map[string]string{}
				if b == nil {
					err := j.ScanMemory(t.Context(), nil, func(k, v []byte) error {
						got[string(k)] = string(v)
						return nil
					})
					if err != nil {
						t.Fatal(err)
					}
				} else {
					for _, prefix := range []string{"a/", "b/", "c/"} {
						err := b.ScanMemory(nil, []byte(prefix), func(k, v []byte) (bool, error) {
							got[string(k)] = string(v)
							return true, nil
						})
						if err != nil {
							t.Fatal(err)
						}
					}
				}
				want(t, "memory", got, state)
			}
			for n := 1; n <= 400; n++ {
				state := maps.Clone(states[n-1])
				b := j.NewBatch()
				b.Begin()
				pieces := 0
				if r.IntN(25) == 0 {
					pieces = 1 + r.IntN(3)
				}
				for p := range pieces + 1 {
					for range r.IntN(30) {
						switch k := key(); r.IntN(12) {
						case 0:
							b.DeleteMemory([]byte(k))
							delete(state, k)
						case 1:
							if r.IntN(20) > 0 {
								break
							}
							prefix := k[:2+r.IntN(2)]
							b.DeleteMemoryPrefix([]byte(prefix))
							maps.DeleteFunc(state, func(k, _ string) bool { return strings.HasPrefix(k, prefix) })
						case 2, 3, 4, 5:
							v, ok, err := b.Memory([]byte(k))
							if w, has := state[k]; err != nil || ok != has || string(v) != w {
								t.Fatalf("transaction %d: %s is %q %v %v, want %q %v", n, k, v, ok, err, w, has)
							}
						default:
							v := strings.Repeat("x", r.IntN(40)) + fmt.Sprint(n)
							b.SetMemory([]byte(k), []byte(v))
							state[k] = v
						}
					}
					if pieces == 0 && r.IntN(10) == 0 {
						look(j, b, state)
					}
					if p < pieces {
						if _, err := j.CommitPiece(b); err != nil {
							t.Fatal(err)
						}
						b = j.NewBatch()
					}
				}
				states = append(states, state)
				b.SetPosition(position(n))
				wait, err := j.Commit(b)
				if err != nil {
					t.Fatal(err)
				}
				if r.IntN(4) == 0 {
					if err := wait(); err != nil {
						t.Fatal(err)
					}
					acked = n
				}
				if r.IntN(10) == 0 {
					look(j, nil, state)
				}
				if r.IntN(25) > 0 {
					continue
				}
				clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: r})
				k := open(t, func(o *Options) { options(o); o.FS = clone })
				verify(t, k)
				reached := 0
				if p, ok := k.Position(); ok {
					reached = int(p.CommitLSN / 100)
				}
				if reached < acked || reached > n {
					t.Fatalf("transaction %d was reached, %d was acknowledged and %d the last", reached, acked, n)
				}
				look(k, nil, states[reached])
				c := k.NewBatch()
				look(k, c, states[reached])
				c.Discard()
				if r.IntN(2) == 0 { // go on with what is left
					if err := j.Close(); err != nil {
						t.Fatal(err)
					}
					j, fs, n, acked, states = k, clone, reached, reached, states[:reached+1]
				} else if err := k.Close(); err != nil {
					t.Fatal(err)
				}
			}
			verify(t, j)
		})
	}
}

// TestOlderFormat: a journal of the format before is made one of this.
func TestOlderFormat(t *testing.T) {
	fs := vfs.NewMem()
	j := open(t, func(o *Options) { o.FS = fs })
	b := j.NewBatch()
	b.SetMemory([]byte("k"), []byte("v"))
	commit(t, j, b)
	if err := j.settle(); err != nil { // there is nothing in d, as then
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	writeFile(t, fs, "j/JOURNAL", []byte("Billhook journal\nformat 1\nstate ready\n"))
	lookOnly(t, fs)
	want(t, "stamp after a look", string(readFile(t, fs, "j/JOURNAL")), "Billhook journal\nformat 1\nstate ready\n")
	j = open(t, func(o *Options) { o.FS = fs })
	b = j.NewBatch()
	check(t, b, "k", "v")
	b.Discard()
	want(t, "stamp", string(readFile(t, fs, "j/JOURNAL")), "Billhook journal\nformat 2\nstate ready\n")
}
