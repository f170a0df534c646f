package web

import (
	"context"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"

	"github.com/billhook/billhook/internal/backfill"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replay"
)

//nolint:gochecknoglobals // a flag
var update = flag.Bool("update", false, "write openapi.json")

// operation is a route of the API as the document tells of it.
type operation struct {
	route   string // as the mux has it
	summary string
	params  []param
	body    any // nil: none
	code    int // of success
	answer  any // nil: none; a string: its media type
	refusal map[int]string
	edits   bool // refusals are those of edits
}

type param struct{ name, typ, doc string }

func executionFilters() []param {
	return []param{
		{"id", "integer", "the one with this number"},
		{"handler", "integer", "of the handler with this id"},
		{"event", "string", "of this event type"},
		{"status", "string", "pending, held, succeeded, dead, skipped or cancelled"},
		{"object", "string", "of the object with this id"},
		{"lane", "string", "of this lane, which is the client as a rule"},
		{"text", "string", "in the error, letter case aside"},
		{"request", "string", "in what was sent"},
		{"response", "string", "in what came back"},
		{"attempts", "integer", "at least"},
		{"duration", "string", "of the last attempt at least, such as 500ms"},
		{"since", "date-time", "journaled at or after"},
		{"until", "date-time", "journaled before"},
		{"replayed", "string", "false leaves out what was replayed already"},
		{"before", "integer", "only ids below: next of the page before"},
		{"after", "integer", "only ids above: next of the page before, when the oldest come first"},
	}
}

type (
	errorBody struct {
		Error string `json:"error"`
	}
	statusBody struct {
		Version       string           `json:"version"`
		Checks        []Check          `json:"checks"`
		Executions    map[string]int64 `json:"executions"` // by status
		Replication   any              `json:"replication,omitempty"`
		OldestPending any              `json:"oldest_pending,omitempty"`
		Journal       any              `json:"journal,omitempty"`
		Memory        any              `json:"memory,omitempty"`     // tables that are read into memory
		Missed        any              `json:"missed,omitempty"`     // why changes may have been missed
		Reconciled    any              `json:"reconciled,omitempty"` // gaps that were healed
		Started       string           `json:"started,omitempty" jsonschema:"format=date-time"`
	}
	handlersBody struct {
		Handlers []handlerJSON `json:"handlers"`
	}
	changesBody struct {
		Changes []any `json:"changes"`
	}
	statusPatch struct {
		Status string `json:"status,omitempty" jsonschema:"enum=enabled,enum=disabled,enum=archived"`
		editRequest
	}
	levelBody struct {
		Level string `json:"level" jsonschema:"enum=debug,enum=info,enum=warn,enum=error"`
		For   string `json:"for,omitempty"`
	}
	levelShown struct {
		Level string `json:"level"`
		Until string `json:"until,omitempty"`
	}
	historyBody struct {
		From  string          `json:"from" jsonschema:"format=date-time"`
		Step  float64         `json:"step_seconds"`
		Steps []journal.Tally `json:"steps"`
	}
	auditBody struct {
		Actions []Action `json:"actions"`
		Next    uint64   `json:"next,omitempty"`
	}
	executionsBody struct {
		Executions []executionJSON `json:"executions"`
		Next       uint64          `json:"next,omitempty"`
	}
	againBody struct {
		Again bool `json:"again,omitempty"`
	}
	replaysBody struct {
		Replays []replay.Status `json:"replays"`
	}
	replayRequest struct {
		replay.Spec
		DryRun bool `json:"dry_run,omitempty"`
	}
	backfillsBody struct {
		Backfills []backfill.Status `json:"backfills"`
	}
)

