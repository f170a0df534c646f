package config

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// part is the handlers of one file, and what is known of that file.
type part struct {
	*decoder
	handlers []Handler
}

func (d *decoder) defaulted(defaults Defaults) {
	if d.has("defaults") {
		d.positive("defaults.timeout", defaults.Timeout, "10s")
		d.positiveSize("defaults.capture", defaults.Capture)
		d.positive("defaults.failing_after", defaults.FailingAfter, "10m")
		d.breaker("defaults.breaker", defaults.Breaker)
	}
}

// handlers judges what single values cannot tell, resolves events, paths and
// secrets, and fills what depends on the kind of handler, in all files.
func handlers(parts []*part, b *Billhook) {
	types := b.EventTypes()
	ids := map[int]Pos{}
	told := map[int]bool{}
	known := map[int]*Handler{}
	for _, d := range parts {
		for i := range d.handlers {
			h := &d.handlers[i]
			told[h.OnDead] = true
			if known[h.ID] == nil {
				known[h.ID] = h
			}
		}
	}
	for _, d := range parts {
		d.judge(types, b, ids, told)
	}
	for _, d := range parts {
		d.onDead(known)
	}
}

// judge does it for one file; ids are those that have been seen, and where.
func (d *part) judge(types []EventType, b *Billhook, ids map[int]Pos, told map[int]bool) {
	for i := range d.handlers {
		h, at := &d.handlers[i], item("handlers", i)
		if d.failed[at] {
			continue
		}
		if id := at + ".id"; d.has(id) && h.ID > 0 {
			switch first, dup := ids[h.ID]; {
			case !dup:
				ids[h.ID] = d.pos[id]
			default:
				place := fmt.Sprintf("on line %d", first.Line)
				if first.File != d.file {
					place = fmt.Sprintf("in %s on line %d", first.File, first.Line)
				}
				d.fail(id, fmt.Sprintf("the id %d is taken by the handler %s", h.ID, place), "give each handler an id of its own; never reuse one of a removed handler")
			}
		}
		if d.has(at+".name") && strings.TrimSpace(h.Name) == "" {
			d.fail(at+".name", "it is empty", "say in a few words what the handler does")
		}
		d.handlerEvents(at, h, types, b, h.ID > 0 && told[h.ID])
		d.payload(at, h)
		d.positive(at+".timeout", h.Timeout, "10s")
		d.positiveSize(at+".capture", h.Capture)
		d.retry(at+".retry", &h.Retry)
		d.positive(at+".failing_after", h.FailingAfter, "10m")
		if d.breaker(at+".breaker", h.Breaker); h.Breaker != nil && h.Breaker.Failures == 0 {
			h.Breaker = nil
		}
		d.columns(at+".write_back", h.WriteBack)

		if d.one(at, "add http with a url, script with a path, or plugin with a path", "http", "script", "plugin") {
			switch {
			case h.HTTP != nil:
				d.http(at+".http", h.HTTP)
			case h.Script != nil:
				d.script(at+".script", h.Script)
			case h.Plugin != nil:
				d.plugin(at+".plugin", h.Plugin)
			}
			h.setConcurrency()
		}
	}
}

func (d *part) onDead(known map[int]*Handler) {
	for i := range d.handlers {
		h, field := &d.handlers[i], item("handlers", i)+".on_dead"
		if h.OnDead <= 0 || d.failed[field] || d.failed[item("handlers", i)] {
			continue
		}
		switch other := known[h.OnDead]; {
		case h.OnDead == h.ID:
			d.fail(field, "it is the handler itself", "name another one: this one has just failed")
		case other == nil:
			d.fail(field, fmt.Sprintf("there is no handler with the id %d", h.OnDead), "give the id of the handler that is to be told")
		case other.Status == Archived:
			d.fail(field, fmt.Sprintf("handler %d is archived", h.OnDead), "name one that is not")
		}
	}
}

func (d *decoder) breaker(at string, b *Breaker) {
	if b == nil {
		return
	}
	d.positive(at+".pause", b.Pause, "10s")
	d.positive(at+".max", b.Max, "5m")
	if d.has(at+".max") && b.Pause > b.Max && b.Max > 0 {
		d.fail(at+".max", fmt.Sprintf("it is less than the pause, %v", b.Pause), "give at least as much")
	}
}

