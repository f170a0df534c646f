package journal

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestCache(t *testing.T) {
	for _, size := range []int{4096, 64 << 10, 4 << 20} {
		c := newCache(size)
		store := make(map[string]string)
		r := rand.New(rand.NewPCG(3, uint64(size)))
		hits := 0
		for i := range 50_000 {
			key := fmt.Sprint(r.IntN(3000))
			if i%15_000 == 14_999 {
				c.forget()
			}
			switch r.IntN(4) {
			case 0:
				value, ok := string(make([]byte, r.IntN(30)))+fmt.Sprint(i), r.IntN(5) > 0
				if ok {
					store[key] = value
				} else {
					delete(store, key)
				}
				c.apply(portion{changes: slices.Values([]change{{[]byte(key), []byte(value), ok}})})
				if !ok {
					continue
				}
			default:
				v, ok, known, epoch := c.get(nil, []byte(key))
				w, wok := store[key]
				if !known {
					c.put([]byte(key), []byte(w), wok, epoch)
					c.put([]byte(key), []byte("stale"), true, epoch-1)
					continue
				}
				hits++
				if ok != wok || string(v) != w {
					t.Fatalf("size %d, step %d: %s is %q %v, want %q %v", size, i, key, v, ok, w, wok)
				}
			}
		}
		t.Logf("size %d: %d hits, %d entries", size, hits, c.count)
		if hits == 0 {
			t.Error("no hit")
		}
	}
}
