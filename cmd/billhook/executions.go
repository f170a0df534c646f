package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/replay"
)

func executionsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "executions",
		Short: "Look at what was done for whom, and do it again",
		Long: `Look at the executions of a running billhook: one event for one handler each, from
pending to succeeded, dead, skipped or cancelled. Those that are dead, dead letters,
and all others that are final can be replayed.`,
	}, "list or replay", executionsListCommand(), executionsShowCommand(), executionsReplayCommand(), executionsExportCommand())
}

// selection are the flags that select executions.
type selection struct {
	handler, attempts                               int
	event, status, object, lane, text, since, until string
	request, response                               string
	duration                                        time.Duration
}

func (s *selection) flags(fs *pflag.FlagSet) {
	fs.IntVar(&s.handler, "handler", 0, "of the handler with this id")
	fs.StringVar(&s.event, "event", "", "of this event type, such as clients.create")
	fs.StringVar(&s.status, "status", "", "pending, held, succeeded, dead, skipped or cancelled")
	fs.StringVar(&s.object, "object", "", "of the object with this id")
	fs.StringVar(&s.lane, "lane", "", "of this lane, which is the client as a rule")
	fs.StringVar(&s.text, "text", "", "with this in the error")
	fs.StringVar(&s.request, "request", "", "with this in what was sent")
	fs.StringVar(&s.response, "response", "", "with this in what came back")
	fs.IntVar(&s.attempts, "attempts", 0, "with this many attempts at least")
	fs.DurationVar(&s.duration, "duration", 0, "whose last attempt took this long at least, such as 500ms")
	fs.StringVar(&s.since, "since", "", "journaled at or after: 2026-11-23T10:00:00Z, \"2026-11-23 10:00\" (local time), or 2h, 7d ago")
	fs.StringVar(&s.until, "until", "", "journaled before, written in the same way")
	markTyped(fs, "handler", "event", "status", "object", "lane", "text", "request", "response", "attempts", "duration", "since", "until")
}

func (s *selection) empty() bool { return *s == selection{} }

// query is the selection for the API's list and export.
func (s *selection) query() (url.Values, error) {
	v := url.Values{}
	if s.handler != 0 {
		v.Set("handler", strconv.Itoa(s.handler))
	}
	for name, value := range map[string]string{"event": s.event, "status": s.status, "object": s.object, "lane": s.lane, "text": s.text, "request": s.request, "response": s.response} {
		if value != "" {
			v.Set(name, value)
		}
	}
	if s.attempts != 0 {
		v.Set("attempts", strconv.Itoa(s.attempts))
	}
	if s.duration != 0 {
		v.Set("duration", s.duration.String())
	}
	since, until, err := s.times(time.Now())
	if err != nil {
		return nil, err
	}
	if !since.IsZero() {
		v.Set("since", since.Format(time.RFC3339Nano))
	}
	if !until.IsZero() {
		v.Set("until", until.Format(time.RFC3339Nano))
	}
	return v, nil
}

// filter is the selection for a replay.
func (s *selection) filter() (*replay.Filter, error) {
	since, until, err := s.times(time.Now())
	return &replay.Filter{
		Handler: s.handler, Event: event.Type(s.event), Status: s.status, Object: s.object, Lane: s.lane, Text: s.text, Since: since, Until: until,
		Request: s.request, Response: s.response, Attempts: s.attempts, Duration: s.duration.Seconds(),
	}, err
}

func (s *selection) times(now time.Time) (since, until time.Time, err error) {
	if since, err = parseTime(s.since, now); err != nil {
		return since, until, usageError{fmt.Errorf("--since %w", err)}
	}
	if until, err = parseTime(s.until, now); err != nil {
		return since, until, usageError{fmt.Errorf("--until %w", err)}
	}
	return since, until, nil
}

// parseTime reads a time, or how long ago it was.
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t.UTC(), nil
		}
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.UTC().AddDate(0, 0, -int(n)), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.UTC().Add(-d), nil
	}
	return time.Time{}, fmt.Errorf("%q: want a time such as 2026-11-23T10:00:00Z or \"2026-11-23 10:00\", or how long ago, such as 2h or 7d", text)
}