// handlerEvents resolves event and events into canonical names in Events.
// A handler that others name in on_dead need not have any.
func (d *decoder) handlerEvents(at string, h *Handler, types []EventType, b *Billhook, told bool) {
	if told && !d.has(at+".event") && !d.has(at+".events") {
		return
	}
	if !d.one(at, "add event: clients.create, say, or a list as events", "event", "events") {
		return
	}
	written, fields := h.Events, []string(nil)
	for i := range h.Events {
		fields = append(fields, item(at+".events", i))
	}
	if d.has(at + ".event") {
		written, fields = []string{h.Event}, []string{at + ".event"}
	} else if len(written) == 0 {
		d.fail(at+".events", "the list is empty", "name at least one event type, or set status: disabled")
	}
	h.Event, h.Events = "", nil
	for i, text := range written {
		if d.failed[fields[i]] {
			continue
		}
		name, ok := ResolveEvent(types, text)
		if !ok {
			d.fail(fields[i], "there is no event type "+d.show(fields[i], text), eventRemedy(types, text))
			continue
		}
		if j := slices.Index(h.Events, name); j >= 0 {
			d.fail(fields[i], fmt.Sprintf("it means %s, which the list has already", name), "remove it")
			continue
		}
		h.Events = append(h.Events, name)
		// accounts.* means clients.accounts.*, and the user's own accounts.blocked too.
		if literal := foldTitle(text); literal != name && strings.HasSuffix(literal, ".*") && !slices.Contains(h.Events, literal) &&
			slices.ContainsFunc(types, func(t EventType) bool { return MatchEvent(literal, t.Name) }) {
			h.Events = append(h.Events, literal)
		}
		if b != nil && h.Status == Enabled {
			for _, t := range types {
				if t.Name == name && !b.mapped(t.Needs) {
					remedy := "map it there, or set status: disabled here"
					if verb, ok := strings.CutPrefix(name, "clients.balance_"); ok && b.mapped("entities.accounts.balance") {
						remedy = "the balance is the accounts' own there: handle clients.accounts.balance_" + verb
					}
					d.fail(fields[i], "the event type "+name+" never happens: billhook.yaml has no "+t.Needs, remedy)
				}
			}
		}
	}
}

func eventRemedy(types []EventType, text string) string {
	if guess := nearestEvent(types, text); guess != "" {
		return "did you mean " + guess + "?"
	}
	if strings.Contains(text, "*") {
		return "a wildcard is * alone, or ends a name: clients.*, clients.accounts.*"
	}
	var names []string
	for _, t := range types {
		if !strings.HasSuffix(t.Name, ".truncate") {
			names = append(names, t.Name)
		}
	}
	return "known are " + strings.Join(names, ", ")
}

// payload judges format and template, and reads template_file.
func (d *decoder) payload(at string, h *Handler) {
	text, file := d.has(at+".template"), d.has(at+".template_file")
	if !text && !file {
		if h.Format == FormatTemplate {
			d.fail(at+".format", "the format is template, but there is none", "add template or template_file")
		}
		if d.has(at + ".content_type") {
			d.fail(at+".content_type", "it stands without a template", "remove it: the other formats have their own")
		}
		return
	}
	if text && file {
		d.one(at, "", "template", "template_file")
		return
	}
	if d.has(at+".format") && h.Format != FormatTemplate {
		d.fail(at+".format", "the format is "+string(h.Format)+", but there is a template", "write format: template, or remove the template")
	}
	h.Format = FormatTemplate
	if h.ContentType == "" || strings.ContainsAny(h.ContentType, "\r\n") || !strings.Contains(h.ContentType, "/") {
		d.fail(at+".content_type", "it is "+d.show(at+".content_type", h.ContentType)+", which is not a media type", "write for instance application/json")
	}
	if file && !d.failed[at+".template_file"] {
		if data, ok := d.readFile(at+".template_file", &h.TemplateFile, maxFile); ok {
			if i := invalidUTF8(data); i >= 0 {
				d.fail(at+".template_file", "the file is not valid UTF-8", "save it as UTF-8")
				return
			}
			h.Template = Expr{Text: string(data), Pos: Pos{File: h.TemplateFile, Line: 0, Field: at + ".template"}, origin: origin{block: true}}
		}
	}
}

