package app

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/dispatch"
	"github.com/billhook/billhook/internal/doctor"
	"github.com/billhook/billhook/internal/replication/catalog"
)

// minFree is the journal's reserve, as its default is.
const minFree = 512 << 20

// Check looks at both files, the database and this machine, and changes nothing.
func Check(ctx context.Context, o Options) []doctor.Finding {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	var list []doctor.Finding
	fail := func(check string, err error) {
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
	}
	ok := func(check, format string, args ...any) {
		list = append(list, doctor.Finding{Check: check, Level: doctor.OK, Text: fmt.Sprintf(format, args...)})
	}

	b, err := config.LoadBillhook(o.ConfigPath, o.Env)
	if err != nil {
		fail("billhook.yaml", err)
		list = append(list, doctor.Finding{Check: "database", Level: doctor.Skip, Text: "billhook.yaml must be right first"})
	}
	// Without the mapping, handlers are judged by the built-in events alone.
	h, handlersErr := config.LoadHandlers(o.HandlersPath, o.Env, b)
	if b == nil {
		if handlersErr != nil {
			fail("handlers.yaml", handlersErr)
		}
		return list
	}
	m, err := mapping(b)
	if err == nil {
		if _, newErr := billing.New(m, billing.Options{}); newErr != nil {
			err = b.At("entities").Problem(newErr.Error(), "correct the mapping")
		}
	}
	if err != nil {
		fail("billhook.yaml", err)
	} else {
		ok("billhook.yaml", "%s: %d tables, %d events of your own", o.ConfigPath, len(billing.Tables(m)), len(b.Events))
	}
	switch {
	case handlersErr != nil:
		fail("handlers.yaml", handlersErr)
	default:
		_, made, err := build(h, nil, o.Version)
		if err != nil {
			fail("handlers.yaml", err)
			break
		}
		enabled := 0
		for _, d := range made {
			if d.Status == dispatch.Enabled {
				enabled++
			}
			if d.Call != nil {
				_ = d.Call.Close() // it was never called
			}
		}
		ok("handlers.yaml", "%s: %d handlers, %d of them enabled", o.HandlersPath, len(made), enabled)
	}
	if err != nil && len(m.Entities) == 0 {
		return list
	}

	list = append(list, doctor.Run(ctx, doctor.Options{
		DSN: b.Source.DSN.Reveal(), Slot: b.Source.Slot, Publication: b.Source.Publication, Create: b.Source.Create,
		Tables: doctorTables(m), JournalPath: b.Journal.Path, MinFree: minFree, Listen: b.HTTP.Listen,
	})...)
	a := &App{loaded: &Loaded{Options: o, Config: b, Mapping: m}}
	if source, err := a.look(ctx); err == nil {
		if err := disagreements(b, m, source); err != nil {
			fail("mapping", err)
		} else {
			ok("mapping", "every table and column is there and may be read")
		}
	}
	return list
}

func doctorTables(m billing.Mapping) []doctor.Table {
	var out []doctor.Table
	add := func(t billing.Table, key, exclude []string) {
		out = append(out, doctor.Table{Name: catalog.Name{Schema: t.Schema, Table: t.Name}, Key: key, Exclude: exclude})
	}
	for _, e := range m.Entities {
		add(e.Table, e.Key, e.Exclude)
		if e.Balance != nil && e.Balance.Table != nil {
			add(*e.Balance.Table, e.Balance.Key, e.Exclude)
		}
		if e.CustomFields != nil && e.CustomFields.Table != nil {
			add(*e.CustomFields.Table, nil, e.Exclude) // any replica identity will do
		}
	}
	return out
}
