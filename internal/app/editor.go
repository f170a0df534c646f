package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/rogpeppe/go-internal/diff"
	"golang.org/x/sys/unix"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/dispatch"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/web"
)

// editor changes handlers.yaml for the console.
type editor struct {
	*App
	mu    sync.Mutex
	texts []version // that forms were made of, the newest last
}

// version is a text of a file that somebody has open in a form.
type version struct {
	base string
	text []byte
}

// maxVersions bounds how many texts are kept to say what has changed since.
const maxVersions = 16

func (d *editor) keep(text []byte) (base string) {
	sum := sha256.Sum256(text)
	base = hex.EncodeToString(sum[:8])
	d.mu.Lock()
	defer d.mu.Unlock()
	d.texts = slices.DeleteFunc(d.texts, func(v version) bool { return v.base == base })
	if len(d.texts) == maxVersions {
		d.texts = slices.Delete(d.texts, 0, 1)
	}
	d.texts = append(d.texts, version{base, text})
	return base
}

func (d *editor) kept(base string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.texts {
		if v.base == base {
			return v.text
		}
	}
	return nil
}

// Fields implements web.Editor.
func (d *editor) Fields() []web.Field {
	var list []web.Field
	for _, f := range config.DraftFields() {
		list = append(list, web.Field{Name: f.Name, Type: string(f.Type), Choices: f.Choices, Doc: f.Doc, Default: f.Default})
	}
	return list
}

// EventTypes implements web.Editor.
func (d *editor) EventTypes() []web.EventTitle {
	var list []web.EventTitle
	for _, t := range d.loaded.Config.EventTypes() {
		list = append(list, web.EventTitle{Name: t.Name, Title: t.Title, Entity: t.Entity})
	}
	order := []string{"clients", "accounts", "packages"}
	slices.SortStableFunc(list, func(a, b web.EventTitle) int { return slices.Index(order, a.Entity) - slices.Index(order, b.Entity) })
	return list
}

// handlersFile is a file with handlers, as it is.
type handlersFile struct {
	name, path string
	text       []byte
}

func openHandlers(name string) (f handlersFile, err error) {
	f.name = name
	if f.path, err = filepath.EvalSymlinks(name); err != nil {
		return f, refused("%s cannot be found: %v", name, err)
	}
	if f.text, err = os.ReadFile(f.path); err != nil {
		return f, refused("%s cannot be read: %v", name, err)
	}
	return f, nil
}

// current loads the files as they are.
func (d *editor) current() (*config.Handlers, error) {
	h, err := d.loadHandlers(nil)
	if err != nil {
		return nil, refused("handlers.yaml has a mistake, which must be corrected first: %v", firstLine(err))
	}
	return h, nil
}

func find(h *config.Handlers, id int) (*config.Handler, error) {
	i := slices.IndexFunc(h.Handlers, func(c config.Handler) bool { return c.ID == id })
	if i < 0 {
		return nil, web.ErrNoHandler
	}
	return &h.Handlers[i], nil
}

// Draft implements web.Editor.
func (d *editor) Draft(id int) (web.Draft, error) {
	h, err := d.current()
	if err != nil {
		return web.Draft{}, err
	}
	file := d.loaded.Options.HandlersPath
	if id != 0 {
		c, err := find(h, id)
		if err != nil {
			return web.Draft{}, err
		}
		file = c.Pos.File // it may be included
	}
	f, err := openHandlers(file)
	if err != nil {
		return web.Draft{}, err
	}
	out := web.Draft{ID: id, Fields: map[string]string{}, File: f.name, Base: d.keep(f.text), ReadOnly: readOnly(f.path)}
	if id == 0 {
		return out, nil
	}
	fields, fixed, err := config.ReadDraft(f.name, f.text, id)
	if err != nil {
		return web.Draft{}, refused("%v", err)
	}
	out.Fields, out.Fixed = fields, fixed
	return out, nil
}

// readOnly is why a file cannot be replaced.
func readOnly(path string) string {
	folder := filepath.Dir(path)
	if err := unix.Access(folder, unix.W_OK); err != nil {
		return fmt.Sprintf("billhook may not write in %s (%v)", folder, err)
	}
	return ""
}

