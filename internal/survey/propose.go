package survey

import (
	"fmt"
	"slices"
	"strings"

	"github.com/billhook/billhook/internal/replication/catalog"
)

// Choice is what was chosen: tables, nil for none, and a balance column if somebody
// has named one.
type Choice struct {
	Clients            catalog.Table
	Accounts, Packages *catalog.Table
	// Balance is a column of the clients' table, or "table.column" of a table beside it;
	// empty: it is looked for; "none": there is none.
	Balance string
}

// Entity is what an entity's stanza in billhook.yaml says.
type Entity struct {
	Name    string
	Table   catalog.Name
	Key     []string
	Client  []string // of accounts and packages: what leads to the client
	Ignore  []string
	Mask    []string
	Archive *Transition // of clients
	Balance *Balance
	Fields  *Fields // of clients
	// Of packages.
	Activate, Deactivate, Renew, Close *Transition
	// Open are what a person should look at, a line each.
	Open []string
}

// Transition is a column that turns to one of some values, gets a value, or moves.
type Transition struct {
	Column string
	Values []string
	Set    bool   // deleted_at
	Moves  bool   // forward
	At     string // the time in this column comes
}

// Balance is a column, here or in a table beside.
type Balance struct {
	Table  *catalog.Name // nil: the entity's own
	Key    []string      // of Table
	Column string
}

// Fields are custom fields: a column, or a table with a row for each.
type Fields struct {
	Column      string
	Table       *catalog.Name
	Client      []string
	Name, Value string
}

// Propose says what the chosen tables mean. Its error says that the balance that was named
// is not there.
func (s *Survey) Propose(c Choice) ([]Entity, error) {
	clients := s.entity(Clients, c.Clients)
	clients.Archive = s.archive(c.Clients)
	if clients.Archive == nil {
		clients.Open = append(clients.Open, "nothing was found that says that a client is archived"+s.hint(c.Clients, "archive"))
	}
	clients.Fields = s.fields(c.Clients)
	var err error
	if clients.Balance, err = s.balance(c.Clients, c.Balance); err != nil {
		return nil, err
	}
	out := []Entity{clients}
	if c.Accounts != nil {
		a := s.entity(Accounts, *c.Accounts)
		a.Client = s.toClient(*c.Accounts, c.Clients)
		if clients.Balance == nil && c.Balance == "" {
			if column := s.amount(*c.Accounts); column != "" {
				a.Balance = &Balance{Column: column}
			}
		}
		out = append(out, s.ordered(a, c.Clients))
	}
	if clients.Balance == nil && (len(out) == 1 || out[1].Balance == nil) {
		out[0].Open = append(out[0].Open, "no balance was found, so balance_zero and balance_notzero will not be told of: balance: {column: ...}, or {table: ..., key: [...], column: ...}")
	}
	if c.Packages != nil {
		p := s.entity(Packages, *c.Packages)
		p.Client = s.toClient(*c.Packages, c.Clients)
		s.life(&p, *c.Packages)
		out = append(out, s.ordered(p, c.Clients))
	}
	return out, nil
}

// ordered says what it means when nothing leads to the client.
func (s *Survey) ordered(e Entity, clients catalog.Table) Entity {
	if e.Client == nil {
		e.Open = append(e.Open, "no column leads to "+clients.Table+", so each row is a lane of its own: its events come in order, but not with those of its client")
	}
	return e
}

func (s *Survey) entity(name string, t catalog.Table) Entity {
	e := Entity{Name: name, Table: t.Name, Key: t.PrimaryKey}
	for _, c := range t.Columns {
		switch {
		case slices.Contains(t.PrimaryKey, c.Name):
		case touched(c):
			e.Ignore = append(e.Ignore, c.Name)
		case credential(c.Name):
			e.Mask = append(e.Mask, c.Name)
		}
	}
	return e
}

// touched reports a column that changes with every write.
func touched(c catalog.Column) bool {
	switch strings.ToLower(c.Name) {
	case "updated_at", "updated", "updated_on", "update_time", "update_dt", "m_dt", "modified", "modified_at", "modified_on", "modify_dt", "mtime", "changed_at", "changed_on",
		"last_modified", "last_update", "last_updated", "last_change", "date_modified", "modification_date":
		return c.Time()
	case "lock_version", "row_version", "version_lock":
		return c.Number()
	}
	return false
}

