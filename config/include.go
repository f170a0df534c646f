package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxIncluded bounds how many files an include finds.
const maxIncluded = 1000

// included is a file that handlers.yaml includes.
type included struct {
	Version  int       `yaml:"version" jsonschema:"required,minimum=1,maximum=1"`
	Handlers []Handler `yaml:"handlers" jsonschema:"required"`
}

// include reads the files that the patterns find, each once.
func (d *decoder) include(patterns []string, texts map[string][]byte) (parts []*part) {
	if d.has("include") && len(patterns) == 0 && !d.failed["include"] {
		d.fail("include", "the list is empty", "name a file, a folder or a pattern such as handlers.d/*.yaml, or remove the key")
	}
	seen := []string{filepath.Clean(d.file)}
	for i, pattern := range patterns {
		field := item("include", i)
		if d.failed[field] || d.failed["include"] {
			continue
		}
		if strings.TrimSpace(pattern) == "" {
			d.fail(field, "it is empty", "name a file, a folder or a pattern such as handlers.d/*.yaml")
			continue
		}
		files, _, err := find(d.file, pattern)
		switch {
		case errors.Is(err, path.ErrBadPattern):
			d.fail(field, fmt.Sprintf("%q is not a pattern", pattern), "write * for any name, such as handlers.d/*.yaml; a [ needs its ]")
		case errors.Is(err, fs.ErrNotExist):
			d.fail(field, fmt.Sprintf("there is no file or folder %s", pattern), "put it there, or write a pattern such as handlers.d/*.yaml, which may find nothing")
		case err != nil:
			d.fail(field, fmt.Sprintf("%s: %v", pattern, err), "let the user that runs billhook read the folder")
		case len(seen)+len(files) > maxIncluded:
			d.fail(field, fmt.Sprintf("there would be more than %d files", maxIncluded), "write a pattern that finds fewer")
			return parts
		}
		for _, file := range files {
			if slices.Contains(seen, file) {
				continue
			}
			seen = append(seen, file)
			parts = append(parts, d.included(file, texts))
		}
	}
	return parts
}

// included reads one.
func (d *decoder) included(file string, texts map[string][]byte) *part {
	data, ok := texts[file]
	if !ok {
		var err error
		if data, err = readFile(file); err != nil {
			inc := newDecoder(file, nil, d.env)
			inc.errs, _ = err.(Errors) // as it always is
			return &part{decoder: inc}
		}
	}
	inc := newDecoder(file, data, d.env)
	inc.defaults = d.defaults
	p := &part{decoder: inc}
	root, ok := inc.parse()
	if !ok {
		return p
	}
	for _, name := range []string{"defaults", "include"} {
		if key, _ := field(root, name); key != nil {
			inc.add(inc.at(key, name), "an included file has none", "write it in "+d.file)
			i := slices.Index(root.Content, key)
			root.Content = slices.Delete(root.Content, i, i+2)
		}
	}
	var v included
	inc.decode(root, valueOf(&v), "", "")
	p.handlers = v.Handlers
	return p
}

// find returns the files that a pattern of a file finds, by name, and the folder where
// they are, which need not be there. Files whose names begin with a dot are left out:
// editors, and Billhook itself, write such ones before they rename them.
func find(file, pattern string) (files []string, folder string, err error) {
	full := pattern
	if !filepath.IsAbs(pattern) {
		full = filepath.Join(filepath.Dir(file), pattern)
	}
	full = filepath.Clean(full)
	// What stands before the first part that is a pattern is taken as it is.
	parts := strings.Split(filepath.ToSlash(filepath.Clean(pattern)), "/")
	n := slices.IndexFunc(parts, func(p string) bool { return strings.ContainsAny(p, `*?[\`) })
	glob := "*.yaml"
	if n < 0 {
		info, err := os.Stat(full)
		if err != nil {
			return nil, filepath.Dir(full), err
		}
		if !info.IsDir() {
			return []string{full}, filepath.Dir(full), nil
		}
		folder = full
	} else {
		glob = strings.Join(parts[n:], "/")
		folder = full
		for range parts[n:] {
			folder = filepath.Dir(folder)
		}
	}
	if _, err := path.Match(glob, ""); err != nil {
		return nil, folder, err
	}
	found, err := fs.Glob(os.DirFS(folder), glob)
	if err != nil {
		return nil, folder, err
	}
	for _, name := range found {
		full := filepath.Join(folder, filepath.FromSlash(name))
		if info, err := os.Stat(full); strings.HasPrefix(path.Base(name), ".") || err == nil && info.IsDir() {
			continue
		}
		files = append(files, full)
	}
	slices.Sort(files)
	return files, folder, nil
}

// HandlersFiles returns handlers.yaml and the files that it includes as it is now, and
// the folders where more of them may appear. It judges nothing: it is for whoever wants
// to see when a mistake has been corrected.
func HandlersFiles(name string, env Lookup) (files, folders []string) {
	files = []string{name}
	data, err := readFile(name)
	if err != nil {
		return files, nil
	}
	var doc yaml.Node
	if safely(func() error { return yaml.Unmarshal(data, &doc) }) != nil || len(doc.Content) == 0 {
		return files, nil
	}
	if env == nil {
		env = func(string) (string, bool) { return "", false }
	}
	_, list := field(doc.Content[0], "include")
	if list == nil {
		return files, nil
	}
	for _, n := range list.Content {
		pattern, problem, _ := interpolate(scalarText(n), env)
		if problem != "" || pattern == "" {
			continue
		}
		found, folder, _ := find(name, pattern)
		folders = append(folders, folder)
		for _, f := range found {
			if !slices.Contains(files, f) && len(files) < maxIncluded {
				files = append(files, f)
			}
		}
	}
	return files, folders
}
