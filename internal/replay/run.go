package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/billhook/billhook/internal/journal"
)

const (
	// maxPending is how many executions of a handler may wait before a replay rests, so
	// that it never fills the journal faster than they are done.
	maxPending   = 10_000
	pendingPause = 500 * time.Millisecond
	// perSecond is how many commits a second's executions are spread over.
	perSecond = 4
	maxRetry  = time.Minute
	// maxPages is how many pages of a search are read for one commit at most, so that
	// it is kept how far a long search is in which little is found.
	maxPages = 20
	minPage  = 64
	// countPatience is how long it is counted how many there are before it begins.
	countPatience = 2 * time.Second
	// countPart is how many are counted between two looks at the time that is left.
	countPart = 250
)

// Run works until ctx ends: on every replay that has not ended, each from where it was.
func (r *Replays) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for _, x := range r.take() {
			wg.Go(func() { r.work(ctx, x) })
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// take returns those that nobody works on.
func (r *Replays) take() (list []*one) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.list {
		if !x.taken && !x.kept.Status.State.Ended() {
			x.taken = true
			list = append(list, x)
		}
	}
	return list
}

// work brings one to its end, trying again what the journal does not let it do.
func (r *Replays) work(ctx context.Context, x *one) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.mu.Lock()
	x.stop = cancel
	r.mu.Unlock()
	for retry := time.Second; ; retry = min(2*retry, maxRetry) {
		err := r.run(ctx, x)
		if err == nil || ctx.Err() != nil || errors.Is(err, errEnded) || errors.Is(err, journal.ErrStopped) || errors.Is(err, journal.ErrClosed) {
			return
		}
		r.log.Warn("replay is held up, trying again", "replay", x.id, "err", err, "in", retry)
		r.say(x, err.Error())
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return
		}
	}
}

// say shows why one does not go on.
func (r *Replays) say(x *one, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !x.kept.Status.State.Ended() {
		x.kept.Status.Why = why
	}
}

