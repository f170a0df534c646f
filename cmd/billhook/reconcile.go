package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/billhook/billhook/internal/app"
	"github.com/billhook/billhook/internal/reconcile"
)

func reconcileCommand() *cobra.Command {
	var f files
	var output string
	var o app.ReconcileOptions
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Find the events that were missed after a lost slot, a restore or a fail-over",
		Long: `Compare every row of the mapped tables with what the journal remembers of it, and
say which events were missed: the net ones, from what was known to what is.

Nothing is changed anywhere without --apply. With it the slot is made anew, the
missed events are journaled, marked "origin": "reconcile", and billhook run goes on
from there. It reads all tables in one transaction of the database, which holds
vacuum back while it lasts. Broken off, it can be begun again.

Billhook must not be running with the same journal. Tables with REPLICA IDENTITY FULL
are compared only where their entity has remember: true.`,
		Example: `  billhook reconcile --config billhook.yaml --handlers handlers.yaml
  billhook reconcile --config billhook.yaml --handlers handlers.yaml --apply`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if o.Force && !o.Apply {
				return usageError{errors.New("--force means something with --apply only")}
			}
			if o.Adopt && !o.Apply {
				return usageError{errors.New("--adopt means something with --apply only")}
			}
			l, err := app.Load(app.Options{ConfigPath: f.config, HandlersPath: f.handlers, Version: buildVersion(), Launcher: launcher()})
			if err != nil {
				return err
			}
			show := newProgress(os.Stderr)
			if output == "table" {
				o.Progress = func(p reconcile.Progress) { show.at(p.Rows, p.Of, p.Table) }
			}
			r, err := app.Reconcile(cmd.Context(), l, o)
			show.end()
			if errors.Is(err, app.ErrNotNeeded) {
				return fmt.Errorf("%w; --force makes the slot anew all the same", err)
			}
			if errors.Is(err, app.ErrReplaced) {
				return fmt.Errorf("%w; look without --apply first, then add --adopt", err)
			}
			if err != nil {
				return err
			}
			if output != "table" {
				return printReconciledData(cmd.OutOrStdout(), output, r, o.Apply)
			}
			return printReconciled(cmd.OutOrStdout(), r, o.Apply)
		},
	}
	f.flags(cmd.Flags())
	cmd.Flags().BoolVar(&o.Apply, "apply", false, "make the slot anew and journal what was missed")
	cmd.Flags().BoolVar(&o.Force, "force", false, "with --apply: also when the slot could go on as it is")
	cmd.Flags().BoolVar(&o.Adopt, "adopt", false, "with --apply: also when the server is another cluster than the one that was followed, or was put back")
	outputFlag(cmd.Flags(), &output)
	return cmd
}

func printReconciledData(w io.Writer, output string, r app.Reconciled, applied bool) error {
	return printData(w, output, struct {
		Why      string             `json:"why,omitempty"`
		Replaced bool               `json:"replaced,omitempty"` // another cluster, or put back: --apply needs --adopt
		Applied  bool               `json:"applied"`
		From     string             `json:"from,omitempty"`
		To       string             `json:"to,omitempty"`
		Tables   []reconcile.Table  `json:"tables"`
		Events   []reconcile.Events `json:"events"`
		Total    int                `json:"total"`
		Handled  int                `json:"handled"`
	}{r.Why, r.Replaced, applied, r.From, r.To, r.Tables, r.Events, r.Total(), r.Handled})
}

func printReconciled(w io.Writer, r app.Reconciled, applied bool) error {
	var b strings.Builder
	if r.Why != "" {
		fmt.Fprintf(&b, "%s\n\n", strings.Join(wrap(r.Why, width(os.Stdout)), "\n"))
	}
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TABLE\tROWS\tGONE")
	for _, table := range r.Tables {
		if table.Skipped != "" {
			fmt.Fprintf(t, "%s\tnot compared: %s\n", table.Name, table.Skipped)
			continue
		}
		fmt.Fprintf(t, "%s\t%d\t%d\n", table.Name, table.Rows, table.Gone)
	}
	_ = t.Flush() // to memory
	if len(r.Events) > 0 {
		b.WriteString("\n")
		fmt.Fprintln(t, "MISSED EVENT\tCOUNT\tFOR EXAMPLE")
		for _, e := range r.Events {
			fmt.Fprintf(t, "%s\t%d\t%s\n", e.Type, e.Count, strings.Join(e.Objects, " "))
		}
		_ = t.Flush()
	}
	switch n := r.Total(); {
	case applied:
		fmt.Fprintf(&b, "\n%d events were missed, %d of them are for handlers and in the journal now.\nThe slot begins anew at %s; billhook run goes on from there.\n", n, r.Handled, r.To)
	case r.Why == "":
		fmt.Fprintf(&b, "\n%d events lie between the journal and the tables. The slot can go on: run billhook,\nand they come from the stream, each with what happened in between.\n", n)
	case r.Replaced:
		fmt.Fprintf(&b, "\n%d events lie between the journal and the tables, %d of them are for handlers. Nothing was changed.\nIf this is the database that the journal knows, --apply --adopt journals them and goes on from here.\n", n, r.Handled)
	default:
		fmt.Fprintf(&b, "\n%d events were missed, %d of them are for handlers. Nothing was changed; --apply journals them.\n", n, r.Handled)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
