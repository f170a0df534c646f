// Package ruletest runs unit tests of a mapping and its handlers: files that say which
// rows there are, what changes, and which events and handlers must follow.
//
// It promises that what decides is the code that runs in production, fed as the stream
// feeds it, with the replica identity of the test; that nothing is called and no
// database is asked; and that each difference is told with its place in the file.
//
// It does not know the types of the columns: numbers, truths and times are taken as they
// are written, all else is text, unless the file says otherwise. Start with Load and Run.
package ruletest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// File is a file of tests.
type File struct {
	name  string
	types map[string]map[string]string // table, column: type
	tests []test
}

type test struct {
	Name     string                 `yaml:"name"`
	Start    string                 `yaml:"start"`    // RFC 3339
	Identity string                 `yaml:"identity"` // default, full
	Rows     map[string][]yaml.Node `yaml:"rows"`
	Steps    []step                 `yaml:"transactions"`
	line     int
}

// step is a transaction, or time that passes.
type step struct {
	After   string    `yaml:"after"`
	Changes []change  `yaml:"changes"`
	Events  []want    `yaml:"events"`
	node    yaml.Node // the whole
}

type change struct {
	Insert string    `yaml:"insert"`
	Update string    `yaml:"update"`
	Delete string    `yaml:"delete"`
	Row    yaml.Node `yaml:"row"` // of insert: all; else: the columns that tell it from others
	Set    yaml.Node `yaml:"set"` // of update
	line   int
}

// want is an event that must come. What is not given is not looked at.
type want struct {
	Event    string                          `yaml:"event"`
	Object   yaml.Node                       `yaml:"object"`
	Lane     yaml.Node                       `yaml:"lane"`
	Handlers []int                           `yaml:"handlers"`
	Data     map[string]yaml.Node            `yaml:"data"`
	Changed  map[string]map[string]yaml.Node `yaml:"changed"`
	line     int
}

// UnmarshalYAML keeps the line.
func (t *test) UnmarshalYAML(n *yaml.Node) error {
	type plain test
	t.line = n.Line
	return strict(n, (*plain)(t))
}

// UnmarshalYAML keeps the node.
func (s *step) UnmarshalYAML(n *yaml.Node) error {
	type plain step
	s.node = *n
	return strict(n, (*plain)(s))
}

// UnmarshalYAML keeps the line.
func (c *change) UnmarshalYAML(n *yaml.Node) error {
	type plain change
	c.line = n.Line
	return strict(n, (*plain)(c))
}

// UnmarshalYAML keeps the line.
func (w *want) UnmarshalYAML(n *yaml.Node) error {
	type plain want
	w.line = n.Line
	return strict(n, (*plain)(w))
}

// strict decodes a mapping and refuses keys that v does not have: yaml's own strictness
// ends where a type decodes itself.
func strict(n *yaml.Node, v any) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: want a mapping", n.Line)
	}
	var known []string
	for i := range reflect.TypeOf(v).Elem().NumField() {
		if tag := reflect.TypeOf(v).Elem().Field(i).Tag.Get("yaml"); tag != "" {
			known = append(known, tag)
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := n.Content[i]; !slices.Contains(known, k.Value) {
			return fmt.Errorf("line %d: there is no key %q here; there are %s", k.Line, k.Value, strings.Join(known, ", "))
		}
	}
	return n.Decode(v)
}

