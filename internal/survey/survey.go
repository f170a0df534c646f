// Package survey guesses what the tables of an unknown billing database mean: which
// hold clients, accounts and packages, where the balance is, what says that a client is
// archived or a package active.
//
// It promises that whatever it proposes names tables and columns that are there, of a
// type that fits, and that the same schema gives the same proposal. It says why it
// chose what it chose, and what it did not find. It is a guess all the same: a person
// is to read it.
//
// It reads nothing: it is given what the catalogs say. Start with New, Candidates and
// Propose.
package survey

import (
	"cmp"
	"slices"
	"strings"

	"github.com/billhook/billhook/internal/replication/catalog"
)

// The entities.
const (
	Clients  = "clients"
	Accounts = "accounts"
	Packages = "packages"
)

// Survey is a database's schema, to be asked.
type Survey struct {
	tables []catalog.Table
	keys   []catalog.ForeignKey
	values map[catalog.Name]map[string][]string
}

// New takes what the catalogs say. Tables that cannot be published are left aside.
func New(tables []catalog.Table, keys []catalog.ForeignKey, values []catalog.Values) *Survey {
	s := &Survey{keys: keys, values: map[catalog.Name]map[string][]string{}}
	for _, t := range tables {
		if len(t.PrimaryKey) > 0 && t.Persistence == 'p' {
			s.tables = append(s.tables, t)
		}
	}
	for _, v := range values {
		if s.values[v.Table] == nil {
			s.values[v.Table] = map[string][]string{}
		}
		s.values[v.Table][v.Column] = v.Values
	}
	return s
}

// Candidate is a table that may hold an entity.
type Candidate struct {
	Table catalog.Table
	Score int    // above 0; clear when it is Sure and Margin above the next one's
	Why   string // what speaks for it
}

const (
	// Sure is the score from which a candidate may be taken without being asked for,
	Sure = 60
	// Margin is how far it must be above the next one then.
	Margin = 10
)

// names say how well a word of a table's name fits an entity.
func names(entity string) map[string]int {
	switch entity {
	case Clients:
		return map[string]int{
			"client": 100, "customer": 95, "subscriber": 85, "contractor": 80, "abonent": 80, "payer": 60,
			"organization": 50, "organisation": 50, "company": 50, "partner": 45, "user": 40, "account": 40, "member": 40, "person": 30, "contact": 20,
		}
	case Accounts:
		return map[string]int{
			"account": 100, "wallet": 80, "sip": 50, "line": 50, "number": 45, "device": 45, "endpoint": 45, "login": 50, "subscriber": 50, "service": 30, "user": 30,
		}
	case Packages:
		return map[string]int{
			"package": 100, "subscription": 95, "plan": 60, "contract": 60, "service": 55, "tariff": 50, "bundle": 60, "product": 40, "order": 20,
		}
	}
	return nil
}

// noise are words of names of tables that stand beside the entity's own.
func noise(word string) bool {
	switch word {
	case "log", "history", "audit", "archive", "tmp", "temp", "backup", "old", "balance", "payment", "invoice", "type", "template", "setting", "config",
		"metadata", "field", "custom", "note", "comment", "tag", "group", "role", "permission", "session", "token", "rate", "price", "charge", "fee", "item",
		"event", "version", "migration", "translation", "statistic", "stat", "cdr", "call", "queue", "job", "import", "export", "report", "address", "document", "file", "image", "option", "limit", "credit", "transaction":
		return true
	}
	return false
}

// words splits a name at underscores and capital letters, in lower case and singular.
func words(name string) []string {
	var b strings.Builder
	lower := false
	for _, r := range name {
		if r >= 'A' && r <= 'Z' {
			if lower {
				b.WriteByte('_')
			}
			r += 'a' - 'A'
			lower = false
		} else {
			lower = r >= 'a' && r <= 'z' || r >= '0' && r <= '9'
		}
		b.WriteRune(r)
	}
	var out []string
	for _, w := range strings.FieldsFunc(b.String(), func(r rune) bool { return r == '_' || r == '-' || r == ' ' }) {
		switch {
		case strings.HasSuffix(w, "ies"):
			w = strings.TrimSuffix(w, "ies") + "y"
		case strings.HasSuffix(w, "sses"), strings.HasSuffix(w, "xes"):
			w = strings.TrimSuffix(w, "es")
		case strings.HasSuffix(w, "s") && !strings.HasSuffix(w, "ss") && !strings.HasSuffix(w, "us"):
			w = strings.TrimSuffix(w, "s")
		}
		out = append(out, w)
	}
	return out
}

