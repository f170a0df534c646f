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

// standIns gives variables that the environment lacks a value: who edits the files need
// not know the secrets.
func standIns(given config.Lookup) config.Lookup {
	if given == nil {
		given = os.LookupEnv
	}
	return func(name string) (string, bool) {
		if v, ok := given(name); ok {
			return v, true
		}
		if strings.Contains(strings.ToUpper(name), "URL") {
			return placeholderURL, true
		}
		return placeholder, true
	}
}

// TestRules runs files of unit tests against both configuration files. No database is
// asked and no handler called; scripts and plugins need not be there.
func TestRules(o Options, paths []string, only string) ([]ruletest.Result, error) {
	o.Env = standIns(o.Env)
	l, handlers, err := offline(o)
	if err != nil {
		return nil, err
	}
	b, m := l.Config, l.Mapping
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

// offline loads both files and makes handlers that decide what they are called for and
// can call nobody.
func offline(o Options) (*Loaded, []*dispatch.Handler, error) {
	l, err := Load(o)
	if err != nil {
		return nil, nil, err
	}
	w := newWriteBack(l.Mapping, l.Config.EventTypes())
	p := &problems{}
	var handlers []*dispatch.Handler
	for _, c := range l.Handlers.Handlers {
		if c.Status == config.Archived {
			continue
		}
		c.HTTP, c.Script, c.Plugin = nil, nil, nil // who is called, not how
		handlers = append(handlers, p.handler(c, &atomic.Pointer[config.Expr]{}, columnsOf(l.Mapping), w, o))
	}
	if err := p.err(); err != nil {
		return nil, nil, err
	}
	return l, handlers, nil
}
