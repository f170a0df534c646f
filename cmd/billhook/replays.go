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

	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replay"
)

func executionsReplayCommand() *cobra.Command {
	var at instance
	var which selection
	var spec replay.Spec
	var all, dryRun, detach bool
	var output string
	cmd := &cobra.Command{
		Use:   "replay [ID...]",
		Short: "Make executions again that are final: dead letters, as a rule",
		Long: `Have a running billhook make executions again: those with the ids, or all that the
flags select. Without --status these are dead ones. Each is made as a new execution
of the same event, with the same id, for the same handler, at the end of its lane; the
oldest come first. What was replayed before is left out, unless --again says
otherwise, and so is what an archived handler was for.

A replay by flags keeps to --rate and goes on where it was after a restart of
billhook. This command shows how far it is; to interrupt the command leaves the
replay running, billhook replays cancel ends it.`,
		Example: `  billhook executions replay 4711
  billhook executions replay --handler 3 --dry-run
  billhook executions replay --handler 3 --text "connection refused" --since 2h --rate 20
  billhook executions replay --status succeeded --handler 3 --since "2026-11-23 10:00" --until "2026-11-23 11:00"
  billhook executions replay --all --latest --detach`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			for _, arg := range args {
				id, err := parseID(arg)
				if err != nil {
					return err
				}
				spec.IDs = append(spec.IDs, id)
			}
			switch {
			case len(args) > 0 && (all || !which.empty()):
				return usageError{errors.New("give ids, or flags that select, not both")}
			case len(args) == 0 && which.empty() && !all:
				return usageError{errors.New("say which: ids, flags that select such as --handler 3, or --all for every dead letter")}
			case all && !which.empty():
				return usageError{errors.New("--all is every dead letter; leave it out when other flags select")}
			}
			if len(args) == 0 {
				var err error
				if spec.Filter, err = which.filter(); err != nil {
					return err
				}
			}
			if dryRun {
				return at.count(cmd.Context(), spec, cmd.OutOrStdout(), output)
			}
			var st replay.Status
			if len(args) == 1 {
				// At once, and what keeps it from being replayed is an error.
				if err := at.ask(cmd.Context(), http.MethodPost, fmt.Sprintf("executions/%d/replay", spec.IDs[0]), map[string]bool{"again": spec.Again}, &st); err != nil {
					return err
				}
				return printReplay(cmd.OutOrStdout(), st, output)
			}
			if err := at.ask(cmd.Context(), http.MethodPost, "replays", spec, &st); err != nil {
				return err
			}
			if !detach {
				var err error
				if st, err = at.followReplay(cmd.Context(), st, output); err != nil {
					return err
				}
			}
			if err := printReplay(cmd.OutOrStdout(), st, output); err != nil {
				return err
			}
			if st.State == replay.Cancelled {
				return silentError{errors.New("cancelled")}
			}
			return nil
		},
	}
	f := cmd.Flags()
	at.flags(f)
	which.flags(f)
	f.Lookup("status").Usage = "dead (as without it), skipped, cancelled or succeeded"
	f.BoolVar(&all, "all", false, "every dead letter")
	f.BoolVar(&spec.Latest, "latest", false, "of each object and handler only the newest of those selected")
	f.BoolVar(&spec.Again, "again", false, "also what was replayed before")
	f.Float64Var(&spec.Rate, "rate", replay.DefaultRate, "executions per second, 0 for no limit")
	f.BoolVar(&dryRun, "dry-run", false, "count, and replay nothing")
	f.BoolVar(&detach, "detach", false, "begin it and do not wait for its end")
	outputFlag(f, &output)
	return cmd
}

// count prints what a replay would do.
func (i *instance) count(ctx context.Context, spec replay.Spec, out io.Writer, output string) error {
	asked := struct {
		replay.Spec
		DryRun bool `json:"dry_run"`
	}{spec, true}
	var c replay.Count
	if err := i.ask(ctx, http.MethodPost, "replays", asked, &c); err != nil {
		return err
	}
	if output != "table" {
		return printData(out, output, c)
	}
	more := ""
	if !c.Complete {
		more = " or more; counting them all takes too long"
	}
	if _, err := fmt.Fprintf(out, "%d executions would be replayed%s\n", c.Matching, more); err != nil {
		return err
	}
	for _, line := range leftOut(c.LeftOut) {
		if _, err := fmt.Fprintf(out, "left out: %s\n", line); err != nil {
			return err
		}
	}
	return nil
}

// leftOut says how many were left out, and why.
func leftOut(left map[journal.Refusal]int64) (lines []string) {
	for _, why := range slices.Sorted(maps.Keys(left)) {
		text := string(why)
		switch why {
		case journal.RefusedGone:
			text = "not there, or no longer kept"
		case journal.RefusedOpen:
			text = "pending or held, to be attempted anyway"
		case journal.RefusedReplayed:
			text = "replayed before (--again takes them too)"
		case replay.LeftHandler:
			text = "of handlers that are archived or not in handlers.yaml"
		case replay.LeftOlder:
			text = "older than another one of the same object and handler"
		}
		lines = append(lines, fmt.Sprintf("%d %s", left[why], text))
	}
	return lines
}

