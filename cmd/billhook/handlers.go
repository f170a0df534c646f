package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func handlersCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "handlers",
		Short: "List handlers, switch one on or off, try one",
	}, "list or test", handlersListCommand(), handlersTestCommand(),
		handlersStatusCommand("enable", "enabled", "Call a handler; what was held for it is made first, in order"),
		handlersStatusCommand("disable", "disabled", "Call a handler no more, and hold what is for it until it is enabled"),
		handlersStatusCommand("archive", "archived", "Call a handler no more, and cancel what is for it"))
}

// handlerRow is what is shown of a handler.
type handlerRow struct {
	ID         int              `json:"id"`
	Name       string           `json:"name"`
	Events     []string         `json:"events"`
	Priority   int              `json:"priority"`
	Status     string           `json:"status"`
	Kind       string           `json:"kind"`
	Target     string           `json:"target"`
	Executions map[string]int64 `json:"executions"`
	Health     *struct {
		Failing      bool       `json:"failing"`
		FailingSince *time.Time `json:"failing_since"`
		LastSuccess  *time.Time `json:"last_success"`
		LastError    string     `json:"last_error"`
		RestingUntil *time.Time `json:"resting_until"`
	} `json:"health"`
}

// state is the status, and what is wrong with an enabled handler.
func (h *handlerRow) state() string {
	switch {
	case h.Health == nil || h.Status != "enabled":
		return h.Status
	case h.Health.Failing:
		return "FAILING"
	case h.Health.RestingUntil != nil:
		return "resting"
	}
	return h.Status
}

func (h *handlerRow) count(status string) string { return strconv.FormatInt(h.Executions[status], 10) }

