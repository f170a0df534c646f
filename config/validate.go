package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// billhook judges what single values cannot tell, resolves paths and secrets, and
// merges the preset.
func (d *decoder) billhook(b *Billhook) {
	d.source(&b.Source)

	named := b.Entities // what the file maps itself
	var ready preset
	if d.has("preset") && !d.failed["preset"] {
		if slices.Contains(Presets(), b.Preset) {
			var err error
			if ready, err = loadPreset(b.Preset); err != nil {
				d.fail("preset", "the preset is broken: "+err.Error(), "report this, and map the entities yourself")
			}
			b.Entities = merge(ready.Entities, named)
		} else {
			remedy := "known presets: " + strings.Join(Presets(), ", ")
			if guess := nearest(b.Preset, Presets()); guess != "" {
				remedy = "did you mean " + guess + "?"
			}
			d.fail("preset", "there is no preset "+strconv.Quote(b.Preset), remedy)
		}
	} else if named == (Entities{}) && !d.failed["preset"] {
		d.fail("entities", "no entity is mapped", "map at least entities.clients, or name a preset: "+strings.Join(Presets(), ", "))
	}
	d.entities(&named)
	d.tables(&b.Entities)
	d.events(b)
	b.Events = mergeEvents(ready.Events, named, b.Events)

	d.path("journal.path", &b.Journal.Path)
	d.positive("journal.retention", b.Journal.Retention, "30d")
	d.positive("dispatch.grace", b.Dispatch.Grace, "10s")
	d.listener(&b.HTTP)
}

// merge gives the preset's entities, each replaced by the file's own.
func merge(p, own Entities) Entities {
	if own.Clients != nil {
		p.Clients = own.Clients
	}
	if own.Accounts != nil {
		p.Accounts = own.Accounts
	}
	if own.Packages != nil {
		p.Packages = own.Packages
	}
	return p
}

// mergeEvents adds the preset's own events to those of the file, but for the ones
// that it has by that name, and those of entities that it maps itself: their columns
// may be others.
func mergeEvents(ready map[string]Event, named Entities, own map[string]Event) map[string]Event {
	for _, name := range sortedKeys(ready) {
		e := ready[name]
		if m, _ := named.mapping(e.Entity); m != nil {
			continue
		}
		if _, taken := own[name]; taken {
			continue
		}
		if own == nil {
			own = map[string]Event{}
		}
		own[name] = e
	}
	return own
}

func (d *decoder) source(s *Source) {
	if !d.has("source") {
		return
	}
	if s.Name == "" || strings.ContainsAny(s.Name, " \t\n\"{}") {
		d.fail("source.name", "it is "+d.show("source.name", s.Name)+", which is not a plain name", "use letters, digits, - and _")
	}
	d.secret("source", "dsn", true, &s.DSN, nil, &s.DSNFile)
	if dsn := s.DSN.Reveal(); dsn != "" && !dsnShape(dsn) {
		field := "source.dsn"
		if d.has("source.dsn_file") {
			field = "source.dsn_file"
		}
		d.fail(field, "it is not a connection string", "write postgres://user:password@host:5432/database, or host=... user=... dbname=...")
	}
	if !slotName(s.Slot) {
		d.fail("source.slot", "it is "+d.show("source.slot", s.Slot)+", which is no name for a slot", "use 1 to 63 lower-case letters, digits and _")
	}
	d.zone("source.time_zone", s.TimeZone)
	if s.Publication == "" || len(s.Publication) > 63 || strings.ContainsAny(s.Publication, "\n\x00") {
		d.fail("source.publication", "it is not a name for a publication", "use 1 to 63 bytes")
	}
}

// zone demands the name of a time zone that this machine knows.
func (d *decoder) zone(field, name string) {
	if name == "Local" || name == "" {
		d.fail(field, "it is "+d.show(field, name)+", which says nothing here", "name a zone, such as UTC or Europe/Berlin")
		return
	}
	if _, err := time.LoadLocation(name); err != nil {
		d.fail(field, "there is no time zone "+d.show(field, name), "name one as in Europe/Berlin, or UTC")
	}
}

