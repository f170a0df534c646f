package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/billhook/billhook/internal/backfill"
	"github.com/billhook/billhook/internal/event"
)

func backfillCommand() *cobra.Command {
	var at instance
	var spec backfill.Spec
	var events []string
	var output string
	var detach bool
	cmd := &cobra.Command{
		Use:   "backfill --event TYPE --handler ID",
		Short: "Tell handlers of clients, accounts or packages that are there already",
		Long: `Have a running billhook read the rows of an entity and tell the named handlers the
events that the rows stand for: of a client its create and its update, that its
balance is at or below zero or above it, that it is archived, its custom fields; of a
package that it is assigned, active or closed. A new CRM gets all clients so, a new
switch all that are to be blocked.

The events are marked "origin": "backfill", run in their clients' lanes among those of
the stream, and tell the row as it is at that place. The handlers must listen to the
event; the conditions of theirs hold here too. The backfill keeps to --rate, waits
while its handlers are far behind, and goes on where it was after a restart of
billhook. This command shows how far it is; to interrupt the command leaves the
backfill running.`,
		Example: `  billhook backfill --event clients.create --handler 3 --dry-run
  billhook backfill --event clients.create --handler 3 --where 'new.status == "active"'
  billhook backfill --event "Clients balance = 0" --handler 7 --rate 20 --detach
  billhook backfill cancel 2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if len(events) == 0 || len(spec.Handlers) == 0 {
				return usageError{errors.New("--event and --handler are needed; see billhook backfill --help")}
			}
			for _, e := range events {
				spec.Events = append(spec.Events, event.Type(e))
			}
			var st backfill.Status
			if err := at.ask(cmd.Context(), http.MethodPost, "backfills", spec, &st); err != nil {
				return err
			}
			if !detach {
				var err error
				if st, err = at.follow(cmd.Context(), st, output); err != nil {
					return err
				}
			}
			return ended(st, printBackfill(cmd.OutOrStdout(), st, output))
		},
	}
	f := cmd.Flags()
	at.flags(f)
	f.StringArrayVar(&events, "event", nil, "event type, alias, title or wildcard; may be given again")
	f.IntSliceVar(&spec.Handlers, "handler", nil, "id of a handler that is to be told; may be given again")
	f.StringVar(&spec.Where, "where", "", "a condition over new, the row, such as new.id > 1000")
	f.Float64Var(&spec.Rate, "rate", backfill.DefaultRate, "executions per second, 0 for no limit")
	f.BoolVar(&spec.DryRun, "dry-run", false, "count, and tell nobody")
	f.BoolVar(&detach, "detach", false, "begin it and do not wait for its end")
	outputFlag(f, &output)
	cmd.AddCommand(backfillListCommand(), backfillOneCommand("show", "Show one backfill", http.MethodGet), backfillOneCommand("cancel", "End a backfill; what it has told stays told", http.MethodDelete))
	return cmd
}

func backfillListCommand() *cobra.Command {
	var at instance
	var output string
	cmd := &cobra.Command{
		Use: "list", Short: "List the backfills, the newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			var all struct {
				Backfills []backfill.Status `json:"backfills"`
			}
			if err := at.ask(cmd.Context(), http.MethodGet, "backfills", nil, &all); err != nil {
				return err
			}
			if output != "table" {
				return printData(cmd.OutOrStdout(), output, all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tSTATE\tEVENTS\tHANDLERS\tROWS\tEXECUTIONS\tCREATED\tWHY")
			for _, st := range all.Backfills {
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", st.ID, stateOf(st), joinTypes(st.Events), joinIDs(st.Handlers), rowsOf(st), st.Executions, st.Created.Local().Format(time.DateTime), st.Why)
			}
			return w.Flush()
		},
	}
	at.flags(cmd.Flags())
	outputFlag(cmd.Flags(), &output)
	return cmd
}

func backfillOneCommand(name, short, method string) *cobra.Command {
	var at instance
	var output string
	cmd := &cobra.Command{
		Use: name + " ID", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			id, err := strconv.Atoi(args[0])
			if err != nil {
				return usageError{fmt.Errorf("backfill %q: want a number", args[0])}
			}
			var st backfill.Status
			if err := at.ask(cmd.Context(), method, "backfills/"+strconv.Itoa(id), nil, &st); err != nil {
				return err
			}
			return printBackfill(cmd.OutOrStdout(), st, output)
		},
	}
	at.flags(cmd.Flags())
	outputFlag(cmd.Flags(), &output)
	return cmd
}

const followInterval = 300 * time.Millisecond

// follow waits for a backfill's end and shows how far it is.
func (i *instance) follow(ctx context.Context, st backfill.Status, output string) (backfill.Status, error) {
	var show *progress
	if output == "table" {
		show = newProgress(os.Stderr)
		defer show.end()
		fmt.Fprintf(os.Stderr, "backfill %d begins; to interrupt this leaves it running, billhook backfill cancel %d ends it\n", st.ID, st.ID)
	}
	for !st.State.Ended() {
		if show != nil {
			text := fmt.Sprintf("%d executions", st.Executions)
			if st.State == backfill.Waiting {
				text += ", waits for the ones before it"
			}
			if st.Why != "" {
				text += ", " + st.Why
			}
			show.at(st.Rows, st.RowsEstimated, text)
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("backfill %d goes on; billhook backfill show %d tells how far it is, cancel ends it", st.ID, st.ID)
		case <-time.After(followInterval):
		}
		var now backfill.Status
		if err := i.ask(ctx, http.MethodGet, "backfills/"+strconv.Itoa(st.ID), nil, &now); err != nil {
			if ctx.Err() == nil {
				return st, err
			}
			continue
		}
		st = now
	}
	return st, nil
}

// ended makes the exit code tell how a backfill has ended.
func ended(st backfill.Status, err error) error {
	if err == nil && (st.State == backfill.Failed || st.State == backfill.Cancelled) {
		return silentError{errors.New(string(st.State))}
	}
	return err
}

func printBackfill(out io.Writer, st backfill.Status, output string) error {
	if output != "table" {
		return printData(out, output, st)
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	line("backfill", strconv.Itoa(st.ID))
	line("state", stateOf(st))
	line("why", st.Why)
	line("events", joinTypes(st.Events))
	line("handlers", joinIDs(st.Handlers))
	line("where", st.Where)
	line("rows read", rowsOf(st))
	verb := "told"
	if st.DryRun {
		verb = "would be told"
	}
	for _, t := range slices.Sorted(maps.Keys(st.Told)) {
		line(verb, fmt.Sprintf("%d %s", st.Told[t], t))
	}
	line("executions", strconv.FormatInt(st.Executions, 10))
	line("such as", strings.Join(st.Samples, ", "))
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func stateOf(st backfill.Status) string {
	if st.DryRun {
		return string(st.State) + " (dry run)"
	}
	return string(st.State)
}

func rowsOf(st backfill.Status) string {
	if st.State.Ended() || st.RowsEstimated < st.Rows {
		return strconv.FormatInt(st.Rows, 10)
	}
	return fmt.Sprintf("%d of about %d", st.Rows, st.RowsEstimated)
}

func joinTypes(types []event.Type) string {
	var s []string
	for _, t := range types {
		s = append(s, string(t))
	}
	return strings.Join(s, ", ")
}

func joinIDs(ids []int) string {
	var s []string
	for _, id := range ids {
		s = append(s, strconv.Itoa(id))
	}
	return strings.Join(s, ", ")
}