func operations() []operation {
	id := param{"{id}", "integer", "its number"}
	refused := map[int]string{409: "why it is not done", 404: "there is none"}
	return []operation{
		{route: "GET /api/v1/openapi.json", summary: "This document.", code: 200, answer: map[string]any{}},
		{route: "GET /api/v1/status", summary: "Version, checks, the stream with its slot and lag, executions by status.", code: 200, answer: statusBody{}},
		{route: "GET /api/v1/handlers", summary: "The handlers in force, and how they fare.", code: 200, answer: handlersBody{}},
		{route: "POST /api/v1/handlers", summary: "Writes a new handler into handlers.yaml; returns when it is in force.", edits: true, body: editRequest{}, code: 201, answer: Proposal{}, refusal: map[int]string{409: "the file has changed, or cannot be written", 422: "what is wrong, by field"}},
		{route: "GET /api/v1/handlers/{id}", summary: "One of them.", params: []param{id}, code: 200, answer: handlerJSON{}, refusal: map[int]string{404: "there is none"}},
		{route: "PATCH /api/v1/handlers/{id}", summary: "Changes its status, or fields of it, in handlers.yaml; returns when that is in force.", params: []param{id}, edits: true, body: statusPatch{}, code: 200, answer: map[string]any{}, refusal: map[int]string{404: "there is none", 409: "why it is not done", 422: "what is wrong, by field"}},
		{route: "DELETE /api/v1/handlers/{id}", summary: "Takes it out of handlers.yaml.", params: []param{id, {"base", "string", "what its draft said"}, {"dry_run", "boolean", "only shows what would change"}}, code: 200, answer: Proposal{}, refusal: refused},
		{route: "GET /api/v1/handlers/{id}/draft", summary: "Its fields as handlers.yaml writes them, without secrets.", params: []param{id}, code: 200, answer: Draft{}, refusal: refused},
		{route: "GET /api/v1/handlers/changes", summary: "What loading handlers.yaml now would change.", code: 200, answer: changesBody{}, refusal: map[int]string{409: "what is wrong in it"}},
		{route: "POST /api/v1/handlers/{id}/test", summary: "Calls it now, once; nothing of it is recorded.", params: []param{id}, body: Trial{}, code: 200, answer: Tried{}, refusal: refused},
		{route: "GET /api/v1/checks", summary: "What was found when the database and the machine were last looked at.", code: 200, answer: map[string]any{}},
		{route: "POST /api/v1/checks", summary: "Looks now.", code: 200, answer: Diagnosis{}},
		{route: "GET /api/v1/log", summary: "The least level that is logged.", code: 200, answer: levelShown{}},
		{route: "PUT /api/v1/log", summary: "Changes it, for a while.", body: levelBody{}, code: 200, answer: levelShown{}, refusal: map[int]string{422: "what is wrong"}},
		{route: "GET /api/v1/events/live", summary: "Events as they are derived, as server-sent events.", params: []param{{"event", "string", "a type, or a pattern such as clients.*"}, {"object", "string", "of this object"}, {"lane", "string", "of this lane"}}, code: 200, answer: "text/event-stream"},
		{route: "GET /api/v1/history", summary: "What happened to executions in each step of the last day.", params: []param{{"step", "string", "whole minutes, such as 1m or 15m"}, {"steps", "integer", "how many"}, {"handler", "integer", "of one handler"}}, code: 200, answer: historyBody{}, refusal: map[int]string{400: "what is wrong"}},
		{route: "GET /api/v1/audit", summary: "Who did what, the newest first.", params: []param{{"before", "integer", "next of the page before"}, {"limit", "integer", "of the page"}}, code: 200, answer: auditBody{}, refusal: map[int]string{400: "what is wrong"}},
		{route: "GET /api/v1/executions", summary: "Executions, newest first.", params: append(executionFilters(), param{"order", "string", "newest or oldest"}, param{"limit", "integer", "of the page"}), code: 200, answer: executionsBody{}, refusal: map[int]string{400: "what is wrong"}},
		{route: "GET /api/v1/executions.ndjson", summary: "All that match as lines of JSON, the oldest first.", params: append(executionFilters(), param{"full", "boolean", "each with its payload and attempts"}), code: 200, answer: "application/x-ndjson", refusal: map[int]string{400: "what is wrong"}},
		{route: "GET /api/v1/executions/{id}", summary: "One with its payload and every attempt.", params: []param{id}, code: 200, answer: fullJSON{}, refusal: map[int]string{404: "there is none"}},
		{route: "POST /api/v1/executions/{id}/replay", summary: "Replays it at once.", params: []param{id}, body: againBody{}, code: 201, answer: replay.Status{}, refusal: refused},
		{route: "GET /api/v1/replays", summary: "Replays, the newest first.", code: 200, answer: replaysBody{}},
		{route: "POST /api/v1/replays", summary: "Begins one, or with dry_run counts.", body: replayRequest{}, code: 201, answer: replay.Status{}, refusal: map[int]string{409: "why it is not done", 422: "what is wrong"}},
		{route: "GET /api/v1/replays/{id}", summary: "How far it is.", params: []param{id}, code: 200, answer: replay.Status{}, refusal: map[int]string{404: "there is none"}},
		{route: "DELETE /api/v1/replays/{id}", summary: "Cancels it; what it has made stays made.", params: []param{id}, code: 200, answer: replay.Status{}, refusal: map[int]string{404: "there is none"}},
		{route: "GET /api/v1/backfills", summary: "Backfills, the newest first.", code: 200, answer: backfillsBody{}},
		{route: "POST /api/v1/backfills", summary: "Begins one.", body: backfill.Spec{}, code: 201, answer: backfill.Status{}, refusal: map[int]string{422: "what is wrong"}},
		{route: "GET /api/v1/backfills/{id}", summary: "How far it is.", params: []param{id}, code: 200, answer: backfill.Status{}, refusal: map[int]string{404: "there is none"}},
		{route: "DELETE /api/v1/backfills/{id}", summary: "Cancels it; what it has told stays told.", params: []param{id}, code: 200, answer: backfill.Status{}, refusal: map[int]string{404: "there is none"}},
	}
}

