package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/handler/exchange"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/writeback"
)

// writeBack is what answers of handlers may change in the source.
type writeBack struct {
	mapping billing.Mapping
	types   []config.EventType
	log     *slog.Logger
	total   *prometheus.CounterVec // nil: nothing is written, handlers are only judged
	writer  *writeback.Writer      // set before any handler is called
}

// maxWriteText bounds what is told of a write that was not done, in bytes.
const maxWriteText = 500

func newWriteBack(m billing.Mapping, types []config.EventType) *writeBack {
	return &writeBack{mapping: m, types: types}
}

func (w *writeBack) entity(name string) *billing.Entity {
	for i := range w.mapping.Entities {
		if w.mapping.Entities[i].Name == name {
			return &w.mapping.Entities[i]
		}
	}
	return nil
}

// beside reports whether events of a type tell of rows that stand in another table than
// their object's, or of none: their payloads do not have its row.
func (w *writeBack) beside(e *billing.Entity, typ string) bool {
	elsewhere := func(amount *expr.Number) bool {
		tables, _, ok := e.ColumnTables(amount, amount.Columns()[0])
		return !ok || e.TwoTables(amount) || len(tables) != 1 || tables[0] != e.Table
	}
	prefix := "clients." + e.Name
	if e.Name == billing.Clients {
		prefix = billing.Clients
	}
	switch typ {
	case prefix + ".balance_zero", prefix + ".balance_notzero":
		return e.Balance != nil && elsewhere(e.Balance.Amount)
	case prefix + ".custom_fields.update":
		return e.CustomFields != nil && e.CustomFields.Table != nil
	case prefix + ".truncate":
		return true
	}
	i := slices.IndexFunc(w.mapping.Rules, func(r billing.Rule) bool { return string(r.Event) == typ && r.Threshold != nil })
	return i >= 0 && elsewhere(w.mapping.Rules[i].Threshold.Amount)
}

// entities are those whose rows a handler may be told of by events that have them.
func (w *writeBack) entities(c *config.Handler) (list []*billing.Entity) {
	for _, t := range w.types {
		e := w.entity(t.Entity)
		if e != nil && !slices.Contains(list, e) && c.Matches(t.Name) && !w.beside(e, t.Name) {
			list = append(list, e)
		}
	}
	return list
}

// judge refuses columns that no answer may change.
func (w *writeBack) judge(p *problems, c *config.Handler) {
	list := w.entities(c)
	if len(list) == 0 {
		p.add(c.At("write_back"), "none of the handler's events has its object's row: the balance and custom fields may stand in tables beside it", "remove it, or name events of the row, such as clients.update")
		return
	}
	for i, name := range c.WriteBack {
		pos := c.At(fmt.Sprintf("write_back[%d]", i))
		for _, e := range list {
			why := ""
			switch {
			case slices.Contains(e.Key, name):
				why = "is the key"
			case slices.Contains(e.Client, name):
				why = "leads to the client"
			case slices.Contains(e.Mask, name):
				why = "is masked, so that nobody can tell whether it has changed since the event"
			case slices.Contains(e.Exclude, name):
				why = "is excluded"
			default:
				continue
			}
			p.add(pos, fmt.Sprintf("column %q of %s %s", name, e.Name, why), "remove it")
		}
	}
}

// needs lists the columns that answers of enabled handlers may change.
func (w *writeBack) needs(h *config.Handlers) (list []need) {
	for i := range h.Handlers {
		c := &h.Handlers[i]
		if c.Status != config.Enabled {
			continue
		}
		for n, name := range c.WriteBack {
			for _, e := range w.entities(c) {
				list = append(list, need{tables: []billing.Table{e.Table}, column: name, at: c.At(fmt.Sprintf("write_back[%d]", n)), write: true})
			}
		}
	}
	return list
}

