package web

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
)

// RefusedError is why something is not done as it was asked for; people are told.
type RefusedError struct{ Text string }

func (e *RefusedError) Error() string { return e.Text }

// ErrNoHandler says that no handler has the id.
var ErrNoHandler = errors.New("there is no such handler")

// Trial asks for a call of a handler, to see what it does.
type Trial struct {
	Handler int    `json:"-"`
	Event   string `json:"event,omitempty"`   // a type, by any of its names; empty: the first that it is for
	Object  string `json:"object,omitempty"`  // whose latest event is to be told; empty: anybody's
	DryRun  bool   `json:"dry_run,omitempty"` // make the payload, call nobody
}

// Tried is what came of a Trial.
type Tried struct {
	Handler     int        `json:"handler"`
	Event       event.Type `json:"event"`
	EventID     string     `json:"event_id"`
	Object      string     `json:"object"`
	Made        bool       `json:"made_up"` // there is no such event in the journal
	DryRun      bool       `json:"dry_run"`
	Wanted      bool       `json:"wanted"` // by the handler's condition
	Called      bool       `json:"called"`
	Note        string     `json:"note,omitempty"`
	Body        string     `json:"body"`
	ContentType string     `json:"content_type"`
	Attempt     any        `json:"attempt,omitempty"` // as AttemptOf makes it
}

// AttemptOf is an attempt as the API shows it.
func AttemptOf(a journal.Attempt) any { return attemptOf(a) }

func (s *Server) handlerID(w http.ResponseWriter, r *http.Request) (int, bool) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || id < 1 {
		fail(w, http.StatusBadRequest, "handler %q: want a number", r.PathValue("id"))
		return 0, false
	}
	if !slices.ContainsFunc(s.opts.Handlers(), func(h Handler) bool { return h.ID == id }) {
		fail(w, http.StatusNotFound, "there is no handler %d", id)
		return 0, false
	}
	return id, true
}

func (s *Server) oneHandler(w http.ResponseWriter, r *http.Request) {
	if id, ok := s.handlerID(w, r); ok {
		s.answerHandler(w, r, id)
	}
}

func (s *Server) answerHandler(w http.ResponseWriter, r *http.Request, id int) {
	rows, err := s.handlerRows(r.Context())
	if err != nil {
		s.broken(w, r, err)
		return
	}
	i := slices.IndexFunc(rows, func(h handlerJSON) bool { return h.ID == id })
	if i < 0 {
		fail(w, http.StatusNotFound, "there is no handler %d", id)
		return
	}
	answer(w, http.StatusOK, rows[i])
}

// changeHandler changes a handler's status in handlers.yaml.
func (s *Server) changeHandler(w http.ResponseWriter, r *http.Request) {
	id, ok := s.handlerID(w, r)
	if !ok {
		return
	}
	var asked struct {
		Status string `json:"status"`
		editRequest
	}
	if err := readBody(w, r, &asked); err != nil {
		fail(w, http.StatusBadRequest, "%v", err)
		return
	}
	if asked.Status == "" && asked.Fields != nil {
		if s.opts.Editor == nil {
			fail(w, http.StatusForbidden, "handlers are changed in handlers.yaml: see http.edit_handlers")
			return
		}
		s.edit(w, r, Edit{ID: id, Fields: asked.Fields, Base: asked.Base}, asked.DryRun, http.StatusOK, "changed")
		return
	}
	if !slices.Contains([]string{"enabled", "disabled", "archived"}, asked.Status) {
		fail(w, http.StatusUnprocessableEntity, "status %q: want enabled, disabled or archived", asked.Status)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	if err := s.opts.SetStatus(ctx, id, asked.Status); err != nil {
		s.notDone(w, r, err)
		return
	}
	s.act(r, "handler's status changed", "handler", id, "status", asked.Status)
	s.answerHandler(w, r, id)
}

// tryHandler calls a handler outside of all order, and records nothing.
func (s *Server) tryHandler(w http.ResponseWriter, r *http.Request) {
	id, ok := s.handlerID(w, r)
	if !ok {
		return
	}
	t := Trial{}
	if r.ContentLength != 0 {
		if err := readBody(w, r, &t); err != nil {
			fail(w, http.StatusBadRequest, "%v", err)
			return
		}
	}
	t.Handler = id
	tried, err := s.opts.Try(r.Context(), t)
	if err != nil {
		s.notDone(w, r, err)
		return
	}
	if tried.Called {
		s.act(r, "handler tried", "handler", id, "type", tried.Event, "event", tried.EventID)
	}
	answer(w, http.StatusOK, tried)
}

func (s *Server) notDone(w http.ResponseWriter, r *http.Request, err error) {
	var no *RefusedError
	switch {
	case errors.As(err, &no):
		fail(w, http.StatusConflict, "%v", no)
	case errors.Is(err, ErrNoHandler):
		fail(w, http.StatusNotFound, "there is no handler %s", r.PathValue("id"))
	default:
		s.notWritten(w, r, err)
	}
}