func dsnShape(s string) bool {
	if strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") {
		_, err := url.Parse(s)
		return err == nil
	}
	return !strings.Contains(s, "://") && strings.Contains(s, "=")
}

func slotName(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// show quotes a value for an error; what came from ${} is shown as written.
func (d *decoder) show(field, value string) string {
	if raw, ok := d.raw[field]; ok {
		return strconv.Quote(raw)
	}
	return strconv.Quote(value)
}

func (d *decoder) positive(field string, v time.Duration, example string) {
	if v <= 0 {
		d.fail(field, "it must be more than nothing", "write for instance "+example)
	}
}

// entities judges each entity for itself.
func (d *decoder) entities(es *Entities) {
	if c := es.Clients; c != nil {
		const at = "entities.clients"
		d.mapping(at, &c.Mapping)
		d.transition(at+".archive", c.Archive)
		d.balance(at+".balance", &c.Mapping, c.Balance)
		d.customFields(at+".custom_fields", c)
	}
	if a := es.Accounts; a != nil {
		const at = "entities.accounts"
		d.mapping(at, &a.Mapping)
		d.lane(at+".client", &a.Mapping, a.Client)
		d.balance(at+".balance", &a.Mapping, a.Balance)
		if a.Balance != nil && d.has(at+".balance.table") {
			d.fail(at+".balance.table", "the balance of accounts stands in a table of its own", "only clients can have that: map the column of "+a.Table.String())
		}
	}
	if p := es.Packages; p != nil {
		const at = "entities.packages"
		d.mapping(at, &p.Mapping)
		d.lane(at+".client", &p.Mapping, p.Client)
		for _, t := range []struct {
			name string
			t    *Transition
		}{{"activate", p.Activate}, {"deactivate", p.Deactivate}, {"renew", p.Renew}, {"close", p.Close}} {
			d.transition(at+"."+t.name, t.t)
			if t.t != nil {
				d.readable(at+"."+t.name, &p.Mapping, t.t.Column, t.t.At)
			}
		}
	}
	if c := es.Clients; c != nil && c.Archive != nil {
		d.readable("entities.clients.archive", &c.Mapping, c.Archive.Column, c.Archive.At)
	}
}

// lane judges the columns that lead to the client. They can be neither excluded nor
// masked, since the lane shows them.
func (d *decoder) lane(field string, m *Mapping, cs Columns) {
	d.columns(field, cs)
	d.readable(field, m, cs...)
	d.shown(field, m, "the lane shows it", cs...)
}

// shown demands that columns that payloads show elsewhere are not masked.
func (d *decoder) shown(field string, m *Mapping, where string, cs ...string) {
	for _, c := range cs {
		if c != "" && slices.Contains(m.Mask, c) {
			d.fail(field, "the column "+strconv.Quote(c)+" is masked, but "+where, "remove it from mask, or map another column")
		}
	}
}

// mapping judges what every entity has.
func (d *decoder) mapping(at string, m *Mapping) {
	if len(m.Key) == 0 && d.has(at+".key") {
		d.fail(at+".key", "the list is empty", "name the key columns, such as [id]")
	}
	d.columns(at+".key", m.Key)
	d.columns(at+".ignore", m.Ignore)
	d.columns(at+".mask", m.Mask)
	d.columns(at+".exclude", m.Exclude)
	for i, c := range m.Exclude {
		if slices.Contains(m.Key, c) {
			d.fail(item(at+".exclude", i), "the column "+strconv.Quote(c)+" is part of the key", "remove it here: the key must be read")
		}
		if slices.Contains(m.Mask, c) {
			d.fail(item(at+".exclude", i), "the column "+strconv.Quote(c)+" is masked too", "keep it in exclude (never read) or in mask (read, shown as ***)")
		}
	}
	for i, c := range m.Mask {
		if slices.Contains(m.Key, c) {
			d.fail(item(at+".mask", i), "the column "+strconv.Quote(c)+" is part of the key", "remove it here: object_id shows the key")
		}
	}
}

func item(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

// columns judges a list of column names.
func (d *decoder) columns(field string, cs Columns) {
	for i, c := range cs {
		f := item(field, i)
		if !d.has(f) {
			f = field // one column without brackets
		}
		d.column(f, c)
		if j := slices.Index(cs, c); j < i {
			d.fail(f, "the column "+strconv.Quote(c)+" stands in the list twice", "remove one")
		}
	}
}

func (d *decoder) column(field, c string) {
	switch {
	case c == "":
		d.fail(field, "the column's name is empty", "give the name as the table has it")
	case len(c) > 63 || strings.ContainsRune(c, 0):
		d.fail(field, "the column's name is longer than 63 bytes", "give the name as the table has it")
	}
}

// readable demands that columns that a rule needs are not excluded.
func (d *decoder) readable(field string, m *Mapping, cs ...string) {
	for _, c := range cs {
		if c != "" && slices.Contains(m.Exclude, c) {
			d.fail(field, "the column "+strconv.Quote(c)+" is needed here but excluded", "remove it from exclude, or put it into mask")
		}
	}
}

// one demands that exactly one of several fields is there. It returns false when
// it has complained.
func (d *decoder) one(at, remedy string, names ...string) bool {
	var given []string
	for _, n := range names {
		if d.has(join(at, n)) {
			given = append(given, n)
		}
		if d.meant[join(at, n)] {
			return false
		}
	}
	list := strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
	switch len(given) {
	case 1:
		return true
	case 0:
		d.fail(at, "it needs one of "+list, remedy)
	default:
		d.fail(join(at, given[len(given)-1]), fmt.Sprintf("%s stands beside %s, but only one of %s may be given", given[len(given)-1], strings.Join(given[:len(given)-1], " and "), list), "keep one and remove the others")
	}
	return false
}

func (d *decoder) transition(at string, t *Transition) {
	if t == nil || !d.one(at, "write {column: status, value: archive}, {column: deleted_at, set: true}, {column: period_start_dt, moves: forward} or {at: stop_dt}", "value", "in", "set", "moves", "at", "deleted") {
		return
	}
	if d.has(at + ".deleted") {
		switch {
		case !t.Deleted:
			d.fail(at+".deleted", "it is false", "write true, or remove it")
		case !strings.HasSuffix(at, ".close"):
			d.fail(at+".deleted", "only close can be a deletion", "name a column and what becomes of it")
		case d.has(at + ".column"):
			d.fail(at+".column", "column stands beside deleted", "remove one of them")
		}
		return
	}
	if len(t.In) == 0 && d.has(at+".in") {
		d.fail(at+".in", "the list is empty", "name the values")
	}
	if d.has(at + ".at") {
		if d.has(at + ".column") {
			d.fail(at+".column", "column stands beside at", "at names the column with the time: remove column")
		}
		d.column(at+".at", t.At)
		return
	}
	if !d.has(at + ".column") {
		d.fail(at+".column", "it is missing", "name the column that is looked at")
		return
	}
	d.column(at+".column", t.Column)
}

func (d *decoder) balance(at string, c *Mapping, b *Balance) {
	if b == nil {
		return
	}
	d.one(at, "write {column: balance}, or an expression such as balance + credit", "column", "expression")
	if d.has(at + ".column") {
		d.column(at+".column", b.Column)
	}
	switch {
	case !b.Table.IsZero() && len(b.Key) == 0 && !d.has(at+".key"):
		d.fail(at+".key", "it is missing", "name the columns of "+b.Table.String()+" that hold the client's key, such as [clients_id]")
	case !b.Table.IsZero() && b.Table == c.Table:
		d.fail(at+".table", "it is the clients' own table", "remove table and key")
	case b.Table.IsZero() && d.has(at+".key") && !d.has(at+".table"):
		d.fail(at+".key", "key stands without table", "add table, or remove key")
	case len(b.Key) == 0 && d.has(at+".key"):
		d.fail(at+".key", "the list is empty", "name the columns that hold the client's key, such as [clients_id]")
	case !b.Table.IsZero() && len(c.Key) > 0 && len(b.Key) > 0 && len(b.Key) != len(c.Key):
		d.fail(at+".key", fmt.Sprintf("it has %d columns, but the clients' key has %d", len(b.Key), len(c.Key)), "name one column for each of the clients' key columns, in their order")
	}
	d.columns(at+".key", b.Key)
	// mask and exclude hold for the tables beside the clients' own as well.
	d.readable(at, c, append(slices.Clone(b.Key), b.Column)...)
	d.shown(at+".key", c, "object_id shows it", b.Key...)
	d.sides(at, &b.Sides)
}

func (d *decoder) sides(at string, s *Sides) {
	if strings.HasPrefix(string(s.Hysteresis), "-") {
		d.fail(at+".hysteresis", "it is negative", "give the distance as a positive number")
	}
}

func (d *decoder) customFields(at string, c *Clients) {
	f := c.CustomFields
	if f == nil || !d.one(at, "write {table: ..., client: ..., name: ..., value: ...}, {column: custom_fields} or {columns: [a, b]}", "table", "column", "columns") {
		return
	}
	if d.has(at + ".table") {
		for _, need := range []struct{ name, remedy string }{
			{"client", "name the column that leads to the client"},
			{"name", "name the column that holds the field's name"},
			{"value", "name the column that holds the field's value"},
		} {
			if !d.has(at + "." + need.name) {
				d.fail(at+"."+need.name, "it is missing", need.remedy)
			}
		}
		if f.Table == c.Table && !f.Table.IsZero() {
			d.fail(at+".table", "it is the clients' own table", "use column or columns instead")
		}
		if len(f.Client) > 0 && len(c.Key) > 0 && len(f.Client) != len(c.Key) {
			d.fail(at+".client", fmt.Sprintf("it has %d columns, but the clients' key has %d", len(f.Client), len(c.Key)), "name one column for each of the clients' key columns, in their order")
		}
		d.columns(at+".client", f.Client)
		d.columns(at+".key", f.Key)
		if d.has(at + ".name") {
			d.column(at+".name", f.Name)
		}
		if d.has(at + ".value") {
			d.column(at+".value", f.Value)
		}
		d.readable(at, &c.Mapping, append(slices.Clone(f.Client), f.Name, f.Value)...)
		d.shown(at+".client", &c.Mapping, "object_id shows it", f.Client...)
		d.shown(at+".name", &c.Mapping, "payloads name fields by it", f.Name)
		if len(f.Key) == 0 && f.Name != "" {
			f.Key = append(slices.Clone(f.Client), f.Name)
		}
		return
	}
	for _, name := range []string{"client", "name", "value", "key"} {
		if d.has(at + "." + name) {
			d.fail(at+"."+name, name+" stands without table", "add table, or remove "+name)
		}
	}
	if d.has(at + ".column") {
		d.column(at+".column", f.Column)
	}
	if d.has(at+".columns") && len(f.Columns) == 0 {
		d.fail(at+".columns", "the list is empty", "name the columns, or remove custom_fields")
	}
	d.columns(at+".columns", f.Columns)
	d.readable(at, &c.Mapping, append(slices.Clone(f.Columns), f.Column)...)
}

// tables demands that no table is mapped twice.
func (d *decoder) tables(es *Entities) {
	type use struct {
		table Table
		field string
	}
	var uses []use
	note := func(t Table, field string) {
		if t.IsZero() {
			return
		}
		for _, u := range uses {
			if u.table == t {
				if !d.has(field) {
					field, u.field = u.field, field // it is the preset's: complain about the file's own
				}
				d.fail(field, "the table "+t.String()+" is mapped by "+parent(u.field)+" too", "map each table once")
				return
			}
		}
		uses = append(uses, use{t, field})
	}
	if es.Clients != nil {
		note(es.Clients.Table, "entities.clients.table")
		if b := es.Clients.Balance; b != nil && b.Table != es.Clients.Table {
			note(b.Table, "entities.clients.balance.table")
		}
		if f := es.Clients.CustomFields; f != nil && f.Table != es.Clients.Table {
			note(f.Table, "entities.clients.custom_fields.table")
		}
	}
	if es.Accounts != nil {
		note(es.Accounts.Table, "entities.accounts.table")
	}
	if es.Packages != nil {
		note(es.Packages.Table, "entities.packages.table")
	}
}

// events judges the user's own event types and fills what On is by default.
func (d *decoder) events(b *Billhook) {
	builtin := Catalogue()
	backs := map[string]string{}
	for _, name := range sortedKeys(b.Events) {
		e := b.Events[name]
		at := "events[" + name + "]"
		d.eventName(at, name, builtin)
		given := 0
		for _, rule := range []string{"threshold", "becomes", "changes", "moves", "at"} {
			if d.has(join(at, rule)) {
				given++
			}
		}
		if given > 1 {
			d.one(at, "", "threshold", "becomes", "changes", "moves", "at")
		}
		if given == 0 && !d.has(at+".on") && !d.has(at+".when") {
			d.fail(at, "it does not say when to fire", "add threshold, becomes, changes, moves or at; or on and when")
		}
		if d.has(at+".on") && (e.Threshold != nil || d.has(at+".at")) {
			d.fail(at+".on", "on has no meaning with threshold and at", "remove it")
		}
		if slices.Contains(e.On, Delete) && (e.Becomes != nil || e.Moves != nil || d.has(at+".changes")) {
			d.fail(at+".on", "a deleted row becomes, changes and moves nothing", "remove delete, or use when instead")
		}
		if len(e.On) == 0 && d.has(at+".on") {
			d.fail(at+".on", "the list is empty", "name insert, update or delete")
		}
		for i, op := range e.On {
			if slices.Index(e.On, op) < i {
				d.fail(at+".on", "it names "+string(op)+" twice", "remove one")
			}
		}
		if t := e.Threshold; t != nil {
			d.threshold(at+".threshold", t)
			if t.Back != "" {
				d.eventName(at+".threshold.back", t.Back, builtin)
				if _, dup := b.Events[t.Back]; dup {
					d.fail(at+".threshold.back", "the event type "+t.Back+" is defined beside it", "choose another name")
				}
				if other, dup := backs[t.Back]; dup {
					d.fail(at+".threshold.back", "the event type "+t.Back+" is the way back of "+other+" too", "choose another name")
				}
				backs[t.Back] = name
			}
		}
		if e.Becomes != nil {
			d.one(at+".becomes", "write {column: status, value: archive}, {column: status, in: [a, b]} or {column: deleted_at, set: true}", "value", "in", "set")
			if d.has(at+".becomes.in") && len(e.Becomes.In) == 0 {
				d.fail(at+".becomes.in", "the list is empty", "name the values")
			}
			if d.has(at + ".becomes.column") {
				d.column(at+".becomes.column", e.Becomes.Column)
			}
		}
		if d.has(at+".changes") && len(e.Changes) == 0 {
			d.fail(at+".changes", "the list is empty", "name the columns")
		}
		d.columns(at+".changes", e.Changes)
		if e.Moves != nil && d.has(at+".moves.column") {
			d.column(at+".moves.column", e.Moves.Column)
		}
		if d.has(at + ".at") {
			d.column(at+".at", e.At)
		}
		if m, known := b.Entities.mapping(e.Entity); known && m == nil {
			d.fail(at+".entity", "the entity "+e.Entity+" is not mapped", "map it as entities."+e.Entity)
		} else if m != nil {
			d.readable(at, m, append(slices.Clone(e.Changes), e.At)...)
			if e.Becomes != nil {
				d.readable(at+".becomes.column", m, e.Becomes.Column)
			}
			if e.Moves != nil {
				d.readable(at+".moves.column", m, e.Moves.Column)
			}
		}
		if len(e.On) == 0 && e.Threshold == nil && e.At == "" {
			e.On = Ops{Update}
			if e.Becomes != nil {
				e.On = Ops{Insert, Update}
			}
			b.Events[name] = e
		}
	}
}

// mapping returns an entity's mapping, nil when it is not mapped; known is false
// when there is no such entity.
func (es *Entities) mapping(entity string) (m *Mapping, known bool) {
	switch entity {
	case "clients":
		if es.Clients != nil {
			m = &es.Clients.Mapping
		}
	case "accounts":
		if es.Accounts != nil {
			m = &es.Accounts.Mapping
		}
	case "packages":
		if es.Packages != nil {
			m = &es.Packages.Mapping
		}
	default:
		return nil, false
	}
	return m, true
}

func (d *decoder) eventName(at, name string, builtin []EventType) {
	if !eventTypeName(name) {
		d.fail(at, strconv.Quote(name)+" is no name for an event type", "use lower-case words joined by dots, such as clients.low_balance")
		return
	}
	if canonical, taken := ResolveEvent(builtin, name); taken {
		d.fail(at, "the event type "+canonical+" is built in", "choose another name; the built-in ones are set up under entities")
	}
}

func eventTypeName(s string) bool {
	parts := strings.Split(s, ".")
	for _, p := range parts {
		for i := range len(p) {
			c := p[i]
			if (c < 'a' || c > 'z') && (i == 0 || c != '_' && (c < '0' || c > '9')) {
				return false
			}
		}
		if p == "" {
			return false
		}
	}
	return len(parts) > 1 && len(s) <= 100
}

func (d *decoder) threshold(at string, t *Threshold) {
	d.one(at, "write column: balance, or an expression such as balance + credit", "column", "expression")
	if d.has(at + ".column") {
		d.column(at+".column", t.Column)
	}
	d.sides(at, &t.Sides)
}

func (d *decoder) listener(l *Listener) {
	host, port, err := net.SplitHostPort(l.Listen)
	n, bad := strconv.Atoi(port)
	if err != nil || bad != nil || n < 0 || n > 65535 || strings.ContainsAny(host, " /@") {
		d.fail("http.listen", "it is "+d.show("http.listen", l.Listen)+", which is not an address", "write host:port, such as 127.0.0.1:8321")
	} else if !loopback(host) && len(l.Tokens) == 0 && len(l.Users) == 0 {
		d.fail("http.listen", "it can be reached from other machines, and nobody has to log in", "add http.tokens or http.users, or listen on 127.0.0.1")
	}
	names := map[string]string{}
	for i := range l.Tokens {
		t, at := &l.Tokens[i], item("http.tokens", i)
		d.secret(at, "token", true, &t.Token, &t.TokenEnv, &t.TokenFile)
		if n := len(t.Token.Reveal()); n > 0 && n < 16 {
			d.fail(at, "the token is shorter than 16 characters", "make one with: openssl rand -hex 24")
		}
		d.unique(names, at+".name", t.Name)
	}
	for i := range l.Users {
		u, at := &l.Users[i], item("http.users", i)
		d.secret(at, "password", true, &u.Password, &u.PasswordEnv, &u.PasswordFile)
		d.unique(names, at+".name", u.Name)
	}
}

func (d *decoder) unique(seen map[string]string, field, name string) {
	if !d.has(field) {
		return
	}
	if name == "" {
		d.fail(field, "it is empty", "give a name")
		return
	}
	if first, dup := seen[name]; dup {
		d.fail(field, fmt.Sprintf("the name %q is taken, first on line %d", name, d.pos[first].Line), "choose another name")
		return
	}
	seen[name] = field
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}
