package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// PutHandler returns the text of a handlers.yaml with one handler as the draft wants it
// and all else as it was: comments, order, quotes, line ends. Fields that the draft has
// not stay as they are. The text must have been loaded without a mistake; the result must
// be loaded before it is used, for it is not judged here. An error is a *DraftError when it
// is about a field.
func PutHandler(name string, text []byte, id int, d Draft) ([]byte, error) {
	return PutHandlers(name, text, map[int]Draft{id: d})
}

// PutHandlers is PutHandler for several handlers of a file.
func PutHandlers(name string, text []byte, drafts map[int]Draft) ([]byte, error) {
	f, err := openEdit(name, text)
	if err != nil {
		return nil, err
	}
	want, err := openEdit(name, text) // is changed as a tree, to compare with
	if err != nil {
		return nil, err
	}
	for id, d := range drafts {
		item, err := handlerNode(name, &want.doc, id)
		if err != nil {
			return nil, err
		}
		edits, err := d.edits(item)
		if err != nil {
			return nil, err
		}
		for _, e := range edits {
			if err := f.apply(id, e); err != nil {
				return nil, err
			}
			setNode(item, e)
		}
	}
	return f.checked(&want.doc, "writing this")
}

// AddHandler returns the text of a handlers.yaml with one more handler at the end of its
// list, as PutHandler changes one.
func AddHandler(name string, text []byte, id int, d Draft) ([]byte, error) {
	f, err := openEdit(name, text)
	if err != nil {
		return nil, err
	}
	item := &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{scalarNode("id", false), scalarNode(strconv.Itoa(id), true)}}
	edits, err := d.edits(item)
	if err != nil {
		return nil, err
	}
	for _, e := range edits {
		setNode(item, e)
	}
	want, err := openEdit(name, text)
	if err != nil {
		return nil, err
	}
	root := want.doc.Content[0]
	_, list := field(root, "handlers")
	switch {
	case list == nil:
		root.Content = append(root.Content, scalarNode("handlers", false), &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{item}})
	case list.Kind == yaml.ScalarNode && list.ShortTag() == "!!null":
		*list = yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{item}}
	default:
		list.Content = append(list.Content, item)
	}
	if err := f.append(item); err != nil {
		return nil, err
	}
	return f.checked(&want.doc, "adding a handler")
}

// RemoveHandler returns the text of a handlers.yaml without a handler and the comment
// right above it.
func RemoveHandler(name string, text []byte, id int) ([]byte, error) {
	f, err := openEdit(name, text)
	if err != nil {
		return nil, err
	}
	want, err := openEdit(name, text)
	if err != nil {
		return nil, err
	}
	item, err := handlerNode(name, &want.doc, id)
	if err != nil {
		return nil, err
	}
	_, list := field(want.doc.Content[0], "handlers")
	i := slices.Index(list.Content, item)
	list.Content = slices.Delete(list.Content, i, i+1)
	if err := f.remove(i); err != nil {
		return nil, err
	}
	return f.checked(&want.doc, "removing the handler")
}

// HideSecrets returns the text of a handlers.yaml for people: with "***" in place of what
// is secret.
func HideSecrets(name string, text []byte) ([]byte, error) {
	f, err := openEdit(name, text)
	if err != nil {
		return nil, err
	}
	var hidden []*yaml.Node
	seen := map[*yaml.Node]bool{nil: true}
	var hide func(n *yaml.Node)
	hide = func(n *yaml.Node) {
		if seen[n] {
			return
		}
		seen[n] = true
		switch {
		case n.Kind == yaml.AliasNode:
			hide(n.Alias)
		case n.Kind == yaml.ScalarNode && !openSecret(n.Value):
			hidden = append(hidden, n)
		default:
			for i, c := range n.Content {
				if n.Kind == yaml.SequenceNode || i%2 == 1 {
					hide(c)
				}
			}
		}
	}
	for _, item := range f.items() {
		for _, d := range draftFields() {
			if d.Type == DraftSecret || d.Type == DraftSecrets || d.Type == DraftYAML {
				hide(lookup(item, d.Name))
			}
		}
		if list := lookup(item, "http.secrets"); list != nil {
			for _, s := range list.Content {
				if s.Kind == yaml.MappingNode {
					_, s = field(s, "value")
				}
				hide(s)
			}
		}
	}
	// From the end, so that places before stay right.
	slices.SortFunc(hidden, func(a, b *yaml.Node) int {
		if a.Line != b.Line {
			return b.Line - a.Line
		}
		return b.Column - a.Column
	})
	for _, n := range hidden {
		if length, ok := token(f.lines, n); ok {
			replace(f.lines, n.Line, n.Column, length, masked)
			continue
		}
		// It stands over several lines: to the next thing in the file.
		end := f.bound(n) - 1
		f.lines = slices.Replace(f.lines, n.Line-1, end, string([]rune(f.lines[n.Line-1])[:n.Column-1])+masked+"\n")
	}
	return f.bytes(), nil
}

