// Command kamailio is a plugin of Billhook's that blocks and unblocks clients on
// Kamailio, by its JSON-RPC over HTTP: it keeps a table (htable) of those that are
// blocked, which Kamailio's routing asks. docs/plugins-shipped.md says how to set up
// both sides.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/billhook/billhook/plugins"
	"github.com/billhook/billhook/plugins/internal/fill"
)

// What is used when the configuration does not say otherwise.
const (
	defaultTable = "blocked"
	defaultKey   = "{{.event.object_id}}"
)

// Config is what the operator writes under plugin.config.
type Config struct {
	Servers []string       `json:"servers" jsonschema:"required,minItems=1,description=Where Kamailio's JSON-RPC is; all of them are told."`
	Token   plugins.Secret `json:"token,omitempty" jsonschema:"description=Sent as Authorization: Bearer."`
	CAFile  string         `json:"ca_file,omitempty" jsonschema:"minLength=1,description=File of certificates that those of the servers are judged by instead of the system's."`

	Table string   `json:"table,omitempty" jsonschema:"minLength=1,description=The htable. Default blocked."`
	Keys  []string `json:"keys,omitempty" jsonschema:"minItems=1,description=Templates of the keys in it that stand for a client. Default {{.event.object_id}}."`

	Block   []string `json:"block,omitempty" jsonschema:"description=Events that block. Default clients.balance_zero."`
	Unblock []string `json:"unblock,omitempty" jsonschema:"description=Events that end it. Default clients.balance_notzero."`
	Close   []string `json:"close,omitempty" jsonschema:"description=Events that block for good: those of unblock do not end that. Default clients.archive and clients.delete."`
	Reopen  []string `json:"reopen,omitempty" jsonschema:"description=Events that end any blocking. Default none."`

	AfterBlock   []Call `json:"after_block,omitempty" jsonschema:"description=Further calls when a client was blocked or closed."`
	AfterUnblock []Call `json:"after_unblock,omitempty" jsonschema:"description=Further calls when a client was unblocked or reopened."`
}

// Call is a call of Kamailio's.
type Call struct {
	Method string `json:"method" jsonschema:"required,minLength=1"`
	Params []any  `json:"params,omitempty" jsonschema:"description=Texts are templates."`
}

// Validate reads what is written in a language of its own.
func (c Config) Validate() error {
	_, err := newPlan(c)
	return err
}

// action is what an event does to a client.
type action int

const (
	block action = iota + 1
	unblock
	shut
	reopen
)

func (a action) String() string {
	return map[action]string{block: "block", unblock: "unblock", shut: "close", reopen: "reopen"}[a]
}

// plan is a configuration that was read.
type plan struct {
	servers []*url.URL
	table   string
	keys    []*fill.Template
	actions map[string]action
	// closing are the events that close: the values in the table that stay.
	closing                  []string
	afterBlock, afterUnblock []further
}

// further is a Call that was read: its params are fill.Templates or values.
type further struct {
	method string
	params []any
}

func newPlan(c Config) (*plan, error) {
	p := &plan{table: c.Table, actions: map[string]action{}}
	var errs []error
	fail := func(field string, err error) { errs = append(errs, plugins.Field(field, err)) }

	for i, text := range c.Servers {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
			fail(fmt.Sprintf("servers[%d]", i), errors.New("it is not a URL such as http://10.0.0.1:5060/RPC; a secret goes into token"))
			continue
		}
		p.servers = append(p.servers, u)
	}
	if c.CAFile != "" && !filepath.IsAbs(c.CAFile) {
		fail("ca_file", errors.New("it must begin with /"))
	}
	if p.table == "" {
		p.table = defaultTable
	}
	for i, text := range or(c.Keys, defaultKey) {
		t, err := fill.Parse(text)
		if err != nil {
			fail(fmt.Sprintf("keys[%d]", i), err)
			continue
		}
		p.keys = append(p.keys, t)
	}
	for _, list := range []struct {
		field  string
		action action
		events []string
	}{
		{"block", block, or(c.Block, "clients.balance_zero")},
		{"unblock", unblock, or(c.Unblock, "clients.balance_notzero")},
		{"close", shut, or(c.Close, "clients.archive", "clients.delete")},
		{"reopen", reopen, c.Reopen},
	} {
		for i, event := range list.events {
			at := fmt.Sprintf("%s[%d]", list.field, i)
			switch was, twice := p.actions[event]; {
			case event == "":
				fail(at, errors.New("it is empty: want an event such as clients.balance_zero"))
			case twice:
				fail(at, fmt.Errorf("the event stands under %s already, which may be its default: an event does one thing", was))
			default:
				p.actions[event] = list.action
			}
			if list.action == shut {
				p.closing = append(p.closing, event)
			}
		}
	}
	read := func(field string, calls []Call) (out []further) {
		for i, call := range calls {
			f := further{method: call.Method}
			for j, param := range call.Params {
				at := fmt.Sprintf("%s[%d].params[%d]", field, i, j)
				switch v := param.(type) {
				case string:
					t, err := fill.Parse(v)
					if err != nil {
						fail(at, err)
					}
					param = t
				case nil, []any, map[string]any:
					fail(at, errors.New("it is neither text nor a number, true or false"))
				}
				f.params = append(f.params, param)
			}
			out = append(out, f)
		}
		return out
	}
	p.afterBlock = read("after_block", c.AfterBlock)
	p.afterUnblock = read("after_unblock", c.AfterUnblock)
	return p, errors.Join(errs...)
}