// credential reports a column whose values are nobody's business.
func credential(name string) bool {
	for _, w := range words(name) {
		switch w {
		case "password", "passwd", "pwd", "pass", "secret", "token", "pin", "passphrase", "apikey", "salt", "otp":
			return true
		}
	}
	for _, part := range []string{"api_key", "private_key", "password", "secret", "card_number", "iban", "passport"} {
		if strings.Contains(strings.ToLower(name), part) {
			return true
		}
	}
	return false
}

// archive finds what says that a client is gone but kept.
func (s *Survey) archive(t catalog.Table) *Transition {
	if name := s.column(t, []string{"deleted_at", "archived_at", "deleted_on", "archived_on", "terminated_at", "closed_at", "date_deleted"}, catalog.Column.Time); name != "" {
		return &Transition{Column: name, Set: true}
	}
	boolean := func(c catalog.Column) bool { return c.TypeOID == 16 }
	if name := s.column(t, []string{"archived", "is_archived", "deleted", "is_deleted"}, boolean); name != "" {
		return &Transition{Column: name, Values: []string{"true"}}
	}
	column, values := s.state(t, "archive", "archived", "deleted", "removed", "terminated", "closed")
	if values == nil {
		return nil
	}
	return &Transition{Column: column, Values: values}
}

// state finds a column of states that is known to have one of the wanted values, in
// the order of preference, and those it has.
func (s *Survey) state(t catalog.Table, wanted ...string) (column string, values []string) {
	for _, name := range stateNames() {
		if s.column(t, []string{name}, textOrNumber) == "" {
			continue
		}
		for _, w := range wanted {
			for _, v := range s.values[t.Name][name] {
				if strings.EqualFold(v, w) {
					values = append(values, v)
				}
			}
		}
		if values != nil {
			return name, values
		}
	}
	return "", nil
}

// life finds what says how a package fares.
func (s *Survey) life(e *Entity, t catalog.Table) {
	find := func(wanted ...string) *Transition {
		column, values := s.state(t, wanted...)
		if values == nil {
			return nil
		}
		return &Transition{Column: column, Values: values}
	}
	e.Activate = find("active", "activated", "enabled", "running", "started")
	e.Deactivate = find("suspended", "deactivated", "inactive", "paused", "blocked", "disabled", "stopped", "on_hold")
	e.Close = find("closed", "cancelled", "canceled", "terminated", "archive", "archived", "expired", "ended", "finished", "deleted")
	if e.Close == nil {
		if name := s.column(t, []string{"terminated_at", "closed_at", "cancelled_at", "canceled_at", "ended_at", "deleted_at"}, catalog.Column.Time); name != "" {
			e.Close = &Transition{Column: name, Set: true}
		} else if name := s.column(t, []string{"stop_dt", "end_dt", "end_date", "expires_at", "expire_at", "expiry_date", "valid_until", "valid_to", "active_till", "end_at", "date_end"}, catalog.Column.Time); name != "" {
			e.Close = &Transition{At: name}
		}
	}
	if name := s.column(t, []string{
		"period_start_dt", "current_period_start", "period_start", "renewed_at", "last_renewed_at", "last_renewal", "billing_period_start", "renew_at", "next_renewal", "next_billing_at", "next_charge_at",
		"paid_until", "paid_till", "current_period_end", "period_end", "period_end_dt",
	}, catalog.Column.Time); name != "" {
		e.Renew = &Transition{Column: name, Moves: true}
	}
	for _, x := range []struct {
		t    *Transition
		name string
	}{{e.Activate, "activate"}, {e.Deactivate, "deactivate"}, {e.Renew, "renew"}, {e.Close, "close"}} {
		if x.t == nil {
			e.Open = append(e.Open, "clients.packages."+x.name+" will not be told of: nothing was found that says it"+s.hint(t, x.name))
		}
	}
}

// hint says what a transition would look like, with a column of states if there is one.
func (s *Survey) hint(t catalog.Table, name string) string {
	if name == "renew" {
		return "; write renew: {column: ..., moves: forward}, with the column that says until when it is paid"
	}
	for _, column := range stateNames() {
		if s.column(t, []string{column}, textOrNumber) == "" {
			continue
		}
		known := "its values are not known"
		if values := s.values[t.Name][column]; len(values) > 0 {
			known = "it has " + strings.Join(values, ", ")
		}
		return fmt.Sprintf("; perhaps %s: {column: %s, value: ...}, %s", name, column, known)
	}
	return fmt.Sprintf("; write %s: {column: ..., value: ...}", name)
}