// edit is a handlers.yaml that is being changed: its text and what it says.
type edit struct {
	name  string
	lines []string
	doc   yaml.Node
}

func openEdit(name string, text []byte) (*edit, error) {
	f := &edit{name: name, lines: splitLines(text)}
	if !utf8.Valid(text) {
		return nil, fmt.Errorf("%s is not valid UTF-8", name)
	}
	// YAML ends lines at these too; whoever counts lines by \n would write elsewhere.
	if strings.ContainsAny(strings.ReplaceAll(string(text), "\r\n", "\n"), "\r\u0085\u2028\u2029") {
		return nil, fmt.Errorf("%s has line ends that editors do not show as such; save it with usual ones", name)
	}
	return f, f.parse()
}

func (f *edit) parse() error {
	f.doc = yaml.Node{}
	if err := safely(func() error { return yaml.Unmarshal(f.bytes(), &f.doc) }); err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	if f.doc.Kind != yaml.DocumentNode || len(f.doc.Content) != 1 || f.doc.Content[0].Kind != yaml.MappingNode {
		return fmt.Errorf("%s is not a mapping", f.name)
	}
	return nil
}

func (f *edit) bytes() []byte { return []byte(strings.Join(f.lines, "")) }

// checked is the text if it says just what it should, and the old one otherwise said.
func (f *edit) checked(want *yaml.Node, doing string) ([]byte, error) {
	var is, should any
	if err := f.doc.Decode(&is); err != nil {
		return nil, fmt.Errorf("%s: %s would spoil the file: %w; change it in the file", f.name, doing, err)
	}
	if err := safely(func() error { return want.Decode(&should) }); err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	if !reflect.DeepEqual(is, should) {
		return nil, fmt.Errorf("%s: %s would change more than that; change it in the file", f.name, doing)
	}
	have := map[string]int{}
	comments(&f.doc, func(line string) { have[line]++ })
	lost := ""
	comments(want, func(line string) {
		if have[line]--; have[line] < 0 && lost == "" {
			lost = line
		}
	})
	if lost != "" {
		return nil, fmt.Errorf("%s: %s would lose the comment %q; change it in the file", f.name, doing, lost)
	}
	return f.bytes(), nil
}

// comments calls found for each line of comments.
func comments(n *yaml.Node, found func(line string)) {
	for _, text := range []string{n.HeadComment, n.LineComment, n.FootComment} {
		for line := range strings.SplitSeq(text, "\n") {
			if line = strings.TrimSpace(line); line != "" {
				found(line)
			}
		}
	}
	for _, c := range n.Content {
		comments(c, found)
	}
}

func (f *edit) items() []*yaml.Node {
	_, list := field(f.doc.Content[0], "handlers")
	if list == nil || list.Kind != yaml.SequenceNode {
		return nil
	}
	return list.Content
}

// bound is the line of what follows a node and all below it in the file, or the line after
// the last.
func (f *edit) bound(n *yaml.Node) int {
	below := map[*yaml.Node]bool{}
	var mark func(n *yaml.Node)
	mark = func(n *yaml.Node) {
		below[n] = true
		for _, c := range n.Content {
			mark(c)
		}
	}
	mark(n)
	next := len(f.lines) + 1
	var find func(o *yaml.Node)
	find = func(o *yaml.Node) {
		if below[o] {
			return
		}
		if o.Line > n.Line && o.Line < next {
			next = o.Line
		}
		for _, c := range o.Content {
			find(c)
		}
	}
	find(&f.doc)
	return next
}

