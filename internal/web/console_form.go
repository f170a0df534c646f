package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/billhook/billhook/internal/handler"
)

// maxForm bounds a form; a template may be long.
const maxForm = 1 << 20

// formField is a field as the form shows it.
type formField struct {
	Field
	Label   string
	Value   string
	Problem string
	Fixed   bool // only the file can change it
	Rows    int
}

// ID is the element's.
func (f formField) ID() string { return "f-" + strings.ReplaceAll(f.Name, ".", "-") }

// About is what it means, without the name that is shown before it.
func (f formField) About() string {
	name := f.Name[strings.LastIndexByte(f.Name, '.')+1:]
	return strings.TrimPrefix(f.Doc, name+" ")
}

// Area reports whether it has several lines.
func (f formField) Area() bool {
	return slices.Contains([]string{"lines", "list", "map", "secrets", "yaml"}, f.Type)
}

// Hint says how it is written.
func (f formField) Hint() string {
	switch f.Type {
	case "list":
		return "One on each line."
	case "map":
		return "name: value, one on each line."
	case "secrets":
		return "name: value, one on each line. Values are not shown: *** keeps one that is there."
	case "secret":
		return "What is set is not shown; *** keeps it."
	case "yaml":
		return "As in the file, name: value. What is set is not shown; *** keeps it."
	}
	return ""
}

// formSection is a group of fields.
type formSection struct {
	ID, Title string
	Kind      string // shown for this kind of handler alone
	Open      bool   // not behind a click
	Fields    []formField
}

// formEvents are the event types of a group.
type formEvents struct {
	Entity string
	Types  []formEvent
}

type formEvent struct {
	EventTitle
	Chosen bool
}

// handlerForm is the page of the form.
type handlerForm struct {
	ID       int
	Name     string
	File     string
	Base     string
	ReadOnly string
	Kind     string
	Kinds    []string
	Archived bool
	Events   []formEvents
	Others   string // patterns and other names
	EventBad string
	Sections []formSection
	Problems []FieldProblem // in no field of the form
	Conflict *ConflictError
	Preview  *formPreview
	TryType  string
	TryObj   string
	Types    []EventTitle
}

// formPreview is what the form would do.
type formPreview struct {
	Problems []FieldProblem
	Diff     string
	Tried    *Tried
	Body     string
	Note     string
	Attempt  *attemptJSON
	Request  exchangeView
	Response exchangeView
}

// sectionFields are the fields of each section, in their order; what is in none is in the
// last of its kind.
func formSections() []formSection {
	names := func(s string) (list []formField) {
		for n := range strings.FieldsSeq(s) {
			list = append(list, formField{Field: Field{Name: n}})
		}
		return list
	}
	return []formSection{
		{ID: "basics", Title: "Handler", Open: true, Fields: names("name status priority")},
		{ID: "http", Title: "HTTP", Kind: "http", Open: true, Fields: names("http.url http.method http.headers http.secret_env http.bearer_env")},
		{ID: "script", Title: "Script", Kind: "script", Open: true, Fields: names("script.path script.args script.env")},
		{ID: "plugin", Title: "Plugin", Kind: "plugin", Open: true, Fields: names("plugin.path plugin.args plugin.checksum plugin.config")},
		{ID: "payload", Title: "Filter and payload", Open: true, Fields: names("when format template")},
		{ID: "retry", Title: "Retries", Fields: names("timeout retry.attempts retry.initial retry.max retry.factor retry.jitter retry.schedule retry.max_age")},
		{ID: "order", Title: "Order and limits", Fields: names("blocking on_failure concurrency rate breaker.failures breaker.pause breaker.max")},
		{ID: "more-http", Title: "More of HTTP", Kind: "http"},
		{ID: "more-script", Title: "More of the script", Kind: "script"},
		{ID: "more", Title: "More", Fields: names("template_file content_type")},
	}
}

