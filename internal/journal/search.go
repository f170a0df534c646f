package journal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
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
	// Request and Response are texts in what any attempt sent and what came back, heads
	// and bodies as far as they are kept, letter case aside.
	Request  string
	Response string
	// Attempts and Duration are the least: of attempts, and of how long the last one took.
	Attempts int
	Duration time.Duration
	After    uint64 // only IDs above
	Before   uint64 // only IDs below; 0: all
	// Unreplayed leaves out those that were replayed already.
	Unreplayed bool
	// Oldest turns the order about: the oldest first.
	Oldest bool
	Limit  int // of the page; 0: 50
}

const (
	defaultLimit = 50
	// searchRows bounds the rows that one call reads, which only a Text that
	// hardly matches can exhaust.
	searchRows = 20000
	// searchExchange is how many rows the attempts of one count for, where they are
	// looked at.
	searchExchange = 30
	// searchSteps bounds the moves in posting lists between two looks at ctx.
	searchSteps = 1024
)

// Executions returns a page of the executions that q selects, newest first, and
// the cursor of the next page: the Before to ask with, or the After when the oldest
// come first; 0 when there is no more. With a text, a least or Unreplayed a page may be short,
// or empty, and yet have a next one.
//
// It walks the posting lists of all criteria at once, from one end, each list
// jumping to where another one is, and reads only rows that all of them name.
func (j *Journal) Executions(ctx context.Context, q Query) (page []Execution, next uint64, err error) {
	if err := j.enter(); err != nil {
		return nil, 0, err
	}
	defer j.leave()
	if q.Limit <= 0 {
		q.Limit = defaultLimit
	}
	q.Text, q.Request, q.Response = strings.ToLower(q.Text), strings.ToLower(q.Request), strings.ToLower(q.Response)
	vs, snap := j.views()
	defer snap.Close()
	s := &search{ctx: ctx, j: j, q: q, r: snap, rows: searchRows}
	if !q.Oldest {
		slices.Reverse(vs)
	}
	for i := range vs {
		v := &vs[i]
		s.low, s.high = max(v.first, q.After+1), v.end
		if q.Before != 0 {
			s.high = min(s.high, q.Before)
		}
		if s.high <= s.low {
			continue
		}
		s.high--
		more, err := s.bucket(v)
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
	j     *Journal
	q     Query
	r     pebble.Reader
	page  []Execution
	rows  int // that may still be read
	steps int
	low   uint64 // the IDs of the bucket that are searched
	high  uint64
	it    *pebble.Iterator // of the bucket's rows; nil: none was read yet
	key   []byte           // scratch
}

// row reads an execution of a bucket. Neighbours, which a text alone goes through, are
// one step away.
func (s *search) row(bucket uint32, id uint64) (Execution, error) {
	if s.it == nil {
		lower, upper := bounds(appendLog(nil, bucket, logRow))
		it, err := s.r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		if err != nil {
			return Execution{}, err
		}
		s.it = it
	}
	at := uint64(0)
	if s.it.Valid() {
		at = idOf(s.it.Key())
	}
	switch {
	case at != 0 && at == id+1:
		s.it.Prev()
	case at != 0 && at+1 == id:
		s.it.Next()
	default:
		s.key = appendRowKey(s.key[:0], bucket, id)
		s.it.SeekGE(s.key)
	}
	if !s.it.Valid() || idOf(s.it.Key()) != id {
		return Execution{}, fmt.Errorf("execution %d: %w", id, cmp.Or(s.it.Error(), ErrNotFound))
	}
	v, err := s.it.ValueAndErr()
	if err != nil {
		return Execution{}, err
	}
	return decodeRow(id, v)
}

// bucket searches one bucket between low and high. It returns the cursor when the
// page is full or the rows are used up, else 0.
func (s *search) bucket(v *view) (next uint64, err error) {
	terms, some := s.terms(v)
	if !some {
		return 0, nil
	}
	defer func() {
		for _, t := range terms {
			err = errors.Join(err, t.close())
		}
		if s.it != nil {
			err = errors.Join(err, s.it.Close())
			s.it = nil
		}
	}()
	id := s.high
	if s.q.Oldest {
		id = s.low
	}
	for {
		at, ok, err := s.candidate(v, terms, id)
		if !ok || err != nil {
			return 0, err
		}
		id = at
		if s.rows <= 0 {
			if s.q.Oldest {
				return id - 1, nil
			}
			return id + 1, nil
		}
		s.rows--
		x, err := s.row(v.number, id)
		if err != nil {
			return 0, err
		}
		hit := s.q.matches(&x)
		if hit && (s.q.Request != "" || s.q.Response != "") {
			if hit, err = s.exchanged(id); err != nil {
				return 0, err
			}
		}
		if hit {
			s.page = append(s.page, x)
			if len(s.page) == s.q.Limit {
				return id, nil
			}
		}
		switch {
		case s.q.Oldest && id == s.high, !s.q.Oldest && id == s.low:
			return 0, nil
		case s.q.Oldest:
			id++
		default:
			id--
		}
	}
}

// exchanged reports whether the attempts of an execution hold the texts that are looked
// for.
func (s *search) exchanged(id uint64) (bool, error) {
	s.rows -= searchExchange
	if s.ctx.Err() != nil {
		return false, context.Cause(s.ctx)
	}
	attempts, err := s.j.attempts(s.r, id)
	if err != nil {
		return false, err
	}
	has := func(text string, of func(a *Attempt) handler.Exchange) bool {
		return text == "" || slices.ContainsFunc(attempts, func(a Attempt) bool {
			x := of(&a)
			return strings.Contains(strings.ToLower(string(x.Body)), text) ||
				slices.ContainsFunc(x.Head, func(l string) bool { return strings.Contains(strings.ToLower(l), text) })
		})
	}
	return has(s.q.Request, func(a *Attempt) handler.Exchange { return a.Request }) &&
		has(s.q.Response, func(a *Attempt) handler.Exchange { return a.Response }), nil
}

// candidate returns the first ID from id on, in the order of the search, that all
// terms name and that may have been created in time.
func (s *search) candidate(v *view, terms []*term, id uint64) (uint64, bool, error) {
	for {
		if s.steps++; s.steps%searchSteps == 0 && s.ctx.Err() != nil {
			return 0, false, context.Cause(s.ctx)
		}
		at := id
		for !s.q.overlaps(v.spans[(at-v.first)/spanIDs]) {
			run := (at - v.first) / spanIDs
			switch {
			case s.q.Oldest:
				at = v.first + (run+1)*spanIDs
			case run == 0:
				return 0, false, nil
			default:
				at = v.first + run*spanIDs - 1
			}
			if at < s.low || at > s.high {
				return 0, false, nil
			}
		}
		agreed := true
		for _, t := range terms {
			found, ok, err := t.seek(s.r, at, s.q.Oldest)
			if !ok || err != nil || found < s.low || found > s.high {
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
		(!q.Unreplayed || x.Replay == 0) &&
		x.Attempts >= q.Attempts && x.LastDuration >= q.Duration &&
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

// seek returns the greatest ID at or below id, or going up the least at or above.
// Calls go on in one direction.
func (t *term) seek(r pebble.Reader, id uint64, up bool) (nearest uint64, ok bool, err error) {
	for _, l := range t.lists {
		at, found, err := l.seek(r, id, up)
		if err != nil {
			return 0, false, err
		}
		if found && (!ok || up == (at < nearest)) {
			nearest, ok = at, true
		}
	}
	return nearest, ok, nil
}

func (t *term) close() (err error) {
	for _, l := range t.lists {
		if l.it != nil {
			err = errors.Join(err, l.it.Close())
		}
	}
	return err
}

// list is a posting list, read from one end.
type list struct {
	prefix []byte
	key    []byte // scratch
	it     *pebble.Iterator
	at     uint64
	valid  bool
}

func (l *list) seek(r pebble.Reader, id uint64, up bool) (uint64, bool, error) {
	short := func() bool { return l.at > id }
	step, jump := (*pebble.Iterator).Prev, (*pebble.Iterator).SeekLT
	from := id + 1
	if up {
		short = func() bool { return l.at < id }
		step, jump = (*pebble.Iterator).Next, (*pebble.Iterator).SeekGE
		from = id
	}
	switch {
	case l.it == nil:
		lower, upper := bounds(l.prefix)
		it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		if err != nil {
			return 0, false, err
		}
		l.it, l.valid = it, true
	case l.valid && short():
		// Neighbours are one step away.
		if l.valid = step(l.it); l.valid {
			l.at = idOf(l.it.Key())
		}
		if !l.valid || !short() {
			return l.at, l.valid, l.it.Error()
		}
	default:
		return l.at, l.valid, l.it.Error()
	}
	l.key = appendID(append(l.key[:0], l.prefix...), from)
	if l.valid = jump(l.it, l.key); l.valid {
		l.at = idOf(l.it.Key())
	}
	return l.at, l.valid, l.it.Error()
}