// Candidates returns the tables that may hold an entity, the likeliest first. Accounts
// and packages are looked for among those that lead to the clients' table, nil for
// none.
func (s *Survey) Candidates(entity string, clients *catalog.Table) []Candidate {
	var list []Candidate
	for _, t := range s.tables {
		if clients != nil && t.Name == clients.Name {
			continue
		}
		c := Candidate{Table: t}
		var why []string
		fits := names(entity)
		all := words(t.Name.Table)
		best, others := 0, 0
		for i, w := range all {
			n := fits[w]
			if n > 0 && i < len(all)-1 {
				n -= 15 // what a name is about stands last
			}
			if n > best {
				best = n
			}
			if noise(w) {
				others += 60
			}
		}
		if best == 0 {
			continue
		}
		c.Score = best - others
		why = append(why, "its name")
		switch entity {
		case Clients:
			c.Score, why = s.clientScore(t, c.Score, why)
		case Accounts, Packages:
			if clients == nil {
				continue
			}
			path := s.toClient(t, *clients)
			if path == nil && !s.beyond(t, *clients) {
				continue
			}
			if path != nil {
				c.Score += 15
				why = append(why, strings.Join(path, ", ")+" leads to "+clients.Table)
			}
			if entity == Packages && s.column(t, stateNames(), textOrNumber) != "" {
				c.Score += 10
				why = append(why, "it has a status")
			}
			if entity == Accounts && s.amount(t) != "" {
				c.Score += 10
				why = append(why, "it has a balance")
			}
		}
		if c.Score <= 0 {
			continue
		}
		c.Why = strings.Join(why, ", ")
		list = append(list, c)
	}
	slices.SortStableFunc(list, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.Table.Name.String(), b.Table.Name.String()))
	})
	return list
}

func (s *Survey) clientScore(t catalog.Table, score int, why []string) (int, []string) {
	if s.amount(t) != "" {
		score += 20
		why = append(why, "it has a balance")
	}
	for _, names := range [][]string{{"name", "title", "c_company", "company_name"}, {"email", "c_email", "phone"}, {"status", "state", "deleted_at", "enabled"}} {
		if slices.ContainsFunc(t.Columns, func(c catalog.Column) bool { return slices.Contains(names, c.Name) }) {
			score += 3
		}
	}
	n := 0
	for _, k := range s.keys {
		if k.To == t.Name && k.From != t.Name {
			n++
		}
	}
	if n > 0 {
		score += min(2*n, 12)
		why = append(why, "others refer to it")
	}
	return score, why
}

// Clear returns the first candidate when there is no doubt.
func Clear(list []Candidate) (Candidate, bool) {
	if len(list) == 0 || list[0].Score < Sure || len(list) > 1 && list[1].Score > list[0].Score-Margin {
		return Candidate{}, false
	}
	return list[0], true
}

// Find finds a table by its name, with or without its schema.
func (s *Survey) Find(name string) (catalog.Table, bool) {
	var found []catalog.Table
	for _, t := range s.tables {
		if t.Name.String() == name {
			return t, true
		}
		if t.Name.Table == name {
			found = append(found, t)
		}
	}
	if len(found) == 0 {
		return catalog.Table{}, false
	}
	slices.SortStableFunc(found, func(a, b catalog.Table) int { // public first
		return cmp.Compare(boolInt(a.Schema != "public"), boolInt(b.Schema != "public"))
	})
	return found[0], true
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// toClient returns the columns of t that lead to a row of clients, nil if none do.
func (s *Survey) toClient(t, clients catalog.Table) []string {
	for _, k := range s.keys {
		if k.From == t.Name && k.To == clients.Name && slices.Equal(k.Referenced, clients.PrimaryKey) {
			return k.Columns
		}
	}
	if len(clients.PrimaryKey) != 1 {
		return nil
	}
	// Not every schema declares its references.
	key, _ := clients.Column(clients.PrimaryKey[0])
	last := words(clients.Table)
	base := last[len(last)-1]
	for _, name := range []string{clients.Table + "_id", base + "_id", base + "s_id", "id_" + base, base + "id", base, "client_id", "clients_id", "customer_id"} {
		if c, ok := t.Column(name); ok && c.TypeOID == key.TypeOID && !slices.Equal(t.PrimaryKey, []string{name}) {
			return []string{name}
		}
	}
	return nil
}

// beyond reports a table that leads to one that leads to clients.
func (s *Survey) beyond(t, clients catalog.Table) bool {
	return slices.ContainsFunc(s.keys, func(k catalog.ForeignKey) bool {
		if k.From != t.Name || k.To == t.Name {
			return false
		}
		i := slices.IndexFunc(s.tables, func(x catalog.Table) bool { return x.Name == k.To })
		return i >= 0 && s.toClient(s.tables[i], clients) != nil
	})
}

func textOrNumber(c catalog.Column) bool {
	switch c.TypeOID {
	case 25, 1043, 1042, 19, 21, 23: // text, varchar, char, name, int2, int4
		return true
	}
	return c.TypeKind == 'e' || c.TypeKind == 'd'
}

func stateNames() []string {
	return []string{"status", "state", "condition", "status_id", "state_id", "status_code"}
}

// column returns the first of names that is a column of t with a fitting type.
func (s *Survey) column(t catalog.Table, names []string, fits func(catalog.Column) bool) string {
	for _, name := range names {
		if c, ok := t.Column(name); ok && c.Generated == "" && fits(c) {
			return name
		}
	}
	return ""
}

// amount returns the column of t that is most likely a balance.
func (s *Survey) amount(t catalog.Table) string {
	number := func(c catalog.Column) bool { return c.Number() && c.TypeKind != 'd' }
	return s.column(t, []string{
		"balance", "current_balance", "account_balance", "balance_amount", "available_balance", "balance_cents", "wallet_balance", "real_balance", "prepaid_balance", "deposit", "saldo", "credit_balance", "funds", "wallet",
	}, number)
}
