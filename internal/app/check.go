package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/dispatch"
	"github.com/billhook/billhook/internal/doctor"
	"github.com/billhook/billhook/internal/handler/plugin"
	"github.com/billhook/billhook/internal/replication/catalog"
)

const (
	checkConfig   = "billhook.yaml"
	checkHandlers = "handlers.yaml"
)

// Check looks at both files, the database and this machine, and changes nothing.
// The error is that of ctx, when it ended before all was looked at; the findings
// up to there are returned as well.
func Check(ctx context.Context, o Options) ([]doctor.Finding, error) {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	b, err := config.LoadBillhook(o.ConfigPath, o.Env)
	if err != nil {
		list := found(checkConfig, err)
		// Without the mapping, handlers are judged by the built-in events alone.
		list = append(list, handlerFindings(ctx, o, nil, nil, nil)...)
		return append(list, doctor.Skipped("billhook.yaml must be right first")...), ctx.Err()
	}

	var list []doctor.Finding
	m, err := mapping(b)
	if err == nil {
		if _, newErr := billing.New(m, billing.Options{}); newErr != nil {
			err = b.At("entities").Problem(newErr.Error(), "correct the mapping")
		}
	}
	d := doctorOptions(b, m)
	if err != nil {
		list = found(checkConfig, err)
		list = append(list, doctor.Finding{Check: "columns", Level: doctor.Skip, Text: "what is wrong in billhook.yaml must be right first"})
	} else {
		list = append(list, good(checkConfig, "%s: %d tables, %d events of your own", o.ConfigPath, len(d.Tables), len(b.Events)))
		d.Columns = checkedColumns(b, m)
	}
	var w *writeBack
	if err == nil {
		w = newWriteBack(m, b.EventTypes())
	}
	list = append(list, handlerFindings(ctx, o, b, w, &d)...)
	return append(list, doctor.Run(ctx, d)...), ctx.Err()
}

func doctorOptions(b *config.Billhook, m billing.Mapping) doctor.Options {
	return doctor.Options{
		DSN: b.Source.DSN.Reveal(), Slot: b.Source.Slot, Publication: b.Source.Publication, Create: b.Source.Create, Failover: b.Source.Failover,
		Tables: checkedTables(b, m), JournalPath: b.Journal.Path, Listen: b.HTTP.Listen,
	}
}

func good(check, format string, args ...any) doctor.Finding {
	return doctor.Finding{Check: check, Level: doctor.OK, Text: fmt.Sprintf(format, args...)}
}

// found makes a finding of each mistake in err.
func found(check string, err error) []doctor.Finding {
	var list []doctor.Finding
	var es config.Errors
	var e *config.Error
	switch {
	case errors.As(err, &es):
		for _, e := range es {
			list = append(list, doctor.Finding{Check: check, Level: doctor.Fail, Text: e.Pos.String() + ": " + e.Problem, Remedy: e.Remedy})
		}
	case errors.As(err, &e):
		list = append(list, doctor.Finding{Check: check, Level: doctor.Fail, Text: e.Pos.String() + ": " + e.Problem, Remedy: e.Remedy})
	default:
		list = append(list, doctor.Finding{Check: check, Level: doctor.Fail, Text: err.Error()})
	}
	return list
}

// handlerFindings loads handlers.yaml and tries to make each handler. None is
// called; plugins are started and asked what they say of their configuration. A w judges write_back, and what is to be asked of the database goes into d.
func handlerFindings(ctx context.Context, o Options, b *config.Billhook, w *writeBack, d *doctor.Options) []doctor.Finding {
	h, err := config.LoadHandlers(o.HandlersPath, o.Env, b)
	if err != nil {
		return found(checkHandlers, err)
	}
	list := []doctor.Finding{good(checkHandlers, "%s: %d handlers", o.HandlersPath, len(h.Handlers))}
	for i := range h.Handlers {
		list = append(list, handlerFinding(ctx, h.Handlers[i], w, o)...)
	}
	if w != nil {
		d.Columns = append(d.Columns, doctorColumns(w.needs(h))...)
	}
	return list
}

func handlerFinding(ctx context.Context, c config.Handler, w *writeBack, o Options) []doctor.Finding {
	check := fmt.Sprintf("handler %d", c.ID)
	status := c.Status
	if status == config.Disabled {
		c.Status = config.Enabled // so that what is wrong with it is said
	}
	p := &problems{}
	d := p.handler(c, &atomic.Pointer[config.Expr]{}, nil, w, o)
	if d.Call != nil {
		if call, ok := d.Call.(*plugin.Handler); ok {
			p.judge(ctx, &c, call)
		}
		_ = d.Call.Close() // it was never called
	}
	if err := p.err(); err != nil {
		list := found(check, err)
		for i := range list {
			f := &list[i]
			f.Text, f.Remedy = command(f.Text, f.Remedy)
			if status == config.Disabled {
				f.Level, f.Text = doctor.Warn, "disabled, and could not be made: "+f.Text
			}
		}
		return list
	}
	text := fmt.Sprintf("%s: %s %s", c.Name, c.Kind(), targetOf(&c))
	switch {
	case status == config.Disabled:
		text = "disabled, its executions are held; " + text
	case d.Status == dispatch.Archived:
		text = "archived, it is never called; " + text
	}
	return []doctor.Finding{good(check, "%s", text)}
}

// command takes the command that cures a problem out of its text.
func command(text, remedy string) (string, string) {
	for _, program := range []string{"chmod", "chown", "sed"} {
		before, after, ok := strings.Cut(text, ": "+program+" ")
		if !ok {
			continue
		}
		line, or, _ := strings.Cut(after, ", or ")
		if or != "" {
			line += " # or " + or
		}
		return before, program + " " + line
	}
	return text, strings.TrimPrefix(remedy, "or ")
}

// checkedTables are the mapped tables with their places in the file.
func checkedTables(b *config.Billhook, m billing.Mapping) []doctor.Table {
	var out []doctor.Table
	add := func(at string, t billing.Table, key, unique, exclude []string) *doctor.Table {
		out = append(out, doctor.Table{
			Name: catalog.Name{Schema: t.Schema, Table: t.Name}, Use: b.At(at).String(), Key: key, Unique: unique, Exclude: exclude,
		})
		return &out[len(out)-1]
	}
	for _, e := range m.Entities {
		at := "entities." + e.Name
		add(at+".table", e.Table, e.Key, nil, e.Exclude)
		if e.Balance != nil && e.Balance.Table != nil {
			add(at+".balance.table", *e.Balance.Table, e.Balance.Key, nil, e.Exclude).Beside = true
		}
		if f := e.CustomFields; f != nil && f.Table != nil {
			// Any replica identity will do.
			add(at+".custom_fields.table", *f.Table, nil, append(append([]string(nil), f.Client...), f.Name), e.Exclude)
		}
	}
	return out
}

// checkedColumns are the columns that the mapping names, with their places in the
// file.
func checkedColumns(b *config.Billhook, m billing.Mapping) []doctor.Column {
	return doctorColumns(needs(b, m))
}

func doctorColumns(list []need) []doctor.Column {
	var out []doctor.Column
	for _, n := range list {
		c := doctor.Column{Name: n.column, Use: n.at.String(), Idle: n.idle, Number: n.number, Time: n.time, One: n.one, Write: n.write}
		for _, t := range n.tables {
			c.Tables = append(c.Tables, catalog.Name{Schema: t.Schema, Table: t.Name})
		}
		out = append(out, c)
	}
	return out
}
