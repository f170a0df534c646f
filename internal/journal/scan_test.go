package journal

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// What a batch scans is what its reads would give, whatever of it is stored, set
// or deleted, and in order.
func TestBatchScanMemory(t *testing.T) {
	j, err := Open(Options{mergeAt: 2000, Path: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	model := map[string]string{}
	b := j.NewBatch()
	for range 2000 {
		key := fmt.Sprintf("%c%02d", 'a'+rng.IntN(3), rng.IntN(40))
		switch n := rng.IntN(100); {
		case n < 50:
			value := fmt.Sprint(rng.IntN(1000))
			b.SetMemory([]byte(key), []byte(value))
			model[key] = value
		case n < 85:
			b.DeleteMemory([]byte(key))
			delete(model, key)
		case n < 87:
			prefix := key[:2]
			b.DeleteMemoryPrefix([]byte(prefix))
			maps.DeleteFunc(model, func(k, _ string) bool { return strings.HasPrefix(k, prefix) })
		case n < 92:
			wait, err := j.Commit(b)
			if err != nil {
				t.Fatal(err)
			}
			if err := wait(); err != nil {
				t.Fatal(err)
			}
			b = j.NewBatch()
		default:
			prefix := key[:1]
			limit := 1 + rng.IntN(50)
			var want, got []string
			for _, k := range slices.Sorted(maps.Keys(model)) {
				if strings.HasPrefix(k, prefix) && k >= key && len(want) < limit {
					want = append(want, k+"="+model[k])
				}
			}
			err := b.ScanMemory([]byte(key), []byte(prefix), func(k, v []byte) (bool, error) {
				got = append(got, string(k)+"="+string(v))
				return len(got) < limit, nil
			})
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("from %s: %v, %v; want %v", key, got, err, want)
			}
		}
	}
	b.Discard()
}
