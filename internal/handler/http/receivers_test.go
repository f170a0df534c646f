package http_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/billhook/billhook/internal/servertest"
)

// asked is one request for a function of docs/receivers.md to judge.
type asked struct {
	what       string
	Secret     string `json:"secret"`
	ID         string `json:"id"`
	Timestamp  string `json:"timestamp"`
	Signatures string `json:"signatures"`
	Body       []byte `json:"body"`
	want       bool
}

// TestReceivers runs the functions of docs/receivers.md, in their own languages, on what
// the official library has signed.
func TestReceivers(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../../docs/receivers.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{}
	for _, m := range regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		blocks[m[1]] = m[2]
	}
	requests := toVerify(t)
	for language, run := range map[string]func(t *testing.T, code, input string) *exec.Cmd{
		"go": func(t *testing.T, code, input string) *exec.Cmd {
			code = strings.Replace(code, "package receiver", "package main", 1)
			code = strings.Replace(code, "import (", "import (\n\t\"encoding/json\"\n\t\"os\"", 1)
			dir := t.TempDir()
			servertest.Write(t, dir, "go.mod", "module receiver\n\ngo 1.26\n")
			servertest.Write(t, dir, "main.go", code+`
func main() {
	b, _ := os.ReadFile(os.Args[1])
	var list []struct { Secret, ID, Timestamp, Signatures string; Body []byte }
	if err := json.Unmarshal(b, &list); err != nil { panic(err) }
	for _, r := range list { fmt.Println(Verify(r.Secret, r.ID, r.Timestamp, r.Signatures, r.Body) == nil) }
}
`)
			program := filepath.Join(dir, "receiver")
			build := exec.Command("go", "build", "-o", program, ".")
			build.Dir, build.Env = dir, append(os.Environ(), "GOFLAGS=", "GOWORK=off")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			return exec.Command(program, input)
		},
		"python": func(t *testing.T, code, input string) *exec.Cmd {
			return exec.Command("/usr/bin/python3", servertest.Write(t, t.TempDir(), "receiver.py", code+`
import json, sys
for r in json.load(open(sys.argv[1])):
    print("true" if verify(r["secret"], r["id"], r["timestamp"], r["signatures"], base64.b64decode(r["body"])) else "false")
`), input)
		},
		"php": func(t *testing.T, code, input string) *exec.Cmd {
			return exec.Command(servertest.Program(t, "php", "php-cli"), servertest.Write(t, t.TempDir(), "receiver.php", code+`
foreach (json_decode(file_get_contents($argv[1])) as $r) {
    echo verify($r->secret, $r->id, $r->timestamp, $r->signatures, base64_decode($r->body)) ? "true\n" : "false\n";
}
`), input)
		},
		"js": func(t *testing.T, code, input string) *exec.Cmd {
			return exec.Command(servertest.Program(t, "node", "nodejs"), servertest.Write(t, t.TempDir(), "receiver.mjs", code+`
import { readFileSync } from "node:fs";
for (const r of JSON.parse(readFileSync(process.argv[2]))) {
  console.log(String(verify(r.secret, r.id, r.timestamp, r.signatures, Buffer.from(r.body, "base64"))));
}
`), input)
		},
	} {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			code, ok := blocks[language]
			if !ok {
				t.Fatal("there is no block of it in docs/receivers.md")
			}
			b, err := json.Marshal(requests)
			if err != nil {
				t.Fatal(err)
			}
			out, err := run(t, code, servertest.Write(t, t.TempDir(), "requests.json", string(b))).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			said := strings.Fields(string(out))
			if len(said) != len(requests) {
				t.Fatalf("%d answers to %d requests:\n%s", len(said), len(requests), out)
			}
			for i, r := range requests {
				if said[i] != strconv.FormatBool(r.want) {
					t.Errorf("%s: it says %s", r.what, said[i])
				}
			}
		})
	}
}

func toVerify(t *testing.T) []asked {
	t.Helper()
	secret := func(b byte) string {
		return "whsec_" + base64.StdEncoding.EncodeToString(slices.Repeat([]byte{b, 0xfb}, 16))
	}
	sign := func(secret, id string, at time.Time, body string) string {
		wh, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		s, err := wh.Sign(id, at, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const id, body = "1-16/B374D848-3", `{"event": {"events_id": "clients.create"}, "data": {"name": "Ünï \u0000 <&> 日本"}}`
	mine, other := secret(1), secret(2)
	now := time.Now()
	stamp := strconv.FormatInt(now.Unix(), 10)
	old := now.Add(-time.Hour)
	right := sign(mine, id, now, body)
	return []asked{
		{"right", mine, id, stamp, right, []byte(body), true},
		{"a secret without its prefix", strings.TrimPrefix(mine, "whsec_"), id, stamp, right, []byte(body), true},
		{"an empty body", mine, id, stamp, sign(mine, id, now, ""), []byte{}, true},
		{"bytes that are no text", mine, id, stamp, sign(mine, id, now, "\xff\xfe\x00"), []byte("\xff\xfe\x00"), true},
		{"two secrets, the old one's first", mine, id, stamp, sign(other, id, now, body) + " " + right, []byte(body), true},
		{"another secret", other, id, stamp, right, []byte(body), false},
		{"another body", mine, id, stamp, right, []byte(body + " "), false},
		{"another id", mine, "1-16/B374D848-4", stamp, right, []byte(body), false},
		{"another time", mine, id, strconv.FormatInt(now.Unix()-1, 10), right, []byte(body), false},
		{"old", mine, id, strconv.FormatInt(old.Unix(), 10), sign(mine, id, old, body), []byte(body), false},
		{"no time", mine, id, "now", right, []byte(body), false},
		{"another version", mine, id, stamp, "v2" + strings.TrimPrefix(right, "v1"), []byte(body), false},
		{"shorter", mine, id, stamp, right[:len(right)-2], []byte(body), false},
		{"none", mine, id, stamp, "", []byte(body), false},
	}
}
