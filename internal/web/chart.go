package web

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/billhook/billhook/internal/journal"
)

// chart is a picture of tallies, as paths of an SVG that is W wide and H high.
type chart struct {
	Title                      string
	W, H                       int
	Succeeded, Failed, Dead    string // paths
	Sum                        journal.Tally
	Most                       int64 // in one step
	From                       time.Time
	Step                       string
	Line                       string // of a sparkline
	Quiet                      bool   // nothing happened
	SucceededN, FailedN, DeadN string // for people who hear it
}

const (
	chartHeight = 60
	barWidth    = 10
)

// bars draws a column for each tally: what succeeded, on it what failed, on it what died.
func bars(title string, now time.Time, step time.Duration, list []journal.Tally) chart {
	c := summed(list)
	c.Title, c.W, c.H, c.Step = title, barWidth*len(list), chartHeight, stepText(step)
	c.From = now.Truncate(step).Add(-step * time.Duration(len(list)-1))
	if c.Most == 0 {
		return c
	}
	var good, bad, dead strings.Builder
	for i, t := range list {
		bottom := int64(0)
		for _, part := range []struct {
			path *strings.Builder
			n    int64
		}{{&good, t.Succeeded}, {&bad, t.Failed}, {&dead, t.Dead}} {
			if part.n == 0 {
				continue
			}
			top := bottom + part.n
			// What is there is seen, however little.
			y0, y1 := chartHeight-float64(bottom)*chartHeight/float64(c.Most), chartHeight-float64(top)*chartHeight/float64(c.Most)
			y1 = min(y1, y0-1)
			fmt.Fprintf(part.path, "M%d %sH%dV%sH%dZ", i*barWidth+1, short(y0), (i+1)*barWidth-1, short(y1), i*barWidth+1)
			bottom = top
		}
	}
	c.Succeeded, c.Failed, c.Dead = good.String(), bad.String(), dead.String()
	return c
}

// spark draws a line through what ended in each step, with a mark where something died.
func spark(list []journal.Tally) chart {
	const height = 20
	c := summed(list)
	c.W, c.H = 4*(len(list)-1), height
	if c.Quiet {
		return c
	}
	most := int64(1)
	for _, t := range list {
		most = max(most, t.Succeeded+t.Failed)
	}
	var line, dead strings.Builder
	for i, t := range list {
		y := float64(height-1) - float64((t.Succeeded+t.Failed)*(height-2))/float64(most)
		fmt.Fprintf(&line, "%c%d %s", "ML"[min(i, 1)], 4*i, short(y))
		if t.Dead > 0 {
			fmt.Fprintf(&dead, "M%d 0V%d", 4*i, height)
		}
	}
	c.Line, c.Dead = line.String(), dead.String()
	return c
}

func summed(list []journal.Tally) (c chart) {
	for _, t := range list {
		c.Sum.Made += t.Made
		c.Sum.Succeeded += t.Succeeded
		c.Sum.Failed += t.Failed
		c.Sum.Dead += t.Dead
		c.Most = max(c.Most, t.Succeeded+t.Failed+t.Dead)
	}
	c.Quiet = c.Sum == journal.Tally{}
	c.SucceededN, c.FailedN, c.DeadN = grouped(c.Sum.Succeeded), grouped(c.Sum.Failed), grouped(c.Sum.Dead)
	return c
}

func short(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }

func stepText(d time.Duration) string {
	if d == time.Minute {
		return "a minute"
	}
	return fmt.Sprintf("%d minutes", int(d/time.Minute))
}

// history answers what happened in each step: /api/v1/history?step=1m&steps=60&handler=3.
func (s *Server) history(w http.ResponseWriter, r *http.Request) {
	step, steps, handler := time.Minute, 60, 0
	for name, values := range r.URL.Query() {
		var err error
		switch name {
		case "step":
			if step, err = time.ParseDuration(values[0]); err == nil && (step < time.Minute || step%time.Minute != 0) {
				err = fmt.Errorf("want whole minutes, such as 1m or 15m")
			}
		case "steps":
			if steps, err = strconv.Atoi(values[0]); err == nil && (steps < 1 || steps > 1440) {
				err = fmt.Errorf("want 1 to 1440")
			}
		case "handler":
			handler, err = strconv.Atoi(values[0])
		default:
			err = fmt.Errorf("there is no such parameter; there are step, steps and handler")
		}
		if err != nil {
			fail(w, http.StatusBadRequest, "%s=%s: %v", name, values[0], err)
			return
		}
	}
	if step > 24*time.Hour || time.Duration(steps)*step > 24*time.Hour {
		fail(w, http.StatusBadRequest, "step=%s, steps=%d: a day is kept", step, steps)
		return
	}
	now := time.Now().UTC()
	list := s.opts.Journal.History(now, step, steps)[handler]
	if list == nil {
		list = make([]journal.Tally, steps)
	}
	answer(w, http.StatusOK, struct {
		From  time.Time       `json:"from"`
		Step  float64         `json:"step_seconds"`
		Steps []journal.Tally `json:"steps"`
	}{now.Truncate(step).Add(-step * time.Duration(steps-1)), step.Seconds(), list})
}
