package config

import (
	"slices"
	"strings"
)

// EventType is an event type that handlers can name.
type EventType struct {
	// Name is the canonical name, such as "clients.accounts.create".
	Name string
	// Title is what people see, such as "Accounts create". Handlers may name the
	// type by it, in any case and spacing.
	Title string
	// Entity is "clients", "accounts" or "packages".
	Entity string
	// Aliases are other names and titles.
	Aliases []string
	// Needs is the field of billhook.yaml without which the type never happens, such
	// as "entities.clients.balance".
	Needs string
}

// Catalogue returns the built-in event types.
func Catalogue() []EventType {
	const clients, accounts, packages = "entities.clients", "entities.accounts", "entities.packages"
	types := []EventType{
		{Name: "clients.create", Title: "Clients create", Entity: "clients", Needs: clients},
		{Name: "clients.update", Title: "Clients update", Entity: "clients", Needs: clients},
		{Name: "clients.delete", Title: "Clients delete", Entity: "clients", Needs: clients},
		{Name: "clients.archive", Title: "Clients archive", Entity: "clients", Needs: clients + ".archive"},
		{
			Name: "clients.custom_fields.update", Title: "Clients custom fields update", Entity: "clients",
			Aliases: []string{"clients.custom_fields_update"}, Needs: clients + ".custom_fields",
		},
		{Name: "clients.balance_zero", Title: "Clients balance became <= 0", Entity: "clients", Needs: clients + ".balance"},
		{Name: "clients.balance_notzero", Title: "Clients balance became >= 0", Entity: "clients", Needs: clients + ".balance"},
		{Name: "clients.truncate", Title: "Clients truncate", Entity: "clients", Needs: clients + ".truncate"},

		{Name: "clients.accounts.create", Title: "Accounts create", Entity: "accounts", Needs: accounts},
		{Name: "clients.accounts.update", Title: "Accounts update", Entity: "accounts", Needs: accounts},
		{Name: "clients.accounts.delete", Title: "Accounts delete", Entity: "accounts", Needs: accounts},
		{Name: "clients.accounts.balance_zero", Title: "Accounts balance became <= 0", Entity: "accounts", Needs: accounts + ".balance"},
		{Name: "clients.accounts.balance_notzero", Title: "Accounts balance became >= 0", Entity: "accounts", Needs: accounts + ".balance"},
		{Name: "clients.accounts.truncate", Title: "Accounts truncate", Entity: "accounts", Needs: accounts + ".truncate"},

		{Name: "clients.packages.assign", Title: "Clients Packages assign", Entity: "packages", Needs: packages},
		{Name: "clients.packages.activate", Title: "Clients Packages activate", Entity: "packages", Needs: packages + ".activate"},
		{Name: "clients.packages.deactivate", Title: "Clients Packages deactivate", Entity: "packages", Needs: packages + ".deactivate"},
		{Name: "clients.packages.renew", Title: "Clients Packages renew", Entity: "packages", Needs: packages + ".renew"},
		{Name: "clients.packages.close", Title: "Clients Packages close", Entity: "packages", Needs: packages + ".close"},
		{Name: "clients.packages.truncate", Title: "Clients Packages truncate", Entity: "packages", Needs: packages + ".truncate"},
	}
	for i := range types {
		t := &types[i]
		for _, family := range families() {
			if verb, ok := strings.CutPrefix(t.Name, family.name+"."); ok {
				for _, alias := range family.aliases {
					t.Aliases = append(t.Aliases, alias+"."+verb)
				}
				if _, words, ok := strings.Cut(t.Title, "balance"); ok {
					verb = "balance" + words
				}
				for _, title := range family.titles {
					t.Aliases = append(t.Aliases, title+" "+verb)
				}
			}
		}
	}
	return types
}

// family is a group of event types that older releases and APIs of the vendor, and
// its users, name otherwise.
type family struct {
	name    string
	aliases []string
	titles  []string
}

func families() []family {
	return []family{
		{"clients.accounts", []string{"accounts"}, []string{"Clients Accounts"}},
		{"clients.packages", []string{"clients.subscriptions", "clients_packages"}, []string{"Clients Subscriptions", "Subscriptions", "Packages"}},
	}
}

