package app

import (
	"errors"
	"fmt"
	"os"

	"github.com/billhook/billhook/config"
)

// Linted is what Lint found in files without a mistake.
type Linted struct {
	Tables   int `json:"tables"`
	Events   int `json:"events"`   // of the user's own
	Handlers int `json:"handlers"` // archived ones, too
	Files    int `json:"files"`    // of handlers
}

// Mistake is one that Lint found.
type Mistake = config.Error

// Change is one that CompareHandlers found.
type Change = config.Change

// Lint judges both files without anything else: no database is asked, scripts and plugins
// need not be there, and variables that are not set are taken for right ones. The
// mistakes are in the order of the files. The error is one that is not in them.
func Lint(o Options) (Linted, []*Mistake, error) {
	o.Env = standIns(o.Env)
	l, _, err := offline(o)
	if err != nil {
		found := mistakes(err)
		if len(found) == 0 {
			return Linted{}, nil, err
		}
		return Linted{}, found, nil
	}
	files, _ := config.HandlersFiles(o.HandlersPath, o.Env)
	return Linted{
		Tables: len(checkedTables(l.Config, l.Mapping)), Events: len(l.Config.Events),
		Handlers: len(l.Handlers.Handlers), Files: len(files),
	}, nil, nil
}

// mistakes are those in an error, which may be several joined.
func mistakes(err error) (list []*Mistake) {
	var one *config.Error
	switch e := err.(type) {
	case config.Errors:
		return e
	case interface{ Unwrap() []error }:
		for _, below := range e.Unwrap() {
			list = append(list, mistakes(below)...)
		}
		return list
	}
	if errors.As(err, &one) {
		return []*Mistake{one}
	}
	return nil
}

// Effective returns both files as they are in force, with defaults and what they include
// and without secrets.
func Effective(o Options) (billhook, handlers []byte, err error) {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	l, err := Load(o)
	if err != nil {
		return nil, nil, err
	}
	if billhook, err = l.Config.Effective(); err == nil {
		handlers, err = l.Handlers.Effective()
	}
	return billhook, handlers, err
}

// CompareHandlers returns how the handlers of o differ from those in another file, an
// older version of it.
func CompareHandlers(o Options, other string) ([]Change, error) {
	o.Env = standIns(o.Env)
	l, err := Load(o)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(other)
	if err != nil {
		return nil, fmt.Errorf("read handlers to compare with: %w", err)
	}
	// As if it stood in the place of the other: a version from elsewhere names the same
	// scripts and includes the same files.
	before, err := config.ParseHandlers(o.HandlersPath, text, o.Env, l.Config)
	if err != nil {
		if _, named := config.LoadHandlers(other, o.Env, l.Config); named != nil {
			err = named
		}
		return nil, err
	}
	return config.Compare(before, l.Handlers)
}

// pending returns what loading handlers.yaml now would change.
func (a *App) pending() ([]Change, error) {
	h, err := a.loadHandlers(nil)
	if err != nil {
		return nil, refused("handlers.yaml would be refused:\n%v", err)
	}
	return config.Compare(a.inForce.Load(), h)
}
