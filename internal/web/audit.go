package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/billhook/billhook/internal/replay"
)

// Action is what somebody did through this face.
type Action struct {
	Number uint64    `json:"number"`
	At     time.Time `json:"at"`
	replay.By
	Address string            `json:"address"` // from where
	What    string            `json:"what"`
	Details map[string]string `json:"details,omitempty"`
}

// act logs what somebody did, and keeps it. args are names and values as slog has them.
func (s *Server) act(r *http.Request, what string, args ...any) { s.actAs(r, whoOf(r), what, args...) }

func (s *Server) actAs(r *http.Request, who replay.By, what string, args ...any) {
	address := addressOf(r)
	s.log.Info(what, append(args, "by", who.Name, "address", address)...)
	a := Action{At: time.Now().UTC(), By: who, Address: address, What: what, Details: map[string]string{}}
	for i := 0; i+1 < len(args); i += 2 {
		a.Details[fmt.Sprint(args[i])] = fmt.Sprint(args[i+1])
	}
	b, err := json.Marshal(a)
	if err == nil {
		err = s.opts.Journal.Audit(b)
	}
	if err != nil {
		s.log.Warn("what was done is in the log alone", "what", what, "err", err)
	}
}

// actions are a page of what was done, the newest first, and the number that the next
// page is before; 0 when there is none.
func (s *Server) actions(before uint64, limit int) (list []Action, next uint64, err error) {
	list = []Action{}
	var bad error
	err = s.opts.Journal.Audits(before, func(number uint64, value []byte) bool {
		if len(list) == limit {
			next = list[limit-1].Number
			return false
		}
		a := Action{}
		if bad = json.Unmarshal(value, &a); bad != nil {
			return false
		}
		a.Number = number
		list = append(list, a)
		return true
	})
	if err == nil {
		err = bad
	}
	return list, next, err
}

// audit answers what was done: /api/v1/audit?before=&limit=.
func (s *Server) audit(w http.ResponseWriter, r *http.Request) {
	before, limit := uint64(0), 50
	for name, values := range r.URL.Query() {
		var err error
		switch name {
		case "before":
			before, err = strconv.ParseUint(values[0], 10, 64)
		case "limit":
			if limit, err = strconv.Atoi(values[0]); err == nil && (limit < 1 || limit > maxPage) {
				err = fmt.Errorf("want 1 to %d", maxPage)
			}
		default:
			err = fmt.Errorf("there is no such parameter; there are before and limit")
		}
		if err != nil {
			fail(w, http.StatusBadRequest, "%s=%s: %v", name, values[0], err)
			return
		}
	}
	list, next, err := s.actions(before, limit)
	if err != nil {
		s.broken(w, r, err)
		return
	}
	answer(w, http.StatusOK, struct {
		Actions []Action `json:"actions"`
		Next    uint64   `json:"next,omitempty"`
	}{list, next})
}

// auditPage shows who did what.
func (c *console) auditPage(w http.ResponseWriter, r *http.Request) {
	var before uint64
	if text := r.URL.Query().Get("before"); text != "" {
		var err error
		if before, err = strconv.ParseUint(text, 10, 64); err != nil {
			c.trouble(w, r, http.StatusBadRequest, "before="+text+": want the number of an action.")
			return
		}
	}
	list, next, err := c.actions(before, pageSize)
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	main := struct {
		Actions      []Action
		Newer, Older string
	}{Actions: list}
	if next != 0 {
		main.Older = fmt.Sprintf("/audit?before=%d", next)
	}
	if before != 0 {
		main.Newer = "/audit"
	}
	c.show(w, r, http.StatusOK, "audit", "Who did what", "/audit", main)
}
