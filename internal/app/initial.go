package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/snapshot"
	"github.com/billhook/billhook/internal/survey"
)

// InitOptions of Init.
type InitOptions struct {
	DSN  string // of somebody who may look at the catalogs
	Role string // that Billhook will connect as; empty: "billhook"
	// Preset is the one to be used; empty: one that fits is looked for; "none": the
	// tables are guessed at.
	Preset string
	// Clients, Accounts and Packages are tables, "none" for what there is none of, empty
	// for what is to be guessed. Balance is a column of the clients' table, or
	// table.column, or "none".
	Clients, Accounts, Packages string
	Balance                     string
	// Ask has a person choose; it returns the number of the choice, len(choices) for
	// none of them. nil: nobody is there, and what is in doubt is an *UnclearError.
	Ask func(question string, choices []survey.Candidate) (int, error)
	// JournalPath is where the journal is to be.
	JournalPath string
	// ScriptPath is the script of the first handler.
	ScriptPath string
}

// Initial is what Init proposes.
type Initial struct {
	Database, Server string
	Preset           string   // empty: none fits, or none was wanted
	Why              []string // what was chosen and why, a line each
	Open             []string // what a person should look at
	Billhook         string   // billhook.yaml
	Handlers         string   // handlers.yaml
	SQL              string
	DSN              string // for BILLHOOK_DSN, with PASSWORD to be replaced
}

// UnclearError says that a person must choose a table.
type UnclearError struct {
	Entity  string
	Choices []survey.Candidate
}

func (e *UnclearError) Error() string {
	if len(e.Choices) == 0 {
		return fmt.Sprintf("no table looks as if it held %s; name it with --%s", e.Entity, e.Entity)
	}
	return fmt.Sprintf("which table holds %s: %s? name it with --%s", e.Entity, e.names(), e.Entity)
}

const (
	none       = "none"
	mostChoice = 9
)

// Init looks at a database, which it does not change and of which it reads no table,
// and proposes the files that Billhook needs.
func Init(ctx context.Context, o InitOptions) (Initial, error) {
	if o.Role == "" {
		o.Role = "billhook"
	}
	ctx, cancel := context.WithTimeout(ctx, 10*lookTimeout) // a person is asked meanwhile
	defer cancel()
	schema, source, err := o.read(ctx)
	if err != nil {
		return Initial{}, err
	}
	i := Initial{Database: schema.Server.Database, Server: schema.Server.Version, DSN: withUser(o.DSN, o.Role)}
	i.Preset, err = o.preset(source)
	if err != nil {
		return Initial{}, err
	}
	body := "preset: " + i.Preset + "\n"
	if i.Preset == "" {
		list, err := o.guess(&i, survey.New(schema.Tables, schema.Keys, schema.Values))
		if err != nil {
			return Initial{}, err
		}
		body = survey.YAML(list)
		for _, e := range list {
			for _, open := range e.Open {
				i.Open = append(i.Open, e.Name+": "+open)
			}
		}
	} else {
		i.Why = append(i.Why, fmt.Sprintf("every table and column of preset %s is there", i.Preset))
	}
	i.Billhook = o.billhookYAML(i, body)
	b, m, err := o.parse(i.Billhook)
	if err != nil {
		return Initial{}, fmt.Errorf("the proposal is no good, please report this: %w\n%s", err, i.Billhook)
	}
	if err := disagreements(b, m, source); err != nil && !onlyPrivileges(err) {
		return Initial{}, fmt.Errorf("the proposal does not fit the database: %w", err)
	}
	i.Handlers = o.handlersYAML()
	if _, err := config.ParseHandlers("handlers.yaml", []byte(i.Handlers), o.env, b); err != nil {
		return Initial{}, fmt.Errorf("the proposal is no good, please report this: %w", err)
	}
	a := attachment{config: b, mapping: m, role: o.Role}
	if err := a.look(ctx, o.DSN); err != nil {
		return Initial{}, err
	}
	i.SQL = a.sql()
	return i, nil
}

// env has a value for what the proposal takes from the environment.
func (o *InitOptions) env(name string) (string, bool) {
	if name == "BILLHOOK_DSN" {
		return o.DSN, true
	}
	return os.LookupEnv(name)
}