// describe makes the document.
func describe(t *testing.T) map[string]any {
	schemas := map[string]any{}
	schema := func(v any) map[string]any {
		r := jsonschema.Reflector{Anonymous: true, AllowAdditionalProperties: true, Namer: func(typ reflect.Type) string {
			name := strings.TrimSuffix(strings.TrimSuffix(typ.Name(), "JSON"), "Body")
			if p := typ.PkgPath(); strings.HasSuffix(p, "/replay") || strings.HasSuffix(p, "/backfill") {
				name = p[strings.LastIndexByte(p, '/')+1:] + strings.ToUpper(name[:1]) + name[1:]
			}
			if name == "" {
				return ""
			}
			return strings.ToUpper(name[:1]) + name[1:]
		}}
		b, err := json.Marshal(r.Reflect(v))
		if err != nil {
			t.Fatal(err)
		}
		var out map[string]any
		text := strings.ReplaceAll(string(b), "#/$defs/", "#/components/schemas/")
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			t.Fatal(err)
		}
		if defs, ok := out["$defs"].(map[string]any); ok {
			maps.Copy(schemas, defs)
		}
		delete(out, "$defs")
		delete(out, "$schema")
		return out
	}
	content := func(media string, s map[string]any) map[string]any {
		return map[string]any{media: map[string]any{"schema": s}}
	}
	failure := content("application/json", schema(errorBody{}))
	paths := map[string]any{}
	for _, o := range operations() {
		method, path, _ := strings.Cut(o.route, " ")
		responses := map[string]any{}
		switch a := o.answer.(type) {
		case string:
			responses[text(o.code)] = map[string]any{"description": o.summary, "content": content(a, map[string]any{"type": "string"})}
		default:
			responses[text(o.code)] = map[string]any{"description": o.summary, "content": content("application/json", schema(a))}
		}
		for code, why := range o.refusal {
			c := failure
			switch {
			case o.edits && code == 422:
				c = content("application/json", schema(editProblems{}))
			case o.edits && code == 409:
				c = content("application/json", schema(editConflict{}))
			}
			responses[text(code)] = map[string]any{"description": why, "content": c}
		}
		responses["401"] = map[string]any{"description": "a token, or a name and password, is needed", "content": failure}
		if method != "GET" {
			responses["403"] = map[string]any{"description": "a viewer may only look", "content": failure}
		}
		op := map[string]any{"summary": o.summary, "operationId": operationID(o.route), "responses": responses}
		params := []any{}
		for _, p := range o.params {
			typ := map[string]any{"type": p.typ}
			if p.typ == "date-time" {
				typ = map[string]any{"type": "string", "format": p.typ}
			}
			name, in := p.name, "query"
			if strings.HasPrefix(name, "{") {
				name, in = strings.Trim(name, "{}"), "path"
			}
			params = append(params, map[string]any{"name": name, "in": in, "required": in == "path", "description": p.doc, "schema": typ})
		}
		if len(params) > 0 {
			op["parameters"] = params
		}
		if o.body != nil {
			body := schema(o.body)
			if ref, ok := body["$ref"].(string); ok {
				// What is not given has its default.
				delete(schemas[strings.TrimPrefix(ref, "#/components/schemas/")].(map[string]any), "required")
			}
			op["requestBody"] = map[string]any{"content": content("application/json", body)}
		}
		if paths[path] == nil {
			paths[path] = map[string]any{}
		}
		paths[path].(map[string]any)[strings.ToLower(method)] = op
	}
	return map[string]any{
		"openapi": "3.1.0",
		"info": map[string]any{
			"title": "Billhook", "version": "1",
			"description": "What the console and the command line do. Where http.tokens or http.users are set, a token or a name with a password is asked for; a viewer may look, an operator also act.",
		},
		"servers":    []any{map[string]any{"url": "/"}},
		"security":   []any{map[string]any{"token": []any{}}, map[string]any{"password": []any{}}, map[string]any{}},
		"paths":      paths,
		"components": map[string]any{"schemas": schemas, "securitySchemes": map[string]any{"token": map[string]any{"type": "http", "scheme": "bearer"}, "password": map[string]any{"type": "http", "scheme": "basic"}}},
	}
}

