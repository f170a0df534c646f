package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func statusCommand() *cobra.Command {
	var at instance
	var output string
	var alive bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show on one screen how a running billhook fares",
		Long: `Show how a running billhook fares: the stream, its slot and lag, what waits and what
is dead, each handler, and every check that is not as it should be.

The exit code is 0 when it is ready and no handler is failing, else 1. With --alive it is
0 while the process works, whatever is away: that is what a container's health check asks.`,
		Example: "  billhook status\n  billhook status --alive",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if alive {
				return at.alive(cmd.Context())
			}
			var raw json.RawMessage
			if err := at.ask(cmd.Context(), http.MethodGet, "status", nil, &raw); err != nil {
				return err
			}
			var all struct {
				Handlers []handlerRow `json:"handlers"`
			}
			if err := at.ask(cmd.Context(), http.MethodGet, "handlers", nil, &all); err != nil {
				return err
			}
			var st statusData
			if err := json.Unmarshal(raw, &st); err != nil {
				return fmt.Errorf("read the answer of %s: %w", at.url, err)
			}
			var err error
			if output != "table" {
				err = printData(cmd.OutOrStdout(), output, raw)
			} else {
				err = printStatus(cmd.OutOrStdout(), st, all.Handlers, tableWidth(), terminal(os.Stdout))
			}
			if err == nil && !st.well(all.Handlers) {
				err = silentError{errors.New("something is wrong")}
			}
			return err
		},
	}
	at.flags(cmd.Flags())
	outputFlag(cmd.Flags(), &output)
	cmd.Flags().BoolVar(&alive, "alive", false, "only ask whether the process works, as /healthz tells; takes no token")
	return cmd
}

// statusData is what /api/v1/status says.
type statusData struct {
	Version string     `json:"version"`
	Started *time.Time `json:"started"`
	Checks  []struct {
		Name string `json:"name"`
		OK   bool   `json:"ok"`
		Text string `json:"text"`
	} `json:"checks"`
	Executions    map[string]int64 `json:"executions"`
	OldestPending *time.Time       `json:"oldest_pending"`
	Replication   struct {
		Phase      string     `json:"phase"`
		Slot       string     `json:"slot"`
		Database   string     `json:"database"`
		Confirmed  string     `json:"confirmed_lsn"`
		Lag        int64      `json:"lag_bytes"`
		LastCommit *time.Time `json:"last_commit"`
		Retained   int64      `json:"retained_bytes"`
		WALStatus  string     `json:"wal_status"`
	} `json:"replication"`
}

func (s *statusData) well(handlers []handlerRow) bool {
	for _, c := range s.Checks {
		if !c.OK {
			return false
		}
	}
	for _, h := range handlers {
		if h.state() == "FAILING" {
			return false
		}
	}
	return true
}

func printStatus(out io.Writer, s statusData, handlers []handlerRow, columns int, color bool) error {
	paint := func(code, text string) string {
		if color {
			return "\x1b[" + code + "m" + text + "\x1b[0m"
		}
		return text
	}
	var b strings.Builder
	state := paint("32", "ready")
	if !s.well(handlers) {
		state = paint("31", "NOT WELL")
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, oneLine(fmt.Sprintf(format, args...)))
	}
	up := ""
	if s.Started != nil {
		up = ", up " + since(*s.Started)
	}
	line("billhook", "%s%s", s.Version, up)
	r := s.Replication
	where := ""
	if r.Database != "" {
		where = " from database " + r.Database
	}
	line("stream", "%s%s, slot %s", r.Phase, where, r.Slot)
	if r.Confirmed != "" {
		lag := size(r.Lag) + " behind"
		if r.Lag == 0 {
			lag = "nothing behind"
		}
		if r.LastCommit != nil {
			lag += ", last transaction " + since(*r.LastCommit) + " ago"
		}
		line("confirmed", "%s, %s", r.Confirmed, lag)
	}
	if r.Retained >= 0 {
		line("slot keeps", "%s of WAL (%s)", size(r.Retained), r.WALStatus)
	}
	waits := fmt.Sprintf("%d pending, %d held", s.Executions["pending"], s.Executions["held"])
	if s.OldestPending != nil {
		waits += ", the oldest for " + since(*s.OldestPending)
	}
	line("executions", "%s; %d succeeded, %d dead, %d skipped, %d cancelled", waits, s.Executions["succeeded"], s.Executions["dead"], s.Executions["skipped"], s.Executions["cancelled"])
	_ = w.Flush() // to memory
	text := state + "\n" + b.String()
	for _, c := range s.Checks {
		if !c.OK {
			text += paint("31", "!! "+oneLine(c.Name)) + ": " + strings.Join(wrap(plain(c.Text), max(columns, 100)-4), "\n   ") + "\n"
		}
	}
	var rows [][]string
	for i := range handlers {
		h := &handlers[i]
		if h.Status == "archived" {
			continue
		}
		last, why := "-", ""
		if h.Health != nil {
			if h.Health.LastSuccess != nil {
				last = since(*h.Health.LastSuccess) + " ago"
			}
			if h.Health.Failing || h.Health.RestingUntil != nil {
				why = h.Health.LastError
			}
		}
		rows = append(rows, []string{
			number(uint64(h.ID)), h.Name, h.state(), h.count("pending"), h.count("held"), h.count("succeeded"), h.count("dead"), last, why,
		})
	}
	if _, err := io.WriteString(out, text+"\n"); err != nil {
		return err
	}
	return printRows(out, []string{"ID", "HANDLER", "STATUS", "PENDING", "HELD", "SUCCEEDED", "DEAD", "LAST SUCCESS", "ERROR"}, rows, columns)
}

// since is how long ago a moment was, in its two largest units.
func since(t time.Time) string {
	d := max(time.Since(t), 0)
	switch {
	case d < time.Second:
		return "0s"
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// size is a number of bytes for people.
func size(n int64) string {
	const units = "KMGTP"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), -1
	for v >= 1024 && unit < len(units)-1 {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}
