package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/billhook/billhook/internal/app"
)

func sqlCommand() *cobra.Command {
	var f files
	var o app.SQLOptions
	cmd := &cobra.Command{
		Use:   "sql",
		Short: "Print the SQL that a DBA runs before billhook is attached",
		Long: `Print what a DBA runs before billhook is attached, made from billhook.yaml: a role with
no more rights than are needed, the grants, the publication with its column lists, a
bound on the WAL that is kept, each statement with its cost in a comment. Run it with
psql. Nothing is changed by this command.

It looks at the database, with --dsn as whoever may read the catalogs, else as billhook
itself, and prints what is still needed. Where it cannot look it prints all of it, and
says so.`,
		Example: `  billhook sql --config billhook.yaml --dsn postgres://dba@db.example.net/billing > attach.sql
  psql -v password=... -f attach.sql postgres://dba@db.example.net/billing`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.ConfigPath = f.config
			if _, err := os.Stat(f.handlers); err == nil || cmd.Flags().Changed("handlers") {
				o.HandlersPath = f.handlers
			}
			s, err := app.SQL(cmd.Context(), o)
			if err != nil {
				return err
			}
			if s.Unseen != nil {
				fmt.Fprintf(os.Stderr, "billhook: the database was not looked at: %s\nbillhook: --dsn names somebody who may\n", oneLine(s.Unseen.Error()))
			}
			_, err = io.WriteString(cmd.OutOrStdout(), s.Text)
			return err
		},
	}
	f.flags(cmd.Flags())
	cmd.Flags().StringVar(&o.DSN, "dsn", "", "the database, as somebody who may read its catalogs (default: source.dsn)")
	cmd.Flags().StringVar(&o.Role, "role", "", "role that billhook shall connect as (default: the one in source.dsn)")
	return cmd
}

func uninstallCommand() *cobra.Command {
	var f files
	var o app.SQLOptions
	var yes, dry bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Drop the slot and the publication, and say what is left",
		Long: `Drop the slot and the publication that billhook.yaml names, and say what else was made:
the role with its grants, which a superuser drops, and the journal folder. Tables,
replica identities and settings of the server stay as they are.

Billhook must not be running. What is committed after that makes no events, also when
billhook is attached again; to be away for a while needs no uninstall.`,
		Example: `  billhook uninstall --config billhook.yaml --dry-run
  billhook uninstall --config billhook.yaml --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.ConfigPath = f.config
			u, err := app.Uninstall(cmd.Context(), o, true)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if len(u.Dropped) == 0 {
				fmt.Fprintf(out, "database %s: nothing that billhook may drop is there\n", plain(u.Database))
				return printLeft(out, u)
			}
			verb := "will be dropped"
			if dry {
				verb = "would be dropped"
			}
			for _, what := range u.Dropped {
				fmt.Fprintf(out, "database %s: %s %s\n", plain(u.Database), plain(what), verb)
			}
			if dry {
				return printLeft(out, u)
			}
			if !yes {
				if !isTerminal(os.Stdin) {
					return usageError{errors.New("nobody is there to be asked: --yes drops, --dry-run only looks")}
				}
				fmt.Fprint(os.Stderr, "drop? yes or no [no]: ")
				line, err := readLine(cmd.Context(), bufio.NewReader(os.Stdin))
				if err != nil {
					return err
				}
				if strings.ToLower(line) != "yes" {
					return silentError{errors.New("not dropped")}
				}
			}
			if u, err = app.Uninstall(cmd.Context(), o, false); err != nil {
				return err
			}
			fmt.Fprintln(out, "dropped")
			return printLeft(out, u)
		},
	}
	cmd.Flags().StringVar(&f.config, "config", "/etc/billhook/billhook.yaml", "the DBA's file: source, mapping, journal")
	cmd.Flags().StringVar(&o.DSN, "dsn", "", "the database, as somebody who may drop them (default: source.dsn)")
	cmd.Flags().StringVar(&o.Role, "role", "", "role that billhook connects as (default: the one in source.dsn)")
	cmd.Flags().BoolVar(&yes, "yes", false, "ask nothing")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only look")
	return cmd
}

func printLeft(out io.Writer, u app.Uninstalled) error {
	var b strings.Builder
	if u.Left != "" {
		fmt.Fprintf(&b, "\nleft to a superuser, in database %s:\n%s", plain(u.Database), plain(u.Left))
	}
	if u.Journal != "" {
		fmt.Fprintf(&b, "\nleft on this machine: the journal in %s\n", plain(u.Journal))
	}
	_, err := io.WriteString(out, b.String())
	return err
}