// label is a field's name for people.
func label(name string) string {
	special := map[string]string{
		"http.url": "URL", "when": "Only when (CEL)", "template": "Template (Go)", "http.bearer_env": "Bearer token from variable",
		"http.secret_env": "Signing secret from variable", "http.secret": "Signing secret", "on_dead": "When dead, call handler", "capture": "Keep of each exchange",
	}
	if s, ok := special[name]; ok {
		return s
	}
	_, rest, nested := strings.Cut(name, ".")
	if !nested || strings.HasPrefix(name, "retry.") || strings.HasPrefix(name, "breaker.") {
		rest = name
	}
	rest = strings.ReplaceAll(strings.ReplaceAll(strings.TrimPrefix(rest, "retry."), "_", " "), ".", " ")
	for from, to := range map[string]string{"url": "URL", "tls": "TLS", "ca": "CA", "cpu": "CPU", "env": "environment"} {
		words := strings.Fields(rest)
		for i, w := range words {
			if w == from && (w != "env" || i == 0) {
				words[i] = to
			}
		}
		rest = strings.Join(words, " ")
	}
	return strings.ToUpper(rest[:1]) + rest[1:]
}

// makeForm lays a draft out.
func (c *console) makeForm(d Draft, problems []FieldProblem) handlerForm {
	f := handlerForm{ID: d.ID, Name: d.Fields["name"], File: d.File, Base: d.Base, ReadOnly: d.ReadOnly, Kinds: []string{"http", "script", "plugin"}, Archived: d.Fields["status"] == "archived"}
	for _, kind := range f.Kinds {
		for name, v := range d.Fields {
			if v != "" && strings.HasPrefix(name, kind+".") {
				f.Kind = kind
			}
		}
		for _, name := range d.Fixed {
			if f.Kind == "" && strings.HasPrefix(name, kind+".") {
				f.Kind = kind
			}
		}
	}
	if f.Kind == "" {
		f.Kind = "http"
	}
	all := c.opts.Editor.Fields()
	placed := map[string]bool{"events": true}
	f.Sections = formSections()
	fill := func(ff *formField) {
		i := slices.IndexFunc(all, func(x Field) bool { return x.Name == ff.Name })
		if i < 0 {
			panic("the form has a field that there is not: " + ff.Name)
		}
		ff.Field, ff.Label, ff.Value, ff.Fixed = all[i], label(ff.Name), d.Fields[ff.Name], slices.Contains(d.Fixed, ff.Name)
		ff.Rows = min(max(2, 1+strings.Count(ff.Value, "\n")), 16)
		if ff.Type == "lines" && ff.Name == "template" {
			ff.Rows = max(ff.Rows, 4)
		}
		placed[ff.Name] = true
	}
	for i := range f.Sections {
		for k := range f.Sections[i].Fields {
			fill(&f.Sections[i].Fields[k])
		}
	}
	for _, x := range all {
		if placed[x.Name] {
			continue
		}
		head, _, _ := strings.Cut(x.Name, ".")
		at := slices.IndexFunc(f.Sections, func(s formSection) bool { return s.ID == "more-"+head })
		if at < 0 {
			at = len(f.Sections) - 1
		}
		ff := formField{Field: Field{Name: x.Name}}
		fill(&ff)
		f.Sections[at].Fields = append(f.Sections[at].Fields, ff)
	}
	f.Problems = f.place(problems)
	chosen := strings.Split(d.Fields["events"], "\n")
	f.Types = c.opts.Editor.EventTypes()
	for _, t := range f.Types {
		entity := slices.IndexFunc(f.Events, func(g formEvents) bool { return g.Entity == t.Entity })
		if entity < 0 {
			entity = len(f.Events)
			f.Events = append(f.Events, formEvents{Entity: t.Entity})
		}
		i := slices.Index(chosen, t.Name)
		if i >= 0 {
			chosen = slices.Delete(chosen, i, i+1)
		}
		f.Events[entity].Types = append(f.Events[entity].Types, formEvent{t, i >= 0})
	}
	f.Others = strings.TrimSpace(strings.Join(chosen, "\n"))
	return f
}

// place puts mistakes beside their fields and returns those that have none.
func (f *handlerForm) place(problems []FieldProblem) (rest []FieldProblem) {
	for _, p := range problems {
		text := p.Text
		if p.Remedy != "" {
			text += "; " + p.Remedy
		}
		name := p.Field
		if name == "event" || strings.HasPrefix(name, "event.") || strings.HasPrefix(name, "events") {
			f.EventBad = text
			continue
		}
		var at *formField
		for i := range f.Sections {
			for k := range f.Sections[i].Fields {
				ff := &f.Sections[i].Fields[k]
				if name == ff.Name || strings.HasPrefix(name, ff.Name+".") || strings.HasPrefix(name, ff.Name+"[") {
					at = ff
					f.Sections[i].Open = true
				}
			}
		}
		if at == nil {
			rest = append(rest, p)
			continue
		}
		if at.Problem != "" {
			at.Problem += " "
		}
		at.Problem += text
	}
	return rest
}

