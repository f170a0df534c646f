package config

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/invopop/jsonschema"
	validator "github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/tools/txtar"
	"gopkg.in/yaml.v3"
)

// The flag is defined by the other test package when both are built together.
func updating() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

// TestSchemas holds the committed schemas to the types; -update writes them.
func TestSchemas(t *testing.T) {
	for file, value := range map[string]defaulter{"billhook.schema.json": new(Billhook), "handlers.schema.json": new(Handlers)} {
		want := generateSchema(t, value)
		if updating() {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the types say: run go test ./config -update", file)
		}
	}
}

// TestSchemasJudge gives the schemas every case of testdata/config and the
// examples: good files pass, and bad ones do not where a schema can tell.
func TestSchemasJudge(t *testing.T) {
	schemas := map[string]*validator.Schema{
		"billhook.yaml": compileSchema(t, BillhookSchema()),
		"handlers.yaml": compileSchema(t, HandlersSchema()),
	}
	judge := func(file string, text []byte) (rejected bool, err error) {
		var value any
		if err := yaml.Unmarshal(text, &value); err != nil {
			return true, err
		}
		j, err := json.Marshal(value)
		if err != nil {
			return true, err
		}
		instance, err := validator.UnmarshalJSON(bytes.NewReader(j))
		if err != nil {
			return true, err
		}
		err = schemas[file].Validate(instance)
		return err != nil, err
	}

	cases, err := filepath.Glob("../testdata/config/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var passed []string
	rejects := 0
	for _, path := range cases {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		rejected := false
		for _, f := range archive.Files {
			if schemas[f.Name] == nil {
				continue
			}
			r, err := judge(f.Name, f.Data)
			rejected = rejected || r
			if r && strings.HasPrefix(name, "good-") {
				t.Errorf("%s: the schema rejects a good %s: %v", name, f.Name, err)
			}
		}
		switch {
		case !strings.HasPrefix(name, "bad-"):
		case rejected:
			rejects++
		default:
			passed = append(passed, name)
		}
	}
	// What is wrong with these is beyond a schema, or beyond JSON.
	beyond := []string{
		"bad-billhook-dsn-env", "bad-billhook-dsn-file", "bad-billhook-listen", "bad-billhook-tables-twice",
		"bad-handlers-balance-of-accounts", "bad-handlers-duplicate-id", "bad-handlers-env", "bad-handlers-events-twice", "bad-handlers-events",
		"bad-handlers-none", "bad-handlers-not-mapped", "bad-handlers-url-env", "bad-include-empty", "bad-merge", "bad-nesting", "bad-second-document", "bad-tag",
	}
	if !slices.Equal(passed, beyond) {
		t.Errorf("the schemas pass these bad cases:\n%q\nwant:\n%q", passed, beyond)
	}
	if rejects < 30 {
		t.Errorf("the schemas reject %d bad cases, want at least 30", rejects)
	}

	for path, file := range map[string]string{"billhook.example.yaml": "billhook.yaml", "../handlers.example.yaml": "handlers.yaml"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := judge(file, text); err != nil {
			t.Errorf("the schema rejects %s: %v", path, err)
		}
	}
}

func compileSchema(t *testing.T, text string) *validator.Schema {
	t.Helper()
	doc, err := validator.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := validator.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// generateSchema makes the schema of a file from its type: shapes and rules from
// the struct tags that the loader reads too, descriptions from the comments,
// defaults from setDefaults.
func generateSchema(t *testing.T, root defaulter) []byte {
	t.Helper()
	r := &jsonschema.Reflector{
		Anonymous:                  true,
		ExpandedStruct:             true,
		RequiredFromJSONSchemaTags: true,
		FieldNameTag:               "yaml",
		Mapper:                     schemaOf,
	}
	if err := r.AddGoComments("github.com/billhook/billhook/config", "./", jsonschema.WithFullComment()); err != nil {
		t.Fatal(err)
	}
	s := r.Reflect(root)
	rootType := reflect.TypeOf(root).Elem()
	s.Title = map[string]string{"Billhook": "billhook.yaml", "Handlers": "handlers.yaml"}[rootType.Name()]

	structs := map[string]reflect.Type{}
	collect(rootType, structs)
	for name, typ := range structs {
		def := s.Definitions[name]
		if typ == rootType {
			def = s
		}
		if def == nil {
			continue // inline or mapped
		}
		def.Description = "" // the keys say it
		value := reflect.New(typ)
		setDefaults(value)
		for _, f := range fieldsOf(typ) {
			p, ok := def.Properties.Get(f.name)
			if !ok {
				t.Fatalf("the schema of %s has no %s", name, f.name)
			}
			refine(t, p, f, value.Elem().FieldByIndex(f.index))
		}
		exactlyOne(name, def)
	}
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

func collect(t reflect.Type, structs map[string]reflect.Type) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.PkgPath() != reflect.TypeFor[Billhook]().PkgPath() || structs[t.Name()] != nil || schemaOf(t) != nil {
		return
	}
	structs[t.Name()] = t
	for _, f := range fieldsOf(t) {
		collect(f.typ, structs)
	}
}

// refine adds the default to a property, and where a value is no text lets ${NAME}
// stand for it.
func refine(t *testing.T, p *jsonschema.Schema, f structField, value reflect.Value) {
	t.Helper()
	p.Description = describe(p.Description, f.name)
	if f.name == "event" || f.name == "events" && p.Type == "array" {
		examples := &p.Examples
		if p.Items != nil {
			examples = &p.Items.Examples
		}
		for _, e := range Catalogue() {
			*examples = append(*examples, e.Name)
		}
	}
	if !f.required {
		if d := shownDefault(value); d != "" {
			if err := json.Unmarshal([]byte(d), &p.Default); err != nil {
				t.Fatalf("default of %s: %v", f.name, err)
			}
		}
	}
	if p.Type == "integer" || p.Type == "number" || p.Type == "boolean" || len(p.Enum) > 0 {
		plain := &jsonschema.Schema{Type: p.Type, Minimum: p.Minimum, Maximum: p.Maximum, Enum: p.Enum}
		p.Type, p.Minimum, p.Maximum, p.Enum = "", "", "", nil
		p.AnyOf = []*jsonschema.Schema{plain, variable()}
	}
	switch f.name {
	case "key":
		p.AnyOf[1].MinItems = ptr(uint64(1))
	case "name", "slot", "publication", "path":
		p.MinLength = ptr(uint64(1))
	case "url", "listen":
		p.Pattern = map[string]string{"url": `^https?://[^@#\s/]+(/[^#]*|\?[^#]*)?$`, "listen": `^.*:[0-9]+$`}[f.name] + `|\$\{`
	case "checksum":
		p.Pattern = `^sha256:[0-9a-f]{64}$|\$\{`
	case "preset":
		for _, name := range Presets() {
			p.Enum = append(p.Enum, name)
		}
	case "schedule":
		p.MinItems = ptr(uint64(1))
	}
	if p.PatternProperties != nil || p.AdditionalProperties != nil && f.name == "events" {
		p.PropertyNames = &jsonschema.Schema{Pattern: `^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$`}
	}
	if f.name == "headers" || f.name == "env" && p.Type == "object" {
		p.PropertyNames = &jsonschema.Schema{Pattern: map[string]string{"headers": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", "env": `^[A-Za-z_][A-Za-z0-9_]*$`}[f.name]}
	}
}

// shownDefault is a default as JSON, or "" when there is none to show.
func shownDefault(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		if x == 0 {
			return ""
		}
		return fmt.Sprintf("%q", durationText(x))
	case fmt.Stringer:
		if s := x.String(); s != "" && s != "0B" {
			return fmt.Sprintf("%q", s)
		}
		return ""
	case bool, int, float64:
		if v.Kind() == reflect.Int && v.IsZero() {
			return ""
		}
		return fmt.Sprint(x)
	}
	if v.Kind() == reflect.String && v.Len() > 0 {
		return fmt.Sprintf("%q", v.String())
	}
	return ""
}

func durationText(v time.Duration) string {
	if days := v / (24 * time.Hour); days > 0 && v%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", days)
	}
	return text(v)
}

// describe turns a field's comment into what a person who writes YAML reads: it
// begins with the key, and says nothing of Go.
func describe(comment, key string) string {
	words := strings.Fields(comment)
	if len(words) > 0 {
		words[0] = key
	}
	var sentences []string
	for _, s := range strings.SplitAfter(strings.Join(words, " "), ". ") {
		if s = strings.TrimSpace(s); !strings.HasPrefix(s, "After loading") {
			sentences = append(sentences, s)
		}
	}
	return strings.Join(sentences, " ")
}

func ptr[T any](v T) *T { return &v }

func variable() *jsonschema.Schema { return &jsonschema.Schema{Type: "string", Pattern: `\$\{`} }

func textSchema(pattern string) *jsonschema.Schema {
	return &jsonschema.Schema{Type: "string", Pattern: pattern + `|\$\{`}
}

func anyOf(schemas ...*jsonschema.Schema) *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: schemas}
}

