package plugins_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/plugins"
)

type server struct {
	Host string `json:"host" jsonschema:"required,minLength=1"`
	Port int    `json:"port" jsonschema:"required,minimum=1,maximum=65535"`
}

type config struct {
	Servers []server          `json:"servers" jsonschema:"required,minItems=1"`
	Secret  plugins.Secret    `json:"secret" jsonschema:"required"`
	Timeout plugins.Duration  `json:"timeout,omitempty"`
	Mode    string            `json:"mode,omitempty" jsonschema:"enum=block,enum=slow"`
	Names   map[string]string `json:"names,omitempty"`
}

func (c *config) Validate() error {
	var errs []error
	for i, s := range c.Servers {
		if s.Host == "localhost" {
			errs = append(errs, plugins.Field(fmt.Sprintf("servers[%d].host", i), errors.New("it is this machine")))
		}
	}
	if c.Mode == "slow" && c.Timeout == 0 {
		errs = append(errs, errors.New("slow wants a timeout"))
	}
	return errors.Join(errs...)
}

func TestDecodeConfig(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"secret": "from a file\n", "empty": "\n", "large": strings.Repeat("x", 70_000)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const servers = `"servers":[{"host":"a","port":1}]`
	for _, c := range []struct{ name, config, want string }{
		{"good", `{` + servers + `,"secret":"hunter2"}`, ""},
		{"a file", `{` + servers + `,"secret_file":"secret"}`, ""},
		{"the path of a file", `{` + servers + `,"secret_file":"` + dir + `/secret"}`, ""},
		{"nothing", ``, "the key servers is missing\nit needs one of the keys secret, secret_file"},
		{"no JSON", `{`, "it is not JSON"},
		{"both", `{` + servers + `,"secret":"hunter2","secret_file":"secret"}`, "secret_file: it stands beside secret: keep one of the two"},
		{"no such file", `{` + servers + `,"secret_file":"hunter2"}`, "secret_file: the file cannot be read: no such file or directory"},
		{"an empty file", `{` + servers + `,"secret_file":"empty"}`, "secret_file: the file is empty"},
		{"a large file", `{` + servers + `,"secret_file":"large"}`, "secret_file: the file is larger than 65536 bytes"},
		{"a folder", `{` + servers + `,"secret_file":"."}`, "secret_file: it does not name a file"},
		{"another key", `{` + servers + `,"secret":"hunter2","pasword":"hunter2"}`, "pasword: there is no such key here"},
		{"another key, deep", `{"servers":[{"host":"a","port":1,"hunter2":1}],"secret":"hunter2"}`, "servers[0].hunter2: there is no such key here"},
		{"a number for text", `{` + servers + `,"secret":12345}`, "secret: it is a number, want text"},
		{"text for a number", `{"servers":[{"host":"a","port":"hunter2"}],"secret":"x"}`, "servers[0].port: it is text, want a whole number"},
		{"out of range", `{"servers":[{"host":"a","port":1},{"host":"a","port":70000}],"secret":"x"}`, "servers[1].port: it is too large, want at most 65535"},
		{"none of them", `{` + servers + `,"secret":"x","mode":"hunter2"}`, "mode: it is not one of block, slow"},
		{"no duration", `{` + servers + `,"secret":"x","timeout":"hunter2"}`, `timeout: it does not match the pattern`},
		{"its own judgement", `{"servers":[{"host":"localhost","port":1}],"secret":"x"}`, "servers[0].host: it is this machine"},
		{"its own judgement of the whole", `{` + servers + `,"secret":"x","mode":"slow"}`, "slow wants a timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := plugins.DecodeConfig[config]([]byte(c.config), dir)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if s := got.Secret.Reveal(); s != "hunter2" && s != "from a file" {
					t.Errorf("the secret is %q", s)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("error %v, want %s", err, c.want)
			}
			if err != nil && strings.Contains(strings.ReplaceAll(err.Error(), "servers[0].hunter2", ""), "hunter2") {
				t.Errorf("the error shows a value: %v", err)
			}
		})
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{`"90s"`: 90 * time.Second, `"1d"`: 24 * time.Hour, `"1h30m"`: 90 * time.Minute} {
		var d plugins.Duration
		if err := json.Unmarshal([]byte(text), &d); err != nil || d.Std() != want {
			t.Errorf("%s: %s, %v", text, d, err)
		}
	}
	for _, bad := range []string{`"-1s"`, `"soon"`, `5`, `"99999d"`} {
		var d plugins.Duration
		if err := json.Unmarshal([]byte(bad), &d); err == nil {
			t.Errorf("%s is %s", bad, d)
		}
	}
}

func TestSecretIsNotShown(t *testing.T) {
	c := config{Secret: plugins.NewSecret("hunter2")}
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{fmt.Sprint(c), fmt.Sprintf("%+v %#v %s %d %x", c, c, c.Secret, c.Secret, c.Secret), string(j), c.Secret.LogValue().String()} {
		if strings.Contains(shown, "hunter2") || strings.Contains(shown, "68756e74657232") {
			t.Errorf("shown: %s", shown)
		}
	}
}

func TestDecode(t *testing.T) {
	d := plugins.Delivery{Payload: []byte(`{"event":{"dt":"2026-11-23T10:15:00.123456+00:00","events_id":"clients.balance_zero","object_id":4711,"id":"1-16/B374D848-3","xid":7731},
		"data":{"id":4711,"balance":"-0.500000","ratio":12345678901234567890.123456789,"vip":true,"note":null},
		"changed":{"balance":{"old":"3.200000","new":"-0.500000"}}}`)}
	e, err := d.Decode()
	if err != nil {
		t.Fatal(err)
	}
	for column, want := range map[string]string{"id": "4711", "balance": "-0.500000", "ratio": "12345678901234567890.123456789", "vip": "true"} {
		if got, ok := e.Data.Text(column); !ok || got != want {
			t.Errorf("%s is %q, want %q", column, got, want)
		}
	}
	for _, column := range []string{"note", "absent"} {
		if got, ok := e.Data.Text(column); ok {
			t.Errorf("%s is %q", column, got)
		}
	}
	if e.Changed["balance"].Old != "3.200000" || e.Event.Type != "clients.balance_zero" {
		t.Errorf("%+v", e)
	}
	for _, bad := range []string{"", "x", "[]", "{}", `{"event":{"events_id":"x"}} more`} {
		if _, err := (&plugins.Delivery{Payload: []byte(bad)}).Decode(); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
