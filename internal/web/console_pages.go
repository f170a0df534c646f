package web

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replay"
)

// pageSize is how many executions a page of the console shows.
const pageSize = 50

// searchPatience is how long a page looks for a first execution that matches.
const searchPatience = 60 * time.Millisecond

// rows is a table of executions.
type rows struct {
	Executions []journal.Execution
	Names      map[int]string // of the handlers
	Choose     bool           // with a box for each
	None       string         // what stands there when there are none
}

func (c *console) handlerNames() map[int]string {
	names := map[int]string{}
	for _, h := range c.opts.Handlers() {
		names[h.ID] = h.Name
	}
	return names
}

// types are the event types that handlers and the journal speak of.
func (c *console) types() []string {
	seen := map[string]bool{}
	for _, h := range c.opts.Handlers() {
		for _, e := range h.Events {
			if !strings.Contains(e, "*") {
				seen[e] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// problem is something that is not well now.
type problem struct {
	Level  string // "fail" or "warn"
	What   string
	Text   string
	Remedy string
	Link   *pageLink
}

// Word stands beside the icon of the level.
func (p problem) Word() string { return strings.ToUpper(p.Level) }

// statusData is what the overview shows of Options.Status, which the API shows whole.
type statusData struct {
	OldestPending *time.Time `json:"oldest_pending"`
	Journal       struct {
		Bytes int64 `json:"bytes"`
	} `json:"journal"`
	Replication struct {
		Phase      string     `json:"phase"`
		Slot       string     `json:"slot"`
		Database   string     `json:"database"`
		Lag        int64      `json:"lag_bytes"`
		LastCommit *time.Time `json:"last_commit"`
		Retained   int64      `json:"retained_bytes"`
		WALStatus  string     `json:"wal_status"`
		Failure    string     `json:"failure"`
	} `json:"replication"`
}

func (c *console) statusNow() (d statusData, err error) {
	d.Replication.Retained = -1
	if c.opts.Status == nil {
		return d, nil
	}
	b, err := json.Marshal(c.opts.Status())
	if err != nil {
		return d, fmt.Errorf("show the status: %w", err)
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return d, fmt.Errorf("show the status: %w", err)
	}
	return d, nil
}

// overview is what is wrong now, and how much of everything there is.
func (c *console) overview(w http.ResponseWriter, r *http.Request) {
	now, err := c.statusNow()
	if err != nil {
		c.log.Error("cannot make a page", "err", err)
		c.trouble(w, r, http.StatusInternalServerError, err.Error())
		return
	}
	main := struct {
		statusData
		Problems   []problem
		Checks     []Check
		Diagnosis  *Diagnosis
		Executions map[string]int64
		Failed     rows
		Charts     []chart
		PerSecond  string
	}{statusData: now, Checks: c.opts.Ready(), Executions: map[string]int64{}}
	for _, s := range journal.Statuses() {
		main.Executions[s.String()] = c.total(s)
	}
	if c.opts.Diagnosis != nil {
		main.Diagnosis = c.opts.Diagnosis()
	}
	hour := c.opts.Journal.History(c.now(), time.Minute, 60)[0]
	day := c.opts.Journal.History(c.now(), 15*time.Minute, 96)[0]
	main.Charts = []chart{bars("The last hour", c.now(), time.Minute, hour), bars("The last day", c.now(), 15*time.Minute, day)}
	main.PerSecond = strconv.FormatFloat(float64(hour[len(hour)-2].Succeeded)/60, 'f', 1, 64)
	failed, _, err := c.opts.Journal.Executions(r.Context(), journal.Query{Status: journal.Dead, Unreplayed: true, Limit: 10})
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	main.Failed = rows{Executions: failed, Names: c.handlerNames(), None: "There is no dead letter that was not replayed."}
	main.Problems = c.problems(main.Checks, main.Diagnosis)
	dead := summed(day).Sum.Dead
	if dead > 0 && len(failed) > 0 {
		main.Problems = append(main.Problems, problem{
			Level: "warn", What: "Executions have died in the last day: " + grouped(dead), Text: fmt.Sprintf("the newest is execution %d, of handler %d;", failed[0].ID, failed[0].Handler),
			Link: &pageLink{Path: "/executions?status=dead&replayed=false", Name: "dead letters that were not replayed"},
		})
	}
	c.show(w, r, http.StatusOK, "overview", "Overview", "/", main)
}

// problems is what somebody should look at, the gravest first.
func (c *console) problems(checks []Check, d *Diagnosis) (list []problem) {
	for _, k := range checks {
		if !k.OK {
			list = append(list, problem{Level: "fail", What: k.Name, Text: k.Text})
		}
	}
	for _, h := range c.opts.Handlers() {
		at := &pageLink{Path: fmt.Sprintf("/executions?handler=%d", h.ID), Name: "its executions"}
		switch {
		case h.Health != nil && h.Health.Failing:
			text := h.Health.LastError
			if h.Health.RestingUntil != nil {
				text += " (rests until " + exact(*h.Health.RestingUntil) + ")"
			}
			list = append(list, problem{Level: "fail", What: fmt.Sprintf("Handler %d, %s, is failing%s", h.ID, h.Name, since(h.Health.FailingSince)), Text: text, Link: at})
		case h.Plugin != nil && !h.Plugin.Up && h.Plugin.Error != "":
			list = append(list, problem{Level: "fail", What: fmt.Sprintf("The plugin of handler %d, %s, is down", h.ID, h.Name), Text: h.Plugin.Error, Link: at})
		case h.Health != nil && h.Health.RestingUntil != nil:
			list = append(list, problem{Level: "warn", What: fmt.Sprintf("Handler %d, %s, rests until %s", h.ID, h.Name, exact(*h.Health.RestingUntil)), Text: "its receiver does not answer; what comes waits and loses no attempts", Link: at})
		}
	}
	if d != nil {
		for _, f := range d.Findings {
			if f.Level == "FAIL" {
				list = append(list, problem{Level: "fail", What: f.Check, Text: f.Text, Remedy: f.Remedy})
			}
		}
	}
	if c.opts.Changes != nil {
		if _, err := c.opts.Changes(); err != nil {
			list = append(list, problem{Level: "fail", What: "handlers.yaml is refused, the last good one stays in force", Text: err.Error()})
		}
	}
	slices.SortStableFunc(list, func(a, b problem) int { return strings.Compare(a.Level, b.Level) })
	return list
}

func since(t *time.Time) string {
	if t == nil {
		return ""
	}
	return " since " + exact(*t)
}

func (c *console) unreadable(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, journal.ErrNotFound) {
		c.trouble(w, r, http.StatusNotFound, "That is not there, or no longer kept.")
		return
	}
	if r.Context().Err() == nil {
		c.log.Error("cannot answer a request", "path", r.URL.Path, "err", err)
	}
	c.trouble(w, r, http.StatusInternalServerError, "The journal cannot be read: "+err.Error())
}

// handlerQuery is what the page of handlers was asked for.
type handlerQuery struct{ Name, Event, Kind, Status string }

// Any reports whether anything is left out.
func (q handlerQuery) Any() bool { return q != handlerQuery{} }

func (q handlerQuery) matches(h Handler) bool {
	has := func(text, part string) bool { return strings.Contains(strings.ToLower(text), strings.ToLower(part)) }
	switch {
	case !has(h.Name, q.Name) && !has(h.Target, q.Name) && strconv.Itoa(h.ID) != q.Name,
		q.Event != "" && !slices.ContainsFunc(h.Events, func(e string) bool {
			return e == "*" || has(e, q.Event) || strings.HasSuffix(e, "*") && strings.HasPrefix(q.Event, strings.TrimSuffix(e, "*"))
		}),
		q.Kind != "" && h.Kind != q.Kind,
		q.Status != "" && q.Status != "all" && h.Status != q.Status,
		q.Status == "" && h.Status == "archived":
		return false
	}
	return true
}

type handlerRow struct {
	handlerJSON
	Spark        chart
	Above, Below int // the handlers shown beside it; 0: none
}

// Trouble is what keeps a handler from succeeding, "" when nothing is known to.
func (h handlerRow) Trouble() string {
	switch {
	case h.Plugin != nil && !h.Plugin.Up && h.Plugin.Error != "":
		return "plugin down: " + h.Plugin.Error
	case h.Health == nil:
		return ""
	case h.Health.Failing:
		return "failing" + since(h.Health.FailingSince) + ": " + h.Health.LastError
	case h.Health.RestingUntil != nil:
		return "rests until " + exact(*h.Health.RestingUntil)
	}
	return ""
}

// Ended is how many executions the rate is of.
func (h handlerRow) Ended() int64 { return h.Executions["succeeded"] + h.Executions["dead"] }

// Rate is the share of what ended well, "" when nothing has ended.
func (h handlerRow) Rate() string {
	good, bad := h.Executions["succeeded"], h.Executions["dead"]
	if good+bad == 0 {
		return ""
	}
	// Rounded down: 100 % is all of them.
	return strconv.FormatFloat(float64(good*1000/(good+bad))/10, 'f', -1, 64) + " %"
}

func (c *console) handlersPage(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	q := handlerQuery{strings.TrimSpace(v.Get("name")), strings.TrimSpace(v.Get("event")), v.Get("kind"), v.Get("status")}
	main := struct {
		Query           handlerQuery
		Rows            []handlerRow
		Types           []string
		Kinds, Statuses []string
		CanChange       bool
		CanEdit         bool
		NoEditing       string
	}{Query: q, Types: c.types(), Kinds: []string{"http", "script", "plugin"}, Statuses: []string{"enabled", "disabled", "archived", "all"}, CanChange: c.opts.SetStatus != nil}
	if main.CanEdit = c.opts.Editor != nil && c.mayAct(r); c.opts.Editor == nil {
		main.NoEditing = c.noEditing()
	}
	list, err := c.handlerRows(r.Context())
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	for _, h := range list {
		if q.matches(h.Handler) {
			main.Rows = append(main.Rows, handlerRow{handlerJSON: h})
		}
	}
	slices.SortStableFunc(main.Rows, func(a, b handlerRow) int { return byPriority(a.Handler, b.Handler) })
	last := c.opts.Journal.History(c.now(), 2*time.Minute, 30)
	for i := range main.Rows {
		main.Rows[i].Spark = spark(last[main.Rows[i].ID])
		if i > 0 {
			main.Rows[i].Above = main.Rows[i-1].ID
		}
		if i+1 < len(main.Rows) {
			main.Rows[i].Below = main.Rows[i+1].ID
		}
	}
	c.show(w, r, http.StatusOK, "handlers", "Handlers", "/handlers", main)
}

func (c *console) setStatus(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	status := r.PostFormValue("status")
	if err != nil || !slices.Contains([]string{"enabled", "disabled", "archived"}, status) {
		c.trouble(w, r, http.StatusBadRequest, "A handler is enabled, disabled or archived.")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	if err := c.opts.SetStatus(ctx, id, status); err != nil {
		c.refused(w, r, err)
		return
	}
	c.act(r, "handler's status changed", "handler", id, "status", status)
	c.done(w, r, r.PostFormValue("back"), fmt.Sprintf("Handler %d is %s.", id, status))
}

// refused says why something is not done.
func (c *console) refused(w http.ResponseWriter, r *http.Request, err error) {
	var no *RefusedError
	switch {
	case errors.As(err, &no):
		c.trouble(w, r, http.StatusConflict, no.Text)
	case errors.Is(err, ErrNoHandler):
		c.trouble(w, r, http.StatusNotFound, "There is no such handler.")
	default:
		c.log.Error("cannot do what was asked for", "path", r.URL.Path, "err", err)
		c.trouble(w, r, http.StatusInternalServerError, err.Error())
	}
}

func (c *console) lookNow(w http.ResponseWriter, r *http.Request) {
	if _, err := c.opts.Diagnose(r.Context()); err != nil {
		c.refused(w, r, err)
		return
	}
	c.act(r, "checks run")
	c.done(w, r, "/", "The database and this machine were looked at.")
}

// filters are the parameters of the page of executions as they were given, with times
// as a browser's field has them turned into those of the API.
func filters(v url.Values) (url.Values, map[string]string) {
	given, asked := map[string]string{}, url.Values{}
	for name, values := range v {
		if len(values) == 0 || strings.TrimSpace(values[0]) == "" {
			continue
		}
		value := strings.TrimSpace(values[0])
		given[name] = value
		if name == "since" || name == "until" {
			for _, layout := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02"} {
				if t, err := time.Parse(layout, value); err == nil {
					value = t.Format(time.RFC3339)
					break
				}
			}
			if t, err := time.Parse(time.RFC3339, value); err == nil {
				given[name] = t.UTC().Format("2006-01-02T15:04:05")
			}
		}
		asked[name] = append([]string{value}, values[1:]...)
	}
	return asked, given
}

func (c *console) executionsPage(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	follow := v.Get("follow") == "true" && !v.Has("before")
	v.Del("follow")
	asked, given := filters(v)
	if len(asked) == 1 && asked.Has("id") {
		http.Redirect(w, r, "/executions/"+url.PathEscape(asked.Get("id")), http.StatusSeeOther)
		return
	}
	main := struct {
		Given        map[string]string
		Statuses     []journal.Status
		Types        []string
		Handlers     []Handler
		Rows         rows
		Error        string
		Filtered     bool
		Newer, Older string
		NDJSON, CSV  string
		ReplayAll    string
		Follow       string // the address of the page as it is, when it follows what comes
		FollowSwitch string
	}{Given: given, Statuses: journal.Statuses(), Types: c.types(), Handlers: c.opts.Handlers()}
	code := http.StatusOK
	q, err := parseQuery(asked)
	q.Limit = pageSize
	if err != nil {
		main.Error, code = err.Error(), http.StatusBadRequest
	} else {
		var page []journal.Execution
		var next uint64
		// A text that hardly matches is looked for as long as people like to wait.
		for begun := c.now(); ; q.Before = next {
			if page, next, err = c.opts.Journal.Executions(r.Context(), q); err != nil {
				c.unreadable(w, r, err)
				return
			}
			if len(page) > 0 || next == 0 || c.now().Sub(begun) > searchPatience {
				break
			}
		}
		main.Rows.Executions = page
		if next != 0 {
			if len(page) == 0 {
				main.Rows.None = fmt.Sprintf("None down to execution %d is like that; older ones may be.", next)
			}
			main.Older = "/executions?" + with(asked, "before", strconv.FormatUint(next, 10))
		}
	}
	if asked.Has("before") {
		main.Newer = "/executions?" + with(asked, "before", "")
	}
	list := with(asked, "before", "")
	main.FollowSwitch = "/executions?" + with(asked, "follow", "true")
	if follow {
		main.Follow, main.FollowSwitch = r.URL.RequestURI(), "/executions?"+list
	}
	main.Filtered = list != ""
	main.NDJSON, main.CSV = "/api/v1/executions.ndjson?"+list, "/executions.csv?"+list
	if !asked.Has("id") { // one alone is chosen
		main.ReplayAll = "/replays/new?" + list
	}
	main.Rows.Names = c.handlerNames()
	if main.Rows.None == "" {
		main.Rows.None = "No execution is like that."
	}
	main.Rows.Choose = c.opts.Replays != nil && c.mayAct(r)
	c.show(w, r, code, "executions", "Executions", "/executions", main)
}

// livePage shows events as they come. The page asks /api/v1/events/live for them.
func (c *console) livePage(w http.ResponseWriter, r *http.Request) {
	asked := url.Values{}
	for _, name := range []string{"event", "object", "lane"} {
		if v := strings.TrimSpace(r.URL.Query().Get(name)); v != "" {
			asked.Set(name, v)
		}
	}
	names, err := json.Marshal(c.handlerNames())
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	c.show(w, r, http.StatusOK, "live", "Live", "/live", struct {
		Event, Object, Lane, Source, Names string
		Filtered                           bool
		Types                              []string
	}{asked.Get("event"), asked.Get("object"), asked.Get("lane"), "/api/v1/events/live?" + asked.Encode(), string(names), len(asked) > 0, c.types()})
}

// with is a query with one parameter set, or taken away.
func with(v url.Values, name, value string) string {
	v = maps.Clone(v)
	if v.Del(name); value != "" {
		v.Set(name, value)
	}
	return v.Encode()
}

// change is one column of a row that an event is about.
type change struct{ Column, Old, New string }

func changes(raw json.RawMessage) []change {
	var all map[string]struct {
		Old *json.RawMessage `json:"old"`
		New json.RawMessage  `json:"new"`
	}
	if json.Unmarshal(raw, &all) != nil {
		return nil
	}
	var list []change
	for _, name := range slices.Sorted(maps.Keys(all)) {
		one := change{Column: name, New: plainJSON(all[name].New)}
		if old := all[name].Old; old != nil {
			one.Old = plainJSON(*old)
		}
		list = append(list, one)
	}
	return list
}

// row is the columns of a row with their values.
func row(raw json.RawMessage) (list []change) {
	var all map[string]json.RawMessage
	if json.Unmarshal(raw, &all) != nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, change{Column: name, New: plainJSON(all[name])})
	}
	return list
}

// plainJSON is a value as people read it: a string without its quotes.
func plainJSON(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil && len(raw) > 0 && raw[0] == '"' {
		return s
	}
	return string(raw)
}

// attemptView is an attempt as the page of an execution shows it.
type attemptView struct {
	journal.Attempt
	Class, Word string
	Open        bool
	Request     exchangeView
	Response    exchangeView
}

type exchangeView struct {
	Head      []string
	Body      string
	Truncated int64
}

func exchangeText(x handler.Exchange) exchangeView {
	body := strings.ToValidUTF8(string(x.Body), "\ufffd")
	if json.Valid(x.Body) {
		body = indent(x.Body)
	}
	return exchangeView{x.Head, body, x.Truncated}
}

func (c *console) executionPage(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		c.trouble(w, r, http.StatusNotFound, "An execution has a number.")
		return
	}
	x, err := c.opts.Journal.Execution(id)
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	attempts, err := c.opts.Journal.Attempts(id)
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	e, err := c.opts.Journal.Event(x.Event)
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	names := c.handlerNames()
	main := struct {
		X           journal.Execution
		HandlerName string
		CanReplay   bool
		Changed     []change
		Row         []change // only New
		Took        time.Duration
		Payload     string
		Attempts    []attemptView
		Siblings    []journal.Execution
		SiblingRows rows
	}{X: x, HandlerName: names[x.Handler], Changed: changes(e.Changed), Payload: indent(e.AppendPayload(nil))}
	main.Row = row(e.Data)
	if !x.Finished.IsZero() && x.Finished.After(x.CommitTime) { // the clocks may differ
		main.Took = x.Finished.Sub(x.CommitTime)
	}
	main.CanReplay = c.opts.Replays != nil && !x.Status.Open() && c.mayAct(r)
	for i, a := range attempts {
		v := attemptView{Attempt: a, Class: "retry", Word: "failed, to be tried again", Request: exchangeText(a.Request), Response: exchangeText(a.Response), Open: i == len(attempts)-1}
		switch {
		case a.OK:
			v.Class, v.Word = "succeeded", "succeeded"
		case a.Permanent:
			v.Class, v.Word = "fail", "failed for good"
		case a.Uncounted:
			v.Word = "failed, not counted"
		}
		main.Attempts = append(main.Attempts, v)
	}
	if main.Siblings, err = c.siblings(x); err != nil {
		c.unreadable(w, r, err)
		return
	}
	main.SiblingRows = rows{Executions: main.Siblings, Names: names}
	c.show(w, r, http.StatusOK, "execution", fmt.Sprintf("Execution %d", id), "/executions", main)
}