func text(code int) string { b, _ := json.Marshal(code); return string(b) }

// operationID is a route in one word, such as getHandlersIdDraft.
func operationID(route string) string {
	method, path, _ := strings.Cut(route, " ")
	id := strings.ToLower(method)
	for _, word := range regexp.MustCompile(`[a-z]+`).FindAllString(strings.TrimPrefix(path, "/api/v1"), -1) {
		id += strings.ToUpper(word[:1]) + word[1:]
	}
	return id
}

// TestOpenAPI holds the document to the types and the routes: it is made of them.
func TestOpenAPI(t *testing.T) {
	want, err := json.MarshalIndent(describe(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile("openapi.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(want) != string(openAPIDocument) {
		t.Error("openapi.json is not what the types say: go test ./internal/web -run TestOpenAPI -update")
	}
	o := Options{
		Handlers: func() []Handler { return nil }, SetStatus: func(context.Context, int, string) error { return nil }, Editor: noEditor{},
		Diagnose: func(context.Context) (Diagnosis, error) { return Diagnosis{}, nil }, Changes: func() (any, error) { return nil, nil },
		LogLevel: noLevel{}, Try: func(context.Context, Trial) (Tried, error) { return Tried{}, nil }, Tail: func() (<-chan TailEvent, func()) { return nil, nil },
		Replays: noReplays{}, Backfills: noBackfills{},
	}
	routes := New(o).routes
	told := []string{}
	for _, op := range operations() {
		told = append(told, op.route)
	}
	for _, r := range routes {
		if !slices.Contains(told, r) {
			t.Errorf("the document says nothing of %s", r)
		}
	}
	for _, r := range told {
		if !slices.Contains(routes, r) {
			t.Errorf("the document tells of %s, which there is not", r)
		}
	}
}

type (
	noEditor    struct{ Editor }
	noLevel     struct{ LogLevel }
	noReplays   struct{ Replays }
	noBackfills struct{ Backfills }
)