// editing returns the handler of a form's address; false when the answer is given already.
func (c *console) editing(w http.ResponseWriter, r *http.Request) (id int, ok bool) {
	switch {
	case c.opts.Editor == nil:
		c.trouble(w, r, http.StatusForbidden, c.noEditing())
		return 0, false
	case !c.mayAct(r):
		c.trouble(w, r, http.StatusForbidden, "A viewer may only look: changing handlers needs the role operator.")
		return 0, false
	}
	text := r.PathValue("id")
	if text == "" {
		return 0, true
	}
	id, err := strconv.Atoi(text)
	if err != nil || id < 1 {
		c.trouble(w, r, http.StatusNotFound, "A handler has a number.")
		return 0, false
	}
	return id, true
}

// noEditing says why handlers are not changed here.
func (c *console) noEditing() string {
	if len(c.opts.Access) == 0 {
		return "Handlers are changed in handlers.yaml. To change them here too, say who may: set http.users in billhook.yaml."
	}
	return "Handlers are changed in handlers.yaml: http.edit_handlers in billhook.yaml is false."
}

func (c *console) formPage(w http.ResponseWriter, r *http.Request) {
	id, ok := c.editing(w, r)
	if !ok {
		return
	}
	d, err := c.opts.Editor.Draft(id)
	if err != nil {
		c.refused(w, r, err)
		return
	}
	c.showForm(w, r, http.StatusOK, c.makeForm(d, nil))
}

func (c *console) showForm(w http.ResponseWriter, r *http.Request, code int, f handlerForm) {
	title := "New handler"
	if f.ID != 0 {
		title = fmt.Sprintf("Handler %d", f.ID)
	}
	c.show(w, r, code, "handler", title, "/handlers", f)
}

// posted is what a form holds, on the ground of what the file has.
func (c *console) posted(form url.Values, d Draft) (Draft, Edit) {
	kind := form.Get("kind")
	out := d
	out.Fields = map[string]string{}
	if base := form.Get("base"); base != "" {
		out.Base = base
	}
	for _, f := range c.opts.Editor.Fields() {
		if slices.Contains(d.Fixed, f.Name) {
			continue
		}
		head, _, _ := strings.Cut(f.Name, ".")
		other := slices.Contains([]string{"http", "script", "plugin"}, head) && head != kind
		switch values, given := form["f."+f.Name]; {
		case f.Name == "events":
			// As the file has them, as far as they are still there, and then the new ones.
			all := slices.Concat(values, textLines(form.Get("f.events.other")))
			var list []string
			for _, e := range append(textLines(d.Fields["events"]), all...) {
				if slices.Contains(all, e) && !slices.Contains(list, e) {
					list = append(list, e)
				}
			}
			out.Fields["events"] = strings.Join(list, "\n")
		case other:
			out.Fields[f.Name] = ""
		case given:
			out.Fields[f.Name] = strings.ReplaceAll(values[0], "\r\n", "\n")
		default:
			out.Fields[f.Name] = d.Fields[f.Name]
		}
	}
	return out, Edit{ID: d.ID, Fields: out.Fields, Base: out.Base}
}

func textLines(text string) (list []string) {
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" {
			list = append(list, l)
		}
	}
	return list
}

