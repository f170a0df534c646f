//go:build unix

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// TestOpenAPI asks a running Billhook everything that its OpenAPI document tells of, and
// holds the answers to the document.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	db, in := installPeers(t, "  - {id: 1, name: Works, event: \"*\", script: {path: /bin/true}}\n  - {id: 2, name: Fails, event: clients.create, retry: {attempts: 1}, script: {path: /bin/false}}\n")
	db.Exec(t, "INSERT INTO clients (id, name) VALUES (1, 'One'), (2, 'Two')")
	eventually(t, 20*time.Second, func() string {
		if n := in.executions(); n["succeeded"] != 2 || n["dead"] != 2 {
			return fmt.Sprint(n)
		}
		return ""
	})
	ask := func(method, path, body string) (int, string, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+in.address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
			return resp.StatusCode, "text/event-stream", nil // it does not end
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header.Get("Content-Type"), b
	}
	_, _, raw := ask("GET", "/api/v1/openapi.json", "")
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	if err := compiler.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	pointer := func(parts ...string) string {
		for i := range parts {
			parts[i] = strings.NewReplacer("~", "~0", "/", "~1").Replace(parts[i])
		}
		return "openapi.json#/" + strings.Join(parts, "/")
	}
	told := map[string]bool{}
	for path, methods := range doc.(map[string]any)["paths"].(map[string]any) {
		for method := range methods.(map[string]any) {
			told[method+" "+path] = true
		}
	}
	asked := map[string]bool{}
	for _, c := range []struct {
		method, template, path, body string
		code                         int
	}{
		{"get", "/api/v1/openapi.json", "", "", 200},
		{"get", "/api/v1/status", "", "", 200},
		{"get", "/api/v1/handlers", "", "", 200},
		{"get", "/api/v1/handlers/{id}", "/api/v1/handlers/1", "", 200},
		{"get", "/api/v1/handlers/{id}", "/api/v1/handlers/77", "", 404},
		{"post", "/api/v1/handlers", "", `{"fields":{"name":"Third","events":"clients.update","script.path":"/bin/true"},"dry_run":true}`, 200},
		{"post", "/api/v1/handlers", "", `{"fields":{"name":"Third","events":"clients.update","script.path":"/bin/true"}}`, 201},
		{"post", "/api/v1/handlers", "", `{"fields":{"name":"Fourth","events":"clients.nosuch","script.path":"/bin/true"}}`, 422},
		{"get", "/api/v1/handlers/{id}/draft", "/api/v1/handlers/3/draft", "", 200},
		{"patch", "/api/v1/handlers/{id}", "/api/v1/handlers/3", `{"fields":{"priority":"7"}}`, 200},
		{"patch", "/api/v1/handlers/{id}", "/api/v1/handlers/3", `{"fields":{"priority":"8"},"base":"0123456789abcdef"}`, 409},
		{"patch", "/api/v1/handlers/{id}", "/api/v1/handlers/3", `{"fields":{"priority":"high"}}`, 422},
		{"patch", "/api/v1/handlers/{id}", "/api/v1/handlers/3", `{"status":"disabled"}`, 200},
		{"delete", "/api/v1/handlers/{id}", "/api/v1/handlers/3", "", 200},
		{"get", "/api/v1/handlers/changes", "", "", 200},
		{"post", "/api/v1/handlers/{id}/test", "/api/v1/handlers/2/test", `{}`, 200},
		{"post", "/api/v1/handlers/{id}/test", "/api/v1/handlers/2/test", `{"event":"nosuch"}`, 409},
		{"post", "/api/v1/checks", "", "", 200},
		{"get", "/api/v1/checks", "", "", 200},
		{"put", "/api/v1/log", "", `{"level":"debug","for":"1m"}`, 200},
		{"put", "/api/v1/log", "", `{"level":"loud"}`, 422},
		{"get", "/api/v1/log", "", "", 200},
		{"get", "/api/v1/events/live", "", "", 200},
		{"get", "/api/v1/history", "/api/v1/history?step=15m&steps=4&handler=1", "", 200},
		{"get", "/api/v1/history", "/api/v1/history?step=15s", "", 400},
		{"get", "/api/v1/audit", "/api/v1/audit?limit=2", "", 200},
		{"get", "/api/v1/audit", "/api/v1/audit?limit=0", "", 400},
		{"get", "/api/v1/executions", "/api/v1/executions?status=dead&limit=1&attempts=1&request=nothing", "", 200},
		{"get", "/api/v1/executions", "", "", 200},
		{"get", "/api/v1/executions", "/api/v1/executions?nosuch=1", "", 400},
		{"get", "/api/v1/executions.ndjson", "", "", 200},
		{"get", "/api/v1/executions/{id}", "/api/v1/executions/2", "", 200},
		{"get", "/api/v1/executions/{id}", "/api/v1/executions/4711", "", 404},
		{"post", "/api/v1/executions/{id}/replay", "/api/v1/executions/2/replay", "", 201},
		{"post", "/api/v1/executions/{id}/replay", "/api/v1/executions/2/replay", "", 409},
		{"post", "/api/v1/replays", "", `{"filter":{"handler":2,"response":"","attempts":1}}`, 201},
		{"post", "/api/v1/replays", "", `{"filter":{"status":"pending"}}`, 422},
		{"get", "/api/v1/replays", "", "", 200},
		{"get", "/api/v1/replays/{id}", "/api/v1/replays/1", "", 200},
		{"get", "/api/v1/replays/{id}", "/api/v1/replays/99", "", 404},
		{"delete", "/api/v1/replays/{id}", "/api/v1/replays/1", "", 200},
		{"post", "/api/v1/backfills", "", `{"events":["clients.create"],"handlers":[1]}`, 201},
		{"post", "/api/v1/backfills", "", `{"events":["clients.create"],"handlers":[77]}`, 422},
		{"get", "/api/v1/backfills", "", "", 200},
		{"get", "/api/v1/backfills/{id}", "/api/v1/backfills/1", "", 200},
		{"delete", "/api/v1/backfills/{id}", "/api/v1/backfills/1", "", 200},
	} {
		path := c.path
		if path == "" {
			path = c.template
		}
		name := fmt.Sprintf("%s %s %s", c.method, path, c.body)
		asked[c.method+" "+c.template] = true
		code, media, body := ask(strings.ToUpper(c.method), path, c.body)
		if code != c.code {
			t.Errorf("%s: %d %s", name, code, body)
			continue
		}
		media, _, _ = strings.Cut(media, ";")
		at := fmt.Sprint(code)
		if strings.Contains(c.body, "dry_run") {
			at = "201" // the document tells of what is done
		}
		schema, err := compiler.Compile(pointer("paths", c.template, c.method, "responses", at, "content", media, "schema"))
		if err != nil {
			t.Errorf("%s: the document does not tell of an answer %d of %s: %v", name, code, media, err)
			continue
		}
		if media != "application/json" {
			continue
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s: %s is not as the document says: %v", name, body, err)
		}
		// Nor is there more than it tells of.
		if extra := untold(schema, v); len(extra) > 0 {
			t.Errorf("%s: the document says nothing of %v", name, extra)
		}
	}
	for op := range told {
		if !asked[op] {
			t.Errorf("%s was not asked for", op)
		}
	}
	if !json.Valid(raw) || !slices.Contains([]string{"3.1.0"}, doc.(map[string]any)["openapi"].(string)) {
		t.Error("not a document of OpenAPI 3.1")
	}
}

// untold lists the fields of an object that its schema, where it lists any, has not.
func untold(s *jsonschema.Schema, v any) (list []string) {
	for s.Ref != nil {
		s = s.Ref
	}
	object, ok := v.(map[string]any)
	if !ok || len(s.Properties) == 0 {
		return nil
	}
	for name, value := range object {
		p, ok := s.Properties[name]
		if !ok {
			list = append(list, name)
			continue
		}
		for _, below := range untold(p, value) {
			list = append(list, name+"."+below)
		}
	}
	return list
}