// schemaOf gives the schemas of types that are more than their Go kind, else nil.
func schemaOf(t reflect.Type) *jsonschema.Schema {
	str, array := &jsonschema.Schema{Type: "string", MinLength: ptr(uint64(1))}, func(items *jsonschema.Schema) *jsonschema.Schema {
		return &jsonschema.Schema{Type: "array", Items: items}
	}
	plain := anyOf(&jsonschema.Schema{Type: "string"}, &jsonschema.Schema{Type: "number"}, &jsonschema.Schema{Type: "boolean"})
	switch t {
	case reflect.TypeFor[time.Duration]():
		return textSchema(`^([0-9]+(\.[0-9]+)?(ms|s|m|h|d|w))+$`)
	case reflect.TypeFor[ByteSize]():
		return textSchema(`^[1-9][0-9]* ?(B|kB|KB|KiB|MB|MiB|GB|GiB)$`)
	case reflect.TypeFor[Decimal]():
		return anyOf(&jsonschema.Schema{Type: "number"}, textSchema(`^-?[0-9]+(\.[0-9]+)?$`))
	case reflect.TypeFor[Rate]():
		return textSchema(`^[1-9][0-9]* ?/ ?[smh]$`)
	case reflect.TypeFor[Table]():
		return textSchema(`^("[^"]+"|[^\s"'` + "`" + `;(),.]+)(\.("[^"]+"|[^\s"'` + "`" + `;(),.]+))?$`)
	case reflect.TypeFor[Text](), reflect.TypeFor[Secret]():
		return plain
	case reflect.TypeFor[Expr]():
		return str
	case reflect.TypeFor[Object]():
		return &jsonschema.Schema{Type: "object"}
	case reflect.TypeFor[StatusClass]():
		return anyOf(&jsonschema.Schema{Type: "integer", Minimum: "100", Maximum: "599"}, textSchema(`^[1-5]([0-9][0-9](-[1-5][0-9][0-9])?|xx)$`))
	case reflect.TypeFor[ExitCode]():
		return anyOf(&jsonschema.Schema{Type: "integer", Minimum: "0", Maximum: "255"}, textSchema(`^[0-9]{1,3}(-[0-9]{1,3})?$`))
	case reflect.TypeFor[Addresses]():
		return array(textSchema(`^(private|loopback|link_local|[0-9a-fA-F:.]*[0-9:][0-9a-fA-F:.]*(/[0-9]+)?)$`))
	case reflect.TypeFor[Columns]():
		return anyOf(str, array(str))
	case reflect.TypeFor[Ops]():
		op := &jsonschema.Schema{Type: "string", Enum: []any{"insert", "update", "delete"}}
		return anyOf(op, array(op))
	case reflect.TypeFor[SecretRef]():
		one := func(name string) *jsonschema.Schema {
			s := &jsonschema.Schema{Type: "object", Properties: jsonschema.NewProperties(), AdditionalProperties: jsonschema.FalseSchema, Required: []string{name}}
			s.Properties.Set(name, str)
			return s
		}
		return anyOf(str, one("value"), one("env"), one("file"))
	}
	return nil
}