// siblings are the other executions of an event, made with it: their ids follow each
// other.
func (c *console) siblings(x journal.Execution) (list []journal.Execution, err error) {
	const most = 50
	for _, step := range []int{-1, 1} {
		for id := x.ID; len(list) < most; {
			id = uint64(int64(id) + int64(step))
			if id == 0 {
				break
			}
			other, err := c.opts.Journal.Execution(id)
			if errors.Is(err, journal.ErrNotFound) {
				break
			}
			if err != nil {
				return nil, err
			}
			if other.Event != x.Event {
				break
			}
			list = append(list, other)
		}
	}
	slices.SortFunc(list, func(a, b journal.Execution) int { return int(int64(a.ID) - int64(b.ID)) })
	return list, nil
}

// happening is one event of a client, with what was done about it.
type happening struct {
	ID         event.ID
	Type       event.Type
	Object     string
	At         time.Time
	Changed    []change
	Executions []journal.Execution
}

// clientPage is everything that happened to one client and what was sent about it, the
// newest first. What was replayed stands with its event, whenever that was.
func (c *console) clientPage(w http.ResponseWriter, r *http.Request) {
	lane := r.PathValue("lane")
	q := journal.Query{Lane: lane, Limit: pageSize}
	if b := r.URL.Query().Get("before"); b != "" {
		var err error
		if q.Before, err = strconv.ParseUint(b, 10, 64); err != nil {
			c.trouble(w, r, http.StatusBadRequest, "before="+b+": want the number of an execution.")
			return
		}
	}
	page, next, err := c.opts.Journal.Executions(r.Context(), q)
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	main := struct {
		Lane         string
		Moments      []happening
		Names        map[int]string
		Newer, Older string
	}{Lane: lane, Names: c.handlerNames()}
	at := map[event.ID]int{}
	for _, x := range page {
		i, known := at[x.Event]
		if !known {
			m := happening{ID: x.Event, Type: x.Type, Object: x.Object, At: x.CommitTime}
			if e, err := c.opts.Journal.Event(x.Event); err == nil {
				m.Changed = changes(e.Changed)
				if len(m.Changed) > 8 {
					m.Changed = m.Changed[:8]
				}
				for k := range m.Changed {
					m.Changed[k].Old, m.Changed[k].New = clip(m.Changed[k].Old), clip(m.Changed[k].New)
				}
			} else if !errors.Is(err, journal.ErrNotFound) {
				c.unreadable(w, r, err)
				return
			}
			i = len(main.Moments)
			at[x.Event], main.Moments = i, append(main.Moments, m)
		}
		main.Moments[i].Executions = append(main.Moments[i].Executions, x)
	}
	for i := range main.Moments {
		slices.Reverse(main.Moments[i].Executions) // as they were called
	}
	slices.SortStableFunc(main.Moments, func(a, b happening) int { return b.ID.Compare(a.ID) })
	path := "/clients/" + url.PathEscape(lane)
	if next != 0 {
		main.Older = path + "?before=" + strconv.FormatUint(next, 10)
	}
	if q.Before != 0 {
		main.Newer = path
	}
	c.show(w, r, http.StatusOK, "client", "Client "+lane, "/executions", main)
}