// retry judges a schedule. A schedule that comes without attempts sets their
// number; initial, max or factor of a handler put the inherited schedule away.
func (d *decoder) retry(at string, r *Retry) {
	initial, longest := d.has(at+".initial"), d.has(at+".max")
	if d.has(at + ".schedule") {
		for _, name := range []string{"initial", "max", "factor"} {
			if d.has(at + "." + name) {
				d.fail(at+"."+name, name+" stands beside schedule", "keep either the schedule, or initial, max and factor")
			}
		}
		if len(r.Schedule) == 0 {
			d.fail(at+".schedule", "the list is empty", "write delays, such as [15s, 1m, 10m]; for no retries write attempts: 1")
		}
		if !d.has(at + ".attempts") {
			r.Attempts = len(r.Schedule) + 1
		}
	} else if initial || longest || d.has(at+".factor") {
		r.Schedule = nil
	}
	for i, delay := range r.Schedule {
		if f := item(at+".schedule", i); d.has(f) {
			d.positive(f, delay, "15s")
		}
	}
	r.Schedule = slices.Clone(r.Schedule)
	if !d.has(at) {
		return
	}
	d.positive(at+".initial", r.Initial, "1s")
	if r.Initial > r.Max {
		field := at + ".max"
		if initial && !longest {
			field = at + ".initial"
		}
		d.fail(field, fmt.Sprintf("initial (%s) is longer than max (%s)", text(r.Initial), text(r.Max)), "raise max or lower initial")
	}
}

// text writes a duration without the zero parts: 15m rather than 15m0s.
func text(v time.Duration) string {
	s := v.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

func (d *decoder) positiveSize(field string, v ByteSize) {
	if v < 1 {
		d.fail(field, "it must be more than nothing", "write for instance 64KiB")
	}
}

func (d *decoder) http(at string, h *HTTP) {
	if d.one(at, "add url: https://...", "url", "url_env", "url_file") {
		if d.has(at + ".url") {
			d.url(at+".url", h.URL, d.show(at+".url", h.URL))
		} else {
			d.resolve(at, "", "url_env", "url_file", &h.SecretURL, &h.URLEnv, &h.URLFile)
			field := at + ".url_env"
			if d.has(at + ".url_file") {
				field = at + ".url_file"
			}
			if !h.SecretURL.IsZero() {
				d.url(field, h.SecretURL.Reveal(), "what it names")
			}
		}
	}
	for _, name := range sortedKeys(h.Headers) {
		d.header(at+".headers["+name+"]", name, h.Headers[name].Reveal())
	}
	d.secret(at, "bearer", false, &h.Bearer, &h.BearerEnv, &h.BearerFile)
	if b := h.Basic; b != nil {
		d.secret(at+".basic", "password", false, &b.Password, &b.PasswordEnv, &b.PasswordFile)
		if strings.Contains(b.Username, ":") {
			d.fail(at+".basic.username", "it holds a colon, which basic authentication cannot carry", "use a name without one")
		}
		if !h.Bearer.IsZero() {
			d.fail(at+".basic", "basic stands beside bearer", "a request has one Authorization header: keep one")
		}
	}
	for _, name := range sortedKeys(h.Headers) {
		if strings.EqualFold(name, "Authorization") && (h.Basic != nil || !h.Bearer.IsZero()) {
			d.fail(at+".headers["+name+"]", "the header stands beside basic or bearer", "a request has one Authorization header: keep one")
		}
	}
	if t := h.TLS; t != nil {
		d.path(at+".tls.ca_file", &t.CAFile)
		d.path(at+".tls.cert_file", &t.CertFile)
		d.path(at+".tls.key_file", &t.KeyFile)
		if (t.CertFile == "") != (t.KeyFile == "") {
			d.fail(at+".tls", "cert_file and key_file go together", "give both, or neither")
		}
		if strings.HasPrefix(h.URL, "http://") || strings.HasPrefix(h.SecretURL.Reveal(), "http://") {
			d.fail(at+".tls", "the url is http, which has no TLS", "write https:// in url, or remove tls")
		}
	}
	if !h.Proxy.IsZero() {
		u, err := url.Parse(h.Proxy.Reveal())
		if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
			d.fail(at+".proxy", "it is not the URL of a proxy", "write http://host:port, https://host:port or socks5://host:port")
		}
	}
	d.secret(at, "secret", false, &h.Secret, &h.SecretEnv, &h.SecretFile)
	d.signingKey(at, "secret", h.Secret)
	for i := range h.Secrets {
		s, f := &h.Secrets[i], item(at+".secrets", i)
		if s.Value.IsZero() || d.has(f+".value") {
			names := []string{"value", "env", "file"}
			if d.one(f, "write the secret itself, {env: NAME} or {file: path}", names...) {
				d.resolve(f, "value", "env", "file", &s.Value, &s.Env, &s.File)
			}
		}
		d.signingKey(f, "", s.Value)
	}
	if d.has(at+".secrets") && len(h.Secrets) == 0 {
		d.fail(at+".secrets", "the list is empty", "add a secret, or remove the key")
	}
	if !h.Secret.IsZero() {
		if len(h.Secrets) > 0 {
			d.fail(at+".secrets", "secrets stands beside secret", "move the one secret into the list")
		} else {
			h.Secrets = []SecretRef{{Value: h.Secret}}
		}
	}
	d.positive(at+".connect_timeout", h.ConnectTimeout, "5s")
	sortOut(d, at+".statuses", h.Statuses.Success, h.Statuses.Retry, h.Statuses.Permanent)
	for i, p := range h.Deny {
		if slices.Contains(h.Allow, p) {
			d.fail(at+".deny", "the network "+h.Deny[i].String()+" stands in allow too", "remove it from one of the two")
		}
	}
}