// or is a list that was given, even if it is empty, or what stands for none.
func or(given []string, otherwise ...string) []string {
	if given == nil {
		return otherwise
	}
	return given
}

func main() {
	plugins.Serve(plugins.Plugin[Config]{Name: "kamailio", Version: "1.0.0", New: newSwitch})
}

func newSwitch(_ context.Context, c Config, env plugins.Env) (plugins.Handler, error) {
	p, err := newPlan(c)
	if err != nil {
		return nil, err
	}
	clients, err := newClients(p.servers, c)
	if err != nil {
		return nil, err
	}
	env.Logger.Info("ready", "servers", len(clients), "table", p.table)
	return &sipSwitch{plan: p, clients: clients}, nil
}

// sipSwitch is one Kamailio, or several that are to agree.
type sipSwitch struct {
	plan    *plan
	clients []*client
}

// Close gives the connections up.
func (s *sipSwitch) Close() error {
	for _, c := range s.clients {
		c.close()
	}
	return nil
}

// Handle has every server do what the event asks for. What a server had done already
// is no error, so that an attempt which reached only some of them is simply repeated.
func (s *sipSwitch) Handle(ctx context.Context, d *plugins.Delivery) (plugins.Result, error) {
	do, ok := s.plan.actions[d.EventType]
	if !ok {
		return plugins.Result{}, plugins.Permanent(fmt.Errorf("nothing is to be done at %s: name it under block, unblock, close or reopen, or take it off the handler's events", d.EventType))
	}
	doc, err := fill.Document(d)
	if err != nil {
		return plugins.Result{}, err
	}
	w := work{plan: s.plan, do: do, event: d.EventType, id: d.EventID}
	for _, k := range s.plan.keys {
		key, err := k.Line(doc)
		if err != nil {
			return plugins.Result{}, err
		}
		if !slices.Contains(w.keys, key) {
			w.keys = append(w.keys, key)
		}
	}
	calls := s.plan.afterUnblock
	if do == block || do == shut {
		calls = s.plan.afterBlock
	}
	for _, f := range calls {
		made := further{method: f.method}
		for _, param := range f.params {
			if t, ok := param.(*fill.Template); ok {
				if param, err = t.Line(doc); err != nil {
					return plugins.Result{}, fmt.Errorf("%s: %w", f.method, err)
				}
			}
			made.params = append(made.params, param)
		}
		w.further = append(w.further, made)
	}

	logs := make([]transcript, len(s.clients))
	errs := make([]error, len(s.clients))
	done := make(chan struct{})
	for i, c := range s.clients {
		go func() {
			errs[i] = w.run(ctx, c, &logs[i])
			done <- struct{}{}
		}()
	}
	for range s.clients {
		<-done
	}
	var res plugins.Result
	res.Sent.Head = []string{"action: " + do.String(), "table: " + s.plan.table, "keys: " + strings.Join(w.keys, " ")}
	for i, c := range s.clients {
		for _, l := range logs[i].sent {
			res.Sent.Body = append(res.Sent.Body, c.name+" < "+l+"\n"...)
		}
		for _, l := range logs[i].received {
			res.Received.Body = append(res.Received.Body, c.name+" > "+l+"\n"...)
		}
	}
	return res, join(errs)
}

// join makes one error of those of several servers. As long as one of them may be
// cured by another attempt, so may all.
func join(errs []error) error {
	var retry, permanent []error
	for _, err := range errs {
		if f := (*fault)(nil); errors.As(err, &f) && f.permanent() {
			permanent = append(permanent, err)
		} else if err != nil {
			retry = append(retry, err)
		}
	}
	if len(retry) > 0 {
		return errors.Join(append(retry, permanent...)...)
	}
	return plugins.Permanent(errors.Join(permanent...))
}