func (o *InitOptions) read(ctx context.Context) (snapshot.Schema, snapshot.Source, error) {
	r, err := snapshot.Open(ctx, o.DSN)
	if err != nil {
		return snapshot.Schema{}, snapshot.Source{}, err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = r.Close(closing) // nothing is pending on it
	}()
	s, err := r.Schema(ctx)
	return s, snapshot.Source{Database: s.Server.Database, Role: s.Server.Role, Tables: s.Tables}, err
}

// onlyPrivileges reports that all that is wrong is what a role may not do yet.
func onlyPrivileges(err error) bool {
	var es config.Errors
	return errors.As(err, &es) && !slices.ContainsFunc(es, func(e *config.Error) bool { return !strings.Contains(e.Remedy, "GRANT ") })
}

func (o *InitOptions) parse(text string) (*config.Billhook, billing.Mapping, error) {
	b, err := config.ParseBillhook("billhook.yaml", []byte(text), o.env)
	if err != nil {
		return nil, billing.Mapping{}, err
	}
	m, err := mapping(b)
	if err == nil {
		_, err = billing.New(m, billing.Options{})
	}
	return b, m, err
}

// preset returns the preset that was named, or the one that fits and names the most
// columns.
func (o *InitOptions) preset(s snapshot.Source) (string, error) {
	if o.Preset == none || o.Preset == "" && (o.Clients != "" || o.Accounts != "" || o.Packages != "" || o.Balance != "") {
		return "", nil
	}
	best, most := "", 0
	for _, name := range config.Presets() {
		if o.Preset != "" && o.Preset != name {
			continue
		}
		b, m, err := o.parse("version: 1\nsource: {dsn: \"${BILLHOOK_DSN}\"}\npreset: " + name + "\n")
		if err != nil {
			return "", err
		}
		err = disagreements(b, m, s)
		if err != nil && onlyPrivileges(err) {
			err = nil
		}
		if err != nil && o.Preset != "" {
			return "", fmt.Errorf("preset %s does not fit this database: %w", name, err)
		}
		if n := len(needs(b, m)); err == nil && n > most {
			best, most = name, n
		}
	}
	if o.Preset != "" && best == "" {
		return "", fmt.Errorf("there is no preset %q; there are %s", o.Preset, strings.Join(config.Presets(), ", "))
	}
	return best, nil
}

// guess finds the tables, asking where it is not clear.
func (o *InitOptions) guess(i *Initial, s *survey.Survey) ([]survey.Entity, error) {
	clients, err := o.choose(i, s, survey.Clients, o.Clients, nil)
	if err != nil {
		return nil, err
	}
	if clients == nil {
		return nil, errors.New("billhook needs a table of clients: name it with --clients")
	}
	c := survey.Choice{Clients: *clients, Balance: o.Balance}
	if c.Accounts, err = o.choose(i, s, survey.Accounts, o.Accounts, clients); err != nil {
		return nil, err
	}
	if c.Packages, err = o.choose(i, s, survey.Packages, o.Packages, clients); err != nil {
		return nil, err
	}
	if c.Accounts != nil && c.Packages != nil && c.Accounts.Name == c.Packages.Name {
		c.Accounts = nil
	}
	list, err := s.Propose(c)
	if err != nil {
		return nil, fmt.Errorf("--%w", err)
	}
	return list, nil
}