// sortOut demands that no code is in two of the lists success, retry and permanent,
// or twice in one.
func sortOut[T interface {
	~string
	Range() (from, to int)
}](d *decoder, at string, lists ...[]T,
) {
	type use struct {
		code T
		list string
	}
	var uses []use
	for i, name := range []string{"success", "retry", "permanent"} {
		if d.has(at+"."+name) && len(lists[i]) == 0 {
			d.fail(at+"."+name, "the list is empty", "remove it")
		}
		for j, code := range lists[i] {
			f := item(at+"."+name, j)
			if d.failed[f] {
				continue
			}
			from, to := code.Range()
			for _, u := range uses {
				if first, last := u.code.Range(); from <= last && first <= to {
					d.fail(f, fmt.Sprintf("%s is covered by %s in %s already", code, u.code, u.list), "a code belongs into one list")
					break
				}
			}
			uses = append(uses, use{code, name})
		}
	}
}

// url judges a URL; shown stands for it in errors.
func (d *decoder) url(field, text, shown string) {
	plain, closed := withoutActions(text)
	if !closed {
		d.fail(field, shown+" has a {{ without }}", "write {{.event.object_id}}, say")
		return
	}
	u, err := url.Parse(plain)
	switch {
	case err != nil || strings.ContainsAny(plain, " \t\r\n"):
		d.fail(field, shown+" is not a URL", "write https://host/path")
	case u.Scheme == "" || u.Opaque != "" || u.Host == "" && u.Scheme != "http" && u.Scheme != "https":
		d.fail(field, shown+" is not a whole URL", "write https:// or http:// before the host")
	case u.Scheme != "http" && u.Scheme != "https":
		d.fail(field, shown+" has the scheme "+u.Scheme, "write https:// or http://")
	case u.Hostname() == "":
		d.fail(field, shown+" names no host", "write https://host/path")
	case u.User != nil:
		d.fail(field, "it holds a user name or password, which would be shown to people", "use basic instead")
	case strings.Contains(plain[:strings.Index(plain, u.Host)+len(u.Host)], actionMark):
		d.fail(field, shown+" has a template action in its host", "use actions in path and query only")
	case u.Fragment != "":
		d.fail(field, shown+" has a fragment, which is never sent", "remove # and what follows it")
	}
	if u == nil || u.Port() == "" {
		return
	}
	if port, err := strconv.Atoi(u.Port()); err != nil || port < 1 || port > 65535 {
		d.fail(field, shown+" has the port "+u.Port(), "write a port from 1 to 65535")
	}
}

// actionMark stands for a template action while a URL is judged.
const actionMark = "TEMPLATE-ACTION"

