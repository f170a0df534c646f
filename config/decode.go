package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// maxNodes bounds how far aliases may blow a file up.
const maxNodes = 50_000

// maxField bounds how deep values nest, by the length of their field.
const maxField = 1000

// decoder fills a value from the yaml.Node tree of one file and collects every
// mistake on the way. It does not use yaml's own decoding, which loses positions
// and lets some typing errors pass.
type decoder struct {
	file  string
	dir   string // absolute: where relative paths start
	src   []byte
	lines []string // of src, split when first needed
	env   Lookup

	errs   Errors
	failed map[string]bool   // fields that have an error already
	meant  map[string]bool   // fields that an unknown key probably meant
	pos    map[string]Pos    // place of each field that the file has
	raw    map[string]string // fields whose text came from ${}: as written
	files  []string
	nodes  int
	active map[*yaml.Node]bool // aliases that are being followed

	defaults *Defaults // of the handlers file, once read
}

func newDecoder(name string, data []byte, env Lookup) *decoder {
	if env == nil {
		env = func(string) (string, bool) { return "", false }
	}
	dir := filepath.Dir(name)
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return &decoder{
		file: name, dir: dir, src: data, env: env, files: []string{name},
		failed: map[string]bool{}, meant: map[string]bool{}, pos: map[string]Pos{}, raw: map[string]string{}, active: map[*yaml.Node]bool{},
	}
}

func valueOf(p defaulter) reflect.Value {
	p.setDefaults()
	return reflect.ValueOf(p).Elem()
}

type defaulter interface{ setDefaults() }

func (d *decoder) err() error {
	if len(d.errs) == 0 {
		return nil
	}
	d.errs.sort()
	return d.errs
}

// add notes a mistake found while decoding.
func (d *decoder) add(pos Pos, problem, remedy string) {
	d.failed[pos.Field] = true
	d.errs = append(d.errs, pos.Problem(problem, remedy))
}

func (d *decoder) at(n *yaml.Node, field string) Pos {
	return Pos{File: d.file, Line: n.Line, Column: n.Column, Field: field}
}

// fail notes a mistake found after decoding, unless the field, or what it is part
// of, has one already.
func (d *decoder) fail(field, problem, remedy string) {
	for f := field; ; f = parent(f) {
		if d.failed[f] {
			return
		}
		if f == "" {
			break
		}
	}
	pos := at(d.pos, field)
	pos.Field = field
	d.add(pos, problem, remedy)
}

// has reports whether the file has the field.
func (d *decoder) has(field string) bool {
	_, ok := d.pos[field]
	return ok
}

// at finds the place of a field, or of the nearest field around it.
func at(places map[string]Pos, field string) Pos {
	for f := field; ; f = parent(f) {
		if p, ok := places[f]; ok {
			return p
		}
		if f == "" {
			return Pos{}
		}
	}
}

// parent cuts the last part off a field: a.b[c.d] -> a.b -> a -> "".
func parent(field string) string {
	if strings.HasSuffix(field, "]") {
		if i := strings.LastIndexByte(field, '['); i >= 0 {
			return field[:i]
		}
	}
	depth := 0
	for i := len(field) - 1; i >= 0; i-- {
		switch field[i] {
		case ']':
			depth++
		case '[':
			if depth == 0 {
				return field[:i]
			}
			depth--
		case '.':
			if depth == 0 {
				return field[:i]
			}
		}
	}
	return ""
}

