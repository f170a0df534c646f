package survey

import (
	"fmt"
	"regexp"
	"strings"
)

// YAML writes the entities as they stand in billhook.yaml.
func YAML(list []Entity) string {
	var b strings.Builder
	b.WriteString("entities:\n")
	for _, e := range list {
		fmt.Fprintf(&b, "  %s:\n", e.Name)
		fmt.Fprintf(&b, "    table: %s\n", scalar(e.Table.String()))
		fmt.Fprintf(&b, "    key: %s\n", sequence(e.Key))
		if len(e.Client) == 1 {
			fmt.Fprintf(&b, "    client: %s # leads to the client, whose order its events share\n", scalar(e.Client[0]))
		} else if len(e.Client) > 1 {
			fmt.Fprintf(&b, "    client: %s # lead to the client, whose order its events share\n", sequence(e.Client))
		}
		if len(e.Ignore) > 0 {
			fmt.Fprintf(&b, "    ignore: %s # alone, they are no update\n", sequence(e.Ignore))
		}
		if len(e.Mask) > 0 {
			fmt.Fprintf(&b, "    mask: %s # shown as ***\n", sequence(e.Mask))
		}
		if e.Balance != nil {
			table := ""
			if e.Balance.Table != nil {
				table = fmt.Sprintf("table: %s, key: %s, ", scalar(e.Balance.Table.String()), sequence(e.Balance.Key))
			}
			fmt.Fprintf(&b, "    balance: {%scolumn: %s}\n", table, scalar(e.Balance.Column))
		}
		if f := e.Fields; f != nil && f.Table == nil {
			fmt.Fprintf(&b, "    custom_fields: {column: %s}\n", scalar(f.Column))
		} else if f != nil {
			client := scalar(f.Client[0])
			if len(f.Client) > 1 {
				client = sequence(f.Client)
			}
			fmt.Fprintf(&b, "    custom_fields: {table: %s, client: %s, name: %s, value: %s}\n", scalar(f.Table.String()), client, scalar(f.Name), scalar(f.Value))
		}
		for _, t := range []struct {
			name string
			*Transition
		}{{"archive", e.Archive}, {"activate", e.Activate}, {"deactivate", e.Deactivate}, {"renew", e.Renew}, {"close", e.Close}} {
			if t.Transition != nil {
				fmt.Fprintf(&b, "    %s: %s\n", t.name, t.yaml())
			}
		}
		for _, line := range e.Open {
			fmt.Fprintf(&b, "    # To be looked at: %s.\n", line)
		}
	}
	return b.String()
}

func (t *Transition) yaml() string {
	switch {
	case t.At != "":
		return fmt.Sprintf("{at: %s} # when that time comes", scalar(t.At))
	case t.Set:
		return fmt.Sprintf("{column: %s, set: true}", scalar(t.Column))
	case t.Moves:
		return fmt.Sprintf("{column: %s, moves: forward}", scalar(t.Column))
	case len(t.Values) == 1:
		return fmt.Sprintf("{column: %s, value: %s}", scalar(t.Column), scalar(t.Values[0]))
	}
	return fmt.Sprintf("{column: %s, in: %s}", scalar(t.Column), sequence(t.Values))
}

func sequence(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = scalar(s)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// scalar writes a text so that YAML reads the same text, or the same number or truth.
func scalar(s string) string {
	plain := regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_.]*|-?(0|[1-9][0-9]*))$`)
	switch strings.ToLower(s) {
	case "null", "yes", "no", "on", "off", "y", "n", "~":
		return `"` + s + `"`
	}
	if plain.MatchString(s) {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "${", "$${").Replace(s) + `"`
}
