// Package config reads Billhook's two files: billhook.yaml, the DBA's (source,
// entities, the user's own events, journal, listeners), and handlers.yaml, the
// operator's (who is told about which event, and how).
//
// It promises that there is one loader for start, reload, check, API and form;
// that every mistake in a file is reported at once, each with file, line, column,
// field, what is wrong and the remedy; that a loaded value is complete (defaults
// applied, event names canonical, paths absolute or relative to the working
// directory, secrets read); and that a Secret never prints itself.
//
// It does not connect to anything, does not check that tables, scripts or plugins
// exist, and does not compile expressions: it keeps them with their position, so
// that whoever compiles them reports a mistake in the same form (Expr.At).
// Values are plain; internal/app translates them into the Options of the other
// packages, and only internal/app imports this one.
//
// Start with LoadBillhook and LoadHandlers. The keys, their defaults and their
// meaning are in docs/configuration.md; the defaults stand in defaults.go and the
// event types in catalogue.go.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"gopkg.in/yaml.v3"
)

// Lookup finds an environment variable, as os.LookupEnv does. A nil Lookup knows
// none.
type Lookup func(name string) (value string, ok bool)

// maxFile bounds a configuration file; maxSecretFile bounds what a *_file key
// names.
const (
	maxFile       = 4 << 20
	maxSecretFile = 64 << 10
)

// LoadBillhook reads billhook.yaml. The error, if any, is an Errors.
func LoadBillhook(path string, env Lookup) (*Billhook, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return ParseBillhook(path, data, env)
}

// ParseBillhook is LoadBillhook for bytes that are already at hand. The name
// stands in errors, and its directory is where relative paths start. The files
// that *_file keys name are still read. The error, if any, is an Errors.
func ParseBillhook(name string, data []byte, env Lookup) (*Billhook, error) {
	d := newDecoder(name, data, env)
	b := new(Billhook)
	if root, ok := d.parse(); ok {
		d.decode(root, valueOf(b), "", "")
		d.billhook(b)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	b.Files, b.pos = d.files, d.pos
	return b, nil
}

// LoadHandlers reads handlers.yaml and what it includes. The names of events are judged
// against the catalogue of b, which holds the user's own events and says which built-in
// ones the mapping can produce; a nil b means the built-in catalogue. The error, if
// any, is an Errors.
func LoadHandlers(path string, env Lookup, b *Billhook) (*Handlers, error) {
	return LoadHandlersAs(path, nil, env, b)
}

// LoadHandlersAs is LoadHandlers where some of the files hold other texts than they do,
// by their names as Pos.File has them: for a change that is not made yet.
func LoadHandlersAs(path string, texts map[string][]byte, env Lookup, b *Billhook) (*Handlers, error) {
	data, ok := texts[path]
	if !ok {
		var err error
		if data, err = readFile(path); err != nil {
			return nil, err
		}
	}
	return parseHandlers(path, data, texts, env, b)
}

// ParseHandlers is LoadHandlers for bytes that are already at hand, as
// ParseBillhook is for LoadBillhook.
func ParseHandlers(name string, data []byte, env Lookup, b *Billhook) (*Handlers, error) {
	return parseHandlers(name, data, nil, env, b)
}

func parseHandlers(name string, data []byte, texts map[string][]byte, env Lookup, b *Billhook) (*Handlers, error) {
	d := newDecoder(name, data, env)
	h := new(Handlers)
	parts := []*part{{decoder: d}}
	if root, ok := d.parse(); ok {
		d.decode(root, valueOf(h), "", "")
		if root.Kind == yaml.MappingNode && !d.has("handlers") && !d.has("include") && !d.meant["handlers"] && !d.meant["include"] {
			d.fail("handlers", "it is missing", "add handlers, a list; [] means none")
		}
		d.defaulted(h.Defaults)
		parts[0].handlers = h.Handlers
		parts = append(parts, d.include(h.Include, texts)...)
		handlers(parts, b)
	}
	var errs Errors
	h.Handlers, h.Files = nil, nil
	for _, p := range parts {
		p.errs.sort()
		errs = append(errs, p.errs...)
		for j := range p.handlers {
			p.handlers[j].places = p.pos
		}
		h.Handlers = append(h.Handlers, p.handlers...)
		h.Files = append(h.Files, p.files...)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return h, nil
}

func readFile(path string) ([]byte, error) {
	pos := Pos{File: path}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, Errors{pos.Problem("there is no such file", "give the right path, or copy the example file there")}
	case err != nil:
		return nil, Errors{pos.Problem(reason(err), "let the user that runs billhook read the file and its directory")}
	case info.IsDir():
		return nil, Errors{pos.Problem("it is a directory", "give the path of a file, such as "+filepath.Join(path, "billhook.yaml"))}
	case info.Size() > maxFile:
		return nil, Errors{pos.Problem(fmt.Sprintf("the file is larger than %d MiB", maxFile>>20), "give the path of a configuration file")}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, Errors{pos.Problem(reason(err), "let the user that runs billhook read the file")}
	}
	return data, nil
}

// reason is the cause of a file error without the path, which the position
// already names.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return "it cannot be read: " + pe.Err.Error()
	}
	return "it cannot be read: " + err.Error()
}
