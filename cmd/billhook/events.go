package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func eventsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "events",
		Short: "Watch events as they come",
	}, "tail", eventsTailCommand())
}

// liveEvent is an event as it is derived.
type liveEvent struct {
	ID         string          `json:"id"`
	Event      string          `json:"event"`
	Object     string          `json:"object"`
	Lane       string          `json:"lane"`
	CommitTime time.Time       `json:"commit_time"`
	Origin     string          `json:"origin"`
	Handlers   []int           `json:"handlers"`
	Missed     int64           `json:"missed"`
	Payload    json.RawMessage `json:"payload"`
}

func eventsTailCommand() *cobra.Command {
	var at instance
	var output, event, object, lane string
	var full bool
	var count int
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Show events as they are derived, also those that no handler wants",
		Long: `Show events of a running billhook as they are derived, one on a line, until
interrupted: when, what, of which object, and which handlers will be called. Those that
no handler wants are shown too. Masked columns are masked here.

Output json is a line of JSON for each.`,
		Example: `  billhook events tail
  billhook events tail --event 'clients.*' --full
  billhook events tail --object 4711 --output json | jq .payload.changed`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("--output %s: want table or json", output)}
			}
			query := url.Values{}
			for name, value := range map[string]string{"event": event, "object": object, "lane": lane} {
				if value != "" {
					query.Set(name, value)
				}
			}
			resp, err := at.request(cmd.Context(), http.MethodGet, "events/live?"+query.Encode(), nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			err = tailEvents(resp.Body, cmd.OutOrStdout(), output, full, count)
			if cmd.Context().Err() != nil {
				return nil // interrupted, as it is meant to be
			}
			return err
		},
	}
	at.flags(cmd.Flags())
	f := cmd.Flags()
	f.StringVar(&event, "event", "", "only events of this type, or of those that a pattern covers, such as clients.*")
	f.StringVar(&object, "object", "", "only events of this object")
	f.StringVar(&lane, "lane", "", "only events of this lane, that is of this client")
	f.BoolVar(&full, "full", false, "with their payload")
	f.IntVar(&count, "count", 0, "end after so many; 0: never")
	f.StringVar(&output, "output", "table", "table for people, json for scripts")
	markTyped(cmd.Flags(), "event", "object", "lane", "full", "count")
	return cmd
}

// tailEvents prints server-sent events until count have come, 0 for all.
func tailEvents(in io.Reader, out io.Writer, output string, full bool, count int) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxAnswer)
	n := 0
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e liveEvent
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		if e.Missed > 0 {
			fmt.Fprintf(os.Stderr, "%d events came faster than they could be shown\n", e.Missed)
		}
		if e.ID == "" {
			continue
		}
		if output == "json" {
			text += "\n"
		} else {
			text = e.line(full)
		}
		if _, err := io.WriteString(out, text); err != nil {
			return err
		}
		if n++; n == count {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("watch events: %w", err)
	}
	return errors.New("billhook has ended")
}

func (e *liveEvent) line(full bool) string {
	who := "no handler"
	if len(e.Handlers) > 0 {
		ids := make([]string, len(e.Handlers))
		for i, h := range e.Handlers {
			ids[i] = strconv.Itoa(h)
		}
		who = "handler " + strings.Join(ids, ", ")
	}
	origin := ""
	if e.Origin != "" {
		origin = " (" + e.Origin + ")"
	}
	text := fmt.Sprintf("%s  %-34s %-20s %s%s\n", e.CommitTime.Local().Format("15:04:05.000"), oneLine(e.Event), oneLine(e.Object), who, oneLine(origin))
	if full {
		text += "  " + oneLine(string(e.Payload)) + "\n"
	}
	return text
}
