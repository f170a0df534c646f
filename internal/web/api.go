package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
)

// maxPage is the most executions one page holds.
const maxPage = 500

type handlerJSON struct {
	Handler
	Executions map[string]int64 `json:"executions"` // by status
	// LastSuccess is when the newest execution that the journal keeps has succeeded.
	LastSuccess *time.Time `json:"last_success,omitempty"`
}

func (s *Server) handlers(w http.ResponseWriter, r *http.Request) {
	rows, err := s.handlerRows(r.Context())
	if err != nil {
		s.broken(w, r, err)
		return
	}
	answer(w, http.StatusOK, map[string]any{"handlers": rows})
}

func (s *Server) handlerRows(ctx context.Context) ([]handlerJSON, error) {
	counts := s.opts.Journal.Counts()
	rows := []handlerJSON{}
	for _, h := range s.opts.Handlers() {
		row := handlerJSON{Handler: h, Executions: map[string]int64{}}
		for _, st := range journal.Statuses() {
			row.Executions[st.String()] = counts[journal.HandlerStatus{Handler: h.ID, Status: st}]
		}
		if h.Health != nil {
			row.LastSuccess = h.Health.LastSuccess
		}
		if row.Executions[journal.Succeeded.String()] > 0 {
			page, _, err := s.opts.Journal.Executions(ctx, journal.Query{Handler: h.ID, Status: journal.Succeeded, Limit: 1})
			if err != nil {
				return nil, err
			}
			// One that was made earlier may have ended later.
			if len(page) > 0 && (row.LastSuccess == nil || page[0].Finished.After(*row.LastSuccess)) {
				row.LastSuccess = moment(page[0].Finished)
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	totals := map[string]int64{}
	for _, st := range journal.Statuses() {
		totals[st.String()] = 0
	}
	for k, n := range s.opts.Journal.Counts() {
		totals[k.Status.String()] += n
	}
	body := map[string]any{}
	if s.opts.Status != nil {
		maps.Copy(body, s.opts.Status())
	}
	body["version"], body["checks"], body["executions"] = s.opts.Version, s.opts.Ready(), totals
	answer(w, http.StatusOK, body)
}

type executionJSON struct {
	ID         uint64     `json:"id"`
	Event      string     `json:"event_id"`
	Type       event.Type `json:"event"`
	Object     string     `json:"object"`
	Lane       string     `json:"lane"`
	Handler    int        `json:"handler"`
	Priority   int        `json:"priority"`
	Status     string     `json:"status"`
	Attempts   int        `json:"attempts"`
	NextAt     *time.Time `json:"next_at,omitempty"`
	Created    *time.Time `json:"created,omitempty"`
	Finished   *time.Time `json:"finished,omitempty"`
	CommitTime *time.Time `json:"commit_time,omitempty"`
	ReplayOf   uint64     `json:"replay_of,omitempty"`
	ReplayedAs uint64     `json:"replayed_as,omitempty"` // the last execution that repeats this one
	DeadOf     uint64     `json:"dead_of,omitempty"`     // the dead one that this one tells of
	Error      string     `json:"error,omitempty"`
	Reason     string     `json:"reason,omitempty"`
	Code       *int       `json:"code,omitempty"`
	Duration   float64    `json:"duration_seconds"`
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func code(c, attempts int) *int {
	if attempts == 0 || c < 0 {
		return nil
	}
	return &c
}

func executionOf(x journal.Execution) executionJSON {
	return executionJSON{
		ID: x.ID, Event: x.Event.String(), Type: x.Type, Object: x.Object, Lane: x.Lane,
		Handler: x.Handler, Priority: x.Priority, Status: x.Status.String(), Attempts: x.Attempts,
		NextAt: moment(x.NextAt), Created: moment(x.Created), Finished: moment(x.Finished), CommitTime: moment(x.CommitTime),
		ReplayOf: x.ReplayOf, ReplayedAs: x.Replay, DeadOf: x.DeadOf, Error: x.LastError, Reason: string(x.LastReason), Code: code(x.LastCode, x.Attempts),
		Duration: x.LastDuration.Seconds(),
	}
}

// parseQuery reads the filters of a list of executions. Every parameter may stand
// alone, all that are given must hold. What it does not know it refuses, so that a
// misspelt filter never shows everything.
func parseQuery(v url.Values) (journal.Query, error) {
	q := journal.Query{Limit: 50}
	var id uint64
	for _, name := range slices.Sorted(maps.Keys(v)) {
		value := v.Get(name)
		if len(v[name]) > 1 {
			return q, fmt.Errorf("%s is given twice", name)
		}
		if value == "" {
			continue
		}
		var err error
		switch name {
		case "id":
			if id, err = strconv.ParseUint(value, 10, 64); err == nil && id == 0 {
				err = errors.New("want the number of an execution")
			}
		case "handler":
			q.Handler, err = strconv.Atoi(value)
		case "event":
			q.Type = event.Type(value)
		case "status":
			q.Status, err = journal.ParseStatus(value)
		case "object":
			q.Object = value
		case "lane":
			q.Lane = value
		case "text":
			q.Text = value
		case "request":
			q.Request = value
		case "response":
			q.Response = value
		case "attempts":
			if q.Attempts, err = strconv.Atoi(value); err == nil && q.Attempts < 0 {
				err = errors.New("want how many there must be at least")
			}
		case "duration":
			if q.Duration, err = time.ParseDuration(value); err != nil || q.Duration < 0 {
				err = errors.New("want how long the last attempt took at least, such as 500ms or 2s")
			}
		case "since":
			q.Since, err = time.Parse(time.RFC3339, value)
		case "until":
			q.Until, err = time.Parse(time.RFC3339, value)
		case "replayed":
			if value != "false" {
				err = errors.New("want false, which leaves out what was replayed already")
			}
			q.Unreplayed = true
		case "before":
			q.Before, err = strconv.ParseUint(value, 10, 64)
		case "after":
			q.After, err = strconv.ParseUint(value, 10, 64)
		case "order":
			switch value {
			case "oldest":
				q.Oldest = true
			case "newest":
			default:
				err = errors.New("want oldest or newest")
			}
		case "limit":
			if q.Limit, err = strconv.Atoi(value); err == nil && (q.Limit < 1 || q.Limit > maxPage) {
				err = fmt.Errorf("want 1 to %d", maxPage)
			}
		default:
			return q, fmt.Errorf("%s is no filter; there are id, handler, event, status, object, lane, text, request, response, attempts, duration, since, until, replayed, before, after, order and limit", name)
		}
		if err != nil {
			return q, fmt.Errorf("%s=%s: %w", name, value, err)
		}
	}
	if id != 0 {
		q.After = max(q.After, id-1)
		if q.Before == 0 || q.Before > id+1 {
			q.Before = id + 1
		}
	}
	return q, nil
}

func (s *Server) executions(w http.ResponseWriter, r *http.Request) {
	q, err := parseQuery(r.URL.Query())
	if err != nil {
		fail(w, http.StatusBadRequest, "%v", err)
		return
	}
	page, next, err := s.opts.Journal.Executions(r.Context(), q)
	if err != nil {
		s.broken(w, r, err)
		return
	}
	rows := make([]executionJSON, 0, len(page))
	for _, x := range page {
		rows = append(rows, executionOf(x))
	}
	body := map[string]any{"executions": rows}
	if next != 0 {
		body["next"] = next
	}
	answer(w, http.StatusOK, body)
}

type attemptJSON struct {
	Number   int          `json:"number"`
	Start    time.Time    `json:"start"`
	Duration float64      `json:"duration_seconds"`
	Outcome  string       `json:"outcome"` // "success", "retry", "permanent"
	Error    string       `json:"error,omitempty"`
	Reason   string       `json:"reason,omitempty"`
	Code     *int         `json:"code,omitempty"`
	Request  exchangeJSON `json:"request"`
	Response exchangeJSON `json:"response"`
}

type exchangeJSON struct {
	Head      []string `json:"head,omitempty"`
	Body      string   `json:"body,omitempty"`
	Truncated int64    `json:"truncated_bytes,omitempty"`
	Binary    bool     `json:"binary,omitempty"` // the body held bytes that are no text; they stand as U+FFFD
}

func exchangeOf(x handler.Exchange) exchangeJSON {
	return exchangeJSON{Head: x.Head, Body: string(x.Body), Truncated: x.Truncated, Binary: !utf8.Valid(x.Body)}
}

func (s *Server) execution(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		fail(w, http.StatusBadRequest, "execution %q: want a number", r.PathValue("id"))
		return
	}
	x, err := s.opts.Journal.Execution(id)
	if err != nil {
		s.broken(w, r, err)
		return
	}
	full, err := s.fullOf(x)
	if err != nil {
		s.broken(w, r, err)
		return
	}
	answer(w, http.StatusOK, full)
}

// details reads what is kept of an execution beside its row.
func (s *Server) details(x journal.Execution) (payload json.RawMessage, rows []attemptJSON, err error) {
	attempts, err := s.opts.Journal.Attempts(x.ID)
	if err != nil {
		return nil, nil, err
	}
	e, err := s.opts.Journal.Event(x.Event)
	if err != nil {
		return nil, nil, err
	}
	rows = make([]attemptJSON, 0, len(attempts))
	for _, a := range attempts {
		rows = append(rows, attemptOf(a))
	}
	return e.AppendPayload(nil), rows, nil
}

func attemptOf(a journal.Attempt) attemptJSON {
	outcome := "retry"
	switch {
	case a.OK:
		outcome = "success"
	case a.Permanent:
		outcome = "permanent"
	}
	return attemptJSON{
		Number: a.Number, Start: a.Start.UTC(), Duration: a.Duration.Seconds(), Outcome: outcome,
		Error: a.Error, Reason: string(a.Reason), Code: code(a.Code, 1),
		Request: exchangeOf(a.Request), Response: exchangeOf(a.Response),
	}
}

func (s *Server) broken(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, journal.ErrNotFound) {
		fail(w, http.StatusNotFound, "not there, or no longer kept")
		return
	}
	s.log.Error("cannot answer a request", "path", r.URL.Path, "err", err)
	fail(w, http.StatusInternalServerError, "the journal cannot be read: %v", err)
}