func (r *Replays) run(ctx context.Context, x *one) error {
	r.mu.Lock()
	if x.kept.Status.State.Ended() {
		r.mu.Unlock()
		return nil
	}
	x.kept.Status.State, x.kept.Status.Why = Running, ""
	begun := x.kept.copy()
	r.mu.Unlock()

	w, err := r.walk(&begun)
	if err != nil {
		return err
	}
	if begun.Status.Matching < 0 {
		if err := r.matching(ctx, x, w); err != nil {
			return err
		}
	}
	limiter, n := rate.NewLimiter(rate.Inf, 1), r.o.part
	if per := begun.Status.Rate; per > 0 {
		n = max(1, min(n, int(per/perSecond)))
		limiter = rate.NewLimiter(rate.Limit(per), n)
		limiter.AllowN(time.Now(), n) // nothing is saved up at the beginning
	}
	for {
		p, err := w.next(ctx, n)
		if err != nil {
			return err
		}
		if err := r.rest(ctx, x, p); err != nil {
			return err
		}
		if err := limiter.WaitN(ctx, len(p.ids)); err != nil {
			return err
		}
		_, err = r.commit(ctx, x, p.ids, func(s *stored, made []journal.Queued, refused map[journal.Refusal]int64) error {
			s.add(made, p.left, refused)
			s.After, s.Status.Why = p.after, ""
			if p.last {
				s.finish(Done)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if p.last {
			st, _ := r.Get(x.id)
			r.log.Info("replay is done", "replay", x.id, "replayed", st.Replayed, "left_out", st.LeftOut, "took", time.Since(st.Created).Round(time.Millisecond))
			return nil
		}
		w.after = p.after
	}
}

// rest waits while too many executions wait for a handler of a part.
func (r *Replays) rest(ctx context.Context, x *one, p part) error {
	for {
		counts := r.o.Journal.Counts()
		i := slices.IndexFunc(p.handlers, func(h int) bool { return waiting(counts, h) > maxPending })
		if i < 0 {
			return nil
		}
		h := p.handlers[i]
		r.say(x, fmt.Sprintf("rests while more than %d executions of handler %d wait", maxPending, h))
		select {
		case <-time.After(pendingPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func waiting(counts map[journal.HandlerStatus]int64, h int) int64 {
	return counts[journal.HandlerStatus{Handler: h, Status: journal.Pending}] + counts[journal.HandlerStatus{Handler: h, Status: journal.Held}]
}

// matching counts what there is to do, for people, if that takes no time.
func (r *Replays) matching(ctx context.Context, x *one, w *walk) error {
	ctx, cancel := context.WithTimeout(ctx, countPatience)
	defer cancel()
	c, err := w.count(ctx)
	if err != nil || !c.Complete {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	x.kept.Status.Matching = c.Matching
	return nil
}

// Count says what a replay would do, as far as ctx leaves time for that. A mistake in
// the Spec is an *InvalidError.
func (r *Replays) Count(ctx context.Context, spec Spec) (Count, error) {
	if err := r.judge(&spec); err != nil {
		return Count{}, err
	}
	newest, err := r.newest(context.WithoutCancel(ctx)) // which takes no time
	if err != nil {
		return Count{}, err
	}
	w, err := r.walk(&stored{Status: Status{Spec: spec, UpTo: newest}})
	if err != nil {
		return Count{}, err
	}
	return w.count(ctx)
}

func (w *walk) count(ctx context.Context) (Count, error) {
	count := stored{}
	c := Count{Complete: true}
	for at := *w; ; {
		err := ctx.Err() // a search that finds much does not look
		var p part
		if err == nil {
			p, err = at.next(ctx, countPart)
		}
		if err != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return Count{}, err
		}
		if err != nil {
			c.Complete = false
			break
		}
		count.add(nil, p.left)
		c.Matching += int64(len(p.ids))
		if p.last {
			break
		}
		at.after = p.after
	}
	c.LeftOut = count.Status.LeftOut
	return c, nil
}

// walk goes over what a replay selects, the oldest first.
type walk struct {
	r     *Replays
	spec  Spec
	upTo  uint64
	after uint64
	// newest is the newest of each object and handler among Spec.IDs, if Spec.Latest.
	newest map[objectHandler]uint64
}

type objectHandler struct {
	object  string
	handler int
}

// part is what comes next.
type part struct {
	ids      []uint64 // to be replayed
	handlers []int    // of those
	left     map[journal.Refusal]int64
	after    uint64 // where to go on
	last     bool   // there is none after
}

func (r *Replays) walk(s *stored) (*walk, error) {
	w := &walk{r: r, spec: s.Status.Spec, upTo: s.Status.UpTo, after: s.After}
	if !w.spec.Latest || w.spec.Filter != nil {
		return w, nil
	}
	w.newest = map[objectHandler]uint64{}
	for _, id := range w.spec.IDs {
		x, err := r.o.Journal.Execution(id)
		if errors.Is(err, journal.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		w.newest[objectHandler{x.Object, x.Handler}] = id // they ascend
	}
	return w, nil
}

// next finds up to n executions to be replayed; there may be fewer, or none, and yet
// more after.
func (w *walk) next(ctx context.Context, n int) (part, error) {
	p := part{left: map[journal.Refusal]int64{}, after: w.after}
	handlers := w.r.handlers()
	for range maxPages {
		page, cursor, err := w.page(ctx, p.after, max(n, minPage))
		if err != nil {
			return part{}, err
		}
		for i := range page {
			if len(p.ids) == n {
				return p, nil
			}
			x := &page[i]
			p.after = x.ID
			why := journal.RefusedGone
			if x.Status.Valid() {
				if why, err = w.leaves(ctx, x, handlers); err != nil {
					return part{}, err
				}
			}
			if why != "" {
				p.left[why]++
				continue
			}
			p.ids = append(p.ids, x.ID)
			if !slices.Contains(p.handlers, x.Handler) {
				p.handlers = append(p.handlers, x.Handler)
			}
		}
		if cursor == 0 {
			p.after, p.last = w.upTo, true
			return p, nil
		}
		p.after = cursor
		if len(p.ids) == n {
			return p, nil
		}
	}
	return p, nil
}

// page reads executions after an ID, and returns the cursor of the next page, 0 when
// there is none. One that is named and not there has no status.
func (w *walk) page(ctx context.Context, after uint64, n int) ([]journal.Execution, uint64, error) {
	if f := w.spec.Filter; f != nil {
		if after >= w.upTo {
			return nil, 0, ctx.Err()
		}
		q := f.query()
		q.After, q.Before, q.Oldest, q.Limit = after, w.upTo+1, true, n
		return w.r.o.Journal.Executions(ctx, q)
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, context.Cause(ctx)
	}
	from, found := slices.BinarySearch(w.spec.IDs, after)
	if found {
		from++
	}
	ids := w.spec.IDs[from:]
	cursor := uint64(0)
	if len(ids) > n {
		ids, cursor = ids[:n], ids[n-1]
	}
	page := make([]journal.Execution, 0, len(ids))
	for _, id := range ids {
		x, err := w.r.o.Journal.Execution(id)
		if errors.Is(err, journal.ErrNotFound) {
			x = journal.Execution{ID: id}
		} else if err != nil {
			return nil, 0, err
		}
		page = append(page, x)
	}
	return page, cursor, nil
}

// leaves says why an execution is left out, "" if it is not.
func (w *walk) leaves(ctx context.Context, x *journal.Execution, handlers handlerSet) (journal.Refusal, error) {
	if why := handlers.refuses(x, w.spec.Again); why != "" || !w.spec.Latest {
		return why, nil
	}
	if w.newest != nil {
		if w.newest[objectHandler{x.Object, x.Handler}] != x.ID {
			return LeftOlder, nil
		}
		return "", nil
	}
	q := w.spec.Filter.query()
	q.Handler, q.Object, q.After, q.Before, q.Limit = x.Handler, x.Object, x.ID, w.upTo+1, 1
	for {
		newer, cursor, err := w.r.o.Journal.Executions(ctx, q)
		switch {
		case err != nil:
			return "", err
		case len(newer) > 0:
			return LeftOlder, nil
		case cursor == 0:
			return "", nil
		}
		q.Before = cursor
	}
}

// handlerSet is the handlers that take executions, by id.
type handlerSet map[int]bool

func (r *Replays) handlers() handlerSet {
	set := handlerSet{}
	for _, h := range r.o.Handlers() {
		if !h.Gone {
			set[h.ID] = true
		}
	}
	return set
}

// refuses says why an execution cannot be replayed, "" if it can.
func (s handlerSet) refuses(x *journal.Execution, again bool) journal.Refusal {
	switch {
	case x.Status.Open():
		return journal.RefusedOpen
	case !s[x.Handler]:
		return LeftHandler
	case x.Replay != 0 && !again:
		return journal.RefusedReplayed
	}
	return ""
}