// handler returns what a handler's answers are written with.
func (w *writeBack) handler(c config.Handler) func(context.Context, *event.Event, json.RawMessage) (string, error) {
	if len(c.WriteBack) == 0 || w.total == nil {
		return nil
	}
	id := strconv.Itoa(c.ID)
	for _, r := range writeback.Results() {
		w.total.WithLabelValues(id, string(r))
	}
	mask := exchange.NewMask(secretsOf(&c)...)
	return func(ctx context.Context, e *event.Event, data json.RawMessage) (note string, err error) {
		row, out := w.row(c.WriteBack, e, data)
		if out.Result == "" && len(row.Values) == 0 {
			return "", nil
		}
		if out.Result == "" {
			out, err = w.writer.Apply(ctx, row)
		}
		attrs := []any{"event", e.ID.String(), "type", string(e.Type), "handler", c.ID}
		if err != nil {
			w.total.WithLabelValues(id, string(writeback.Failed)).Inc()
			return "", errors.New(mask.Line("write back: "+err.Error(), maxWriteText))
		}
		w.total.WithLabelValues(id, string(out.Result)).Inc()
		out.Text = mask.Line(out.Text, maxWriteText)
		names := make([]string, len(row.Values))
		for i, v := range row.Values {
			names[i] = v.Column
		}
		switch out.Result {
		case writeback.Applied:
			note = "write-back applied: " + strings.Join(names, ", ")
			w.log.Debug("an answer was written back", append(attrs, "columns", names)...)
		case writeback.Unchanged:
			note = "write-back: the row holds it already"
		default:
			note = fmt.Sprintf("write-back %s, nothing was written: %s", out.Result, out.Text)
			w.log.Warn("an answer was not written back", append(attrs, "result", string(out.Result), "err", out.Text)...)
		}
		return mask.Line(note, maxWriteText), nil
	}
}

// row says what an answer wants written where, or why it is refused.
func (w *writeBack) row(allowed []string, e *event.Event, data json.RawMessage) (row writeback.Row, out writeback.Outcome) {
	refused := func(format string, args ...any) (writeback.Row, writeback.Outcome) {
		return row, writeback.Outcome{Result: writeback.Refused, Text: fmt.Sprintf(format, args...)}
	}
	values, err := writeback.ParseValues(data)
	if err != nil {
		return refused(`the answer's "data": %v`, err)
	}
	if len(values) == 0 {
		return row, out
	}
	entity := w.entity(e.Entity)
	if entity == nil {
		return refused("%s are not mapped any more", e.Entity)
	}
	if w.beside(entity, string(e.Type)) {
		return refused("%s does not have the row of its object, so that nobody can tell whether it has changed since", e.Type)
	}
	row.Table = catalog.Name{Schema: entity.Schema, Table: entity.Table.Name}
	row.Key = entity.Key
	var ok bool
	if row.Texts, ok = billing.SplitKey(e.Object, len(row.Key)); !ok {
		return refused("object %q has not the %d parts of the key", e.Object, len(row.Key))
	}
	var before map[string]json.RawMessage
	if err := json.Unmarshal(e.Data, &before); err != nil {
		return refused("the event has no row: %v", err)
	}
	for _, v := range values {
		if !slices.Contains(allowed, v.Column) {
			return refused("column %q is not in the handler's write_back", v.Column)
		}
	}
	for i := range values {
		v := &values[i]
		if v.Was, ok = before[v.Column]; !ok {
			return refused("the event does not have column %q, so that nobody can tell whether it has changed since", v.Column)
		}
	}
	row.Values = values
	return row, out
}

// secretsOf lists what must not be shown of a handler, wherever it is echoed.
func secretsOf(c *config.Handler) (list []string) {
	if h := c.HTTP; h != nil {
		list = append(list, h.Bearer.Reveal())
		if h.Basic != nil {
			list = append(list, h.Basic.Password.Reveal())
		}
		for _, s := range h.Secrets {
			list = append(list, s.Value.Reveal())
		}
		for _, v := range h.Headers {
			list = append(list, v.Reveal())
		}
	}
	if s := c.Script; s != nil {
		for _, v := range s.Env {
			list = append(list, v.Reveal())
		}
	}
	return list
}