func join(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

// parse reads the file's only document. ok is false when there is none that can
// be decoded.
func (d *decoder) parse() (root *yaml.Node, ok bool) {
	d.pos[""] = Pos{File: d.file}
	if i := invalidUTF8(d.src); i >= 0 {
		line := 1 + bytes.Count(d.src[:i], []byte("\n"))
		d.add(Pos{File: d.file, Line: line, Column: 1}, "the line is not valid UTF-8", "save the file as UTF-8")
		return nil, false
	}
	dec := yaml.NewDecoder(bytes.NewReader(d.src))
	var doc yaml.Node
	switch err := safely(func() error { return dec.Decode(&doc) }); {
	case errors.Is(err, io.EOF):
		d.add(Pos{File: d.file}, "the file is empty", "start with version: 1; the example file shows the rest")
		return nil, false
	case err != nil:
		d.syntax(err)
		return nil, false
	}
	var second yaml.Node
	switch err := safely(func() error { return dec.Decode(&second) }); {
	case errors.Is(err, io.EOF):
	case err != nil:
		d.syntax(err)
	default:
		pos := Pos{File: d.file, Line: second.Line, Column: second.Column}
		if len(second.Content) > 0 {
			pos.Line, pos.Column = second.Content[0].Line, second.Content[0].Column
		}
		d.add(pos, "a second document starts here", "a file holds one document: remove the line --- or what follows it")
	}
	root = doc.Content[0]
	d.pos[""] = Pos{File: d.file, Line: 1, Column: 1}
	if root.Kind != yaml.MappingNode {
		if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
			d.add(Pos{File: d.file}, "the file is empty", "start with version: 1; the example file shows the rest")
		} else {
			d.add(d.at(root, ""), "the file holds "+kindOf(root)+", want keys and values", "start with version: 1; the example file shows the rest")
		}
		return nil, false
	}
	return root, true
}

// safely turns a panic of the YAML library into an error: foreign input must not
// end the process.
func safely(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	return f()
}

func invalidUTF8(b []byte) int {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// syntax reports what the YAML library says, in our form.
func (d *decoder) syntax(err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	pos := Pos{File: d.file}
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if line, err := strconv.Atoi(number); err == nil {
				pos.Line, text = line, what
				pos.Column = 1
				if s, ok := d.line(line); ok {
					pos.Column = len(s) - len(strings.TrimLeft(s, " \t")) + 1
				}
			}
		}
	}
	remedy := "check the indentation, the colons and the quotes on this line and the one before"
	switch {
	case strings.Contains(text, "cannot start any token"):
		if s, _ := d.line(pos.Line); strings.HasPrefix(strings.TrimLeft(s, " "), "\t") {
			text, remedy = "the line is indented with a tab", "indent with spaces"
		} else {
			remedy = "put the value in quotes"
		}
	case unquotedVariable(d, pos.Line):
		remedy = "inside { } and [ ], put ${NAME} in quotes"
	case strings.Contains(text, "unknown anchor"):
		remedy = "define the anchor with & before it is used with *"
	}
	d.add(pos, "it is not YAML: "+text, remedy)
}

// unquotedVariable reports whether ${} stands without quotes inside braces or
// brackets, on the line or the next one: the library names the line where the
// braces open.
func unquotedVariable(d *decoder, n int) bool {
	for _, n := range []int{n, n + 1} {
		s, _ := d.line(n)
		before, _, ok := strings.Cut(s, "${")
		if ok && strings.ContainsAny(before, "{[") && strings.Count(before, `"`)%2 == 0 && strings.Count(before, "'")%2 == 0 {
			return true
		}
	}
	return false
}

func (d *decoder) line(n int) (string, bool) {
	if d.lines == nil {
		d.lines = strings.Split(strings.ReplaceAll(string(d.src), "\r\n", "\n"), "\n")
	}
	if n < 1 || n > len(d.lines) {
		return "", false
	}
	return d.lines[n-1], true
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "nothing"
	}
	return "text"
}

