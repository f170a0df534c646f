package app_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/app"
	"github.com/billhook/billhook/internal/doctor"
)

const plainBillhook = `version: 1
source: {dsn: "postgres://billhook@127.0.0.1:1/billing"}
entities:
  clients: {table: public.clients, key: [id], balance: {column: balance}}
journal: {path: "$DIR/journal"}
http: {listen: "127.0.0.1:0"}
`

const plainHandlers = `version: 1
handlers:
  - {id: 1, name: Block, event: clients.balance_zero, script: {path: "$DIR/block"}}
`

// TestCheckFiles plants one mistake at a time in the files, with no database: the
// first line of want is what must be found.
func TestCheckFiles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name               string
		billhook, handlers string // "": the plain one
		mode               os.FileMode
		check, text, fix   string
		level              doctor.Level
	}{
		{name: "good", check: "handler 1", level: doctor.OK, text: "Block: script "},
		{name: "broken YAML", billhook: "version: 1\nsource: {dsn: [\n", check: "billhook.yaml", level: doctor.Fail, text: "billhook.yaml:"},
		{name: "broken YAML skips", billhook: "version: 1\nsource: {dsn: [\n", check: "slot", level: doctor.Skip, text: "billhook.yaml must be right first"},
		{name: "broken YAML of handlers", handlers: "version: 1\nhandlers: {\n", check: "handlers.yaml", level: doctor.Fail, text: "handlers.yaml:"},
		{name: "the rest is still looked at", handlers: "version: 1\nhandlers: {\n", check: "journal: folder", level: doctor.OK, text: "will be made"},
		{name: "unknown key", billhook: strings.Replace(plainBillhook, "dsn:", "dns:", 1), check: "billhook.yaml", level: doctor.Fail, text: "source.dns", fix: "dsn"},
		{name: "expression", billhook: strings.Replace(plainBillhook, "column: balance", "expression: balance +", 1), check: "billhook.yaml", level: doctor.Fail, text: "entities.clients.balance.expression: ", fix: "correct the expression"},
		{name: "expression skips columns", billhook: strings.Replace(plainBillhook, "column: balance", "expression: balance +", 1), check: "columns", level: doctor.Skip, text: "must be right first"},
		{name: "unknown event", handlers: strings.Replace(plainHandlers, "balance_zero", "balance_zer", 1), check: "handlers.yaml", level: doctor.Fail, text: "handlers[0].event: ", fix: "clients.balance_zero"},
		{
			name: "duplicate id", handlers: plainHandlers + `  - {id: 1, name: Again, event: clients.create, script: {path: "$DIR/block"}}` + "\n",
			check: "handlers.yaml", level: doctor.Fail, text: "handlers[1].id: ", fix: " ",
		},
		{name: "not executable", mode: 0o644, check: "handler 1", level: doctor.Fail, text: "is not executable", fix: "chmod +x "},
		{name: "written by others", mode: 0o777, check: "handler 1", level: doctor.Fail, text: "can be changed by others (mode 0777)", fix: "chmod go-w "},
		{name: "no such script", handlers: strings.Replace(plainHandlers, "/block", "/blok", 1), check: "handler 1", level: doctor.Fail, text: "blok does not exist", fix: "disabled"},
		{
			name: "not executable, but disabled", mode: 0o644, handlers: strings.Replace(plainHandlers, "name: Block", "name: Block, status: disabled", 1),
			check: "handler 1", level: doctor.Warn, text: "disabled, and could not be made: ", fix: "chmod +x ",
		},
		{
			name: "disabled", handlers: strings.Replace(plainHandlers, "name: Block", "name: Block, status: disabled", 1),
			check: "handler 1", level: doctor.OK, text: "disabled, its executions are held; Block: script",
		},
		{
			name: "archived", mode: 0o644, handlers: strings.Replace(plainHandlers, "name: Block", "name: Block, status: archived", 1),
			check: "handler 1", level: doctor.OK, text: "archived, it is never called",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if c.billhook == "" {
				c.billhook = plainBillhook
			}
			if c.handlers == "" {
				c.handlers = plainHandlers
			}
			if c.mode == 0 {
				c.mode = 0o755
			}
			for name, text := range map[string]string{"billhook.yaml": c.billhook, "handlers.yaml": c.handlers, "block": "#!/bin/sh\n"} {
				path := filepath.Join(dir, name)
				mode := os.FileMode(0o644)
				if name == "block" {
					mode = c.mode
				}
				if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "$DIR", dir)), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
			}
			list, err := app.Check(t.Context(), app.Options{ConfigPath: filepath.Join(dir, "billhook.yaml"), HandlersPath: filepath.Join(dir, "handlers.yaml")})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range list {
				if f.Check == c.check && f.Level == c.level && strings.Contains(f.Text, c.text) {
					if !strings.Contains(f.Remedy, c.fix) {
						t.Errorf("remedy %q, want %q", f.Remedy, c.fix)
					}
					return
				}
			}
			t.Errorf("no %s of %q with %q in:", c.level, c.check, c.text)
			for _, f := range list {
				t.Logf("%s %s: %s -> %s", f.Level, f.Check, f.Text, f.Remedy)
			}
		})
	}
}