// clip shortens a value for a line.
func clip(s string) string {
	const most = 80
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most]) + "…"
}

func (c *console) replayOne(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		c.trouble(w, r, http.StatusNotFound, "An execution has a number.")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	st, err := c.opts.Replays.One(ctx, id, r.PostFormValue("again") == "true", whoOf(r))
	if err != nil {
		c.notReplayedPage(w, r, err)
		return
	}
	if len(st.Executions) != 1 {
		c.done(w, r, fmt.Sprintf("/executions/%d", id), fmt.Sprintf("Execution %d was not replayed: %s.", id, leftOut(st.LeftOut)))
		return
	}
	c.replayed(r, st)
	c.done(w, r, fmt.Sprintf("/executions/%d", st.Executions[0]), fmt.Sprintf("This is execution %d, replayed.", id))
}

func (c *console) notReplayedPage(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, journal.ErrNotFound) {
		c.unreadable(w, r, err)
		return
	}
	c.trouble(w, r, http.StatusConflict, err.Error())
}

func leftOut(counts map[journal.Refusal]int64) string {
	var parts []string
	for _, why := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %v", grouped(counts[why]), why))
	}
	return strings.Join(parts, ", ")
}

// replaySpec is what the page of executions shows, as a replay asks for it.
func replaySpec(v url.Values) (replay.Spec, error) {
	asked, _ := filters(v)
	q, err := parseQuery(asked)
	if err == nil && asked.Has("id") {
		err = errors.New("id: one execution is replayed on its own page")
	}
	if err != nil {
		return replay.Spec{}, err
	}
	f := &replay.Filter{Handler: q.Handler, Event: q.Type, Object: q.Object, Lane: q.Lane, Text: q.Text, Request: q.Request, Response: q.Response, Attempts: q.Attempts, Duration: q.Duration.Seconds(), Since: q.Since, Until: q.Until}
	if asked.Has("status") {
		f.Status = q.Status.String()
	}
	return replay.Spec{Filter: f, Rate: replay.DefaultRate}, nil
}