// decode fills v from n. key is the mapping key of n, or nil; tag is the struct
// tag of the field that v is.
func (d *decoder) decode(n *yaml.Node, v reflect.Value, field string, tag reflect.StructTag) {
	if !d.visit(n, field) {
		return
	}
	if n.Kind == yaml.AliasNode {
		if d.active[n.Alias] {
			d.add(d.at(n, field), "the alias *"+n.Value+" contains itself", "remove it")
			return
		}
		d.active[n.Alias] = true
		defer delete(d.active, n.Alias)
		d.decode(n.Alias, v, field, tag)
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
			setDefaults(v)
		}
		d.decode(n, v.Elem(), field, tag)
		return
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" && !quoted(n) {
		d.add(d.at(n, field), "it has no value", "give one, or remove the key")
		return
	}
	if !ownTag(n) {
		d.add(d.at(n, field), "it has the YAML tag "+n.Tag, "remove the tag")
		return
	}

	switch p := v.Addr().Interface().(type) {
	case *Expr:
		if s, ok := d.literal(n, field); ok {
			*p = Expr{Text: s, Pos: d.at(n, field), origin: d.origin(n)}
			if strings.TrimSpace(s) == "" {
				d.add(d.at(n, field), "it is empty", "write an expression, or remove the key")
			}
		}
	case *Secret:
		if s, ok := d.scalar(n, field, lenient|hidden, "text"); ok {
			*p = NewSecret(s.text)
		}
	case *Text:
		if s, ok := d.scalar(n, field, lenient, "text"); ok {
			*p = Text(s.text)
		}
	case *Object:
		if n.Kind != yaml.MappingNode {
			d.wrongKind(n, field, "a mapping")
			return
		}
		var b bytes.Buffer
		d.json(n, field, &b)
		*p = NewObject(b.Bytes())
	case *time.Duration:
		parseScalar(d, n, field, p, ParseDuration, "a duration", "write a number with a unit: 500ms, 30s, 15m, 2h, 1d")
	case *ByteSize:
		parseScalar(d, n, field, p, ParseByteSize, "a size", "write a number with a unit: 512B, 64KiB, 1MiB")
	case *Decimal:
		parseScalar(d, n, field, p, ParseDecimal, "a decimal number", "write digits, such as 10 or -0.5")
	case *Rate:
		parseScalar(d, n, field, p, ParseRate, "a rate", "write a number and a time: 50/s, 600/m, 1000/h")
	case *Table:
		parseScalar(d, n, field, p, ParseTable, "a table name", "write schema.table, such as public.clients")
	case *StatusClass:
		parseScalar(d, n, field, p, ParseStatusClass, "an HTTP status or a class", "write a status such as 429, a class such as 5xx or a range such as 500-504")
	case *ExitCode:
		parseScalar(d, n, field, p, ParseExitCode, "an exit code", "write a code from 0 to 255, or a range such as 10-19")
	case *Addresses:
		if n.Kind != yaml.SequenceNode {
			d.wrongKind(n, field, "a list")
			return
		}
		for i, item := range n.Content {
			var as Addresses
			itemField := d.item(item, field, i)
			parseScalar(d, item, itemField, &as, parseAddresses, "an address or a network", "write 10.1.2.3, 10.0.0.0/8, private, loopback or link_local")
			*p = append(*p, as...)
		}
	case *SecretRef:
		if n.Kind == yaml.ScalarNode {
			if s, ok := d.scalar(n, field, lenient|hidden, "text"); ok {
				p.Value = NewSecret(s.text)
			}
			return
		}
		d.decodeStruct(n, v, field)
	case *Columns, *Ops:
		if n.Kind == yaml.ScalarNode {
			one := reflect.New(v.Type().Elem()).Elem()
			d.decode(n, one, field, enumTag(v.Type()))
			v.Set(reflect.Append(reflect.Zero(v.Type()), one))
			return
		}
		d.decodeList(n, v, field, enumTag(v.Type()))
	default:
		switch v.Kind() {
		case reflect.Struct:
			d.decodeStruct(n, v, field)
		case reflect.Slice:
			d.decodeList(n, v, field, tag)
		case reflect.Map:
			d.decodeMap(n, v, field)
		case reflect.String:
			if s, ok := d.scalar(n, field, 0, "text"); ok && d.inEnum(n, field, s, tag) {
				v.SetString(s.text)
			}
		case reflect.Bool:
			if s, ok := d.scalar(n, field, anyTag, "true or false"); ok {
				switch {
				case s.text == "true" && (s.raw != "" || n.ShortTag() == "!!bool"):
					v.SetBool(true)
				case s.text == "false" && (s.raw != "" || n.ShortTag() == "!!bool"):
					v.SetBool(false)
				default:
					d.add(d.at(n, field), s.is("true or false"), "write true or false, without quotes")
				}
			}
		case reflect.Int:
			d.decodeInt(n, v, field, tag)
		case reflect.Float64:
			d.decodeFloat(n, v, field, tag)
		default:
			panic("config: no decoding for " + v.Type().String())
		}
	}
}

