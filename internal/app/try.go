package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/dispatch"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/wal"
	"github.com/billhook/billhook/internal/web"
)

// try calls a handler with the latest event of a type, or a made-up one, to see what it
// does.
func (a *App) try(ctx context.Context, t web.Trial) (web.Tried, error) {
	list := *a.handlers.Load()
	i := slices.IndexFunc(list, func(h *dispatch.Handler) bool { return h.ID == t.Handler })
	if i < 0 {
		return web.Tried{}, web.ErrNoHandler
	}
	return a.tryHandler(ctx, list[i], t, func(e *event.Event) (dispatch.Trial, error) {
		return a.dispatcher.Try(ctx, t.Handler, e, t.DryRun)
	})
}

// tryHandler is try for a handler that may not be in force.
func (a *App) tryHandler(ctx context.Context, h *dispatch.Handler, t web.Trial, call func(*event.Event) (dispatch.Trial, error)) (web.Tried, error) {
	typ, err := a.trialType(h, t.Event)
	if err != nil {
		return web.Tried{}, err
	}
	e, err := a.latest(ctx, typ, t.Object)
	if err != nil {
		return web.Tried{}, err
	}
	out := web.Tried{Handler: t.Handler, Event: typ, DryRun: t.DryRun, Made: e == nil}
	if e == nil {
		if e, err = a.sample(typ, t.Object); err != nil {
			return web.Tried{}, err
		}
	}
	out.EventID, out.Object = e.ID.String(), e.Object
	trial, err := call(e)
	if errors.Is(err, dispatch.ErrNoHandler) {
		return web.Tried{}, web.ErrNoHandler
	}
	if err != nil {
		return web.Tried{}, err
	}
	out.Wanted, out.Called = trial.Wanted, trial.Called
	out.Body, out.ContentType = string(trial.Body), trial.ContentType
	switch {
	case trial.WhenErr != nil:
		out.Note = "the condition fails: " + trial.WhenErr.Error()
	case !trial.Wanted:
		out.Note = "the handler's condition excludes this event: it would not be called"
	case !trial.Called && !t.DryRun && trial.Err == nil:
		out.Note = "the handler is " + h.Status.String() + " and could not be made: billhook check says why"
	}
	if trial.Called || trial.Err != nil {
		out.Attempt = web.AttemptOf(journal.Attempt{
			Number: 1, Start: trial.Start, Duration: trial.Duration, OK: trial.Err == nil, Permanent: trial.Permanent, Error: errorText(trial.Err),
			Reason: trial.Result.Reason, Code: trial.Result.Code, Request: trial.Result.Request, Response: trial.Result.Response,
		})
	}
	return out, nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// trialType finds the event type that is meant: by any of its names, or the first that
// the handler is for.
func (a *App) trialType(h *dispatch.Handler, name string) (event.Type, error) {
	types := a.loaded.Config.EventTypes()
	if name != "" {
		id, ok := config.ResolveEvent(types, name)
		if !ok {
			return "", refused("there is no event type %q", name)
		}
		return event.Type(id), nil
	}
	for _, t := range types {
		if h.Matches(event.Type(t.Name)) {
			return event.Type(t.Name), nil
		}
	}
	return "", refused("handler %d is for no event; name one", h.ID)
}

// latest finds the newest event of a type that is in the journal, nil if there is none.
func (a *App) latest(ctx context.Context, typ event.Type, object string) (*event.Event, error) {
	page, _, err := a.journal.Executions(ctx, journal.Query{Type: typ, Object: object, Limit: 1})
	if err != nil || len(page) == 0 {
		return nil, err
	}
	e, err := a.journal.Event(page[0].Event)
	if errors.Is(err, journal.ErrNotFound) {
		return nil, nil
	}
	return e, err
}

// sample makes up an event, with the columns that the mapping names.
func (a *App) sample(typ event.Type, object string) (*event.Event, error) {
	if object == "" {
		object = "4711"
	}
	m := a.loaded.Mapping
	entity := billing.Clients
	switch {
	case strings.HasPrefix(string(typ), "clients.accounts."):
		entity = billing.Accounts
	case strings.HasPrefix(string(typ), "clients.packages."):
		entity = billing.Packages
	}
	for _, r := range m.Rules {
		if r.Event == typ {
			entity = r.Entity
		}
	}
	i := slices.IndexFunc(m.Entities, func(e billing.Entity) bool { return e.Name == entity })
	if i < 0 {
		return nil, refused("nothing is mapped for %s, so there are no events of type %s", entity, typ)
	}
	x := m.Entities[i]
	data, changed := map[string]any{}, map[string]any{}
	number := json.RawMessage(`"` + strings.ReplaceAll(object, `"`, "") + `"`)
	if _, err := strconv.ParseInt(object, 10, 64); err == nil {
		number = json.RawMessage(object)
	}
	for _, c := range x.Client {
		data[c] = json.RawMessage("4711")
	}
	for _, c := range x.Key {
		data[c] = number
	}
	if b := x.Balance; b != nil && b.Amount != nil {
		old, now := "3.20", "-0.50"
		if strings.HasSuffix(string(typ), "notzero") {
			old, now = "-0.50", "3.20"
		}
		for _, c := range b.Amount.Columns() {
			if j := strings.LastIndexByte(c, '.'); j >= 0 {
				c = c[j+1:]
			}
			data[c] = now
			if strings.Contains(string(typ), "balance") {
				changed[c] = map[string]string{"old": old, "new": now}
			}
		}
	}
	for suffix, t := range map[string]*billing.Test{"archive": x.Archive, "activate": x.Activate, "deactivate": x.Deactivate, "close": x.Close} {
		if t == nil || t.Becomes == nil || !strings.HasSuffix(string(typ), "."+suffix) {
			continue
		}
		v := time.Now().UTC().Format(time.RFC3339)
		if len(t.Becomes.Values) > 0 {
			v = t.Becomes.Values[0]
		}
		data[t.Becomes.Column] = v
		changed[t.Becomes.Column] = map[string]string{"new": v}
	}
	e := &event.Event{
		ID: event.ID{CommitLSN: wal.LSN(time.Now().UnixMicro()), Ordinal: 1}, Type: typ, Entity: entity, Object: object, Lane: "4711", CommitTime: time.Now(), Source: m.Source, Origin: "test", ObjectJSON: number,
	}
	var err error
	if e.Data, err = json.Marshal(data); err != nil {
		return nil, fmt.Errorf("make up an event: %w", err)
	}
	if len(changed) > 0 {
		if e.Changed, err = json.Marshal(changed); err != nil {
			return nil, fmt.Errorf("make up an event: %w", err)
		}
	}
	return e, nil
}