type field struct{ Name, Value string }

// countPatience is how long a page counts before it is shown; it then asks for the rest.
const countPatience = 40 * time.Millisecond

// confirmReplay counts what would be replayed, and asks.
func (c *console) confirmReplay(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	spec, err := replaySpec(v)
	if err != nil {
		c.trouble(w, r, http.StatusBadRequest, err.Error())
		return
	}
	patience := countPatience
	if v.Get("count") == "all" {
		patience = writePatience
	}
	v.Del("count")
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	count, err := c.opts.Replays.Count(ctx, spec)
	if err != nil {
		c.notReplayedPage(w, r, err)
		return
	}
	main := struct {
		Title, Text, Action, Do, Back, Diff string
		Lines                               []string
		Fields                              []field
		Rate                                int
		Recount                             string
	}{Title: "Replay all that match", Action: "/replays", Back: "/executions?" + v.Encode(), Rate: int(spec.Rate)}
	what := spec.Filter.Status
	if what == "" {
		what = "dead"
	}
	number := grouped(count.Matching)
	if !count.Complete {
		number = "More than " + number
		if patience == countPatience { // whoever looks at the page meanwhile waits for the rest
			main.Recount = "/replays/new?" + with(v, "count", "all")
		}
	}
	main.Text = fmt.Sprintf("%s executions that are %s will be made again, the oldest first, each at the end of its client's queue, with the same ids.", number, what)
	if count.Matching == 0 && count.Complete {
		main.Text = "Nothing is to be replayed."
	} else {
		main.Do = "Replay " + strings.ToLower(number)
	}
	for _, why := range slices.Sorted(maps.Keys(count.LeftOut)) {
		main.Lines = append(main.Lines, fmt.Sprintf("%s left out: %v", grouped(count.LeftOut[why]), why))
	}
	for _, name := range slices.Sorted(maps.Keys(v)) {
		if value := v.Get(name); value != "" && name != "before" {
			main.Fields = append(main.Fields, field{"filter." + name, value})
		}
	}
	main.Fields = append(main.Fields, field{"all", "true"})
	c.show(w, r, http.StatusOK, "confirm", main.Title, "/executions", main)
}

