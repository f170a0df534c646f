package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/billhook/billhook/internal/backfill"
)

// Backfills is what the faces ask for. *backfill.Backfills is one.
type Backfills interface {
	Start(ctx context.Context, spec backfill.Spec) (backfill.Status, error)
	Cancel(ctx context.Context, id int) (backfill.Status, error)
	Get(id int) (backfill.Status, error)
	List() []backfill.Status
}

const (
	// maxBody is the size of a request's body, in bytes.
	maxBody = 64 << 10
	// writePatience is how long a request may wait for what it writes: intake takes it
	// between two transactions, and a large one lasts.
	writePatience = 20 * time.Second
)

func (s *Server) backfills(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{"backfills": s.opts.Backfills.List()})
}

func (s *Server) startBackfill(w http.ResponseWriter, r *http.Request) {
	spec := backfill.Spec{Rate: backfill.DefaultRate}
	if err := readBody(w, r, &spec); err != nil {
		fail(w, http.StatusBadRequest, "%v", err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	st, err := s.opts.Backfills.Start(ctx, spec)
	var invalid *backfill.InvalidError
	switch {
	case errors.As(err, &invalid):
		fail(w, http.StatusUnprocessableEntity, "%v", err)
	case err != nil:
		s.notWritten(w, r, err)
	default:
		if !st.DryRun {
			s.act(r, "backfill begun", "backfill", st.ID, "events", st.Events, "handlers", st.Handlers, "where", st.Where)
		}
		w.Header().Set("Location", fmt.Sprintf("/api/v1/backfills/%d", st.ID))
		answer(w, http.StatusCreated, st)
	}
}

func (s *Server) backfill(w http.ResponseWriter, r *http.Request) {
	s.oneBackfill(w, r, func(_ context.Context, id int) (backfill.Status, error) { return s.opts.Backfills.Get(id) })
}

func (s *Server) cancelBackfill(w http.ResponseWriter, r *http.Request) {
	s.oneBackfill(w, r, func(ctx context.Context, id int) (backfill.Status, error) {
		st, err := s.opts.Backfills.Cancel(ctx, id)
		if err == nil {
			s.act(r, "backfill cancelled", "backfill", id)
		}
		return st, err
	})
}

func (s *Server) oneBackfill(w http.ResponseWriter, r *http.Request, f func(context.Context, int) (backfill.Status, error)) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		fail(w, http.StatusBadRequest, "backfill %q: want a number", r.PathValue("id"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	st, err := f(ctx, id)
	switch {
	case errors.Is(err, backfill.ErrNotFound):
		fail(w, http.StatusNotFound, "there is no backfill %d, or it is no longer kept", id)
	case err != nil:
		s.notWritten(w, r, err)
	default:
		answer(w, http.StatusOK, st)
	}
}

// notWritten answers a request whose effect is not known to be durable.
func (s *Server) notWritten(w http.ResponseWriter, r *http.Request, err error) {
	s.log.Error("cannot do what a request asks", "method", r.Method, "path", r.URL.Path, "err", err)
	fail(w, http.StatusServiceUnavailable, "it is not known to be written: %v; look whether it is there before you ask again", err)
}

// readBody reads one JSON document into v, which has the defaults. A name that it does
// not know is an error.
func readBody(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("the body is empty; want a JSON object")
		}
		return fmt.Errorf("read the body: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("read the body: something follows the JSON object")
	}
	return nil
}