// postForm saves a handler, shows what saving would do, or calls it to see.
func (c *console) postForm(w http.ResponseWriter, r *http.Request) {
	id, ok := c.editing(w, r)
	if !ok {
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		c.trouble(w, r, http.StatusBadRequest, err.Error())
		return
	}
	now, err := c.opts.Editor.Draft(id)
	if err != nil {
		c.refused(w, r, err)
		return
	}
	d, e := c.posted(r.PostForm, now)
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	do := r.PostForm.Get("do")
	if do == "preview" || do == "test" {
		f := c.makeForm(d, nil)
		f.TryType, f.TryObj = r.PostForm.Get("try.event"), r.PostForm.Get("try.object")
		f.Preview = c.preview(ctx, e, Trial{Event: f.TryType, Object: f.TryObj, DryRun: do == "preview"})
		if t := f.Preview.Tried; t != nil && t.Called {
			c.act(r, "handler tried", "handler", id, "type", t.Event, "event", t.EventID)
		}
		if r.Header.Get("HX-Request") != "" {
			c.fragment(w, "handler", "preview", f.Preview)
			return
		}
		c.showForm(w, r, http.StatusOK, f)
		return
	}
	p, err := c.opts.Editor.Save(ctx, e)
	var wrong *ProblemsError
	var conflict *ConflictError
	var no *RefusedError
	switch {
	case errors.As(err, &wrong):
		c.showForm(w, r, http.StatusUnprocessableEntity, c.makeForm(d, wrong.Problems))
		return
	case errors.As(err, &conflict):
		d.Base = conflict.Base
		f := c.makeForm(d, nil)
		f.Conflict = conflict
		c.showForm(w, r, http.StatusConflict, f)
		return
	case errors.As(err, &no):
		f := c.makeForm(d, []FieldProblem{{Text: no.Text}})
		c.showForm(w, r, http.StatusConflict, f)
		return
	case err != nil:
		c.refused(w, r, err)
		return
	}
	what := "changed"
	if id == 0 {
		what = "added"
	}
	if p.Diff == "" {
		c.done(w, r, "/handlers", fmt.Sprintf("Handler %d is as it was.", p.ID))
		return
	}
	c.act(r, "handler written", "handler", p.ID, "name", d.Fields["name"], "what", what, "diff", p.Diff)
	c.done(w, r, "/handlers", fmt.Sprintf("Handler %d is %s: %s is written and in force.", p.ID, what, p.File))
}

// preview is what an edit would change in the file, and what the handler would send.
func (c *console) preview(ctx context.Context, e Edit, t Trial) *formPreview {
	out := &formPreview{}
	var wrong *ProblemsError
	var conflict *ConflictError
	p, err := c.opts.Editor.Propose(ctx, e)
	switch {
	case errors.As(err, &wrong):
		out.Problems = wrong.Problems
		return out
	case errors.As(err, &conflict):
		out.Note = conflict.Error() + ": saving will show how."
		out.Diff = conflict.Diff
	case err != nil:
		out.Problems = []FieldProblem{{Text: err.Error()}}
		return out
	default:
		out.Diff = p.Diff
	}
	tried, err := c.opts.Editor.Try(ctx, e, t)
	switch {
	case errors.As(err, &wrong):
		out.Problems = wrong.Problems
	case err != nil:
		out.Problems = []FieldProblem{{Text: err.Error()}}
	default:
		out.Tried = &tried
		out.Body = tried.Body
		if strings.HasSuffix(tried.ContentType, "json") {
			out.Body = indent([]byte(tried.Body))
		}
		if a, ok := tried.Attempt.(attemptJSON); ok {
			out.Attempt = &a
			out.Request, out.Response = shownExchange(a.Request), shownExchange(a.Response)
		}
	}
	return out
}

func shownExchange(x exchangeJSON) exchangeView {
	return exchangeText(handler.Exchange{Head: x.Head, Body: []byte(x.Body), Truncated: x.Truncated})
}

// deletePage shows what removing a handler does, and asks.
func (c *console) deletePage(w http.ResponseWriter, r *http.Request) {
	id, ok := c.editing(w, r)
	if !ok {
		return
	}
	p, err := c.opts.Editor.Propose(r.Context(), Edit{ID: id, Remove: true})
	if err != nil {
		c.editRefused(w, r, err)
		return
	}
	var open int64
	for k, n := range c.opts.Journal.Counts() {
		if k.Handler == id && k.Status.Open() {
			open += n
		}
	}
	main := struct {
		Title, Text, Action, Do, Back, Diff string
		Lines                               []string
		Fields                              []field
		Rate                                int
		Recount                             string
	}{
		Title: fmt.Sprintf("Delete handler %d", id), Text: fmt.Sprintf("It is taken out of %s. Its executions stay in the journal, and its number is not used again.", p.File),
		Action: fmt.Sprintf("/handlers/%d/delete", id), Do: "Delete", Back: fmt.Sprintf("/handlers/%d/edit", id), Diff: p.Diff,
		Fields: []field{{"base", p.Base}},
	}
	if open > 0 {
		main.Lines = []string{"Executions that wait for it: " + grouped(open) + ". They stay held, for ever as a rule; archive it first, and they are cancelled."}
	}
	c.show(w, r, http.StatusOK, "confirm", main.Title, "/handlers", main)
}