// replayMany replays what was chosen, or all that match once that was confirmed.
func (c *console) replayMany(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		c.trouble(w, r, http.StatusBadRequest, err.Error())
		return
	}
	spec := replay.Spec{Rate: replay.DefaultRate}
	if r.PostForm.Get("all") == "true" {
		v := url.Values{}
		for name, values := range r.PostForm {
			if name, ok := strings.CutPrefix(name, "filter."); ok {
				v[name] = values
			}
		}
		var err error
		if spec, err = replaySpec(v); err == nil && r.PostForm.Get("rate") != "" {
			spec.Rate, err = strconv.ParseFloat(r.PostForm.Get("rate"), 64)
		}
		if err != nil {
			c.trouble(w, r, http.StatusBadRequest, err.Error())
			return
		}
		spec.Latest = r.PostForm.Get("latest") == "true"
	} else {
		for _, text := range r.PostForm["id"] {
			id, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				c.trouble(w, r, http.StatusBadRequest, "id "+text+": want a number")
				return
			}
			spec.IDs = append(spec.IDs, id)
		}
		if len(spec.IDs) == 0 {
			c.trouble(w, r, http.StatusBadRequest, "Nothing was chosen: tick the executions to be replayed.")
			return
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	st, err := c.opts.Replays.Start(ctx, spec, whoOf(r))
	if err != nil {
		c.notReplayedPage(w, r, err)
		return
	}
	c.replayed(r, st)
	c.done(w, r, "/replays", fmt.Sprintf("Replay %d has begun.", st.ID))
}