// span returns the first and the last line of a key of a block mapping, or of an item of a
// block list, with all of its value and without comments and empty lines after it. indent
// is how many characters stand before it. With whole, comments that stand deeper than it
// are its own.
func (f *edit) span(start, indent int, value *yaml.Node, next int, whole bool) (first, last int) {
	flow := value.Kind != yaml.ScalarNode && value.Style&yaml.FlowStyle != 0
	last = next - 1
	for i := start; i < next-1 && !flow; i++ {
		line := strings.TrimRight(f.lines[i], "\r\n")
		text := strings.TrimLeft(line, " ")
		deep := len(line) - len(text)
		list := value.Kind == yaml.SequenceNode && deep == indent && strings.HasPrefix(text, "-")
		if strings.TrimSpace(text) != "" && deep <= indent && !list {
			last = i
			break
		}
	}
	literal := func(n *yaml.Node) bool {
		for n.Kind != yaml.ScalarNode && len(n.Content) > 0 {
			n = n.Content[len(n.Content)-1]
		}
		return n.Kind == yaml.ScalarNode && n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0
	}(value)
	for last > start {
		line := strings.TrimRight(f.lines[last-1], "\r\n")
		text := strings.TrimLeft(line, " ")
		if strings.TrimSpace(text) != "" && (literal || !strings.HasPrefix(text, "#") || whole && len(line)-len(text) > indent) {
			break
		}
		last--
	}
	return start, last
}

// keySpan is span for the i-th key of a block mapping.
func (f *edit) keySpan(m *yaml.Node, i int, whole bool) (first, last int) {
	key, value := m.Content[2*i], m.Content[2*i+1]
	next := f.bound(&yaml.Node{Line: key.Line, Content: []*yaml.Node{key, value}})
	if 2*i+2 < len(m.Content) {
		next = m.Content[2*i+2].Line
	}
	return f.span(key.Line, key.Column-1, value, next, whole)
}

func (f *edit) cannot(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d:%d: %s; change it in the file", f.name, n.Line, n.Column, fmt.Sprintf(format, args...))
}

// plainTree refuses what refers to other places of the file.
func (f *edit) plainTree(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return f.cannot(n, "it is used in other places too (& and *)")
	}
	for _, c := range n.Content {
		if err := f.plainTree(c); err != nil {
			return err
		}
	}
	return nil
}

// apply makes one change of a handler in the text and reads it again.
func (f *edit) apply(id int, e draftEdit) error {
	item, err := handlerNode(f.name, &f.doc, id)
	if err != nil {
		return err
	}
	_, list := field(f.doc.Content[0], "handlers")
	if list.Style&yaml.FlowStyle != 0 {
		return f.cannot(list, "the list of handlers is written in brackets")
	}
	if item.Style&yaml.FlowStyle != 0 {
		if err := f.plainTree(item); err != nil {
			return err
		}
		setNode(item, e)
		next := f.bound(item)
		first, last := f.span(item.Line, item.Column-1, item, next, false)
		return f.rewrite(first, last, item.Column-1, item)
	}
	return f.change(item, nil, e)
}

// change makes a change in a block mapping. parents are the keys that lead to it, each
// with the mapping that it stands in.
func (f *edit) change(m *yaml.Node, parents []place, e draftEdit) error {
	i := indexOf(m, e.path[0])
	switch {
	case i < 0 && e.value == nil:
		return nil
	case i < 0:
		return f.insert(m, e)
	}
	key, value := m.Content[2*i], m.Content[2*i+1]
	if len(e.path) > 1 && value.Kind == yaml.MappingNode && value.Style&yaml.FlowStyle == 0 && value.Anchor == "" && len(value.Content) > 0 && value.Line > key.Line {
		return f.change(value, append(parents, place{m, i}), draftEdit{e.path[1:], e.value})
	}
	if err := f.plainTree(value); err != nil {
		return err
	}
	if old := lookup(m, strings.Join(e.path, ".")); old != nil && old.Kind == yaml.ScalarNode && e.value != nil && e.value.Kind == yaml.ScalarNode && !strings.Contains(e.value.Value, "\n") && old.Style&(yaml.LiteralStyle|yaml.FoldedStyle|yaml.TaggedStyle) == 0 {
		// In its place, so that what stands beside it stays.
		n, ok := token(f.lines, old)
		text, err := scalarLine(e.value, len(e.path) > 1 || value.Style&yaml.FlowStyle != 0)
		if err != nil {
			return err
		}
		if ok && (old != value || oneLine(f.lines, m, old)) && old.Value != "" {
			replace(f.lines, old.Line, old.Column, n, text)
			return f.parse()
		}
	}
	first, last := f.keySpan(m, i, false)
	if len(e.path) == 1 && e.value == nil {
		return f.drop(m, i, parents)
	}
	pair := &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{key, value}}
	setNode(pair, e)
	if len(pair.Content) == 0 || pair.Content[1].Kind == yaml.MappingNode && len(pair.Content[1].Content) == 0 {
		return f.drop(m, i, parents)
	}
	return f.rewrite(first, last, key.Column-1, pair)
}

