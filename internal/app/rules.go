package app

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/dispatch"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/ruletest"
)

// What stands for variables that the environment lacks: a signing secret, and a URL where
// the name promises one.
const (
	placeholder    = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	placeholderURL = "https://placeholder.invalid/"
)

// TestRules runs files of unit tests against both configuration files. No database is
// asked and no handler called; scripts and plugins need not be there.
func TestRules(o Options, paths []string, only string) ([]ruletest.Result, error) {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	given := o.Env
	o.Env = func(name string) (string, bool) {
		if v, ok := given(name); ok {
			return v, true
		}
		// Who edits the files need not know the secrets.
		if strings.Contains(strings.ToUpper(name), "URL") {
			return placeholderURL, true
		}
		return placeholder, true
	}
	b, err := config.LoadBillhook(o.ConfigPath, o.Env)
	if err != nil {
		return nil, err
	}
	m, err := mapping(b)
	if err != nil {
		return nil, err
	}
	h, err := config.LoadHandlers(o.HandlersPath, o.Env, b)
	if err != nil {
		return nil, err
	}
	p := &problems{}
	var handlers []*dispatch.Handler
	for _, c := range h.Handlers {
		if c.Status == config.Archived {
			continue
		}
		c.HTTP, c.Script, c.Plugin = nil, nil, nil // who is called, not how
		handlers = append(handlers, p.handler(c, &atomic.Pointer[config.Expr]{}, columnsOf(m), nil, o))
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	var columns []ruletest.Column
	for _, n := range needs(b, m) {
		if len(n.tables) == 1 { // of several, the test says which
			columns = append(columns, ruletest.Column{Table: n.tables[0].String(), Name: n.column, Number: n.number, Time: n.time})
		}
	}
	types := b.EventTypes()
	var out []ruletest.Result
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read tests: %w", err)
		}
		f, err := ruletest.Load(path, text)
		if err != nil {
			return nil, err
		}
		out = append(out, f.Run(ruletest.Options{
			Mapping: m, Columns: columns, Only: only,
			Plan: func(e *event.Event) ([]int, error) {
				planned, err := dispatch.Plan(handlers, e)
				ids := []int{}
				for _, x := range planned {
					if !x.Held {
						ids = append(ids, x.Handler)
					}
				}
				return ids, err
			},
			Resolve: func(name string) (event.Type, bool) {
				id, ok := config.ResolveEvent(types, name)
				return event.Type(id), ok
			},
		})...)
	}
	return out, nil
}
