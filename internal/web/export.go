package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/billhook/billhook/internal/journal"
)

const (
	// exportPage is how many executions are read at once.
	exportPage = 200
	// exportPatience is how long a client may take to read a page.
	exportPatience = time.Minute
)

// export writes all executions that match as lines of JSON, the oldest first, up to the
// newest there was when it began. With full=true each has its payload and its attempts.
// What it holds in memory is one page, and one execution in full. When it cannot go on
// the connection is cut, so that nobody takes a part for the whole.
func (s *Server) export(w http.ResponseWriter, r *http.Request) {
	values := r.URL.Query()
	full := false
	switch v := values["full"]; {
	case len(v) == 0, len(v) == 1 && v[0] == "false":
	case len(v) == 1 && v[0] == "true":
		full = true
	default:
		fail(w, http.StatusBadRequest, "full: want true or false")
		return
	}
	values.Del("full")
	q, err := parseQuery(values)
	if err == nil && (values.Has("limit") || values.Has("order")) {
		err = errors.New("limit and order are of the list: an export has all that match, the oldest first")
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "%v", err)
		return
	}
	newest, _, err := s.opts.Journal.Executions(r.Context(), journal.Query{Limit: 1})
	if err != nil {
		s.broken(w, r, err)
		return
	}
	q.Oldest, q.Limit = true, exportPage
	if len(newest) > 0 && (q.Before == 0 || q.Before > newest[0].ID+1) {
		q.Before = newest[0].ID + 1
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	if err := s.exportTo(r.Context(), w, q, full); err != nil {
		if r.Context().Err() == nil {
			s.log.Error("an export broke off", "path", r.URL.Path, "err", err)
		}
		panic(http.ErrAbortHandler)
	}
}

func (s *Server) exportTo(ctx context.Context, w http.ResponseWriter, q journal.Query, full bool) error {
	conn := http.NewResponseController(w)
	out := bufio.NewWriterSize(w, 64<<10)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	for {
		page, next, err := s.opts.Journal.Executions(ctx, q)
		if err != nil {
			return err
		}
		_ = conn.SetWriteDeadline(time.Now().Add(exportPatience)) // what cannot do that has no deadline
		for _, x := range page {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			var line any = executionOf(x)
			if full {
				line, err = s.fullOf(x)
				if errors.Is(err, journal.ErrNotFound) {
					continue // retention has dropped it since
				}
				if err != nil {
					return err
				}
			}
			if err := lines.Encode(line); err != nil {
				return fmt.Errorf("write execution %d: %w", x.ID, err)
			}
		}
		if err := out.Flush(); err != nil {
			return err
		}
		if err := conn.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		if next == 0 {
			return nil
		}
		q.After = next
	}
}

// fullJSON is an execution with all there is of it, as it is shown alone.
type fullJSON struct {
	Attempts  []attemptJSON   `json:"attempts"`
	Execution executionJSON   `json:"execution"`
	Payload   json.RawMessage `json:"payload"`
}

func (s *Server) fullOf(x journal.Execution) (fullJSON, error) {
	payload, attempts, err := s.details(x)
	return fullJSON{attempts, executionOf(x), payload}, err
}