// place is a key of a mapping.
type place struct {
	m *yaml.Node
	i int
}

// drop removes a key of a block mapping, and the mapping when nothing is left in it.
func (f *edit) drop(m *yaml.Node, i int, parents []place) error {
	if len(m.Content) == 2 {
		if len(parents) == 0 {
			return f.cannot(m, "nothing would be left")
		}
		up := parents[len(parents)-1]
		return f.drop(up.m, up.i, parents[:len(parents)-1])
	}
	first, last := f.keySpan(m, i, true)
	if i == 0 {
		// What stands before it, such as a dash, goes before the next.
		key, next := m.Content[0], m.Content[2]
		head := string([]rune(f.lines[key.Line-1])[:key.Column-1])
		if strings.TrimSpace(head) != "" {
			line := []rune(f.lines[next.Line-1])
			f.lines[next.Line-1] = head + string(line[next.Column-1:])
		}
	}
	f.lines = slices.Delete(f.lines, first-1, last)
	return f.parse()
}

// insert writes a new key where files have it as a rule.
func (f *edit) insert(m *yaml.Node, e draftEdit) error {
	order := func(name string) int {
		return slices.IndexFunc(draftOrder(), func(n string) bool { return n == name })
	}
	at := 0
	for i := 0; i+1 < len(m.Content); i += 2 {
		if order(m.Content[i].Value) <= order(e.path[0]) {
			at = i / 2
		}
	}
	pair := &yaml.Node{Kind: yaml.MappingNode}
	setNode(pair, e)
	_, last := f.keySpan(m, at, true)
	indent := m.Content[0].Column - 1
	lines, err := f.encode(pair, indent)
	if err != nil {
		return err
	}
	f.insertLines(last, lines)
	return f.parse()
}

// draftOrder is the names of keys in the order in which files have them as a rule.
func draftOrder() []string {
	names := []string{"id", "name", "event"}
	for _, d := range draftFields() {
		for part := range strings.SplitSeq(d.Name, ".") {
			if !slices.Contains(names, part) {
				names = append(names, part)
			}
		}
	}
	return names
}

// rewrite writes a node in the place of some lines, of which the first keeps what stands
// before it.
func (f *edit) rewrite(first, last, indent int, n *yaml.Node) error {
	lines, err := f.encode(n, indent)
	if err != nil {
		return err
	}
	head := string([]rune(f.lines[first-1])[:indent])
	lines[0] = head + lines[0][indent:]
	if !strings.HasSuffix(f.lines[last-1], "\n") {
		lines[len(lines)-1] = strings.TrimRight(lines[len(lines)-1], "\r\n")
	}
	f.lines = slices.Replace(f.lines, first-1, last, lines...)
	return f.parse()
}

func (f *edit) insertLines(after int, lines []string) {
	if after > 0 && !strings.HasSuffix(f.lines[after-1], "\n") {
		f.lines[after-1] += f.lineEnd()
		lines[len(lines)-1] = strings.TrimRight(lines[len(lines)-1], "\r\n")
	}
	f.lines = slices.Insert(f.lines, after, lines...)
}

func (f *edit) lineEnd() string {
	if len(f.lines) > 0 && strings.HasSuffix(f.lines[0], "\r\n") {
		return "\r\n"
	}
	return "\n"
}

