package plugins

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/invopop/jsonschema"

	"github.com/billhook/billhook/plugins/schema"
)

// Secret is text of a configuration that must not be seen: whatever prints, marshals
// or logs it gets "***". Reveal gives the text.
//
// Beside a field of this type called secret the operator may write secret_file
// instead: the path of a file that holds it, read when the plugin is started, without
// the line end. A relative path begins in the folder of handlers.yaml.
type Secret struct {
	// A pointer, since fmt prints a string inside a struct that it was given a wrong verb
	// for, and asks no method.
	text *string
}

// NewSecret hides text, for tests.
func NewSecret(text string) Secret { return Secret{&text} }

// Reveal returns the text.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether there is no secret, or an empty one.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String returns "***", or nothing when there is no secret.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return "***"
}

// GoString returns "***" too.
func (s Secret) GoString() string { return s.String() }

// Format prints "***" for every verb, also for wrong ones.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalJSON returns "***" in quotes.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }

// LogValue returns "***".
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// UnmarshalJSON reads a JSON string.
func (s *Secret) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return errors.New("it is not text") // the library's error would show it
	}
	s.text = &text
	return nil
}

// Duration is a length of time, which the operator writes as elsewhere in
// handlers.yaml: 500ms, 30s, 15m, 2h, 1d.
type Duration time.Duration

// Std returns d as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String returns d as time.Duration prints it.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON returns d as a JSON string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads a JSON string.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var text string
	err := json.Unmarshal(b, &text)
	if err == nil {
		var v time.Duration
		if days, ok := strings.CutSuffix(text, "d"); ok {
			var n int64
			n, err = strconv.ParseInt(days, 10, 16)
			v = time.Duration(n) * 24 * time.Hour
		} else {
			v, err = time.ParseDuration(text)
		}
		*d = Duration(v)
	}
	if err != nil || *d < 0 {
		return errors.New("it is not a duration such as 500ms, 30s, 15m, 2h or 1d")
	}
	return nil
}

type fieldError struct {
	field string
	err   error
}

func (e *fieldError) Error() string {
	if e.field == "" {
		return e.err.Error()
	}
	return e.field + ": " + e.err.Error()
}

func (e *fieldError) Unwrap() error { return e.err }

// Field says that err is about a field of the configuration, named as in YAML:
// "server", "servers[0].port"; "" means the whole. Billhook shows the line of
// handlers.yaml that it stands in. The text of err should not hold the value. Several
// such errors may be joined with errors.Join. It returns nil for a nil err.
func Field(field string, err error) error {
	if err == nil {
		return nil
	}
	return &fieldError{field, err}
}

// DecodeConfig reads a configuration as Serve does, for tests: data is a JSON object.
// Keys that C does not have are errors, tags such as `jsonschema:"required"` or
// `jsonschema:"minimum=1,maximum=65535"` are obeyed, and if C, or a pointer to it, has
// a method Validate() error, that is asked last. Relative paths of secrets begin in
// dir.
func DecodeConfig[C any](data []byte, dir string) (C, error) {
	c, _, err := decode[C](data, dir, true)
	return c, err
}

// decode reads a configuration; the texts that it returns are its secrets.
func decode[C any](data []byte, dir string, judge bool) (C, []string, error) {
	var c C
	if len(bytes.TrimSpace(data)) == 0 {
		data = []byte("{}")
	}
	if judge {
		text, err := schemaOf[C]()
		if err != nil {
			return c, nil, err
		}
		s, err := schema.Parse(text)
		if err != nil {
			return c, nil, err
		}
		var errs []error
		for _, p := range s.Judge(data) {
			errs = append(errs, Field(p.Field, errors.New(p.Text)))
		}
		if len(errs) > 0 {
			return c, nil, errors.Join(errs...)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return c, nil, Field("", errors.New("the configuration is not JSON"))
	}
	r := resolver{dir: dir}
	r.walk(reflect.TypeFor[C](), tree, "")
	if len(r.errs) > 0 {
		return c, nil, errors.Join(r.errs...)
	}
	data, err := json.Marshal(tree)
	if err != nil {
		return c, nil, Field("", err)
	}
	dec = json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return c, nil, decodeError(err)
	}
	v, ok := any(&c).(interface{ Validate() error })
	if !ok {
		v, ok = any(c).(interface{ Validate() error })
	}
	if ok {
		if err := v.Validate(); err != nil {
			if !isField(err) {
				err = Field("", err)
			}
			return c, nil, err
		}
	}
	return c, r.secrets, nil
}

// decodeError names the field and hides the value.
func decodeError(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return Field(wrong.Field, fmt.Errorf("it is %s, want %s", strings.SplitN(wrong.Value, " ", 2)[0], wrong.Type))
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		if text, uerr := strconv.Unquote(name); uerr == nil {
			return Field(text, errors.New("there is no such key"))
		}
	}
	return Field("", err)
}

func isField(err error) bool {
	var f *fieldError
	return errors.As(err, &f)
}

// fieldErrors takes joined errors apart.
func fieldErrors(err error) (out []*fieldError) {
	if f, ok := err.(*fieldError); ok {
		return []*fieldError{f}
	}
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		for _, x := range e.Unwrap() {
			out = append(out, fieldErrors(x)...)
		}
	case interface{ Unwrap() error }:
		out = fieldErrors(e.Unwrap())
	}
	return out
}

