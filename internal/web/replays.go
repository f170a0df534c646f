package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replay"
)

// Replays is what the faces ask for. *replay.Replays is one.
type Replays interface {
	Start(ctx context.Context, spec replay.Spec, by replay.By) (replay.Status, error)
	One(ctx context.Context, execution uint64, again bool, by replay.By) (replay.Status, error)
	Count(ctx context.Context, spec replay.Spec) (replay.Count, error)
	Cancel(ctx context.Context, id uint64) (replay.Status, error)
	Get(id uint64) (replay.Status, error)
	List() []replay.Status
}

func (s *Server) replays(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{"replays": s.opts.Replays.List()})
}

func (s *Server) startReplay(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		replay.Spec
		DryRun bool `json:"dry_run"`
	}
	asked.Rate = replay.DefaultRate
	if err := readBody(w, r, &asked); err != nil {
		fail(w, http.StatusBadRequest, "%v", err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	if asked.DryRun {
		count, err := s.opts.Replays.Count(ctx, asked.Spec)
		if err != nil {
			s.notReplayed(w, r, err)
			return
		}
		answer(w, http.StatusOK, struct {
			DryRun bool `json:"dry_run"`
			replay.Count
		}{true, count})
		return
	}
	st, err := s.opts.Replays.Start(ctx, asked.Spec, whoOf(r))
	if err != nil {
		s.notReplayed(w, r, err)
		return
	}
	s.replayed(r, st)
	created(w, st)
}

func (s *Server) replayExecution(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		fail(w, http.StatusBadRequest, "execution %q: want a number", r.PathValue("id"))
		return
	}
	var asked struct {
		Again bool `json:"again"`
	}
	if r.ContentLength != 0 {
		if err := readBody(w, r, &asked); err != nil {
			fail(w, http.StatusBadRequest, "%v", err)
			return
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	st, err := s.opts.Replays.One(ctx, id, asked.Again, whoOf(r))
	if err != nil {
		s.notReplayed(w, r, err)
		return
	}
	s.replayed(r, st)
	created(w, st)
}

// replayed tells of a replay that was begun.
func (s *Server) replayed(r *http.Request, st replay.Status) {
	what := fmt.Sprintf("%d executions", len(st.IDs))
	switch {
	case st.Filter != nil:
		what = st.Filter.String()
	case len(st.IDs) == 1:
		what = fmt.Sprintf("execution %d", st.IDs[0])
	}
	s.act(r, "replay begun", "replay", st.ID, "of", what)
}

func created(w http.ResponseWriter, st replay.Status) {
	w.Header().Set("Location", fmt.Sprintf("/api/v1/replays/%d", st.ID))
	answer(w, http.StatusCreated, st)
}

func (s *Server) replay(w http.ResponseWriter, r *http.Request) {
	s.oneReplay(w, r, func(_ context.Context, id uint64) (replay.Status, error) { return s.opts.Replays.Get(id) })
}

func (s *Server) cancelReplay(w http.ResponseWriter, r *http.Request) {
	s.oneReplay(w, r, func(ctx context.Context, id uint64) (replay.Status, error) {
		st, err := s.opts.Replays.Cancel(ctx, id)
		if err == nil {
			s.act(r, "replay cancelled", "replay", id)
		}
		return st, err
	})
}

func (s *Server) oneReplay(w http.ResponseWriter, r *http.Request, f func(context.Context, uint64) (replay.Status, error)) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		fail(w, http.StatusBadRequest, "replay %q: want a number", r.PathValue("id"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	st, err := f(ctx, id)
	if err != nil {
		s.notReplayed(w, r, err)
		return
	}
	answer(w, http.StatusOK, st)
}

// notReplayed answers a request that was not done.
func (s *Server) notReplayed(w http.ResponseWriter, r *http.Request, err error) {
	var invalid *replay.InvalidError
	var refused *replay.RefusedError
	switch {
	case errors.As(err, &invalid):
		fail(w, http.StatusUnprocessableEntity, "%v", invalid)
	case errors.As(err, &refused):
		fail(w, http.StatusConflict, "%v", refused)
	case errors.Is(err, replay.ErrNotFound):
		fail(w, http.StatusNotFound, "there is no replay %s, or it is no longer kept", r.PathValue("id"))
	case errors.Is(err, journal.ErrNotFound):
		fail(w, http.StatusNotFound, "there is no execution %s, or it is no longer kept", r.PathValue("id"))
	default:
		s.notWritten(w, r, err)
	}
}