// withoutActions replaces each {{...}} by actionMark. closed is false when one is
// not closed.
func withoutActions(s string) (plain string, closed bool) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "{{")
		b.WriteString(before)
		if !found {
			return b.String(), true
		}
		if _, s, found = strings.Cut(rest, "}}"); !found {
			return "", false
		}
		b.WriteString(actionMark)
	}
}

func (d *decoder) header(field, name, value string) {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			d.fail(field, strconv.Quote(name)+" is no name for a header", "use letters, digits and -")
			return
		}
	}
	lower := strings.ToLower(name)
	switch {
	case slices.Contains([]string{"host", "content-length", "transfer-encoding", "connection", "trailer", "upgrade"}, lower):
		d.fail(field, "the header "+name+" belongs to the connection", "remove it")
	case strings.HasPrefix(lower, "webhook-"):
		d.fail(field, "the header "+name+" belongs to the signature", "remove it")
	}
	if strings.ContainsAny(value, "\r\n\x00") {
		d.fail(field, "the value holds a line break", "write it in one line")
	}
}

// signingKey judges a secret in the form of the Standard Webhooks specification.
func (d *decoder) signingKey(at, base string, s Secret) {
	if s.IsZero() {
		return
	}
	field := at
	for _, suffix := range []string{"", "_env", "_file"} {
		if base != "" && d.has(at+"."+base+suffix) {
			field = at + "." + base + suffix
		}
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s.Reveal(), "whsec_"))
	if err != nil || len(key) < 24 || len(key) > 64 {
		d.fail(field, "it is not whsec_ and the base64 of 24 to 64 bytes", "make one with: echo whsec_$(openssl rand -base64 32)")
	}
}

func (d *decoder) script(at string, s *Script) {
	d.program(at, &s.Path)
	for i, a := range s.Args {
		if strings.ContainsRune(string(a), 0) {
			d.fail(item(at+".args", i), "it holds a NUL", "remove it")
		}
	}
	for _, name := range sortedKeys(s.Env) {
		f := at + ".env[" + name + "]"
		if !variableName(name) {
			d.fail(f, strconv.Quote(name)+" is no name for a variable", "use letters, digits and _")
		}
		d.reserved(f, name)
		if strings.ContainsRune(s.Env[name].Reveal(), 0) {
			d.fail(f, "the value holds a NUL", "remove it")
		}
	}
	for i, name := range s.EnvPass {
		f := item(at+".env_pass", i)
		if !variableName(name) {
			d.fail(f, strconv.Quote(name)+" is no name for a variable", "use letters, digits and _")
		}
		if _, dup := s.Env[name]; dup {
			d.fail(f, "env sets "+name+" already", "remove one of the two")
		}
		d.reserved(f, name)
	}
	d.path(at+".workdir", &s.Workdir)
	d.positive(at+".kill_grace", s.KillGrace, "5s")
	sortOut(d, at+".exit_codes", s.ExitCodes.Success, s.ExitCodes.Retry, s.ExitCodes.Permanent)
	if d.has(at + ".limits.address_space") {
		d.positiveSize(at+".limits.address_space", s.Limits.AddressSpace)
	}
	if d.has(at + ".limits.file_size") {
		d.positiveSize(at+".limits.file_size", s.Limits.FileSize)
	}
	if d.has(at + ".limits.cpu") {
		d.positive(at+".limits.cpu", s.Limits.CPU, "10s")
	}
}

func (d *decoder) reserved(field, name string) {
	if strings.HasPrefix(name, "BILLHOOK_") {
		d.fail(field, "variables that start with BILLHOOK_ are Billhook's own", "choose another name")
	}
}

func (d *decoder) plugin(at string, p *Plugin) {
	d.program(at, &p.Path)
	for i, a := range p.Args {
		if strings.ContainsRune(string(a), 0) {
			d.fail(item(at+".args", i), "it holds a NUL", "remove it")
		}
	}
	if d.has(at + ".checksum") {
		digits, ok := strings.CutPrefix(p.Checksum, "sha256:")
		if !ok || len(digits) != 64 || strings.Trim(digits, "0123456789abcdef") != "" {
			d.fail(at+".checksum", "it is "+d.show(at+".checksum", p.Checksum)+", which is not a checksum", "write sha256: and the 64 digits that sha256sum prints")
		}
	}
}

