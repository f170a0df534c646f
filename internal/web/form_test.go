package web

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// TestReorder moves every handler of some lists to every place: it then stands there, the
// order of the others is as it was, and nothing changes that need not.
func TestReorder(t *testing.T) {
	for _, priorities := range [][]int{{1, 1, 1, 1}, {1, 2, 3, 4}, {4, 3, 2, 1}, {0, 0, 5, 5}, {1, 1, 2, 1}, {0, 10, 10, 20}} {
		var list []Handler
		for i, p := range priorities {
			list = append(list, Handler{ID: i + 1, Priority: p})
		}
		ids := func(list []Handler) (ids []int) {
			for _, h := range sorted(list) {
				ids = append(ids, h.ID)
			}
			return ids
		}
		for _, h := range list {
			for _, other := range list {
				for _, after := range []bool{false, true} {
					name := fmt.Sprint(priorities, " ", h.ID, " to ", other.ID, " after ", after)
					changed, err := reorder(list, h.ID, other.ID, after)
					if (err != nil) != (h.ID == other.ID) {
						t.Fatalf("%s: %v", name, err)
					}
					if err != nil {
						continue
					}
					want := slices.DeleteFunc(ids(list), func(id int) bool { return id == h.ID })
					at := slices.Index(want, other.ID)
					if after {
						at++
					}
					want = slices.Insert(want, at, h.ID)
					now := slices.Clone(list)
					for i := range now {
						if p, ok := changed[now[i].ID]; ok {
							now[i].Priority = p
						}
						if now[i].Priority < 0 {
							t.Errorf("%s: a priority of %d", name, now[i].Priority)
						}
					}
					if got := ids(now); !slices.Equal(got, want) {
						t.Errorf("%s: %v by %v, want %v", name, got, changed, want)
					}
					if slices.Equal(want, ids(list)) && len(changed) > 0 {
						t.Errorf("%s: changes %v where nothing moves", name, changed)
					}
				}
			}
		}
	}
	if _, err := reorder([]Handler{{ID: 1}}, 1, 9, true); err == nil {
		t.Error("a handler that is not there is no place")
	}
	// The least that will do.
	changed, err := reorder([]Handler{{ID: 1, Priority: 1}, {ID: 2, Priority: 5}, {ID: 3, Priority: 9}}, 3, 1, true)
	if err != nil || !maps.Equal(changed, map[int]int{3: 1, 2: 5}) && !maps.Equal(changed, map[int]int{3: 1}) {
		t.Errorf("%v %v", changed, err)
	}
}