// encode is a node as lines.
func (f *edit) encode(n *yaml.Node, indent int) ([]string, error) {
	bare(n, true)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := safely(func() error { return errors.Join(e.Encode(n), e.Close()) }); err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	lines := splitLines(b.Bytes())
	for i, l := range lines {
		l = strings.TrimSuffix(l, "\n") + f.lineEnd()
		if strings.TrimSpace(l) != "" {
			l = strings.Repeat(" ", indent) + l
		}
		lines[i] = l
	}
	return lines, nil
}

// bare takes comments away that stand outside of what a node's lines are.
func bare(n *yaml.Node, first bool) {
	n.FootComment = ""
	if first {
		n.HeadComment = ""
	}
	for i, c := range n.Content {
		bare(c, first && i == 0)
	}
}

// scalarLine is a scalar as it stands on a line; in flow it stands in brackets.
func scalarLine(n *yaml.Node, flow bool) (string, error) {
	c := *n
	c.HeadComment, c.LineComment, c.FootComment = "", "", ""
	one := &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{scalarNode("k", false), &c}}
	if flow {
		one.Style = yaml.FlowStyle
	}
	var text []byte
	err := safely(func() (err error) { text, err = yaml.Marshal(one); return err })
	if err != nil {
		return "", fmt.Errorf("write a value: %w", err)
	}
	s := strings.TrimSuffix(string(text), "\n")
	if flow {
		s = strings.TrimSuffix(strings.TrimPrefix(s, "{"), "}")
	}
	s = strings.TrimPrefix(s, "k: ")
	if strings.Contains(s, "\n") {
		// A long one is folded; in double quotes it need not be.
		q := scalarQuoted(n.Value)
		return q, nil
	}
	return s, nil
}

// scalarQuoted is a text in double quotes.
func scalarQuoted(s string) string {
	var b bytes.Buffer
	writeJSON(&b, s) // a string of JSON is one of YAML
	return b.String()
}

// append writes a new item at the end of the list of handlers.
func (f *edit) append(item *yaml.Node) error {
	key, list := field(f.doc.Content[0], "handlers")
	lines, err := f.encode(item, 0)
	if err != nil {
		return err
	}
	put := func(after, indent int, gap bool) error {
		out := make([]string, 0, len(lines)+1)
		if gap {
			out = append(out, f.lineEnd())
		}
		for i, l := range lines {
			switch {
			case i == 0:
				l = strings.Repeat(" ", indent) + "- " + l
			case strings.TrimSpace(l) != "":
				l = strings.Repeat(" ", indent+2) + l
			}
			out = append(out, l)
		}
		f.insertLines(after, out)
		return f.parse()
	}
	if list != nil && list.Kind == yaml.SequenceNode && len(list.Content) > 0 {
		if list.Style&yaml.FlowStyle != 0 {
			return f.cannot(list, "the list of handlers is written in brackets")
		}
		indent := list.Column - 1
		_, last := f.itemSpan(list, len(list.Content)-1, true)
		start := f.itemStart(list, len(list.Content)-1)
		gap := start > 1 && start > list.Line && strings.TrimSpace(f.lines[start-2]) == ""
		return put(last, indent, gap || len(list.Content) == 1)
	}
	if list == nil {
		root := f.doc.Content[0]
		at := len(f.lines)
		if n := len(root.Content); n > 0 {
			_, at = f.keySpan(root, n/2-1, true)
		}
		f.insertLines(at, []string{f.lineEnd(), "handlers:" + f.lineEnd()})
		return put(at+2, 2, false)
	}
	if list.Anchor != "" || list.Kind == yaml.AliasNode {
		return f.cannot(list, "the list of handlers is used in other places too")
	}
	i := indexOf(f.doc.Content[0], "handlers")
	first, last := f.keySpan(f.doc.Content[0], i, false)
	if list.Kind == yaml.SequenceNode { // []
		if first != last || list.Line != first {
			return f.cannot(list, "the list of handlers is written in brackets")
		}
		line := []rune(f.lines[first-1])
		head, rest := string(line[:list.Column-1]), string(line[list.Column-1:])
		_, rest, ok := strings.Cut(rest, "]")
		if !ok {
			return f.cannot(list, "the list of handlers is written in brackets")
		}
		f.lines[first-1] = strings.TrimRight(strings.TrimRight(head, " ")+rest, " ")
	}
	return put(first, key.Column+1, false)
}