// program judges and resolves the path of a script or plugin.
func (d *decoder) program(at string, p *string) {
	field := at + ".path"
	if !d.has(field) {
		return
	}
	if i := strings.IndexAny(*p, " \t"); i > 0 && d.raw[field] == "" && !fileExists(filepath.Join(d.dir, *p)) && !fileExists(*p) {
		d.fail(field, d.show(field, *p)+" looks like a command line", fmt.Sprintf("there is no shell: write path: %s and args: [%s]", (*p)[:i], strings.Join(strings.Fields((*p)[i:]), ", ")))
		return
	}
	d.path(field, p)
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// path makes a path absolute; relative ones start where the file is.
func (d *decoder) path(field string, p *string) {
	switch {
	case *p == "" && d.has(field):
		d.fail(field, "it is empty", "give a path, or remove the key")
	case strings.ContainsAny(*p, "\x00\n"):
		d.fail(field, "it is not a path", "write it in one line")
	case *p != "" && !filepath.IsAbs(*p):
		*p = filepath.Join(d.dir, *p)
	}
}

// readFile reads a file that a key names.
func (d *decoder) readFile(field string, p *string, limit int64) ([]byte, bool) {
	shown := d.show(field, *p)
	if d.path(field, p); d.failed[field] {
		return nil, false
	}
	info, err := os.Stat(*p)
	switch {
	case err != nil:
		d.fail(field, "the file "+shown+" "+strings.TrimPrefix(reason(err), "it "), "put it there, and let the user that runs billhook read it")
		return nil, false
	case !info.Mode().IsRegular():
		d.fail(field, shown+" is not a file", "give the path of a file")
		return nil, false
	case info.Size() > limit:
		d.fail(field, "the file "+shown+" is larger than "+ByteSize(limit).String(), "give the path of a smaller file")
		return nil, false
	}
	d.files = append(d.files, *p)
	data, err := os.ReadFile(*p)
	if err != nil {
		d.fail(field, "the file "+shown+" "+strings.TrimPrefix(reason(err), "it "), "let the user that runs billhook read it")
		return nil, false
	}
	return data, true
}

// secret fills a secret from its key, or from its twins base_env and base_file.
func (d *decoder) secret(at, base string, required bool, value *Secret, env, file *string) {
	names := []string{base}
	if env != nil {
		names = append(names, base+"_env")
	}
	names = append(names, base+"_file")
	given := 0
	for _, n := range names {
		if d.has(join(at, n)) {
			given++
		}
	}
	if given == 0 && !required {
		return
	}
	if d.one(at, "add "+names[0]+", or "+strings.Join(names[1:], " or "), names...) {
		d.resolve(at, base, base+"_env", base+"_file", value, env, file)
	}
}

func (d *decoder) resolve(at, base, envName, fileName string, value *Secret, env, file *string) {
	switch {
	case base != "" && d.has(join(at, base)):
		if value.IsZero() {
			d.fail(join(at, base), "it is empty", "give a value, or remove the key")
		}
	case env != nil && d.has(join(at, envName)):
		field := join(at, envName)
		if d.failed[field] {
			return
		}
		text, ok := d.env(*env)
		switch {
		case !variableName(*env):
			d.fail(field, "it is no name for a variable", "name an environment variable here, not its value") // which is perhaps what stands here: do not show it
		case !ok:
			d.fail(field, "the environment variable "+*env+" is not set", "set it")
		case text == "":
			d.fail(field, "the environment variable "+*env+" is empty", "set it")
		case strings.ContainsAny(text, "\n\r\x00"):
			d.fail(field, "the environment variable "+*env+" holds a line break or a NUL", "set it to one line")
		default:
			*value = NewSecret(text)
		}
	case d.has(join(at, fileName)):
		field := join(at, fileName)
		if d.failed[field] {
			return
		}
		data, ok := d.readFile(field, file, maxSecretFile)
		if !ok {
			return
		}
		text := strings.TrimRight(string(data), "\r\n")
		switch {
		case text == "":
			d.fail(field, "the file is empty", "write the secret into it")
		case strings.ContainsAny(text, "\n\r\x00") || !utf8.ValidString(text):
			d.fail(field, "the file holds more than one line, or no text", "write the secret alone into it, in one line")
		default:
			*value = NewSecret(text)
		}
	}
}