// EventTypes returns every event type that handlers can name: the built-in ones
// and the user's own, in the order of their names. A nil b has the built-in ones.
func (b *Billhook) EventTypes() []EventType {
	types := Catalogue()
	if b != nil {
		for name, e := range b.Events {
			title := e.Title
			if title == "" {
				title = name
			}
			types = append(types, EventType{Name: name, Title: title, Entity: e.Entity, Needs: "entities." + e.Entity})
			if e.Threshold != nil && e.Threshold.Back != "" {
				types = append(types, EventType{Name: e.Threshold.Back, Title: e.Threshold.Back, Entity: e.Entity, Needs: "entities." + e.Entity})
			}
		}
	}
	slices.SortFunc(types, func(x, y EventType) int { return strings.Compare(x.Name, y.Name) })
	return types
}

// ResolveEvent turns what an operator wrote (a name, an alias, a title, or a
// wildcard such as "clients.*" or "*") into the canonical name or wildcard. ok is
// false when none of the types is meant.
func ResolveEvent(types []EventType, text string) (canonical string, ok bool) {
	want := foldTitle(text)
	if want == "*" {
		return "*", true
	}
	for _, t := range types {
		if want == t.Name || want == foldTitle(t.Title) {
			return t.Name, true
		}
		for _, alias := range t.Aliases {
			if want == foldTitle(alias) {
				return t.Name, true
			}
		}
	}
	base, wild := strings.CutSuffix(want, ".*")
	if !wild {
		return "", false
	}
	for _, f := range families() {
		if slices.Contains(f.aliases, base) {
			base = f.name
		}
	}
	for _, t := range types {
		if MatchEvent(base+".*", t.Name) {
			return base + ".*", true
		}
	}
	return "", false
}

// MatchEvent reports whether an event type, by its canonical name, is meant by a
// canonical name or wildcard: "*" means every type, "clients.*" every type whose
// name starts with "clients.", also clients.accounts.create.
func MatchEvent(pattern, name string) bool {
	if pattern == "*" || pattern == name {
		return true
	}
	prefix, wild := strings.CutSuffix(pattern, "*")
	return wild && strings.HasSuffix(prefix, ".") && strings.HasPrefix(name, prefix)
}

// foldTitle makes titles equal that differ in case and blanks only.
func foldTitle(s string) string {
	s = strings.Join(strings.Fields(strings.ToLower(s)), " ")
	for _, op := range []string{"<=", ">=", "≤", "≥"} {
		s = strings.ReplaceAll(s, " "+op, op)
		s = strings.ReplaceAll(s, op+" ", op)
	}
	return strings.NewReplacer("≤", "<=", "≥", ">=").Replace(s)
}

// nearestEvent returns the name or title that was probably meant: a name when the
// text has a dot, else a title.
func nearestEvent(types []EventType, text string) string {
	var names, titles []string
	for _, t := range types {
		for _, s := range append([]string{t.Name, t.Title}, t.Aliases...) {
			if strings.Contains(s, ".") {
				names = append(names, s)
			} else {
				titles = append(titles, s)
			}
		}
	}
	if guess := nearest(text, titles); guess != "" && !strings.Contains(text, ".") {
		return guess
	}
	return nearest(text, names)
}

// mapped reports whether b has the field that an event type needs.
func (b *Billhook) mapped(needs string) bool {
	c, a, p := b.Entities.Clients, b.Entities.Accounts, b.Entities.Packages
	switch needs {
	case "entities.clients":
		return c != nil
	case "entities.clients.archive":
		return c != nil && c.Archive != nil
	case "entities.clients.balance":
		return c != nil && c.Balance != nil
	case "entities.clients.custom_fields":
		return c != nil && c.CustomFields != nil
	case "entities.clients.truncate":
		return c != nil && c.Truncate
	case "entities.accounts":
		return a != nil
	case "entities.accounts.balance":
		return a != nil && a.Balance != nil
	case "entities.accounts.truncate":
		return a != nil && a.Truncate
	case "entities.packages":
		return p != nil
	case "entities.packages.activate":
		return p != nil && p.Activate != nil
	case "entities.packages.deactivate":
		return p != nil && p.Deactivate != nil
	case "entities.packages.renew":
		return p != nil && p.Renew != nil
	case "entities.packages.close":
		return p != nil && p.Close != nil
	case "entities.packages.truncate":
		return p != nil && p.Truncate
	}
	return false
}
