package journal

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkMemory is the hot path of intake: read what a row was, remember what
// it is, 2,000 rows to a commit, rows at random.
func BenchmarkMemory(b *testing.B) {
	for _, rows := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			j := open(b, func(o *Options) { o.FS, o.Path, o.memTable = nil, b.TempDir()+"/j", 0 })
			key, value := make([]byte, 10), make([]byte, 20)
			fill := func(n int, get bool, id func(int) uint64) {
				batch := j.NewBatch()
				var wait func() error
				for i := range n {
					binary.BigEndian.PutUint64(key[2:], id(i))
					if get {
						if _, _, err := batch.Memory(key); err != nil {
							b.Fatal(err)
						}
					}
					binary.BigEndian.PutUint64(value, uint64(i))
					batch.SetMemory(key, value)
					if i%2000 == 1999 || i == n-1 {
						w, err := j.Commit(batch)
						if err != nil {
							b.Fatal(err)
						}
						if wait != nil {
							if err := wait(); err != nil {
								b.Fatal(err)
							}
						}
						wait, batch = w, j.NewBatch()
					}
				}
				if err := wait(); err != nil {
					b.Fatal(err)
				}
			}
			fill(rows, false, func(i int) uint64 { return uint64(i) })
			r := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			b.ResetTimer()
			fill(b.N, true, func(int) uint64 { return r.Uint64N(uint64(rows)) })
		})
	}
}

// BenchmarkAppend commits events with one execution each.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			j := open(b, func(o *Options) { o.FS, o.Path, o.memTable = nil, b.TempDir()+"/j", 0 })
			e := sample(at(1, 1), "clients.balance_zero", "4711")
			e.Data = make([]byte, 900)
			plan := []Planned{{Handler: 1}}
			b.ReportAllocs()
			b.ResetTimer()
			var wait func() error
			for i := 0; i < b.N; {
				batch := j.NewBatch()
				for range size {
					i++
					e.ID = at(i, 1)
					if err := batch.AddEvent(e, plan); err != nil {
						b.Fatal(err)
					}
				}
				batch.SetPosition(position(i))
				w, err := j.Commit(batch)
				if err != nil {
					b.Fatal(err)
				}
				if wait != nil {
					if err := wait(); err != nil {
						b.Fatal(err)
					}
				}
				wait = w
			}
			if err := wait(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkRecord stores successful attempts from several goroutines.
func BenchmarkRecord(b *testing.B) {
	for _, workers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			j := open(b, func(o *Options) { o.FS, o.Path, o.memTable = nil, b.TempDir()+"/j", 0 })
			for n := 0; n < b.N; {
				batch := j.NewBatch()
				for range 1000 {
					n++
					if err := batch.AddEvent(sample(at(n, 1), "clients.update", fmt.Sprint(n%1000)), []Planned{{Handler: 1}}); err != nil {
						b.Fatal(err)
					}
				}
				commit(b, j, batch)
			}
			var id atomic.Uint64
			body := make([]byte, 300)
			now := time.Now()
			b.SetParallelism(workers / 2)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					a := Attempt{Number: 1, Start: now, OK: true, Code: 200}
					a.Request.Body, a.Response.Body = body, body[:50]
					if _, err := j.Record(context.Background(), Outcome{Execution: id.Add(1), Attempt: &a, Status: Succeeded}); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkSearch(b *testing.B) {
	j := open(b, func(o *Options) { o.FS, o.Path, o.memTable = nil, b.TempDir()+"/j", 0 })
	for n := 0; n < 200_000; {
		batch := j.NewBatch()
		for range 1000 {
			n++
			if err := batch.AddEvent(sample(at(n, 1), fmt.Sprint("t", n%30), fmt.Sprint(n%10000)), []Planned{{Handler: 1 + n%50}}); err != nil {
				b.Fatal(err)
			}
		}
		commit(b, j, batch)
	}
	for name, q := range map[string]Query{
		"newest": {}, "handler": {Handler: 3}, "object": {Object: "77"}, "pending": {Status: Pending},
		"handler+type": {Handler: 3, Type: "t2"},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := j.Executions(b.Context(), q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
