package journal

import (
	"errors"
	"fmt"

	"github.com/billhook/billhook/internal/event"
	"github.com/cockroachdb/pebble/v2"
)

// Event returns one event, or an error that wraps ErrNotFound.
func (j *Journal) Event(id event.ID) (*event.Event, error) {
	if err := j.enter(); err != nil {
		return nil, err
	}
	defer j.leave()
	e, follow, landed := j.recent.event(id)
	if landed != nil {
		<-landed
		e, follow, _ = j.recent.event(id)
	}
	if e != nil {
		return e, nil
	}
	if follow {
		var list []*event.Event
		if home := j.buckets.Load().home(id); home != nil {
			var err error
			if list, err = readEvents(j.db, home.number, id, j.LastEvent()); err != nil || len(list) == 0 || list[0].ID != id {
				list = nil // it may be a copy elsewhere, and what is wrong with another does not matter
			}
		}
		j.recent.eventsAhead(list)
		if list != nil {
			return list[0], nil
		}
	}
	v, err := j.eventRow(j.db, id)
	if err != nil {
		return nil, err
	}
	if e, err = decodeEvent(id, v); err == nil {
		j.recent.eventAlone(e)
	}
	return e, err
}

// eventRow returns the encoded event: from the bucket it came into, or when that
// was dropped, from one to which a replay has taken it.
func (j *Journal) eventRow(r pebble.Reader, id event.ID) ([]byte, error) {
	list := *j.buckets.Load()
	tried := list.home(id)
	if tried != nil {
		if v, err := getCopy(r, appendEventKey(nil, tried.number, id)); !errors.Is(err, pebble.ErrNotFound) {
			return v, err
		}
	}
	for i := len(list) - 1; i >= 0 && list[i] != tried; i-- {
		if v, err := getCopy(r, appendEventKey(nil, list[i].number, id)); !errors.Is(err, pebble.ErrNotFound) {
			return v, err
		}
	}
	return nil, fmt.Errorf("event %v: %w", id, ErrNotFound)
}

func getCopy(r pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := r.Get(key)
	if err != nil {
		return nil, err
	}
	v = append([]byte(nil), v...)
	return v, closer.Close()
}

// Events returns the events after the given one, at most n, in commit order. The
// zero ID starts with the oldest that is kept. Those of an unfinished transaction
// are left out.
func (j *Journal) Events(after event.ID, n int) ([]*event.Event, error) {
	if err := j.enter(); err != nil {
		return nil, err
	}
	defer j.leave()
	j.mu.Lock()
	last, list, snap := j.lastEvent, *j.buckets.Load(), j.db.NewSnapshot()
	j.mu.Unlock()
	defer snap.Close()
	var events []*event.Event
	for i, bk := range list {
		if len(events) == n {
			break
		}
		if i+1 < len(list) && list[i+1].after.Compare(after) <= 0 {
			continue
		}
		from := bk.after // below are copies
		if after.Compare(from) > 0 {
			from = after
		}
		prefix := appendLog(nil, bk.number, logEvent)
		it, err := snap.NewIter(&pebble.IterOptions{
			LowerBound: append(appendEventKey(nil, bk.number, from), 0),
			UpperBound: append(appendEventKey(nil, bk.number, last), 0),
		})
		if err != nil {
			return nil, err
		}
		for ok := it.First(); ok && len(events) < n; ok = it.Next() {
			e, derr := decodeEvent(eventIDOf(it.Key()[len(prefix):]), it.Value())
			if derr != nil {
				err = derr
				break
			}
			events = append(events, e)
		}
		if err := errors.Join(err, it.Error(), it.Close()); err != nil {
			return nil, err
		}
	}
	return events, nil
}