// itemSpan is span for an item of a block list, from its dash on.
func (f *edit) itemSpan(list *yaml.Node, i int, whole bool) (first, last int) {
	item := list.Content[i]
	var next int
	if i+1 < len(list.Content) {
		next = list.Content[i+1].Line
	} else {
		next = f.bound(item)
	}
	return f.span(item.Line, list.Column-1, item, next, whole)
}

// itemStart is the line of an item or of the comment right above it.
func (f *edit) itemStart(list *yaml.Node, i int) int {
	start := list.Content[i].Line
	for start-1 > list.Line-1 && start > 1 {
		line := strings.TrimRight(f.lines[start-2], "\r\n")
		text := strings.TrimLeft(line, " ")
		if !strings.HasPrefix(text, "#") || len(line)-len(text) != list.Column-1 {
			break
		}
		start--
	}
	return start
}

// remove takes an item of the list of handlers away.
func (f *edit) remove(i int) error {
	key, list := field(f.doc.Content[0], "handlers")
	if list.Style&yaml.FlowStyle != 0 {
		return f.cannot(list, "the list of handlers is written in brackets")
	}
	_, last := f.itemSpan(list, i, true)
	start := f.itemStart(list, i)
	if len(list.Content) == 1 {
		line := f.lines[key.Line-1]
		end := line[len(strings.TrimRight(line, "\r\n")):]
		body := strings.TrimSuffix(line, end)
		// After the colon, before a comment.
		colon := key.Column + utf8.RuneCountInString("handlers")
		r := []rune(body)
		if len(r) < colon || r[colon-1] != ':' {
			return f.cannot(key, "the list of handlers is not written as usual")
		}
		f.lines[key.Line-1] = string(r[:colon]) + " []" + string(r[colon:]) + end
	}
	// One empty line is enough where two would meet.
	if start > 1 && strings.TrimSpace(f.lines[start-2]) == "" && (last >= len(f.lines) || strings.TrimSpace(f.lines[last]) == "") {
		start--
	}
	f.lines = slices.Delete(f.lines, start-1, last)
	return f.parse()
}

func indexOf(m *yaml.Node, name string) int {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == name {
			return i / 2
		}
	}
	return -1
}

// flowKeys are mappings that are written in braces when they are new.
func flowKeys() []string {
	return []string{"retry", "breaker", "statuses", "exit_codes", "limits"}
}

// setNode makes a change in the tree.
func setNode(m *yaml.Node, e draftEdit) {
	i := indexOf(m, e.path[0])
	if len(e.path) == 1 {
		switch {
		case e.value == nil && i >= 0:
			m.Content = slices.Delete(m.Content, 2*i, 2*i+2)
		case e.value == nil:
		case i >= 0:
			v := *e.value
			v.LineComment = m.Content[2*i+1].LineComment
			if m.Style&yaml.FlowStyle != 0 && v.Kind != yaml.ScalarNode {
				v.Style |= yaml.FlowStyle
			}
			m.Content[2*i+1] = &v
		default:
			v := *e.value
			m.Content = append(m.Content, scalarNode(e.path[0], false), &v)
		}
		return
	}
	below := draftEdit{e.path[1:], e.value}
	if i >= 0 && m.Content[2*i+1].Kind == yaml.MappingNode {
		setNode(m.Content[2*i+1], below)
		if len(m.Content[2*i+1].Content) == 0 {
			m.Content = slices.Delete(m.Content, 2*i, 2*i+2)
		}
		return
	}
	if e.value == nil {
		return
	}
	inner := &yaml.Node{Kind: yaml.MappingNode}
	if slices.Contains(flowKeys(), e.path[0]) || m.Style&yaml.FlowStyle != 0 {
		inner.Style = yaml.FlowStyle
	}
	setNode(inner, below)
	if i >= 0 { // it was empty
		m.Content[2*i+1] = inner
		return
	}
	m.Content = append(m.Content, scalarNode(e.path[0], false), inner)
}
