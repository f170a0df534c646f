package app

import (
	"context"
	"errors"
	"os"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/journal"
)

// VerifyOptions of VerifyJournal.
type VerifyOptions struct {
	ConfigPath string // of the file that names the journal
	Path       string // of the journal; empty: what the file says
	Env        config.Lookup
	Progress   func(keys int64) // is called now and then; nil: not
}

// Verified is what was found.
type Verified struct {
	Path       string `json:"path"`
	OK         bool   `json:"ok"`
	Executions int64  `json:"executions"`
	Open       int64  `json:"open"`              // of those, pending or held
	Problem    string `json:"problem,omitempty"` // a line for each thing
	Remedy     string `json:"remedy,omitempty"`
}

const damageRemedy = `keep a copy of the folder as it is, then restore the whole folder from a backup. Where there is none, move it away and ` +
	`make slot and journal anew: executions that were not done are lost, and so is what was remembered of each row`

// VerifyJournal reads the journal of a Billhook that does not run, and changes nothing
// of it. An error says that it could not be looked at; damage is none.
func VerifyJournal(ctx context.Context, o VerifyOptions) (Verified, error) {
	v := Verified{Path: o.Path}
	if v.Path == "" {
		if o.Env == nil {
			o.Env = os.LookupEnv
		}
		c, err := config.LoadBillhook(o.ConfigPath, o.Env)
		if err != nil {
			return v, err
		}
		v.Path = c.Journal.Path
	}
	damaged := func(err error) (Verified, error) {
		v.Problem, v.Remedy = err.Error(), damageRemedy
		return v, nil
	}
	j, err := journal.Open(journal.Options{Path: v.Path, ReadOnly: true})
	if errors.Is(err, journal.ErrDamaged) {
		return damaged(err)
	}
	if err != nil {
		return v, err
	}
	err = j.Verify(ctx, o.Progress)
	for hs, n := range j.Counts() {
		v.Executions += n
		if hs.Status.Open() {
			v.Open += n
		}
	}
	closing := j.Close()
	switch {
	case errors.Is(err, journal.ErrDamaged):
		return damaged(err)
	case err != nil:
		return v, err
	case errors.Is(closing, journal.ErrDamaged):
		return damaged(closing)
	case closing != nil:
		return v, closing
	}
	v.OK = true
	return v, nil
}
