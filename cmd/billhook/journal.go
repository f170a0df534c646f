package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/billhook/billhook/internal/app"
)

func journalCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "journal",
		Short: "Look into the journal of a billhook that does not run",
	}, "verify", journalVerifyCommand())
}

func journalVerifyCommand() *cobra.Command {
	var o app.VerifyOptions
	var output string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Read the whole journal and check that it holds together",
		Long: `Read the whole journal of a billhook that does not run, or a copy of its folder, and
check that it holds together: every value can be read, every execution has its event,
every pending one stands in its lane, the indexes and counts are right, no event is
above the position.

Nothing in the folder is written or made, but that the two files LOCK, which are empty,
are locked meanwhile, which changes their times and makes them where a copy lacks
them. A journal that a process has is left alone. What a kill has left half-done is read as it
is; billhook run puts it in order when it starts.

The exit code is 0 when all is well, and 1 when the journal is damaged or cannot be
looked at.`,
		Example: `  billhook journal verify --config billhook.yaml
  billhook journal verify --path /backup/billhook`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			show := newProgress(os.Stderr)
			if output == "table" {
				o.Progress = func(keys int64) { show.at(keys, -1, "") }
			}
			start := time.Now()
			r, err := app.VerifyJournal(cmd.Context(), o)
			show.end()
			if err != nil {
				return err
			}
			if output != "table" {
				if err := printData(cmd.OutOrStdout(), output, r); err != nil {
					return err
				}
			} else if r.OK {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "OK: journal %s holds together: %d executions, %d of them pending or held; read in %s\n",
					r.Path, r.Executions, r.Open, time.Since(start).Round(time.Millisecond))
				if err != nil {
					return err
				}
			} else if _, err = fmt.Fprintf(cmd.OutOrStdout(), "DAMAGED: %s\n-> %s\n", plain(r.Problem), r.Remedy); err != nil {
				return err
			}
			if !r.OK {
				return silentError{errors.New("damaged")}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&o.ConfigPath, "config", "/etc/billhook/billhook.yaml", "the DBA's file, for its journal.path")
	cmd.Flags().StringVar(&o.Path, "path", "", "the journal's folder, instead of a file that names it")
	outputFlag(cmd.Flags(), &output)
	return cmd
}
