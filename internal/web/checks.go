package web

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Finding is what one check of the database and the machine found.
type Finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"` // "OK", "WARN", "FAIL", "SKIP"
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// Diagnosis is what they found together.
type Diagnosis struct {
	At       time.Time `json:"at"`
	Findings []Finding `json:"findings"`
}

// String names what is not as it should be.
func (d *Diagnosis) String() string {
	var amiss []string
	for _, f := range d.Findings {
		if f.Level == "WARN" || f.Level == "FAIL" {
			amiss = append(amiss, strings.ToLower(f.Level)+" "+f.Check)
		}
	}
	at := d.At.Format("15:04 UTC")
	if len(amiss) == 0 {
		return "nothing amiss at " + at
	}
	return fmt.Sprintf("%s; billhook check tells more (looked at %s)", strings.Join(amiss, ", "), at)
}

// checks shows what was found last; with POST it looks now.
func (s *Server) checks(w http.ResponseWriter, r *http.Request) {
	var d *Diagnosis
	if r.Method == http.MethodPost {
		ctx, cancel := context.WithTimeout(r.Context(), checkPatience)
		defer cancel()
		now, err := s.opts.Diagnose(ctx)
		if err != nil {
			s.notDone(w, r, err)
			return
		}
		s.act(r, "checks run")
		d = &now
	} else if d = s.opts.Diagnosis(); d == nil {
		answer(w, http.StatusOK, map[string]any{"at": nil, "findings": []Finding{}})
		return
	}
	answer(w, http.StatusOK, d)
}

// checkPatience is longer than the checks take.
const checkPatience = 35 * time.Second