// choose finds the table of an entity, nil for none.
func (o *InitOptions) choose(i *Initial, s *survey.Survey, entity, named string, clients *catalog.Table) (*catalog.Table, error) {
	switch named {
	case none:
		return nil, nil
	case "":
	default:
		t, ok := s.Find(named)
		if !ok {
			return nil, fmt.Errorf("--%s %s: there is no such table, or it has no primary key", entity, named)
		}
		i.Why = append(i.Why, fmt.Sprintf("%s: table %s, as you say", entity, t.Name))
		return &t, nil
	}
	list := s.Candidates(entity, clients)
	c, clear := survey.Clear(list)
	if !clear && len(list) > 0 && o.Ask != nil {
		list = list[:min(len(list), mostChoice)]
		n, err := o.Ask("Which table holds the "+entity+"?", list)
		if err != nil {
			return nil, err
		}
		if n == len(list) {
			return nil, nil
		}
		c, clear = list[n], true
	}
	if !clear && entity == survey.Clients {
		return nil, &UnclearError{entity, list[:min(len(list), mostChoice)]}
	}
	if !clear {
		text := "no table was found that leads to the clients; if there is one name it with --" + entity
		if len(list) > 0 {
			text = fmt.Sprintf("it could be %s; name it with --%s", (&UnclearError{entity, list[:min(len(list), mostChoice)]}).names(), entity)
		}
		i.Open = append(i.Open, entity+": "+text)
		return nil, nil
	}
	i.Why = append(i.Why, fmt.Sprintf("%s: table %s, by %s", entity, c.Table.Name, c.Why))
	return &c.Table, nil
}

func (e *UnclearError) names() string {
	var names []string
	for _, c := range e.Choices {
		names = append(names, c.Table.Name.String())
	}
	return strings.Join(names, ", ")
}

func (o *InitOptions) billhookYAML(i Initial, body string) string {
	return `# yaml-language-server: $schema=./billhook.schema.json

# Which database is followed and what its tables mean: the DBA's file. billhook init made
# it from database ` + i.Database + `; billhook check says whether it is right.
version: 1

source:
  dsn: ${BILLHOOK_DSN} # the primary itself, not a pooler
  slot: billhook
  publication: billhook

` + body + `
journal: {path: ` + o.JournalPath + `} # a local disk
`
}

func (o *InitOptions) handlersYAML() string {
	return `# yaml-language-server: $schema=./handlers.schema.json

# Who is called, and when: the operator's file. Save it, and it is in force; a mistake is
# refused with the reason.
version: 1

handlers:
  # Shows every event: billhook executions list, then billhook executions show ID.
  - id: 1
    name: Show every event
    event: "*"
    script: {path: ` + o.ScriptPath + `}

  # Tells another system. Set CRM_SECRET to whsec_ and the base64 of 32 random bytes, and
  # the status to enabled.
  # - id: 2
  #   name: Create the client in the CRM
  #   event: clients.create
  #   status: disabled
  #   http: {url: "https://crm.example.net/client-add", secret_env: CRM_SECRET}
`
}

// ShowScript is the script of the first handler: what it prints is kept with the attempt.
const ShowScript = `#!/bin/sh
# Prints the event, which Billhook keeps with the attempt.
exec cat
`

// InitFile is one file that an Initial is written to.
type InitFile struct {
	Name string
	Text string
	Mode os.FileMode
}

// Files are the files of i, by their names in the folder.
func (i *Initial) Files() []InitFile {
	return []InitFile{
		{"billhook.yaml", i.Billhook, 0o640},
		{"handlers.yaml", i.Handlers, 0o640},
		{"attach.sql", i.SQL, 0o640},
		{"show-event", ShowScript, 0o755},
		{"billhook.schema.json", config.BillhookSchema(), 0o644},
		{"handlers.schema.json", config.HandlersSchema(), 0o644},
	}
}

// Write puts the files into a folder, which is made if it is missing. Unless overwrite
// is set, it writes nothing when one of them is there.
func (i *Initial) Write(dir string, overwrite bool) error {
	var there []string
	for _, f := range i.Files() {
		if _, err := os.Lstat(filepath.Join(dir, f.Name)); err == nil {
			there = append(there, f.Name)
		}
	}
	if len(there) > 0 && !overwrite {
		return fmt.Errorf("%s is in %s already; --force writes over it, --dir names another folder", strings.Join(there, ", "), dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range i.Files() {
		path := filepath.Join(dir, f.Name)
		if err := os.WriteFile(path+".new", []byte(f.Text), f.Mode); err != nil {
			return err
		}
		if err := errors.Join(os.Chmod(path+".new", f.Mode), os.Rename(path+".new", path)); err != nil {
			return err
		}
	}
	return nil
}

// Presets are the names of the mappings that there are.
func Presets() []string { return config.Presets() }