func (i *instance) followReplay(ctx context.Context, st replay.Status, output string) (replay.Status, error) {
	var show *progress
	if output == "table" {
		show = newProgress(os.Stderr)
		defer show.end()
		fmt.Fprintf(os.Stderr, "replay %d begins; to interrupt this leaves it running, billhook replays cancel %d ends it\n", st.ID, st.ID)
	}
	for !st.State.Ended() {
		if show != nil {
			show.at(st.Replayed, st.Matching, st.Why)
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("replay %d goes on; billhook replays show %d tells how far it is, cancel ends it", st.ID, st.ID)
		case <-time.After(followInterval):
		}
		var now replay.Status
		if err := i.ask(ctx, http.MethodGet, fmt.Sprintf("replays/%d", st.ID), nil, &now); err != nil {
			if ctx.Err() == nil {
				return st, err
			}
			continue
		}
		st = now
	}
	return st, nil
}

func replaysCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "replays",
		Short: "Look at replays of executions, or end one",
		Long:  "Look at the replays of a running billhook: who asked for them, for what, and how far\nthey are. billhook executions replay begins one.",
	}, "list or cancel", replaysListCommand(), replaysOneCommand("show", "Show one replay", http.MethodGet),
		replaysOneCommand("cancel", "End a replay; what it has made stays made", http.MethodDelete))
}

func replaysListCommand() *cobra.Command {
	var at instance
	var output string
	cmd := &cobra.Command{
		Use: "list", Short: "List the replays, the newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			var all struct {
				Replays []replay.Status `json:"replays"`
			}
			if err := at.ask(cmd.Context(), http.MethodGet, "replays", nil, &all); err != nil {
				return err
			}
			if output != "table" {
				return printData(cmd.OutOrStdout(), output, all)
			}
			var rows [][]string
			for _, st := range all.Replays {
				rows = append(rows, []string{number(st.ID), string(st.State), replayedOf(st), st.Created.Local().Format(time.DateTime), byOf(st), selectedBy(st.Spec), st.Why})
			}
			return printRows(cmd.OutOrStdout(), []string{"ID", "STATE", "REPLAYED", "CREATED", "BY", "WHAT", "WHY"}, rows, tableWidth())
		},
	}
	at.flags(cmd.Flags())
	outputFlag(cmd.Flags(), &output)
	return cmd
}

func replaysOneCommand(name, short, method string) *cobra.Command {
	var at instance
	var output string
	cmd := &cobra.Command{
		Use: name + " ID", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("replay %q: want a number", args[0])}
			}
			var st replay.Status
			if err := at.ask(cmd.Context(), method, fmt.Sprintf("replays/%d", id), nil, &st); err != nil {
				return err
			}
			return printReplay(cmd.OutOrStdout(), st, output)
		},
	}
	at.flags(cmd.Flags())
	outputFlag(cmd.Flags(), &output)
	return cmd
}

func printReplay(out io.Writer, st replay.Status, output string) error {
	if output != "table" {
		return printData(out, output, st)
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, oneLine(value))
		}
	}
	line("replay", number(st.ID))
	line("state", string(st.State))
	line("why", st.Why)
	line("what", selectedBy(st.Spec))
	line("by", byOf(st))
	line("begun", st.Created.Local().Format(time.DateTime))
	line("ended", local(st.Finished))
	line("replayed", replayedOf(st))
	for _, left := range leftOut(st.LeftOut) {
		line("left out", left)
	}
	var made []string
	for _, id := range st.Executions {
		made = append(made, number(id))
	}
	if int64(len(made)) < st.Replayed {
		made = append(made, "...")
	}
	line("as", strings.Join(made, ", "))
	_ = w.Flush() // to memory
	_, err := io.WriteString(out, b.String())
	return err
}

func replayedOf(st replay.Status) string {
	if st.State.Ended() || st.Matching < st.Replayed {
		return strconv.FormatInt(st.Replayed, 10)
	}
	return fmt.Sprintf("%d of %d", st.Replayed, st.Matching)
}

func byOf(st replay.Status) string {
	if st.Name == "" {
		return "-"
	}
	return st.Name
}

// selectedBy says what is replayed in the words of the command line.
func selectedBy(spec replay.Spec) string {
	var words []string
	say := func(flag, value string) {
		if value != "" {
			if strings.ContainsAny(value, " \t\"") {
				value = strconv.Quote(value)
			}
			words = append(words, flag+" "+value)
		}
	}
	if n := len(spec.IDs); n > 0 {
		for _, id := range spec.IDs[:min(n, 10)] {
			words = append(words, number(id))
		}
		if n > 10 {
			words = append(words, fmt.Sprintf("and %d more", n-10))
		}
	}
	if f := spec.Filter; f != nil {
		say("--status", f.Status)
		if f.Handler != 0 {
			say("--handler", strconv.Itoa(f.Handler))
		}
		say("--event", string(f.Event))
		say("--object", f.Object)
		say("--lane", f.Lane)
		say("--text", f.Text)
		say("--request", f.Request)
		say("--response", f.Response)
		if f.Attempts != 0 {
			say("--attempts", strconv.Itoa(f.Attempts))
		}
		if f.Duration != 0 {
			say("--duration", time.Duration(f.Duration*float64(time.Second)).String())
		}
		if !f.Since.IsZero() {
			say("--since", f.Since.Format(time.RFC3339))
		}
		if !f.Until.IsZero() {
			say("--until", f.Until.Format(time.RFC3339))
		}
	}
	if spec.Latest {
		words = append(words, "--latest")
	}
	if spec.Again {
		words = append(words, "--again")
	}
	return strings.Join(words, " ")
}