// visit counts a node and reports whether it may be decoded.
func (d *decoder) visit(n *yaml.Node, field string) bool {
	d.nodes++
	switch {
	case d.nodes == maxNodes+1:
		d.add(d.at(n, ""), "the file holds too many values, or its aliases expand to too many", "use fewer")
	case d.nodes <= maxNodes && len(field) > maxField:
		d.add(d.at(n, field[:60]+"..."), "it is nested too deep", "nest less")
	case d.nodes <= maxNodes:
		return true
	}
	return false
}

// enumTag is the tag that the items of a list type are judged by.
func enumTag(t reflect.Type) reflect.StructTag {
	if t == reflect.TypeFor[Ops]() {
		return `jsonschema:"enum=insert,enum=update,enum=delete"`
	}
	return ""
}

func setDefaults(p reflect.Value) {
	if p, ok := p.Interface().(defaulter); ok {
		p.setDefaults()
	}
}

func quoted(n *yaml.Node) bool {
	return n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
}

// ownTag reports whether n has no tag but the one that YAML gives by itself.
func ownTag(n *yaml.Node) bool { return n.Style&yaml.TaggedStyle == 0 }

func (d *decoder) wrongKind(n *yaml.Node, field, want string) {
	remedy := ""
	switch {
	case want == "a list" && n.Kind == yaml.ScalarNode:
		remedy = "put it in brackets: [...]"
	case want == "a list":
		remedy = "start each item with a dash"
	case want == "a mapping":
		remedy = "write key: value pairs, indented below it"
	case n.Kind == yaml.SequenceNode:
		remedy = "give one value, without brackets or dashes"
	case n.Kind == yaml.MappingNode:
		remedy = "give one value; text that holds {, } or a colon needs quotes"
	}
	d.add(d.at(n, field), "it is "+kindOf(n)+", want "+want, remedy)
}

// item notes the place of an item of a list and returns its field.
func (d *decoder) item(n *yaml.Node, field string, i int) string {
	f := field + "[" + strconv.Itoa(i) + "]"
	d.pos[f] = d.at(n, f)
	return f
}

func (d *decoder) decodeList(n *yaml.Node, v reflect.Value, field string, tag reflect.StructTag) {
	if n.Kind != yaml.SequenceNode {
		d.wrongKind(n, field, "a list")
		return
	}
	list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		if list.Index(i).CanAddr() {
			if h, ok := list.Index(i).Addr().Interface().(*Handler); ok && d.defaults != nil {
				h.inherit(*d.defaults)
			} else {
				setDefaults(list.Index(i).Addr())
			}
		}
		f := d.item(item, field, i)
		d.decode(item, list.Index(i), f, tag)
		if h, ok := list.Index(i).Addr().Interface().(*Handler); ok {
			h.Pos = d.pos[f]
		}
	}
	v.Set(list)
}