// replayView is a replay as its page shows it.
type replayView struct {
	replay.Status
	What   string
	Link   string // to what it repeats
	Left   string
	Open   bool
	CanAct bool
}

// filterText is a filter of a replay in words, and the page of what it selects.
func filterText(f *replay.Filter) (text, link string) {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" && value != "0" {
			v.Set(name, value)
			text += ", " + name + " " + value
		}
	}
	status := f.Status
	if status == "" {
		status = journal.Dead.String()
	}
	set("status", status)
	set("handler", strconv.Itoa(f.Handler))
	set("event", string(f.Event))
	set("object", f.Object)
	set("lane", f.Lane)
	set("text", f.Text)
	set("request", f.Request)
	set("response", f.Response)
	set("attempts", strconv.Itoa(f.Attempts))
	if f.Duration > 0 {
		set("duration", time.Duration(f.Duration*float64(time.Second)).String())
	}
	for name, t := range map[string]time.Time{"since": f.Since, "until": f.Until} {
		if !t.IsZero() {
			v.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	if !f.Since.IsZero() {
		text += ", since " + exact(f.Since)
	}
	if !f.Until.IsZero() {
		text += ", until " + exact(f.Until)
	}
	return strings.TrimPrefix(text, ", "), "/executions?" + v.Encode()
}

func (c *console) replaysPage(w http.ResponseWriter, r *http.Request) {
	var main struct {
		List []replayView
		Open bool // one of them
	}
	for _, st := range c.opts.Replays.List() {
		v := replayView{Status: st, Open: !st.State.Ended(), CanAct: c.mayAct(r)}
		switch {
		case st.Filter != nil:
			v.What, v.Link = filterText(st.Filter)
		case len(st.IDs) == 1:
			v.What, v.Link = fmt.Sprintf("execution %d", st.IDs[0]), fmt.Sprintf("/executions/%d", st.IDs[0])
		default:
			v.What = fmt.Sprintf("%d executions", len(st.IDs))
		}
		v.Left = leftOut(st.LeftOut)
		main.List, main.Open = append(main.List, v), main.Open || v.Open
	}
	c.show(w, r, http.StatusOK, "replays", "Replays", "/replays", main)
}

func (c *console) cancelReplayPage(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err == nil {
		_, err = c.opts.Replays.Cancel(r.Context(), id)
	}
	if err != nil {
		c.notReplayedPage(w, r, err)
		return
	}
	c.act(r, "replay cancelled", "replay", id)
	c.done(w, r, "/replays", fmt.Sprintf("Replay %d is cancelled.", id))
}

// csvHead are the columns of an export for spreadsheets.
func csvHead() []string {
	return []string{"id", "created", "event", "handler", "object", "client", "status", "attempts", "duration_seconds", "code", "error", "event_id"}
}

// exportCSV writes all executions that match, the oldest first, for a spreadsheet.
func (c *console) exportCSV(w http.ResponseWriter, r *http.Request) {
	asked, _ := filters(r.URL.Query())
	asked.Del("before")
	q, err := parseQuery(asked)
	if err != nil {
		c.trouble(w, r, http.StatusBadRequest, err.Error())
		return
	}
	newest, _, err := c.opts.Journal.Executions(r.Context(), journal.Query{Limit: 1})
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	q.Oldest, q.Limit = true, exportPage
	if len(newest) > 0 && (q.Before == 0 || q.Before > newest[0].ID+1) {
		q.Before = newest[0].ID + 1
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="executions.csv"`)
	w.Header().Set("Cache-Control", "no-store")
	if err := c.csvTo(r.Context(), w, q); err != nil {
		if r.Context().Err() == nil {
			c.log.Error("an export broke off", "path", r.URL.Path, "err", err)
		}
		panic(http.ErrAbortHandler) // nobody takes a part for the whole
	}
}

func (c *console) csvTo(ctx context.Context, w http.ResponseWriter, q journal.Query) error {
	conn := http.NewResponseController(w)
	out := csv.NewWriter(w)
	if err := out.Write(csvHead()); err != nil {
		return err
	}
	for {
		page, next, err := c.opts.Journal.Executions(ctx, q)
		if err != nil {
			return err
		}
		_ = conn.SetWriteDeadline(time.Now().Add(exportPatience)) // what cannot do that has no deadline
		for _, x := range page {
			code := ""
			if x.Attempts > 0 && x.LastCode >= 0 {
				code = strconv.Itoa(x.LastCode)
			}
			line := []string{
				strconv.FormatUint(x.ID, 10), x.Created.UTC().Format(time.RFC3339Nano), string(x.Type), strconv.Itoa(x.Handler), x.Object, x.Lane,
				x.Status.String(), strconv.Itoa(x.Attempts), strconv.FormatFloat(x.LastDuration.Seconds(), 'f', -1, 64), code, x.LastError, x.Event.String(),
			}
			for i := range line {
				line[i] = harmless(line[i])
			}
			if err := out.Write(line); err != nil {
				return err
			}
		}
		if out.Flush(); out.Error() != nil {
			return out.Error()
		}
		if next == 0 {
			return nil
		}
		q.After = next
	}
}

// harmless keeps a spreadsheet from taking a value for a formula. Numbers are none.
func harmless(s string) string {
	if s == "" || !strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return s
	}
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return s
	}
	return "'" + s
}