// Load reads a file of tests. An error names the line.
func Load(name string, text []byte) (*File, error) {
	var doc struct {
		Version int                          `yaml:"version"`
		Types   map[string]map[string]string `yaml:"types"`
		Tests   []test                       `yaml:"tests"`
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: the file is empty", name)
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if doc.Version != 1 {
		return nil, fmt.Errorf("%s: version is %d, want 1", name, doc.Version)
	}
	if len(doc.Tests) == 0 {
		return nil, fmt.Errorf("%s: there are no tests in it", name)
	}
	for table, columns := range doc.Types {
		for column, typ := range columns {
			if _, ok := oid(typ); !ok {
				return nil, fmt.Errorf("%s: types: %s.%s: %q is none of %s", name, table, column, typ, strings.Join(typeNames(), ", "))
			}
		}
	}
	return &File{name: name, types: doc.Types, tests: doc.Tests}, nil
}

func types() map[string]uint32 {
	return map[string]uint32{
		"bigint": 20, "integer": 23, "smallint": 21, "numeric": 1700, "double precision": 701, "boolean": 16, "text": 25, "uuid": 2950, "date": 1082,
		"timestamp": 1114, "timestamptz": 1184, "json": 114, "jsonb": 3802,
	}
}

func typeNames() []string { return slices.Sorted(maps.Keys(types())) }

func oid(name string) (uint32, bool) {
	n, ok := types()[name]
	return n, ok
}

// Column is a column that the mapping names.
type Column struct {
	Table        string // with its schema
	Name         string
	Number, Time bool // it is compared as an amount; it is read as a time
}

// Options of Run.
type Options struct {
	Mapping billing.Mapping
	Columns []Column // that the mapping names; the tables have them, whether a test names them or not
	// Plan says which handlers an event is for.
	Plan func(e *event.Event) ([]int, error)
	// Resolve turns what people call an event type into its name.
	Resolve func(name string) (event.Type, bool)
	// Only runs tests whose name contains this.
	Only string
}

// Result is what became of a test.
type Result struct {
	Name string `json:"name"`
	At   string `json:"at"` // file and line
	// Failures say what differs, each with its place.
	Failures []string `json:"failures,omitempty"`
	Events   int      `json:"events"` // that were derived
}

// Run runs the tests of a file.
func (f *File) Run(o Options) []Result {
	var out []Result
	for i := range f.tests {
		t := &f.tests[i]
		if o.Only != "" && !strings.Contains(t.Name, o.Only) {
			continue
		}
		r := Result{Name: cmp.Or(t.Name, fmt.Sprintf("test %d", i+1)), At: fmt.Sprintf("%s:%d", f.name, t.line)}
		p := &play{f: f, t: t, o: o, r: &r, memory: memory{}, relations: map[string]*wal.Relation{}, rows: map[string][]wal.Tuple{}}
		if err := p.run(); err != nil {
			r.Failures = append(r.Failures, err.Error())
		}
		out = append(out, r)
	}
	return out
}

// play is a test that is run.
type play struct {
	f         *File
	t         *test
	o         Options
	r         *Result
	d         *billing.Deriver
	memory    memory
	relations map[string]*wal.Relation
	rows      map[string][]wal.Tuple
	keys      map[string][]string // of mapped tables: columns that tell a row from others
	now       time.Time
	lsn       wal.LSN
	outside   uint32
	came      []*event.Event
}

func (p *play) at(line int, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s", p.f.name, line, fmt.Sprintf(format, args...))
}

func (p *play) run() (err error) {
	p.now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if p.t.Start != "" {
		if p.now, err = time.Parse(time.RFC3339, p.t.Start); err != nil {
			return p.at(p.t.line, "start: want a time such as 2026-01-31T12:00:00Z")
		}
	}
	if p.t.Identity != "" && p.t.Identity != "default" && p.t.Identity != "full" {
		return p.at(p.t.line, "identity: %q is none of default, full", p.t.Identity)
	}
	p.d, err = billing.New(p.o.Mapping, billing.Options{
		Notice: func(n billing.Notice) { p.r.Failures = append(p.r.Failures, p.at(p.t.line, "%s", n.Text).Error()) },
		Broken: func(t event.Type, err error) {
			p.r.Failures = append(p.r.Failures, p.at(p.t.line, "%s: the condition cannot be judged: %v", t, err).Error())
		},
	})
	if err != nil {
		return err
	}
	if err := p.describe(); err != nil {
		return err
	}
	if err := p.fill(); err != nil {
		return err
	}
	for i := range p.t.Steps {
		s := &p.t.Steps[i]
		p.came = nil
		if err := p.step(s); err != nil {
			return err
		}
		p.r.Events += len(p.came)
		if err := p.compare(s); err != nil {
			return err
		}
	}
	return nil
}

// describe makes the tables: with all columns that the test or the mapping names.
func (p *play) describe() error {
	p.keys = map[string][]string{}
	columns := map[string][]wal.Column{}
	add := func(table, name string, typ uint32) {
		i := slices.IndexFunc(columns[table], func(c wal.Column) bool { return c.Name == name })
		if i < 0 {
			columns[table] = append(columns[table], wal.Column{Name: name, Type: typ, Modifier: -1})
		} else if columns[table][i].Type == 0 {
			columns[table][i].Type = typ
		}
	}
	for _, e := range p.o.Mapping.Entities {
		own := e.Table.String()
		p.keys[own] = e.Key
		for _, c := range append(slices.Clone(e.Key), e.Client...) {
			add(own, c, 0)
		}
		if b := e.Balance; b != nil && b.Table != nil {
			p.keys[b.Table.String()] = b.Key
		}
		if x := e.CustomFields; x != nil && x.Table != nil {
			p.keys[x.Table.String()] = append(slices.Clone(x.Client), x.Name)
		}
	}
	see := func(table string, n *yaml.Node) error {
		if n.IsZero() {
			return nil
		}
		*n = *meant(n)
		if _, ok := p.keys[table]; !ok {
			return p.at(n.Line, "table %s is not mapped; there are %s", table, strings.Join(slices.Sorted(maps.Keys(p.keys)), ", "))
		}
		if n.Kind != yaml.MappingNode {
			return p.at(n.Line, "want a mapping of columns to values")
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			add(table, n.Content[i].Value, guess(n.Content[i+1]))
		}
		return nil
	}
	for _, table := range slices.Sorted(maps.Keys(p.t.Rows)) {
		rows := p.t.Rows[table]
		if _, ok := p.keys[table]; !ok {
			return p.at(p.t.line, "rows: table %s is not mapped; there are %s", table, strings.Join(slices.Sorted(maps.Keys(p.keys)), ", "))
		}
		for i := range rows {
			if err := see(table, &rows[i]); err != nil {
				return err
			}
		}
	}
	for _, s := range p.t.Steps {
		for i := range s.Changes {
			c := &s.Changes[i]
			table, _, err := p.verb(c)
			if err == nil {
				err = errors.Join(see(table, &c.Row), see(table, &c.Set))
			}
			if err != nil {
				return err
			}
		}
	}
	for _, c := range p.o.Columns {
		typ := uint32(0)
		switch {
		case c.Number:
			typ = 1700
		case c.Time:
			typ = 1184
		}
		add(c.Table, c.Name, typ)
	}
	for _, table := range slices.Sorted(maps.Keys(p.keys)) {
		schema, name, _ := strings.Cut(table, ".")
		rel := &wal.Relation{ID: uint32(len(p.relations) + 1), Schema: schema, Name: name, Identity: wal.IdentityDefault, Columns: columns[table]}
		if p.t.Identity == "full" {
			rel.Identity = wal.IdentityFull
		}
		for _, k := range p.keys[table] {
			if !slices.ContainsFunc(rel.Columns, func(c wal.Column) bool { return c.Name == k }) {
				rel.Columns = append(rel.Columns, wal.Column{Name: k, Type: 25, Modifier: -1})
			}
		}
		for i := range rel.Columns {
			c := &rel.Columns[i]
			c.Key = slices.Contains(p.keys[table], c.Name) || p.t.Identity == "full"
			if typ, ok := oid(p.f.types[table][c.Name]); ok {
				c.Type = typ
			}
			if c.Type == 0 {
				c.Type = 25
			}
		}
		p.relations[table] = rel
	}
	return nil
}

// meant is what an alias stands for.
func meant(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// guess is the type that a value has by how it is written, 0 for NULL.
func guess(n *yaml.Node) uint32 {
	switch meant(n).ShortTag() {
	case "!!int":
		return 20
	case "!!float":
		return 1700
	case "!!bool":
		return 16
	case "!!timestamp":
		return 1184
	case "!!null":
		return 0
	case "!!map", "!!seq":
		return 3802
	}
	return 25
}

// value is a value as the stream has it: Postgres' own text.
func (p *play) value(n *yaml.Node, c wal.Column) (wal.Value, error) {
	n = meant(n)
	text := n.Value
	switch n.ShortTag() {
	case "!!null":
		return wal.Value{Kind: wal.Null}, nil
	case "!!bool":
		text = "f"
		if b := false; n.Decode(&b) == nil && b {
			text = "t"
		}
	case "!!timestamp":
		var at time.Time
		if err := n.Decode(&at); err != nil {
			return wal.Value{}, p.at(n.Line, "%v", err)
		}
		switch c.Type {
		case 1082:
			text = at.Format(time.DateOnly)
		case 1114:
			text = at.Format("2006-01-02 15:04:05.999999")
		default:
			text = at.UTC().Format("2006-01-02 15:04:05.999999") + "+00"
		}
	case "!!map", "!!seq":
		var v any
		if err := n.Decode(&v); err != nil {
			return wal.Value{}, p.at(n.Line, "%v", err)
		}
		b, err := json.Marshal(v)
		if err != nil {
			return wal.Value{}, p.at(n.Line, "%v", err)
		}
		text = string(b)
	}
	return wal.Value{Kind: wal.Text, Text: []byte(text)}, nil
}

// set puts values into a row.
func (p *play) set(rel *wal.Relation, row wal.Tuple, n *yaml.Node) error {
	for i := 0; i+1 < len(n.Content); i += 2 {
		at := slices.IndexFunc(rel.Columns, func(c wal.Column) bool { return c.Name == n.Content[i].Value })
		v, err := p.value(n.Content[i+1], rel.Columns[at])
		if err != nil {
			return err
		}
		row[at] = v
	}
	return nil
}

func (p *play) insert(table string, n *yaml.Node) (wal.Tuple, error) {
	rel := p.relations[table]
	row := make(wal.Tuple, len(rel.Columns))
	for i := range row {
		row[i] = wal.Value{Kind: wal.Null}
	}
	if err := p.set(rel, row, n); err != nil {
		return nil, err
	}
	p.rows[table] = append(p.rows[table], row)
	return row, nil
}

// fill remembers the rows that are there, as after the first attach.
func (p *play) fill() error {
	for table, rows := range p.t.Rows {
		for i := range rows {
			if _, err := p.insert(table, &rows[i]); err != nil {
				return err
			}
		}
	}
	p.d.SetFilling(true)
	p.d.SetNow(p.now)
	for _, table := range slices.Sorted(maps.Keys(p.relations)) {
		rel := p.relations[table]
		if err := p.d.Attend(rel, p.memory); err != nil {
			return err
		}
		for _, row := range p.rows[table] {
			if err := p.d.Fill(rel, row, p.memory); err != nil {
				return err
			}
		}
		if err := p.d.Filled(rel, p.memory); err != nil {
			return err
		}
	}
	p.d.SetFilling(false)
	return nil
}

// verb says what a change does to which table.
func (p *play) verb(c *change) (table string, op wal.Op, err error) {
	n := 0
	for _, x := range []struct {
		table string
		op    wal.Op
	}{{c.Insert, wal.Insert}, {c.Update, wal.Update}, {c.Delete, wal.Delete}} {
		if x.table != "" {
			table, op = x.table, x.op
			n++
		}
	}
	switch {
	case n != 1:
		return "", 0, p.at(c.line, "a change has one of insert, update and delete, with the name of a table")
	case c.Row.IsZero():
		return "", 0, p.at(c.line, "row is missing: %s", map[bool]string{true: "the new row's columns", false: "the columns that tell which row"}[op == wal.Insert])
	case (op == wal.Update) == c.Set.IsZero():
		return "", 0, p.at(c.line, "set belongs to update: the columns that change")
	}
	if _, ok := p.keys[table]; !ok {
		return "", 0, p.at(c.line, "table %s is not mapped; there are %s", table, strings.Join(slices.Sorted(maps.Keys(p.keys)), ", "))
	}
	return table, op, nil
}

// find finds the one row that has the given values.
func (p *play) find(table string, n *yaml.Node) (int, error) {
	rel := p.relations[table]
	like := make(wal.Tuple, len(rel.Columns))
	if err := p.set(rel, like, n); err != nil {
		return 0, err
	}
	found := -1
	for i, row := range p.rows[table] {
		fits := true
		for j := 0; j+1 < len(n.Content); j += 2 {
			at := slices.IndexFunc(rel.Columns, func(c wal.Column) bool { return c.Name == n.Content[j].Value })
			fits = fits && row[at].Kind == like[at].Kind && bytes.Equal(row[at].Text, like[at].Text)
		}
		if fits && found >= 0 {
			return 0, p.at(n.Line, "there are several such rows in %s", table)
		}
		if fits {
			found = i
		}
	}
	if found < 0 {
		return 0, p.at(n.Line, "there is no such row in %s", table)
	}
	return found, nil
}

func (p *play) step(s *step) error {
	if s.After != "" {
		d, err := time.ParseDuration(s.After)
		if err != nil || d <= 0 {
			return p.at(s.node.Line, "after: want a duration such as 30s or 24h")
		}
		p.now = p.now.Add(d)
		p.d.SetNow(p.now)
		if err := p.fire(); err != nil {
			return err
		}
	}
	if len(s.Changes) == 0 {
		if s.After == "" {
			return p.at(s.node.Line, "a transaction has changes, or time that passes (after)")
		}
		return nil
	}
	p.lsn += 0x100
	p.outside = 0
	p.d.Begin(1, wal.Begin{CommitLSN: p.lsn, XID: uint32(p.lsn / 0x100), CommitTime: p.now})
	for i := range s.Changes {
		if err := p.change(&s.Changes[i]); err != nil {
			return err
		}
	}
	return p.d.Commit(p.memory, p.take)
}

func (p *play) change(c *change) error {
	table, op, err := p.verb(c)
	if err != nil {
		return err
	}
	rel := p.relations[table]
	out := &wal.Change{Op: op, Relation: rel}
	if op == wal.Insert {
		if out.New, err = p.insert(table, &c.Row); err != nil {
			return err
		}
		p.d.Change(out)
		return nil
	}
	i, err := p.find(table, &c.Row)
	if err != nil {
		return err
	}
	was := p.rows[table][i]
	moved := op == wal.Delete
	if op == wal.Update {
		out.New = slices.Clone(was)
		if err := p.set(rel, out.New, &c.Set); err != nil {
			return err
		}
		for j, col := range rel.Columns {
			moved = moved || slices.Contains(p.keys[table], col.Name) && !bytes.Equal(was[j].Text, out.New[j].Text)
		}
		p.rows[table][i] = out.New
	} else {
		p.rows[table] = slices.Delete(p.rows[table], i, i+1)
	}
	switch {
	case rel.Identity == wal.IdentityFull:
		out.Old, out.OldKind = was, wal.OldFull
	case moved:
		out.OldKind, out.Old = wal.OldKey, make(wal.Tuple, len(was))
		for j, col := range rel.Columns {
			if col.Key {
				out.Old[j] = was[j]
			}
		}
	}
	p.d.Change(out)
	return nil
}

// fire tells what has fallen due by now.
func (p *play) fire() error {
	const few = 100
	for n := few; n == few; {
		var err error
		n, err = p.d.Fire(p.memory, p.now, few, func() event.ID {
			p.outside++
			return event.ID{Generation: 1, CommitLSN: p.lsn, Ordinal: event.FirstOutside + p.outside - 1}
		}, p.take)
		if err != nil {
			return err
		}
	}
	return nil
}

// take keeps an event; what it holds is its own.
func (p *play) take(e *event.Event) error {
	c := *e
	c.Data, c.Changed, c.ObjectJSON = slices.Clone(e.Data), slices.Clone(e.Changed), slices.Clone(e.ObjectJSON)
	p.came = append(p.came, &c)
	return nil
}