func (d *decoder) decodeMap(n *yaml.Node, v reflect.Value, field string) {
	if n.Kind != yaml.MappingNode {
		d.wrongKind(n, field, "a mapping")
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(n.Content)/2))
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !d.key(key, field, seen) {
			continue
		}
		f := field + "[" + key.Value + "]"
		d.place(key, value, f)
		item := reflect.New(v.Type().Elem())
		setDefaults(item)
		d.decode(value, item.Elem(), f, "")
		v.SetMapIndex(reflect.ValueOf(key.Value), item.Elem())
	}
}

// place notes where a field stands: at its value, or for a mapping or a list at
// its key.
func (d *decoder) place(key, value *yaml.Node, field string) {
	n := value
	if value.Kind == yaml.MappingNode || value.Kind == yaml.SequenceNode {
		n = key
	}
	d.pos[field] = d.at(n, field)
}

// key judges a mapping's key: a scalar, not there before, not a merge.
func (d *decoder) key(key *yaml.Node, field string, seen map[string]*yaml.Node) bool {
	switch {
	case key.Kind == yaml.ScalarNode && key.Tag == "!!merge" || key.Kind == yaml.ScalarNode && key.Value == "<<":
		d.add(d.at(key, field), "merge keys (<<) are not supported", "write the keys out, or use defaults")
		return false
	case key.Kind != yaml.ScalarNode:
		d.add(d.at(key, field), "a key is "+kindOf(key)+", want text", "write key: value; text that starts with { or [ needs quotes")
		return false
	case key.Value == "" || key.ShortTag() == "!!null" && !quoted(key):
		d.add(d.at(key, field), "a key is empty", "give it a name, or remove it")
		return false
	}
	if first, dup := seen[key.Value]; dup {
		d.add(d.at(key, join(field, key.Value)), fmt.Sprintf("the key stands here for the second time, first on line %d", first.Line), "keep one of the two")
		return false
	}
	seen[key.Value] = key
	return true
}

// structField is one key of a struct type, inline structs flattened.
type structField struct {
	name     string
	index    []int
	tag      reflect.StructTag
	required bool
	typ      reflect.Type
}

func fieldsOf(t reflect.Type) []structField {
	var fields []structField
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			for _, inner := range fieldsOf(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				fields = append(fields, inner)
			}
		case name != "" && name != "-":
			fields = append(fields, structField{
				name: name, index: []int{i}, tag: f.Tag, typ: f.Type,
				required: slices.Contains(rules(f.Tag), "required"),
			})
		}
	}
	return fields
}

// rules are the parts of a field's jsonschema tag. Schema and loader read the same
// tags, so they cannot disagree.
func rules(tag reflect.StructTag) []string {
	return strings.Split(tag.Get("jsonschema"), ",")
}

func rule(tag reflect.StructTag, name string) (values []string) {
	for _, r := range rules(tag) {
		if v, ok := strings.CutPrefix(r, name+"="); ok {
			values = append(values, v)
		}
	}
	return values
}

func (d *decoder) decodeStruct(n *yaml.Node, v reflect.Value, field string) {
	if n.Kind != yaml.MappingNode {
		d.wrongKind(n, field, "a mapping")
		return
	}
	fields := fieldsOf(v.Type())
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	seen := map[string]*yaml.Node{}
	values := map[string]*yaml.Node{}
	merged := false
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !d.key(key, field, seen) {
			merged = merged || key.Value == "<<"
			continue
		}
		if !slices.Contains(names, key.Value) {
			guess, remedy := d.unknown(key.Value, fields, names)
			d.meant[join(field, guess)] = true
			d.add(d.at(key, join(field, key.Value)), "there is no such key here", remedy)
			continue
		}
		values[key.Value] = value
		d.place(key, value, join(field, key.Value))
	}
	// In the order of the type, so that defaults are known before what inherits them.
	for _, f := range fields {
		if value, ok := values[f.name]; ok {
			d.decode(value, v.FieldByIndex(f.index), join(field, f.name), f.tag)
		} else if f.required && !d.meant[join(field, f.name)] && !merged {
			d.add(d.at(n, join(field, f.name)), "it is missing", "add "+f.name+sample(f))
		}
		if p, ok := v.FieldByIndex(f.index).Addr().Interface().(*Defaults); ok {
			d.retry(join(field, f.name)+".retry", &p.Retry)
			d.defaults = p
		}
	}
}

