package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/invopop/jsonschema"
)

const docs = "../docs/configuration.md"

// TestDocs holds the tables of docs/configuration.md to the types: every key with
// its type, default and meaning. A table stands below a line <!-- table Type -->;
// -update writes them.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	structs := map[string]reflect.Type{}
	collect(reflect.TypeFor[Billhook](), structs)
	collect(reflect.TypeFor[Handlers](), structs)
	for _, typ := range []reflect.Type{reflect.TypeFor[Mapping](), reflect.TypeFor[SecretRef]()} {
		structs[typ.Name()] = typ
	}
	comments := &jsonschema.Reflector{}
	if err := comments.AddGoComments("github.com/billhook/billhook/config", "./", jsonschema.WithFullComment()); err != nil {
		t.Fatal(err)
	}

	shown := map[string]bool{}
	marker := regexp.MustCompile(`(?m)^<!-- (?:table (\w+)|events) -->\n(?:\n(?:\|.*\n)+)?`)
	want := marker.ReplaceAllFunc(text, func(found []byte) []byte {
		line, _, _ := strings.Cut(string(found), "\n")
		name := marker.FindSubmatch(found)[1]
		if len(name) == 0 {
			return []byte(line + "\n\n" + eventTable())
		}
		typ := structs[string(name)]
		if typ == nil {
			t.Fatalf("%s: no type %s", docs, name)
		}
		shown[typ.Name()] = true
		return []byte(line + "\n\n" + keyTable(t, typ, comments.CommentMap))
	})
	for name := range structs {
		if !shown[name] {
			t.Errorf("%s has no table for the keys of %s: add a line <!-- table %s -->", docs, name, name)
		}
	}
	if updating() {
		if err := os.WriteFile(docs, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(want) != string(text) {
		t.Errorf("%s is not what the types say: run go test ./config -update", docs)
	}
}

// keyTable is a row for each key of a struct type. Keys of inline types that have a
// table of their own (Mapping) are left to it.
func keyTable(t *testing.T, typ reflect.Type, comments map[string]string) string {
	t.Helper()
	value := reflect.New(typ)
	setDefaults(value)
	var b strings.Builder
	b.WriteString("| Key | Type | Default | Meaning |\n|---|---|---|---|\n")
	for _, f := range fieldsOf(typ) {
		owner := typ
		for _, i := range f.index[:len(f.index)-1] {
			owner = owner.Field(i).Type
		}
		if owner == reflect.TypeFor[Mapping]() && typ != owner {
			continue
		}
		goName := typ.FieldByIndex(f.index).Name
		comment := comments[typ.PkgPath()+"."+owner.Name()+"."+goName]
		if comment == "" {
			t.Errorf("%s.%s has no comment", owner.Name(), goName)
		}
		meaning := describe(comment, f.name)
		meaning = strings.TrimPrefix(meaning, f.name+" ")
		for _, verb := range []string{"is ", "are "} {
			meaning = strings.TrimPrefix(meaning, verb)
		}
		meaning = strings.ToUpper(meaning[:1]) + meaning[1:]
		preset := shownDefault(value.Elem().FieldByIndex(f.index))
		switch {
		case f.required:
			preset = "required"
		case preset != "":
			preset = "`" + strings.Trim(preset, `"`) + "`"
		}
		b.WriteString("| `" + f.name + "` | " + typeText(f) + " | " + preset + " | " + strings.ReplaceAll(meaning, "|", `\|`) + " |\n")
	}
	return b.String()
}

// typeText names the type of a key for people.
func typeText(f structField) string {
	if enum := rule(f.tag, "enum"); len(enum) > 0 {
		return "`" + strings.Join(enum, "`, `") + "`"
	}
	return typeName(f.typ)
}

func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration"
	case reflect.TypeFor[ByteSize]():
		return "size"
	case reflect.TypeFor[Decimal]():
		return "decimal"
	case reflect.TypeFor[Rate]():
		return "rate"
	case reflect.TypeFor[Table]():
		return "table"
	case reflect.TypeFor[Text]():
		return "value"
	case reflect.TypeFor[Secret]():
		return "secret"
	case reflect.TypeFor[Expr]():
		return "expression"
	case reflect.TypeFor[Object]():
		return "mapping"
	case reflect.TypeFor[StatusClass]():
		return "status"
	case reflect.TypeFor[ExitCode]():
		return "exit code"
	case reflect.TypeFor[Addresses]():
		return "list of addresses"
	case reflect.TypeFor[Columns]():
		return "columns"
	case reflect.TypeFor[Ops]():
		return "list of `insert`, `update`, `delete`"
	case reflect.TypeFor[SecretRef]():
		return "secret"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct && schemaOf(t.Elem()) == nil {
			return "list of mappings"
		}
		if t.Elem() == reflect.TypeFor[StatusClass]() {
			return "list of statuses"
		}
		return "list of " + typeName(t.Elem()) + "s"
	case reflect.Map:
		return "mapping of names to " + typeName(t.Elem()) + "s"
	case reflect.Struct:
		return "mapping"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "whole number"
	case reflect.Float64:
		return "number"
	}
	return "text"
}

func eventTable() string {
	var b strings.Builder
	b.WriteString("| Event type | Title | Needs in billhook.yaml | Aliases |\n|---|---|---|---|\n")
	for _, e := range Catalogue() {
		var aliases []string
		for _, a := range e.Aliases {
			aliases = append(aliases, "`"+a+"`")
		}
		b.WriteString("| `" + e.Name + "` | " + e.Title + " | `" + e.Needs + "` | " + strings.Join(aliases, ", ") + " |\n")
	}
	return b.String()
}
