package demo

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// summary writes what the run came to, as tables.
func summary(w io.Writer, ledger []entry, subscribers []subscriber, came []arrival, counts []ExecutionCount) error {
	perType := map[string]int{}
	for _, e := range ledger {
		perType[e.typ]++
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\nEVENTS\tby the ledger\t\n")
	for _, typ := range eventTypes() {
		fmt.Fprintf(t, "%s\t%d\t\n", typ, perType[typ])
	}
	fmt.Fprintf(t, "all\t%d\t\n", len(ledger))
	if err := t.Flush(); err != nil {
		return err
	}

	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nHANDLERS\t\texpected\treceived\tattempts\trefused\tcommit to first attempt p50\tp99\n")
	for _, s := range subscribers {
		expected := 0
		for _, e := range ledger {
			if s.wants(e.typ) {
				expected++
			}
		}
		n := tally(came, s.id)
		want := fmt.Sprint(expected)
		if s.some {
			want = "up to " + want
		}
		fmt.Fprintf(t, "%d %s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", s.id, s.name, s.kind, want,
			n.events, n.attempts, n.refused, shortDuration(quantile(n.latencies, 0.5)), shortDuration(quantile(n.latencies, 0.99)))
	}
	n := tally(came, 0)
	fmt.Fprintf(t, "all\t\t\t%d\t%d\t%d\t%s\t%s\n", n.events, n.attempts, n.refused,
		shortDuration(quantile(n.latencies, 0.5)), shortDuration(quantile(n.latencies, 0.99)))
	if err := t.Flush(); err != nil {
		return err
	}
	if len(counts) == 0 {
		return nil
	}

	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var outcomes []string
	cells := map[string]int64{}
	for _, c := range counts {
		if !slices.Contains(outcomes, c.Status) {
			outcomes = append(outcomes, c.Status)
		}
		cells[fmt.Sprint(c.Handler, " ", c.Status)] += c.N
	}
	slices.Sort(outcomes)
	fmt.Fprintf(t, "\nEXECUTIONS\t%s\n", strings.Join(outcomes, "\t"))
	for _, s := range subscribers {
		fmt.Fprintf(t, "%d %s", s.id, s.name)
		for _, o := range outcomes {
			fmt.Fprintf(t, "\t%d", cells[fmt.Sprint(s.id, " ", o)])
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// tallied is what one handler got.
type tallied struct {
	events    int // accepted ones, each once
	attempts  int
	refused   int
	latencies []time.Duration // from commit to first attempt, sorted
}

// tally counts the arrivals of one handler, or of all with 0.
func tally(came []arrival, handler int) tallied {
	type key struct {
		handler int
		id      string
	}
	var n tallied
	accepted, first := map[key]bool{}, map[key]bool{}
	for _, a := range came {
		if handler != 0 && a.handler != handler {
			continue
		}
		k := key{a.handler, a.id}
		n.attempts++
		if !a.accepted {
			n.refused++
		} else if !accepted[k] {
			accepted[k] = true
			n.events++
		}
		if !first[k] {
			first[k] = true
			n.latencies = append(n.latencies, a.at.Sub(a.committed))
		}
	}
	slices.SortFunc(n.latencies, cmp.Compare)
	return n
}

// quantile returns the value below which the share q of sorted values lies.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func shortDuration(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
