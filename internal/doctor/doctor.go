// Package doctor looks at a database, and at this machine, before Billhook is
// attached and beside a running one: what must be so, what had better be so, and
// what to do where it is not.
//
// It promises to look at everything rather than to stop at the first fault, and to
// say of what it could not look at why; to name the remedy as something to copy;
// and to write nothing: not in the database, where it takes no lock but a SELECT's
// and waits for none for long, and not on the disk.
//
// It does not read configuration files: internal/app brings their values, with
// their places in the files as text.
//
// Start with Options and Run.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
)

// Level is how grave a Finding is.
type Level string

// The levels.
const (
	OK   Level = "OK"
	Warn Level = "WARN" // it works, but somebody may regret it
	Fail Level = "FAIL" // it does not work
	Skip Level = "SKIP" // it could not be looked at
)

// Finding is what one check found. A check that finds several things has several
// findings.
type Finding struct {
	Check string `json:"check"` // what was looked at, such as "server: wal_level"
	Level Level  `json:"level"`
	Text  string `json:"text"` // what it stands at
	// Remedy is what to do, to copy: SQL with a statement or a comment on each line,
	// a command, a line of a file, or, where no such thing helps, a sentence.
	Remedy string `json:"remedy,omitempty"`
}

// Table is a mapped table. A table that is mapped twice stands in Options twice.
type Table struct {
	catalog.Name
	Use     string   // its place in the file, such as "billhook.yaml:9:5: entities.clients.table"
	Key     []string // columns that tell a row from others; the replica identity must hold them
	Unique  []string // columns that a primary key could have, when Key is empty
	Exclude []string // columns that must not leave the database
	Beside  bool     // it stands beside the clients' own table: Key is theirs, and tells a client's one row
}

// Column is a column that the mapping names.
type Column struct {
	Name   string
	Use    string         // its place in the file
	Tables []catalog.Name // mapped tables; one of them must have it
	Idle   bool           // it need be neither published nor readable
	Number bool           // it is compared as an amount
	Time   bool           // it is read as a date or time
	One    bool           // only one of Tables may have it
	Write  bool           // answers of handlers are written into it
}

// Options of Run. DSN, Slot and Publication are required.
type Options struct {
	DSN         string
	Slot        string
	Publication string
	Create      bool // publication and slot are made when they are missing
	Failover    bool // the slot shall be one that standbys keep
	Tables      []Table
	Columns     []Column
	JournalPath string
	MinFree     uint64 // free bytes below which intake stands still; 0: 512 MiB
	Listen      string // host:port; "": nothing listens
	// Attached says that this very process has the journal open and listens.
	Attached bool

	patience time.Duration // age from which a transaction is told of; 0: oldTransaction
}

const (
	defaultMinFree = 512 << 20
	// timeout bounds all questions to the database together.
	timeout = 30 * time.Second
	// oldTransaction is the age from which a transaction is one to wait for.
	oldTransaction = 10 * time.Second
	// maxSkew is how far clocks may differ before lag and latency are shown wrong.
	maxSkew = 2 * time.Second
)

// report collects findings.
type report struct {
	o      Options
	list   []Finding
	holder string // of the journal: "process 4711"; "" when nobody has it open
}

func (r *report) add(check string, l Level, remedy, format string, args ...any) {
	r.list = append(r.list, Finding{Check: check, Level: l, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

// failed reports whether anything failed since the list was n long.
func (r *report) failed(n int) bool {
	return slices.ContainsFunc(r.list[n:], func(f Finding) bool { return f.Level == Fail })
}

// Run looks at everything. It ends early, with what could not be looked at
// skipped, when ctx does; it takes half a minute at most.
func Run(ctx context.Context, o Options) []Finding {
	if o.MinFree == 0 {
		o.MinFree = defaultMinFree
	}
	if o.patience == 0 {
		o.patience = oldTransaction
	}
	// Who has the journal tells whose slot and address are in use.
	here := &report{o: o}
	here.journal()
	here.listen()

	r := &report{o: o, holder: here.holder}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r.database(ctx)
	return append(r.list, here.list...)
}

// Skipped returns what Run would find, each skipped for the reason given: for a
// caller that lacks the values to run.
func Skipped(reason string) []Finding {
	r := &report{}
	for _, check := range slices.Concat([]string{checkConnection}, afterConnection(), []string{checkFolder, checkAddress}) {
		r.add(check, Skip, "", "%s", reason)
	}
	return r.list
}

// wanted is what the publication must hold.
func (r *report) wanted() []replication.Table {
	var out []replication.Table
	for _, t := range r.o.Tables {
		out = append(out, replication.Table{Name: t.Name, Exclude: t.Exclude})
	}
	return out
}

// names are the mapped tables, each once.
func (r *report) names() []catalog.Name {
	var names []catalog.Name
	for _, t := range r.o.Tables {
		if !slices.Contains(names, t.Name) {
			names = append(names, t.Name)
		}
	}
	return names
}
