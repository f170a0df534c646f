package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/billhook/billhook/internal/app"
	"github.com/billhook/billhook/internal/survey"
)

func initCommand() *cobra.Command {
	var o app.InitOptions
	var dir, journal string
	var force, noAsk bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Look at a database and write the files to begin with",
		Long: `Look at a billing database, find out which of its tables hold clients, accounts and
packages and what their columns mean, and write the files to begin with:

  billhook.yaml   the mapping, from a preset that fits or as it was guessed
  handlers.yaml   a first handler, which shows every event
  attach.sql      what the DBA runs: role, grants, publication, each with its cost
  show-event      the script of that handler
  *.schema.json   for editors that complete YAML by a JSON Schema

It reads the catalogs and the statistics, as anybody who may read the tables, and no
table; it changes nothing in the database. Where it is in doubt it asks, on a terminal;
else the flags say what it cannot know.`,
		Example: `  billhook init --dsn postgres://me@db.example.net/billing
  billhook init --dsn postgres://me@db.example.net/billing --clients crm.customers --packages none
  billhook init --dsn postgres://me@db.example.net/billing --preset jerasoft`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.DSN == "" {
				return usageError{errors.New("--dsn is needed: the database to look at, as somebody who may read it")}
			}
			var err error
			if dir, err = filepath.Abs(dir); err != nil {
				return err
			}
			o.ScriptPath = filepath.Join(dir, "show-event")
			if o.JournalPath = journal; journal == "" {
				o.JournalPath = filepath.Join(dir, "journal")
			}
			if isTerminal(os.Stdin) && isTerminal(os.Stderr) && !noAsk {
				in := bufio.NewReader(os.Stdin)
				o.Ask = func(question string, choices []survey.Candidate) (int, error) {
					return ask(cmd.Context(), in, os.Stderr, question, choices)
				}
			}
			i, err := app.Init(cmd.Context(), o)
			if unclear := (*app.UnclearError)(nil); errors.As(err, &unclear) {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			if err := i.Write(dir, force); err != nil {
				return err
			}
			return printInitial(cmd.OutOrStdout(), i, dir)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.DSN, "dsn", "", "the database, as somebody who may read its tables; a password is better given in PGPASSWORD or ~/.pgpass")
	f.StringVar(&o.Role, "role", "billhook", "role that billhook shall connect as; attach.sql makes it")
	f.StringVar(&o.Preset, "preset", "", "use this mapping: "+strings.Join(app.Presets(), ", ")+"; none to guess")
	f.StringVar(&o.Clients, "clients", "", "table of the clients")
	f.StringVar(&o.Accounts, "accounts", "", "table of the accounts, or none")
	f.StringVar(&o.Packages, "packages", "", "table of what clients have bought, or none")
	f.StringVar(&o.Balance, "balance", "", "the clients' balance: a column of their table, or table.column, or none")
	f.StringVar(&dir, "dir", ".", "folder for the files")
	f.StringVar(&journal, "journal", "", "folder of the journal, which billhook run makes (default: journal, in --dir)")
	f.BoolVar(&force, "force", false, "write over files that are there")
	f.BoolVar(&noAsk, "no-input", false, "ask nothing")
	return cmd
}

// ask has a person choose by number; an empty line is the first.
func ask(ctx context.Context, in *bufio.Reader, out io.Writer, question string, choices []survey.Candidate) (int, error) {
	fmt.Fprintln(out, question)
	for i, c := range choices {
		rows := ""
		if c.Table.Estimate >= 0 {
			rows = fmt.Sprintf(", about %d rows", c.Table.Estimate)
		}
		fmt.Fprintf(out, "  %d  %s (%s%s)\n", i+1, plain(c.Table.Name.String()), c.Why, rows)
	}
	fmt.Fprintf(out, "  %d  none of these\n", len(choices)+1)
	for {
		fmt.Fprintf(out, "1 to %d [1]: ", len(choices)+1)
		line, err := readLine(ctx, in)
		if err != nil {
			return 0, err
		}
		if line == "" {
			return 0, nil
		}
		if n, err := strconv.Atoi(line); err == nil && n >= 1 && n <= len(choices)+1 {
			return n - 1, nil
		}
	}
}

// readLine reads a line that somebody types, until ctx ends.
func readLine(ctx context.Context, in *bufio.Reader) (string, error) {
	type result struct {
		line string
		err  error
	}
	read := make(chan result, 1)
	go func() {
		line, err := in.ReadString('\n')
		read <- result{line, err}
	}()
	select {
	case r := <-read:
		if r.err != nil && strings.TrimSpace(r.line) == "" {
			return "", fmt.Errorf("no answer: %w", r.err)
		}
		return strings.TrimSpace(r.line), nil
	case <-ctx.Done():
		return "", errors.New("interrupted")
	}
}

func printInitial(out io.Writer, i app.Initial, dir string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "database %s, Postgres %s\n", plain(i.Database), plain(i.Server))
	for _, line := range i.Why {
		fmt.Fprintf(&b, "  %s\n", plain(line))
	}
	if len(i.Open) > 0 {
		b.WriteString("\nto be looked at in billhook.yaml:\n")
		for _, line := range i.Open {
			fmt.Fprintf(&b, "  %s\n", strings.Join(wrap(plain(line), width(os.Stdout)-2), "\n    "))
		}
	}
	fmt.Fprintf(&b, "\nwritten to %s:", plain(dir))
	for _, f := range i.Files() {
		fmt.Fprintf(&b, " %s", f.Name)
	}
	at := func(name string) string { return shellQuote(filepath.Join(dir, name)) }
	fmt.Fprintf(&b, `

next:
  psql -v password=PASSWORD -f %s ...    # as a superuser; read it first
  export BILLHOOK_DSN=%s
  export BILLHOOK_CONFIG=%s BILLHOOK_HANDLERS=%s
  billhook check
  billhook run
`, at("attach.sql"), shellQuote(i.DSN), at("billhook.yaml"), at("handlers.yaml"))
	_, err := io.WriteString(out, b.String())
	return err
}

// shellQuote writes a text so that a shell reads it as one word.
func shellQuote(s string) string {
	if s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+=@:,", r))
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