// sample completes the remedy "add <key>" for a required key.
func sample(f structField) string {
	if enum := rule(f.tag, "enum"); len(enum) > 0 {
		return ": " + strings.Join(enum, " or ")
	}
	switch f.name {
	case "version":
		return ": 1"
	case "source":
		return " with dsn below it"
	case "handlers":
		return ", a list; [] means none"
	case "id":
		return ", a number of its own"
	case "name":
		return ", a text for people"
	case "url":
		return ": https://..."
	case "path":
		return ", the path of an executable file"
	case "table":
		return ", such as public.clients"
	case "key":
		return ", the key columns, such as [id]"
	case "column":
		return ", the name of a column"
	case "value":
		return ", a number such as 10"
	}
	return ""
}

// unknown guesses what an unknown key meant: a name nearby, or the same name one
// level down.
func (d *decoder) unknown(key string, fields []structField, names []string) (guess, remedy string) {
	if guess = nearest(key, names); guess != "" {
		return guess, "did you mean " + guess + "?"
	}
	for _, f := range fields {
		t := f.typ
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || t == reflect.TypeFor[Expr]() || t == reflect.TypeFor[Table]() || t == reflect.TypeFor[Rate]() {
			continue
		}
		for _, inner := range fieldsOf(t) {
			if inner.name == key {
				return "", "it belongs below " + f.name + ": did you mean " + f.name + "." + key + "?"
			}
		}
	}
	return "", "known here: " + strings.Join(names, ", ")
}

// How a scalar is read.
const (
	lenient = 1 << iota // plain numbers and booleans pass as text
	anyTag              // the caller judges the type
	hidden              // never show the value
)

// scalar is a scalar's text after interpolation.
type scalar struct {
	text  string
	raw   string // as written, when ${} changed it
	shown string // how to show it in an error
}

// is says that a scalar is not what is wanted.
func (s scalar) is(want string) string {
	if s.raw != "" {
		return "the value of " + s.raw + " is not " + want
	}
	return "it is " + s.shown + ", want " + want
}

// scalar reads a scalar's text, with ${} replaced. It refuses plain text that
// other YAML readers take for something else.
func (d *decoder) scalar(n *yaml.Node, field string, mode int, want string) (scalar, bool) {
	if n.Kind != yaml.ScalarNode {
		d.wrongKind(n, field, want)
		return scalar{}, false
	}
	s := scalar{text: n.Value, shown: strconv.Quote(n.Value)}
	if !quoted(n) {
		s.shown = n.Value
	}
	quote := "put it in quotes: " + strconv.Quote(n.Value)
	if mode&hidden != 0 {
		s.shown, quote = "hidden", "put it in quotes"
	}
	if strings.Contains(n.Value, "${") {
		text, problem, remedy := interpolate(n.Value, d.env)
		if problem != "" {
			d.add(d.at(n, field), problem, remedy)
			return scalar{}, false
		}
		s.text, s.raw = text, n.Value
		d.raw[field] = n.Value
		return s, true
	}
	if quoted(n) || mode&anyTag != 0 {
		return s, true
	}
	switch {
	case octal(n.Value):
		d.add(d.at(n, field), "it starts with a zero: some YAML readers take it for an octal number", quote)
		return scalar{}, false
	case boolWord(n.Value) && n.ShortTag() != "!!bool":
		d.add(d.at(n, field), "YAML readers disagree whether the plain word is text or true/false", quote)
		return scalar{}, false
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		if mode&lenient == 0 {
			d.add(d.at(n, field), "it is a number, want "+want, quote)
			return scalar{}, false
		}
		if _, err := ParseDecimal(n.Value); err != nil {
			d.add(d.at(n, field), "it is a number in an unusual form", quote)
			return scalar{}, false
		}
	case "!!bool":
		if mode&lenient == 0 || n.Value != "true" && n.Value != "false" {
			d.add(d.at(n, field), "it is true or false, want "+want, quote)
			return scalar{}, false
		}
	}
	return s, true
}