// fields finds custom fields: a JSON column, or a table with a row for each.
func (s *Survey) fields(t catalog.Table) *Fields {
	isJSON := func(c catalog.Column) bool { return c.TypeOID == 114 || c.TypeOID == 3802 }
	if name := s.column(t, []string{"custom_fields", "custom", "extra", "extra_fields", "attributes", "custom_attributes", "properties", "metadata", "params"}, isJSON); name != "" {
		return &Fields{Column: name}
	}
	for _, side := range s.tables {
		w := words(side.Table)
		if !slices.Contains(w, "field") && !slices.Contains(w, "attribute") && !slices.Contains(w, "metadata") && !slices.Contains(w, "property") && !slices.Contains(w, "param") {
			continue
		}
		client := s.toClient(side, t)
		if client == nil {
			continue
		}
		name := s.column(side, []string{"field_key", "key", "name", "field", "field_name", "attribute", "code", "param"}, textOrNumber)
		value := s.column(side, []string{"value", "field_value", "val", "content", "data"}, func(catalog.Column) bool { return true })
		if name != "" && value != "" {
			return &Fields{Table: &side.Name, Client: client, Name: name, Value: value}
		}
	}
	return nil
}

// balance finds the clients' balance: as it was named, in their own table, or in one
// beside with a row for each.
func (s *Survey) balance(t catalog.Table, named string) (*Balance, error) {
	switch named {
	case "none":
		return nil, nil
	case "":
		return s.findBalance(t), nil
	}
	if c, ok := t.Column(named); ok {
		return &Balance{Column: named}, amount(named, c)
	}
	i := strings.LastIndexByte(named, '.')
	if i < 0 {
		return nil, fmt.Errorf("balance %s: table %s has no such column; name one of another table as table.column", named, t.Name)
	}
	side, ok := s.Find(named[:i])
	if !ok {
		return nil, fmt.Errorf("balance %s: there is no table %s, or it has no primary key", named, named[:i])
	}
	c, ok := side.Column(named[i+1:])
	if !ok {
		return nil, fmt.Errorf("balance %s: table %s has no such column", named, side.Name)
	}
	if side.Name == t.Name {
		return &Balance{Column: c.Name}, amount(named, c)
	}
	key := s.single(side, t)
	if key == nil {
		return nil, fmt.Errorf("balance %s: nothing says that table %s has one row for each client", named, side.Name)
	}
	return &Balance{Table: &side.Name, Key: key, Column: c.Name}, amount(named, c)
}

// amount refuses a column that is no number.
func amount(named string, c catalog.Column) error {
	if c.Number() {
		return nil
	}
	return fmt.Errorf("balance %s: the column is of type %s, which is no number", named, c.Type)
}

// findBalance looks in the clients' own table, then in those beside.
func (s *Survey) findBalance(t catalog.Table) *Balance {
	if column := s.amount(t); column != "" {
		return &Balance{Column: column}
	}
	for _, side := range s.tables {
		w := words(side.Table)
		if side.Name == t.Name || !slices.Contains(w, "balance") && !slices.Contains(w, "wallet") {
			continue
		}
		key := s.single(side, t)
		if key == nil {
			continue
		}
		if column := s.amount(side); column != "" {
			return &Balance{Table: &side.Name, Key: key, Column: column}
		}
	}
	return nil
}

// single returns the columns by which side has at most one row for each client, nil
// when it may have several.
func (s *Survey) single(side, clients catalog.Table) []string {
	for _, k := range s.keys {
		if k.From == side.Name && k.To == clients.Name && slices.Equal(k.Referenced, clients.PrimaryKey) && k.OnePerTarget {
			return k.Columns
		}
	}
	return s.named(side, clients)
}

// named finds the key of a side table that declares no reference.
func (s *Survey) named(side, clients catalog.Table) []string {
	if len(side.PrimaryKey) != 1 || len(clients.PrimaryKey) != 1 {
		return nil
	}
	w := words(clients.Table)
	base := w[len(w)-1]
	if p := side.PrimaryKey[0]; p == base+"_id" || p == base+"s_id" || p == clients.Table+"_id" || p == "id_"+base {
		return side.PrimaryKey
	}
	return nil
}