// exactlyOne adds what the loader demands with one: exactly one of several keys.
func exactlyOne(name string, s *jsonschema.Schema) {
	of := func(names ...string) *jsonschema.Schema {
		one := &jsonschema.Schema{}
		for _, n := range names {
			one.OneOf = append(one.OneOf, &jsonschema.Schema{Required: []string{n}})
		}
		return one
	}
	notBoth := func(names ...string) (pairs []*jsonschema.Schema) {
		for i, a := range names {
			for _, b := range names[i+1:] {
				pairs = append(pairs, &jsonschema.Schema{Not: &jsonschema.Schema{Required: []string{a, b}}})
			}
		}
		return pairs
	}
	switch name {
	case "Billhook":
		s.AnyOf = []*jsonschema.Schema{{Required: []string{"preset"}}, {Required: []string{"entities"}}}
	case "Source":
		s.AllOf = []*jsonschema.Schema{of("dsn", "dsn_file")}
	case "Entities":
		s.MinProperties = ptr(uint64(1))
	case "Transition":
		s.AllOf = []*jsonschema.Schema{of("value", "in", "set", "moves", "at"), of("column", "at")}
	case "Becomes":
		s.AllOf = []*jsonschema.Schema{of("value", "in", "set")}
	case "Balance", "Threshold":
		s.AllOf = []*jsonschema.Schema{of("column", "expression")}
	case "CustomFields":
		s.AllOf = []*jsonschema.Schema{of("table", "column", "columns")}
		s.DependentRequired = map[string][]string{"table": {"client", "name", "value"}, "client": {"table"}, "name": {"table"}, "value": {"table"}}
	case "Token":
		s.AllOf = []*jsonschema.Schema{of("token", "token_env", "token_file")}
	case "User":
		s.AllOf = []*jsonschema.Schema{of("password", "password_env", "password_file")}
	case "Handler":
		s.AllOf = append(notBoth("template", "template_file"), of("event", "events"), of("http", "script", "plugin"))
	case "HTTP":
		s.AllOf = slices.Concat([]*jsonschema.Schema{of("url", "url_env", "url_file")},
			notBoth("secret", "secret_env", "secret_file", "secrets"), notBoth("bearer", "bearer_env", "bearer_file", "basic"))
	case "Basic":
		s.AllOf = notBoth("password", "password_env", "password_file")
	}
}