// literal reads a scalar's text as it is, for expressions and templates: ${} is
// not replaced there.
func (d *decoder) literal(n *yaml.Node, field string) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		d.wrongKind(n, field, "an expression")
		return "", false
	}
	return n.Value, true
}

// parseScalar reads a scalar of a type with a parser of its own.
func parseScalar[T any](d *decoder, n *yaml.Node, field string, p *T, parse func(string) (T, error), want, remedy string) {
	s, ok := d.scalar(n, field, anyTag, want)
	if !ok {
		return
	}
	v, err := parse(s.text)
	if err != nil {
		problem := s.is(want)
		if s.raw == "" {
			problem = err.Error()
		}
		d.add(d.at(n, field), problem, remedy)
		return
	}
	*p = v
}

func (d *decoder) inEnum(n *yaml.Node, field string, s scalar, tag reflect.StructTag) bool {
	enum := rule(tag, "enum")
	if len(enum) == 0 || slices.Contains(enum, s.text) {
		return true
	}
	remedy := "give one of them"
	if guess := nearest(s.text, enum); guess != "" && s.raw == "" {
		remedy = "did you mean " + guess + "?"
	}
	d.add(d.at(n, field), s.is("one of "+strings.Join(enum, ", ")), remedy)
	return false
}

func (d *decoder) decodeInt(n *yaml.Node, v reflect.Value, field string, tag reflect.StructTag) {
	s, ok := d.scalar(n, field, anyTag, "a whole number")
	if !ok {
		return
	}
	digits := strings.TrimPrefix(s.text, "-")
	switch {
	case s.raw == "" && quoted(n) && allDigits(digits):
		d.add(d.at(n, field), s.is("a whole number"), "remove the quotes")
		return
	case octal(s.text) && s.raw == "":
		d.add(d.at(n, field), "it starts with a zero: some YAML readers take it for an octal number", "write "+strings.TrimLeft(strings.TrimPrefix(strings.ReplaceAll(s.text, "_", ""), "0o"), "0+-")+" if you mean that")
		return
	case !allDigits(digits):
		d.add(d.at(n, field), s.is("a whole number"), "write digits only")
		return
	}
	i, err := strconv.Atoi(s.text)
	low, high := bound(tag, "minimum", math.MinInt), bound(tag, "maximum", math.MaxInt)
	if err != nil || i < low || i > high {
		remedy := fmt.Sprintf("give a number from %d to %d", low, high)
		switch {
		case low == high:
			remedy = fmt.Sprintf("write %d: this release knows no other", low)
		case high == math.MaxInt:
			remedy = "give a smaller number"
		}
		problem := "it is " + s.shown + ", which is out of range"
		if s.raw != "" {
			problem = "the value of " + s.raw + " is out of range"
		}
		d.add(d.at(n, field), problem, remedy)
		return
	}
	v.SetInt(int64(i))
}

func bound(tag reflect.StructTag, name string, otherwise int) int {
	for _, text := range rule(tag, name) {
		if n, err := strconv.Atoi(text); err == nil {
			return n
		}
	}
	return otherwise
}