func handlersListCommand() *cobra.Command {
	var at instance
	var output, status string
	var all bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the handlers in force",
		Long: `List the handlers in force, with what waits for each and what is dead. Archived ones
are left out unless asked for.`,
		Example: `  billhook handlers list
  billhook handlers list --status disabled --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if status != "" && !slices.Contains([]string{"enabled", "disabled", "archived"}, status) {
				return usageError{fmt.Errorf("--status %s: want enabled, disabled or archived", status)}
			}
			var raw struct {
				Handlers []json.RawMessage `json:"handlers"`
			}
			if err := at.ask(cmd.Context(), http.MethodGet, "handlers", nil, &raw); err != nil {
				return err
			}
			kept := []json.RawMessage{}
			var rows [][]string
			for _, r := range raw.Handlers {
				var h handlerRow
				if err := json.Unmarshal(r, &h); err != nil {
					return fmt.Errorf("read the answer of %s: %w", at.url, err)
				}
				if status != "" && h.Status != status || status == "" && h.Status == "archived" && !all {
					continue
				}
				kept = append(kept, r)
				waits := strconv.FormatInt(h.Executions["pending"]+h.Executions["held"], 10)
				rows = append(rows, []string{strconv.Itoa(h.ID), strconv.Itoa(h.Priority), h.Name, h.state(), waits, h.count("dead"), h.Kind, strings.Join(h.Events, ", "), h.Target})
			}
			if output != "table" {
				return printData(cmd.OutOrStdout(), output, map[string]any{"handlers": kept})
			}
			return printRows(cmd.OutOrStdout(), []string{"ID", "PRIORITY", "NAME", "STATUS", "WAITING", "DEAD", "KIND", "EVENTS", "TARGET"}, rows, tableWidth())
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().StringVar(&status, "status", "", "only enabled, disabled or archived ones")
	cmd.Flags().BoolVar(&all, "all", false, "archived ones too")
	markTyped(cmd.Flags(), "status", "all")
	outputFlag(cmd.Flags(), &output)
	return cmd
}

func parseHandler(text string) (int, error) {
	id, err := strconv.Atoi(text)
	if err != nil || id < 1 {
		return 0, usageError{fmt.Errorf("handler %q: want its id, a number", text)}
	}
	return id, nil
}

func handlersStatusCommand(name, status, short string) *cobra.Command {
	var at instance
	var output string
	cmd := &cobra.Command{
		Use:   name + " ID",
		Short: short,
		Long: short + `.

The status is changed in handlers.yaml, where comments, order and all else stay as they
are, and is in force when this command ends.`,
		Example: "  billhook handlers " + name + " 3",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			id, err := parseHandler(args[0])
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if err := at.ask(cmd.Context(), http.MethodPatch, fmt.Sprintf("handlers/%d", id), map[string]string{"status": status}, &raw); err != nil {
				return err
			}
			if output != "table" {
				return printData(cmd.OutOrStdout(), output, raw)
			}
			var h handlerRow
			if err := json.Unmarshal(raw, &h); err != nil {
				return fmt.Errorf("read the answer of %s: %w", at.url, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "handler %d, %s, is %s\n", h.ID, oneLine(h.Name), h.Status)
			return err
		},
	}
	at.flags(cmd.Flags())
	outputFlag(cmd.Flags(), &output)
	return cmd
}

// attemptRow is what is shown of an attempt.
type attemptRow struct {
	Number   int       `json:"number"`
	Start    time.Time `json:"start"`
	Duration float64   `json:"duration_seconds"`
	Outcome  string    `json:"outcome"`
	Error    string    `json:"error"`
	Code     *int      `json:"code"`
	Request  exchange  `json:"request"`
	Response exchange  `json:"response"`
}

// print writes an attempt and what was sent and came back.
func (a *attemptRow) print(b *strings.Builder, title string) {
	fmt.Fprintf(b, "\n%s, %s, %s after %s", title, local(&a.Start), a.Outcome, time.Duration(a.Duration*float64(time.Second)).Round(100*time.Microsecond))
	if a.Code != nil {
		fmt.Fprintf(b, ", code %d", *a.Code)
	}
	if a.Error != "" {
		fmt.Fprintf(b, ": %s", oneLine(a.Error))
	}
	b.WriteString("\n")
	a.Request.print(b, "sent")
	a.Response.print(b, "came back")
}

func handlersTestCommand() *cobra.Command {
	var at instance
	var output, event, object string
	var dry bool
	cmd := &cobra.Command{
		Use:   "test ID",
		Short: "Call a handler now, and show what is sent and what comes back",
		Long: `Have a running billhook call a handler now, once, whatever its status, and show what
was sent, with its headers and signature, and what came back. It is told the latest
event of the type that is in the journal, with that event's id; if there is none, one is
made up. Nothing is recorded, nothing written back, and no order is kept.

The exit code is 0 when the call was a success, or with --dry-run could be made.`,
		Example: `  billhook handlers test 3
  billhook handlers test 3 --event clients.balance_zero --object 4711
  billhook handlers test 3 --dry-run`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			id, err := parseHandler(args[0])
			if err != nil {
				return err
			}
			var raw json.RawMessage
			asked := map[string]any{"event": event, "object": object, "dry_run": dry}
			if err := at.ask(cmd.Context(), http.MethodPost, fmt.Sprintf("handlers/%d/test", id), asked, &raw); err != nil {
				return err
			}
			var t tried
			if err := json.Unmarshal(raw, &t); err != nil {
				return fmt.Errorf("read the answer of %s: %w", at.url, err)
			}
			if output != "table" {
				err = printData(cmd.OutOrStdout(), output, raw)
			} else {
				err = t.print(cmd.OutOrStdout())
			}
			if err == nil && (t.Attempt != nil && t.Attempt.Outcome != "success" || !t.DryRun && !t.Called) {
				err = silentError{errors.New("the call was no success")}
			}
			return err
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().StringVar(&event, "event", "", "event type, by any of its names (default: the first that the handler is for)")
	cmd.Flags().StringVar(&object, "object", "", "object whose latest event is told")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "make the payload, call nobody")
	markTyped(cmd.Flags(), "event", "object", "dry-run")
	outputFlag(cmd.Flags(), &output)
	return cmd
}

// tried is what came of trying a handler.
type tried struct {
	Handler     int         `json:"handler"`
	Event       string      `json:"event"`
	EventID     string      `json:"event_id"`
	Object      string      `json:"object"`
	Made        bool        `json:"made_up"`
	DryRun      bool        `json:"dry_run"`
	Called      bool        `json:"called"`
	Note        string      `json:"note"`
	Body        string      `json:"body"`
	ContentType string      `json:"content_type"`
	Attempt     *attemptRow `json:"attempt"`
}

func (t *tried) print(out io.Writer) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	from := "the latest in the journal"
	if t.Made {
		from = "made up: there is none in the journal"
	}
	fmt.Fprintf(w, "handler\t%d\n", t.Handler)
	fmt.Fprintf(w, "event\t%s, %s\n", oneLine(t.Event), from)
	fmt.Fprintf(w, "event id\t%s\n", oneLine(t.EventID))
	fmt.Fprintf(w, "object\t%s\n", oneLine(t.Object))
	if t.Note != "" {
		fmt.Fprintf(w, "note\t%s\n", oneLine(t.Note))
	}
	_ = w.Flush() // to memory
	if t.Attempt != nil {
		t.Attempt.print(&b, "called")
	} else {
		exchange{Head: []string{"content-type: " + t.ContentType}, Body: t.Body}.print(&b, "would be sent")
	}
	_, err := io.WriteString(out, b.String())
	return err
}