// execution is what is shown of one.
type execution struct {
	ID         uint64     `json:"id"`
	EventID    string     `json:"event_id"`
	Event      string     `json:"event"`
	Object     string     `json:"object"`
	Lane       string     `json:"lane"`
	Handler    int        `json:"handler"`
	Status     string     `json:"status"`
	Attempts   int        `json:"attempts"`
	NextAt     *time.Time `json:"next_at"`
	Created    *time.Time `json:"created"`
	Finished   *time.Time `json:"finished"`
	CommitTime *time.Time `json:"commit_time"`
	ReplayOf   uint64     `json:"replay_of"`
	ReplayedAs uint64     `json:"replayed_as"`
	DeadOf     uint64     `json:"dead_of"`
	Error      string     `json:"error"`
}

func local(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

func executionsListCommand() *cobra.Command {
	var at instance
	var which selection
	var output string
	var limit int
	var before uint64
	var unreplayed bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List executions, the newest first",
		Example: `  billhook executions list --status dead
  billhook executions list --status dead --handler 3 --unreplayed --since 2h
  billhook executions list --object 4711 --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			query, err := which.query()
			if err != nil {
				return err
			}
			query.Set("limit", strconv.Itoa(limit))
			if before != 0 {
				query.Set("before", strconv.FormatUint(before, 10))
			}
			if unreplayed {
				query.Set("replayed", "false")
			}
			var raw json.RawMessage
			if err := at.ask(cmd.Context(), http.MethodGet, "executions?"+query.Encode(), nil, &raw); err != nil {
				return err
			}
			if output != "table" {
				return printData(cmd.OutOrStdout(), output, raw)
			}
			var page struct {
				Executions []execution `json:"executions"`
				Next       uint64      `json:"next"`
			}
			if err := json.Unmarshal(raw, &page); err != nil {
				return fmt.Errorf("read the answer of %s: %w", at.url, err)
			}
			var rows [][]string
			for _, x := range page.Executions {
				status := x.Status
				if x.ReplayedAs != 0 {
					status += ", replayed"
				}
				rows = append(rows, []string{number(x.ID), local(x.Created), x.Event, x.Object, strconv.Itoa(x.Handler), status, strconv.Itoa(x.Attempts), x.Error})
			}
			if err := printRows(cmd.OutOrStdout(), []string{"ID", "CREATED", "EVENT", "OBJECT", "HANDLER", "STATUS", "ATTEMPTS", "ERROR"}, rows, tableWidth()); err != nil {
				return err
			}
			if page.Next != 0 {
				fmt.Fprintf(os.Stderr, "there are older ones: --before %d\n", page.Next)
			}
			return nil
		},
	}
	f := cmd.Flags()
	at.flags(f)
	which.flags(f)
	f.IntVar(&limit, "limit", 50, "at most so many, up to 500")
	f.Uint64Var(&before, "before", 0, "only those below this id: the next page")
	f.BoolVar(&unreplayed, "unreplayed", false, "leave out what was replayed already")
	outputFlag(f, &output)
	return cmd
}

func parseID(text string) (uint64, error) {
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil || id == 0 {
		return 0, usageError{fmt.Errorf("execution %q: want a number", text)}
	}
	return id, nil
}

func executionsShowCommand() *cobra.Command {
	var at instance
	var output string
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one execution, its event and every attempt", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			id, err := parseID(args[0])
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if err := at.ask(cmd.Context(), http.MethodGet, fmt.Sprintf("executions/%d", id), nil, &raw); err != nil {
				return fmt.Errorf("execution %d: %w", id, err)
			}
			if output != "table" {
				return printData(cmd.OutOrStdout(), output, raw)
			}
			return printExecution(cmd.OutOrStdout(), raw)
		},
	}
	at.flags(cmd.Flags())
	outputFlag(cmd.Flags(), &output)
	return cmd
}

// exchange is what was sent or came back.
type exchange struct {
	Head      []string `json:"head"`
	Body      string   `json:"body"`
	Truncated int64    `json:"truncated_bytes"`
}

func (x exchange) print(b *strings.Builder, title string) {
	if len(x.Head) == 0 && x.Body == "" {
		return
	}
	fmt.Fprintf(b, "  %s\n", title)
	for _, h := range x.Head {
		fmt.Fprintf(b, "    %s\n", oneLine(h))
	}
	if x.Body != "" {
		for line := range strings.Lines(strings.TrimRight(plain(x.Body), "\n")) {
			fmt.Fprintf(b, "    %s\n", strings.TrimRight(line, "\n"))
		}
	}
	if x.Truncated > 0 {
		fmt.Fprintf(b, "    (and %d bytes more)\n", x.Truncated)
	}
}

func printExecution(out io.Writer, raw []byte) error {
	var all struct {
		Execution execution       `json:"execution"`
		Payload   json.RawMessage `json:"payload"`
		Attempts  []attemptRow    `json:"attempts"`
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	x := all.Execution
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, line := range [][2]string{
		{"execution", number(x.ID)},
		{"status", x.Status},
		{"event", x.Event},
		{"event id", x.EventID},
		{"object", x.Object},
		{"lane", x.Lane},
		{"handler", strconv.Itoa(x.Handler)},
		{"committed", local(x.CommitTime)},
		{"journaled", local(x.Created)},
		{"next attempt", local(x.NextAt)},
		{"ended", local(x.Finished)},
		{"replay of", number(x.ReplayOf)},
		{"replayed as", number(x.ReplayedAs)},
		{"tells of the end of", number(x.DeadOf)},
		{"attempts", strconv.Itoa(x.Attempts)},
		{"error", x.Error},
	} {
		if line[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", line[0], oneLine(line[1]))
		}
	}
	_ = w.Flush() // to memory
	for _, a := range all.Attempts {
		a.print(&b, fmt.Sprintf("attempt %d", a.Number))
	}
	if len(all.Payload) > 0 {
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, all.Payload, "", "  "); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		fmt.Fprintf(&b, "\npayload\n%s\n", plain(pretty.String()))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func executionsExportCommand() *cobra.Command {
	var at instance
	var which selection
	var full, unreplayed bool
	var file string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write all executions that match as lines of JSON",
		Long: `Write all executions that match as lines of JSON (NDJSON), the oldest first, to
standard output or a file. With --full each has its payload and every attempt. The
newest there was when it began is the last. Masked columns are masked here too.

A file is put in place when the export is whole. When it breaks off the exit code is
1, and what was written to standard output is a part.`,
		Example: `  billhook executions export --status dead --full --file dead.ndjson
  billhook executions export --since 1d | jq -r .handler | sort | uniq -c`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			query, err := which.query()
			if err != nil {
				return err
			}
			if full {
				query.Set("full", "true")
			}
			if unreplayed {
				query.Set("replayed", "false")
			}
			return at.export(cmd.Context(), query, cmd.OutOrStdout(), file)
		},
	}
	f := cmd.Flags()
	at.flags(f)
	which.flags(f)
	f.BoolVar(&full, "full", false, "with payload and attempts")
	f.BoolVar(&unreplayed, "unreplayed", false, "leave out what was replayed already")
	f.StringVar(&file, "file", "", "write to this file")
	return cmd
}

func (i *instance) export(ctx context.Context, query url.Values, out io.Writer, file string) (err error) {
	resp, err := i.request(ctx, http.MethodGet, "executions.ndjson?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if file == "" {
		n, err := copyLines(out, resp.Body, nil)
		if err != nil {
			return fmt.Errorf("the export broke off after %d executions: %w", n, err)
		}
		return nil
	}
	part := file + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	show := newProgress(os.Stderr)
	n, err := copyLines(f, resp.Body, func(n int64) { show.at(n, -1, "") })
	show.end()
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(part) // what is left of it says what it is
		return fmt.Errorf("the export broke off after %d executions: %w", n, err)
	}
	if err := os.Rename(part, file); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d executions are in %s\n", n, file)
	return nil
}

// copyLines copies and counts lines; a stream that ends in the middle of one is an error.
func copyLines(w io.Writer, r io.Reader, each func(n int64)) (n int64, err error) {
	in, out := bufio.NewReaderSize(r, 64<<10), bufio.NewWriterSize(w, 64<<10)
	whole := true
	for {
		line, err := in.ReadSlice('\n')
		if _, werr := out.Write(line); werr != nil {
			return n, werr
		}
		switch {
		case err == nil:
			n++
			whole = true
			if each != nil {
				each(n)
			}
		case errors.Is(err, bufio.ErrBufferFull):
			whole = false
		case errors.Is(err, io.EOF) && whole && len(line) == 0:
			return n, out.Flush()
		case errors.Is(err, io.EOF):
			return n, errors.Join(io.ErrUnexpectedEOF, out.Flush())
		default:
			return n, errors.Join(err, out.Flush())
		}
	}
}