// change is an edit that was judged: a file before and after.
type change struct {
	handlersFile
	after []byte
	ids   []int // of the handlers that are other afterwards
	// handlers are those of all files, as they would be.
	handlers *config.Handlers
}

// judge makes the texts of an edit, judged as far as nobody is called.
func (d *editor) judge(e web.Edit) (id int, changes []change, err error) {
	h, err := d.current()
	if err != nil {
		return 0, nil, err
	}
	if e.Priorities != nil {
		changes, err = d.priorities(h, e.Priorities)
		return 0, changes, err
	}
	id = e.ID
	name := d.loaded.Options.HandlersPath
	if id != 0 {
		c, err := find(h, id)
		if err != nil {
			return 0, nil, err
		}
		name = c.Pos.File
	} else {
		id = d.nextID(h)
	}
	f, err := openHandlers(name)
	if err != nil {
		return 0, nil, err
	}
	c := change{handlersFile: f, ids: []int{id}}
	switch {
	case e.Remove:
		c.after, err = config.RemoveHandler(f.name, f.text, id)
		c.ids = nil
	case e.ID == 0:
		c.after, err = config.AddHandler(f.name, f.text, id, e.Fields)
	default:
		c.after, err = config.PutHandler(f.name, f.text, id, e.Fields)
	}
	if field := (*config.DraftError)(nil); errors.As(err, &field) {
		return id, nil, &web.ProblemsError{Problems: []web.FieldProblem{{Field: field.Field, Text: field.Problem, Remedy: field.Remedy}}}
	}
	if err != nil {
		return id, nil, refused("%v", err)
	}
	if c.handlers, err = d.loadHandlers(map[string][]byte{c.name: c.after}); err != nil {
		return id, nil, d.problems(err)
	}
	return id, []change{c}, nil
}

// priorities are the changes that give handlers others.
func (d *editor) priorities(h *config.Handlers, want map[int]int) (changes []change, err error) {
	drafts := map[string]map[int]config.Draft{}
	for id, p := range want {
		c, err := find(h, id)
		if err != nil {
			return nil, err
		}
		if drafts[c.Pos.File] == nil {
			drafts[c.Pos.File] = map[int]config.Draft{}
		}
		drafts[c.Pos.File][id] = config.Draft{"priority": strconv.Itoa(p)}
	}
	texts := map[string][]byte{}
	for _, name := range slices.Sorted(maps.Keys(drafts)) {
		f, err := openHandlers(name)
		if err != nil {
			return nil, err
		}
		after, err := config.PutHandlers(f.name, f.text, drafts[name])
		if err != nil {
			return nil, refused("%v", err)
		}
		texts[name] = after
		changes = append(changes, change{handlersFile: f, after: after, ids: slices.Sorted(maps.Keys(drafts[name]))})
	}
	loaded, err := d.loadHandlers(texts)
	if err != nil {
		return nil, d.problems(err)
	}
	for i := range changes {
		changes[i].handlers = loaded
	}
	return changes, nil
}

// problems are the mistakes in an error, each at its field.
func (d *editor) problems(err error) error {
	found := mistakes(err)
	if len(found) == 0 {
		return refused("%v", err)
	}
	out := &web.ProblemsError{}
	for _, m := range found {
		p := web.FieldProblem{Text: m.Problem, Remedy: m.Remedy}
		if _, field, ok := strings.Cut(m.Field, "]."); ok && strings.HasPrefix(m.Field, "handlers[") {
			p.Field = field
		}
		out.Problems = append(out.Problems, p)
	}
	return out
}

// nextID is a number that no handler has or had, as far as the journal remembers.
func (d *editor) nextID(h *config.Handlers) int {
	most := 0
	for i := range h.Handlers {
		most = max(most, h.Handlers[i].ID)
	}
	for k := range d.journal.Counts() {
		most = max(most, k.Handler)
	}
	return most + 1
}

// proposal is what changes do to the files, and the version that they were made for.
func proposal(id int, changes []change) (web.Proposal, error) {
	p := web.Proposal{ID: id}
	for _, c := range changes {
		shown, err := difference(c.name, c.text, c.after)
		if err != nil {
			return p, err
		}
		p.File, p.Diff = c.name, p.Diff+shown
	}
	return p, nil
}