// maxSecretFile is the size in bytes of the largest file with a secret.
const maxSecretFile = 64 << 10

// resolver puts the contents of files in the place of keys such as secret_file, and
// collects secrets.
type resolver struct {
	dir     string
	secrets []string
	errs    []error
}

// walk goes through a configuration beside its type.
func (r *resolver) walk(t reflect.Type, v any, at string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[Secret]() {
		if text, ok := v.(string); ok && text != "" {
			r.secrets = append(r.secrets, text)
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if m, ok := v.(map[string]any); ok {
			r.fields(t, m, at)
		}
	case reflect.Slice, reflect.Array:
		if list, ok := v.([]any); ok {
			for i, x := range list {
				r.walk(t.Elem(), x, at+"["+strconv.Itoa(i)+"]")
			}
		}
	case reflect.Map:
		if m, ok := v.(map[string]any); ok {
			for name, x := range m {
				r.walk(t.Elem(), x, within(at, name))
			}
		}
	}
}

func (r *resolver) fields(t reflect.Type, m map[string]any, at string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				r.fields(inner, m, at)
			}
			continue
		case name == "-" || !f.IsExported():
			continue
		case name == "":
			name = f.Name
		}
		if isSecret(f.Type) {
			r.file(m, name, at)
		}
		if x, ok := m[name]; ok {
			r.walk(f.Type, x, within(at, name))
		}
	}
}

// file reads the file that name_file names into name.
func (r *resolver) file(m map[string]any, name, at string) {
	key := name + fileSuffix
	given, ok := m[key]
	if !ok {
		return
	}
	fail := func(text string) { r.errs = append(r.errs, Field(within(at, key), errors.New(text))) }
	path, isText := given.(string)
	_, both := m[name]
	switch {
	case both:
		fail("it stands beside " + name + ": keep one of the two")
		return
	case !isText || path == "":
		fail("it is not the path of a file")
		return
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(r.dir, path)
	}
	text, err := readSecret(path)
	if err != nil {
		fail(err.Error())
		return
	}
	delete(m, key)
	m[name] = text
}

func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", reason(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.New("it does not name a file")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	switch {
	case err != nil:
		return "", reason(err)
	case len(b) > maxSecretFile:
		return "", fmt.Errorf("the file is larger than %d bytes", maxSecretFile)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if text == "" {
		return "", errors.New("the file is empty")
	}
	return text, nil
}

// reason is err without the path, which is a value of the configuration.
func reason(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("the file cannot be read: %w", err)
}

const fileSuffix = "_file"

func isSecret(t reflect.Type) bool {
	return t == reflect.TypeFor[Secret]() || t == reflect.TypeFor[*Secret]()
}

func within(at, key string) string {
	switch {
	case strings.ContainsAny(key, ".[]"):
		return at + "[" + key + "]"
	case at == "":
		return key
	}
	return at + "." + key
}

// schemaOf makes the JSON Schema of a configuration's type.
func schemaOf[C any]() (text string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s cannot be a configuration: %v", reflect.TypeFor[C](), p)
		}
	}()
	t := reflect.TypeFor[C]()
	if t.Kind() != reflect.Struct {
		return "", fmt.Errorf("%s cannot be a configuration: it is no struct", t)
	}
	r := jsonschema.Reflector{
		Anonymous: true, ExpandedStruct: true, RequiredFromJSONSchemaTags: true,
		AdditionalFields: func(t reflect.Type) (more []reflect.StructField) {
			for i := range t.NumField() {
				f := t.Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if name == "" {
					name = f.Name
				}
				if isSecret(f.Type) && name != "-" {
					more = append(more, reflect.StructField{
						Name: f.Name + "File", Type: reflect.TypeFor[string](),
						Tag: reflect.StructTag(`json:"` + name + fileSuffix + `,omitempty" jsonschema:"minLength=1,description=A file that holds ` + name + `."`),
					})
				}
			}
			return more
		},
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch t {
			case reflect.TypeFor[Secret]():
				return &jsonschema.Schema{Type: "string", WriteOnly: true}
			case reflect.TypeFor[Duration]():
				return &jsonschema.Schema{Type: "string", Pattern: `^([0-9]+d|([0-9.]+(ns|us|µs|ms|s|m|h))+|0)$`}
			}
			return nil
		},
	}
	s := r.ReflectFromType(t)
	optional(s)
	for _, d := range s.Definitions {
		optional(d)
	}
	b, err := json.Marshal(s)
	return string(b), err
}

// optional lets a file stand for a secret that is required.
func optional(s *jsonschema.Schema) {
	if s.Properties == nil {
		return
	}
	var required []string
	for _, name := range s.Required {
		p, ok := s.Properties.Get(name)
		if _, file := s.Properties.Get(name + fileSuffix); ok && p.WriteOnly && file {
			s.AllOf = append(s.AllOf, &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Required: []string{name}}, {Required: []string{name + fileSuffix}}}})
			continue
		}
		required = append(required, name)
	}
	s.Required = required
}
