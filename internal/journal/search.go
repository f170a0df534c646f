package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/cockroachdb/pebble/v2"
)

// Query selects executions. The zero value of a field selects all.
type Query struct {
	Handler int
	Type    event.Type
	Status  Status
	Object  string
	Lane    string
	Since   time.Time // journaled at or after
	Until   time.Time // journaled before
	Text    string    // in LastError, letter case aside
	Before  uint64    // cursor: only IDs below; 0: from the newest
	Limit   int       // of the page; 0: 50
}

const (
	defaultLimit = 50
	// searchRows bounds the rows that one call reads, which only a Text that
	// hardly matches can exhaust.
	searchRows = 20000
	// searchSteps bounds the moves in posting lists between two looks at ctx.
	searchSteps = 1024
)

// Executions returns a page of the executions that q selects, newest first, and
// the cursor of the next page: the Before to ask with, 0 when there is no more.
// With Text a page may be short, or empty, and yet have a next one.
//
// It walks the posting lists of all criteria at once, from the newest execution
// down, each list jumping to where another one is, and reads only rows that all
// of them name.
func (j *Journal) Executions(ctx context.Context, q Query) (page []Execution, next uint64, err error) {
	if err := j.enter(); err != nil {
		return nil, 0, err
	}
	defer j.leave()
	if q.Limit <= 0 {
		q.Limit = defaultLimit
	}
	q.Text = strings.ToLower(q.Text)
	vs, snap := j.views()
	defer snap.Close()
	s := &search{ctx: ctx, q: q, r: snap, rows: searchRows}
	top := q.Before
	for i := len(vs) - 1; i >= 0; i-- {
		v := &vs[i]
		end := v.end
		if top != 0 && top < end {
			end = top
		}
		if end <= v.first {
			continue
		}
		more, err := s.bucket(v, end-1)
		if err != nil {
			return nil, 0, fmt.Errorf("search executions: %w", err)
		}
		if more != 0 {
			return s.page, more, nil
		}
	}
	return s.page, 0, nil
}

type search struct {
	ctx   context.Context
	q     Query
	r     pebble.Reader
	page  []Execution
	rows  int // that may still be read
	steps int
}

// bucket searches one bucket from the ID id down. It returns the cursor when the
// page is full or the rows are used up, else 0.
func (s *search) bucket(v *view, id uint64) (next uint64, err error) {
	terms, some := s.terms(v)
	if !some {
		return 0, nil
	}
	defer func() {
		for _, t := range terms {
			err = errors.Join(err, t.close())
		}
	}()
	for {
		at, ok, err := s.candidate(v, terms, id)
		if !ok || err != nil {
			return 0, err
		}
		id = at
		if s.rows == 0 {
			return id + 1, nil
		}
		s.rows--
		x, err := readRow(s.r, v.number, id)
		if err != nil {
			return 0, err
		}
		if s.q.matches(&x) {
			s.page = append(s.page, x)
			if len(s.page) == s.q.Limit {
				return id, nil
			}
		}
		if id == v.first {
			return 0, nil
		}
		id--
	}
}

// candidate returns the greatest ID at or below id that all terms name and that
// may have been created in time.
func (s *search) candidate(v *view, terms []*term, id uint64) (uint64, bool, error) {
	for {
		if s.steps++; s.steps%searchSteps == 0 && s.ctx.Err() != nil {
			return 0, false, context.Cause(s.ctx)
		}
		at := id
		for at >= v.first && !s.q.overlaps(v.spans[(at-v.first)/spanIDs]) {
			run := (at - v.first) / spanIDs
			if run == 0 {
				return 0, false, nil
			}
			at = v.first + run*spanIDs - 1
		}
		if at < v.first {
			return 0, false, nil
		}
		agreed := true
		for _, t := range terms {
			found, ok, err := t.seek(s.r, at)
			if !ok || err != nil {
				return 0, false, err
			}
			if found != at {
				agreed = false
				at = found
			}
		}
		// With several terms the first may have to follow the last.
		if agreed || len(terms) == 1 && s.q.overlaps(v.spans[(at-v.first)/spanIDs]) {
			return at, true, nil
		}
		id = at
	}
}

func (q *Query) overlaps(s span) bool {
	return (q.Since.IsZero() || s.max >= q.Since.UnixMicro()) && (q.Until.IsZero() || s.min < q.Until.UnixMicro())
}

func (q *Query) matches(x *Execution) bool {
	return (q.Handler == 0 || x.Handler == q.Handler) &&
		(q.Type == "" || x.Type == q.Type) &&
		(q.Status == 0 || x.Status == q.Status) &&
		(q.Object == "" || x.Object == q.Object) &&
		(q.Lane == "" || x.Lane == q.Lane) &&
		(q.Since.IsZero() || !x.Created.Before(q.Since)) &&
		(q.Until.IsZero() || x.Created.Before(q.Until)) &&
		(q.Text == "" || strings.Contains(strings.ToLower(x.LastError), q.Text))
}

// terms returns one term for each criterion that has posting lists; some is
// false when the bucket has nothing for one of them.
func (s *search) terms(v *view) (terms []*term, some bool) {
	if s.q.Handler != 0 || s.q.Status != 0 {
		t := &term{}
		for _, hs := range v.lists {
			if (s.q.Handler == 0 || hs.Handler == s.q.Handler) && (s.q.Status == 0 || hs.Status == s.q.Status) {
				t.lists = append(t.lists, &list{prefix: appendStatusList(nil, v.number, hs)})
			}
		}
		if len(t.lists) == 0 {
			return nil, false
		}
		terms = append(terms, t)
	}
	for _, c := range [...]struct {
		kind  byte
		value string
	}{{postingType, string(s.q.Type)}, {postingObject, s.q.Object}, {postingLane, s.q.Lane}} {
		if c.value != "" {
			terms = append(terms, &term{lists: []*list{{prefix: appendTextList(nil, v.number, c.kind, c.value)}}})
		}
	}
	return terms, true
}

// term is one criterion: an execution meets it that is in any of its lists.
type term struct{ lists []*list }

// seek returns the greatest ID at or below id. Calls descend.
func (t *term) seek(r pebble.Reader, id uint64) (greatest uint64, ok bool, err error) {
	for _, l := range t.lists {
		at, found, err := l.seek(r, id)
		if err != nil {
			return 0, false, err
		}
		if found && (!ok || at > greatest) {
			greatest, ok = at, true
		}
	}
	return greatest, ok, nil
}

func (t *term) close() (err error) {
	for _, l := range t.lists {
		if l.it != nil {
			err = errors.Join(err, l.it.Close())
		}
	}
	return err
}

// list is a posting list, read from its greatest ID down.
type list struct {
	prefix []byte
	key    []byte // scratch
	it     *pebble.Iterator
	at     uint64
	valid  bool
}

func (l *list) seek(r pebble.Reader, id uint64) (uint64, bool, error) {
	if l.it == nil {
		lower, upper := bounds(l.prefix)
		it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		if err != nil {
			return 0, false, err
		}
		l.it = it
		l.valid, l.at = true, ^uint64(0)
	} else if l.valid && l.at > id {
		// Neighbours are one step away.
		if l.valid = l.it.Prev(); l.valid {
			l.at = idOf(l.it.Key())
		}
	}
	if l.valid && l.at > id {
		l.key = appendID(append(l.key[:0], l.prefix...), id+1)
		if l.valid = l.it.SeekLT(l.key); l.valid {
			l.at = idOf(l.it.Key())
		}
	}
	return l.at, l.valid, l.it.Error()
}