// difference is how a file differs, without secrets.
func difference(name string, before, after []byte) (string, error) {
	if string(before) == string(after) {
		return "", nil
	}
	was, err := config.HideSecrets(name, before)
	if err != nil {
		return "", refused("%v", err)
	}
	is, err := config.HideSecrets(name, after)
	if err != nil {
		return "", refused("%v", err)
	}
	if string(was) == string(is) {
		return "(only secrets differ)\n", nil
	}
	file := filepath.Base(name)
	_, text, _ := strings.Cut(string(diff.Diff(file, was, file, is)), "\n") // without the command
	return text, nil
}

// Propose implements web.Editor.
func (d *editor) Propose(ctx context.Context, e web.Edit) (web.Proposal, error) {
	id, changes, err := d.judge(e)
	if err != nil {
		return web.Proposal{}, err
	}
	if err := d.conflict(e, id, changes); err != nil {
		return web.Proposal{}, err
	}
	p, err := proposal(id, changes)
	for _, c := range changes {
		p.Base = d.keep(c.text)
	}
	return p, err
}

// conflict refuses an edit that was made for another version of the file.
func (d *editor) conflict(e web.Edit, id int, changes []change) error {
	if e.Base == "" || len(changes) != 1 {
		return nil
	}
	c := changes[0]
	now := d.keep(c.text)
	if now == e.Base {
		return nil
	}
	p, err := proposal(id, changes)
	if err != nil {
		return err
	}
	p.Base = now
	conflict := &web.ConflictError{Proposal: p}
	if old := d.kept(e.Base); old != nil {
		if conflict.Since, err = difference(c.name, old, c.text); err != nil {
			return err
		}
	}
	return conflict
}

// Save implements web.Editor.
func (d *editor) Save(ctx context.Context, e web.Edit) (web.Proposal, error) {
	d.editing.Lock()
	defer d.editing.Unlock()
	id, changes, err := d.judge(e)
	if err != nil {
		return web.Proposal{}, err
	}
	if err := d.conflict(e, id, changes); err != nil {
		return web.Proposal{}, err
	}
	p, err := proposal(id, changes)
	if err != nil {
		return p, err
	}
	return p, d.put(ctx, changes)
}

// put writes files and returns when they are in force. When they cannot be, they are as
// they were.
func (a *App) put(ctx context.Context, changes []change) error {
	for _, c := range changes {
		for _, id := range c.ids {
			if err := a.canBe(ctx, c.handlers, id); err != nil {
				return (&editor{App: a}).problems(err)
			}
		}
	}
	var undo []func() error
	back := func(err error) error {
		for _, u := range slices.Backward(undo) {
			if undone := u(); undone != nil {
				return fmt.Errorf("%w; and it could not be put back: %w", err, undone)
			}
		}
		return err
	}
	for _, c := range changes {
		if string(c.text) == string(c.after) {
			continue
		}
		if err := replaceFile(c.path, c.text, c.after); err != nil {
			return back(err)
		}
		undo = append(undo, func() error { return replaceFile(c.path, c.after, c.text) })
	}
	err := a.reloadNow(ctx)
	if no := (*web.RefusedError)(nil); errors.As(err, &no) {
		// What nobody could know before: the file is as it was, as far as it is still ours.
		return errors.Join(back(err), a.reloadNow(ctx))
	}
	return err
}

// Try implements web.Editor.
func (d *editor) Try(ctx context.Context, e web.Edit, t web.Trial) (web.Tried, error) {
	id, changes, err := d.judge(e)
	if err != nil {
		return web.Tried{}, err
	}
	c, err := find(changes[0].handlers, id)
	if err != nil {
		return web.Tried{}, err
	}
	o := d.loaded.Options
	o.plugins = nil
	if !t.DryRun {
		o.plugins = &pluginHost{ctx: ctx, log: d.log} // its own process, for this call
	}
	p := &problems{}
	made := p.handler(*c, &atomic.Pointer[config.Expr]{}, nil, nil, o)
	if made.Call != nil {
		defer made.Call.Close() //nolint:errcheck // it was called once
	}
	if err := p.err(); err != nil {
		return web.Tried{}, d.problems(err)
	}
	t.Handler = id
	return d.tryHandler(ctx, made, t, func(e *event.Event) (dispatch.Trial, error) {
		return d.dispatcher.TryDraft(ctx, made, e, t.DryRun), nil
	})
}