func (c *console) deleteHandler(w http.ResponseWriter, r *http.Request) {
	id, ok := c.editing(w, r)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	p, err := c.opts.Editor.Save(ctx, Edit{ID: id, Remove: true, Base: r.PostFormValue("base")})
	if err != nil {
		c.editRefused(w, r, err)
		return
	}
	c.act(r, "handler deleted", "handler", id, "diff", p.Diff)
	c.done(w, r, "/handlers", fmt.Sprintf("Handler %d is deleted: %s is written and in force.", id, p.File))
}

// editRefused is refused for the errors of an Editor too.
func (c *console) editRefused(w http.ResponseWriter, r *http.Request, err error) {
	var wrong *ProblemsError
	var conflict *ConflictError
	switch {
	case errors.As(err, &wrong):
		c.trouble(w, r, http.StatusUnprocessableEntity, wrong.Error())
	case errors.As(err, &conflict):
		c.trouble(w, r, http.StatusConflict, conflict.Error()+": look at it and try again.")
	default:
		c.refused(w, r, err)
	}
}

// moveHandler changes the order in which handlers are called: a handler goes before or
// after another.
func (c *console) moveHandler(w http.ResponseWriter, r *http.Request) {
	id, ok := c.editing(w, r)
	if !ok {
		return
	}
	after, before := r.PostFormValue("after"), r.PostFormValue("before")
	other, err := strconv.Atoi(after + before)
	if err != nil || after != "" && before != "" {
		c.trouble(w, r, http.StatusBadRequest, "A handler goes before=ID or after=ID.")
		return
	}
	list := c.opts.Handlers()
	priorities, err := reorder(list, id, other, after != "")
	if err != nil {
		c.trouble(w, r, http.StatusNotFound, err.Error())
		return
	}
	back := r.PostFormValue("back")
	if len(priorities) == 0 {
		c.done(w, r, back, fmt.Sprintf("Handler %d stands there already.", id))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	p, err := c.opts.Editor.Save(ctx, Edit{Priorities: priorities})
	if err != nil {
		c.editRefused(w, r, err)
		return
	}
	c.act(r, "handlers reordered", "handler", id, "diff", p.Diff)
	var said []string
	for _, h := range list {
		if n, ok := priorities[h.ID]; ok {
			said = append(said, fmt.Sprintf("handler %d has priority %d", h.ID, n))
		}
	}
	c.done(w, r, back, "Moved: "+strings.Join(said, ", ")+".")
}

// reorder returns the priorities that change when a handler goes before or after another:
// as few as will do. Handlers are called by priority, and by id where that is the same.
func reorder(list []Handler, id, other int, after bool) (map[int]int, error) {
	order := slices.Clone(list)
	slices.SortStableFunc(order, byPriority)
	at := func(id int) int { return slices.IndexFunc(order, func(h Handler) bool { return h.ID == id }) }
	from := at(id)
	if from < 0 || at(other) < 0 || id == other {
		return nil, errors.New("there is no such handler, or it is the same")
	}
	moved := order[from]
	order = slices.Delete(order, from, from+1)
	to := at(other)
	if after {
		to++
	}
	order = slices.Insert(order, to, moved)
	if slices.EqualFunc(order, sorted(list), func(a, b Handler) bool { return a.ID == b.ID }) {
		return nil, nil
	}
	// The lowest that puts it behind what is before it; what follows is pushed up as far
	// as needed, and no further.
	changed := map[int]int{}
	least := func(i int) int {
		if i == 0 {
			return 0
		}
		p := order[i-1]
		if p.ID < order[i].ID {
			return p.Priority
		}
		return p.Priority + 1
	}
	order[to].Priority = least(to)
	if to == 0 && len(order) > 1 {
		// Before the first: as near to it as can be.
		next := order[1]
		order[0].Priority = next.Priority
		if order[0].ID > next.ID {
			order[0].Priority = max(next.Priority-1, 0)
		}
	}
	for i := to + 1; i < len(order); i++ {
		if low := least(i); order[i].Priority < low {
			order[i].Priority = low
		}
	}
	for _, h := range order {
		if i := slices.IndexFunc(list, func(o Handler) bool { return o.ID == h.ID }); list[i].Priority != h.Priority {
			changed[h.ID] = h.Priority
		}
	}
	return changed, nil
}

func sorted(list []Handler) []Handler {
	list = slices.Clone(list)
	slices.SortStableFunc(list, byPriority)
	return list
}

func byPriority(a, b Handler) int {
	if a.Priority != b.Priority {
		return a.Priority - b.Priority
	}
	return a.ID - b.ID
}