func (d *decoder) decodeFloat(n *yaml.Node, v reflect.Value, field string, tag reflect.StructTag) {
	s, ok := d.scalar(n, field, anyTag, "a number")
	if !ok {
		return
	}
	low, high := bound(tag, "minimum", math.MinInt), bound(tag, "maximum", math.MaxInt)
	if s.raw == "" && quoted(n) {
		d.add(d.at(n, field), s.is("a number"), "remove the quotes")
		return
	}
	if _, err := ParseDecimal(s.text); err != nil {
		d.add(d.at(n, field), s.is("a number"), "write digits, such as 2 or 0.5")
		return
	}
	f, err := strconv.ParseFloat(s.text, 64)
	if err != nil || f < float64(low) || f > float64(high) {
		d.add(d.at(n, field), s.is(fmt.Sprintf("a number from %d to %d", low, high)), "give a number in that range")
		return
	}
	v.SetFloat(f)
}

// octal reports whether text looks like a number that starts with a zero.
func octal(s string) bool {
	s = strings.TrimLeft(s, "+-")
	if rest, ok := strings.CutPrefix(s, "0o"); ok {
		return allDigits(rest)
	}
	s = strings.ReplaceAll(s, "_", "")
	return len(s) > 1 && s[0] == '0' && allDigits(s)
}

func boolWord(s string) bool {
	switch strings.ToLower(s) {
	case "yes", "no", "on", "off", "y", "n":
		return true
	}
	return false
}

// json writes n as JSON, keeping the digits of numbers and the order of keys.
func (d *decoder) json(n *yaml.Node, field string, b *bytes.Buffer) {
	if !d.visit(n, field) {
		b.WriteString("null")
		return
	}
	switch n.Kind {
	case yaml.AliasNode:
		if d.active[n.Alias] {
			d.add(d.at(n, field), "the alias *"+n.Value+" contains itself", "remove it")
			b.WriteString("null")
			return
		}
		d.active[n.Alias] = true
		defer delete(d.active, n.Alias)
		d.json(n.Alias, field, b)
	case yaml.MappingNode:
		b.WriteByte('{')
		seen := map[string]*yaml.Node{}
		comma := false
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if !d.key(key, field, seen) {
				continue
			}
			if comma {
				b.WriteByte(',')
			}
			comma = true
			f := join(field, key.Value)
			d.place(key, value, f)
			writeJSON(b, key.Value)
			b.WriteByte(':')
			d.json(value, f, b)
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				b.WriteByte(',')
			}
			d.json(item, d.item(item, field, i), b)
		}
		b.WriteByte(']')
	default:
		if !ownTag(n) {
			d.add(d.at(n, field), "it has the YAML tag "+n.Tag, "remove the tag")
			b.WriteString("null")
			return
		}
		if n.ShortTag() == "!!null" && !quoted(n) {
			b.WriteString("null")
			return
		}
		s, ok := d.scalar(n, field, lenient|hidden, "a value")
		tag := n.ShortTag()
		switch {
		case !ok:
			b.WriteString("null")
		case s.raw == "" && !quoted(n) && (tag == "!!int" || tag == "!!float" || tag == "!!bool"):
			b.WriteString(s.text)
		default:
			writeJSON(b, s.text)
		}
	}
}

// origin finds how a scalar's text lies in the file, for Expr.At.
func (d *decoder) origin(n *yaml.Node) origin {
	line, ok := d.line(n.Line)
	if !ok || n.Column < 1 {
		return origin{}
	}
	if n.Style&yaml.LiteralStyle != 0 {
		for i, text := range strings.Split(n.Value, "\n") {
			trimmed := strings.TrimLeft(text, " ")
			if trimmed == "" {
				continue
			}
			source, ok := d.line(n.Line + 1 + i)
			if !ok || !strings.HasSuffix(source, text) {
				return origin{}
			}
			return origin{block: true, indent: len(source) - len(text)}
		}
		return origin{}
	}
	runes := []rune(line)
	for indent := range 2 {
		if at := n.Column - 1 + indent; at <= len(runes) && strings.HasPrefix(string(runes[at:]), n.Value) && (indent == 1) == quoted(n) {
			return origin{exact: true, indent: indent}
		}
	}
	return origin{}
}
