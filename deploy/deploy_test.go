// Package deploy_test holds what deploys Billhook to what it speaks of: the image to the
// sources and the program, the chart and the manifests to Kubernetes' own types and to
// the configuration that Billhook takes, the packages to dpkg.
package deploy_test

import (
	"bytes"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"go.yaml.in/yaml/v3"

	"github.com/billhook/billhook/config"
)

var update = flag.Bool("update", false, "write goldens")

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// tracked are the files of the repository.
func tracked(t *testing.T) []string {
	t.Helper()
	out := run(t, "..", nil, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
	return slices.DeleteFunc(strings.Split(out, "\x00"), func(name string) bool {
		_, err := os.Stat(filepath.Join("..", name))
		return name == "" || err != nil
	})
}

// TestDockerfile builds, with the image's own commands, what the image would hold, from
// just the files that .dockerignore lets through, and asks the program for what the image
// starts it with.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	parsed, err := parser.Parse(bytes.NewReader(read(t, "docker/Dockerfile")))
	if err != nil {
		t.Fatal(err)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, _, _, msg string, _ []parser.Range) { t.Errorf("%s: %s", rule, msg) }})
	stages, _, err := instructions.Parse(parsed.AST, lint)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range parsed.Warnings {
		t.Errorf("%+v", w)
	}
	if len(stages) != 2 || !strings.Contains(stages[1].BaseName, "distroless/static") || !strings.HasSuffix(stages[1].BaseName, ":nonroot") {
		t.Fatalf("stages: %+v", stages)
	}

	patterns, err := ignorefile.ReadAll(bytes.NewReader(read(t, "../.dockerignore")))
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	src, out := t.TempDir(), t.TempDir()
	copied := 0
	for _, name := range tracked(t) {
		if no, err := ignored.MatchesOrParentMatches(name); err != nil {
			t.Fatal(err)
		} else if no {
			continue
		}
		to := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, read(t, filepath.Join("..", name)), 0o644); err != nil {
			t.Fatal(err)
		}
		copied++
	}
	if copied < 100 {
		t.Fatalf("only %d files are let through", copied)
	}

	built := false
	for _, c := range stages[0].Commands {
		if r, ok := c.(*instructions.RunCommand); ok && strings.Contains(strings.Join(r.CmdLine, " "), "go build") {
			script := strings.ReplaceAll(strings.Join(r.CmdLine, " "), "/out/", out+"/")
			run(t, src, []string{"CGO_ENABLED=0", "VERSION=9.9.9"}, "sh", "-ec", script)
			built = true
		}
	}
	if !built {
		t.Fatal("nothing is built")
	}

	program := filepath.Join(out, "usr/bin/billhook")
	if v := run(t, out, nil, program, "version"); !strings.HasPrefix(v, "billhook 9.9.9 ") {
		t.Errorf("version: %s", v)
	}
	var entry, args, health []string
	user := ""
	for _, c := range stages[1].Commands {
		switch c := c.(type) {
		case *instructions.EntrypointCommand:
			entry = c.CmdLine
		case *instructions.CmdCommand:
			args = c.CmdLine
		case *instructions.UserCommand:
			user = c.User
		case *instructions.HealthCheckCommand:
			health = c.Health.Test
		case *instructions.CopyCommand:
			if c.From != stages[0].Name || c.DestPath != "/" || !slices.Equal(c.SourcePaths, []string{"/out/"}) {
				t.Errorf("copies %v from %s to %s", c.SourcePaths, c.From, c.DestPath)
			}
		}
	}
	if user != "65532:65532" {
		t.Errorf("user %q", user)
	}
	for _, line := range [][]string{slices.Concat(entry, args), health[1:]} {
		if len(line) < 2 || line[0] != "/usr/bin/billhook" {
			t.Fatalf("starts %q", line)
		}
		run(t, out, nil, program, append(slices.Clone(line[1:]), "--help")...)
	}
	for _, plugin := range []string{"kamailio", "nats", "radius-disconnect", "smtp"} {
		if info, err := os.Stat(filepath.Join(out, "usr/lib/billhook/plugins", plugin)); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("plugin %s: %v", plugin, err)
		}
	}
	if info, err := os.Stat(filepath.Join(out, "var/lib/billhook")); err != nil || info.Mode().Perm() != fs.FileMode(0o700) {
		t.Errorf("the journal's folder: %v", err)
	}
}

// TestCompose: the project loads with the library that docker compose is made of, all that
// it mounts is there, and what it gives Billhook is what Billhook takes.
func TestCompose(t *testing.T) {
	t.Parallel()
	options, err := cli.NewProjectOptions([]string{"docker/compose.yaml"}, cli.WithoutEnvironmentResolution)
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range project.Services {
		if s.Build == nil {
			if image := s.Image; !strings.Contains(image, ":") || strings.HasSuffix(image, ":latest") {
				t.Errorf("%s: image %s is not pinned", name, image)
			}
		} else if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil {
			t.Error(err)
		}
		for _, v := range s.Volumes {
			if v.Type != "bind" {
				continue
			}
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !v.ReadOnly {
				t.Errorf("%s: %s can be written", name, v.Source)
			}
		}
		for _, p := range s.Ports {
			if p.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to others", name, p.Published)
			}
		}
	}
	env := func(name string) (string, bool) {
		v, ok := project.Services["billhook"].Environment[name]
		if !ok || v == nil {
			return "", false
		}
		return *v, true
	}
	b, err := config.ParseBillhook("billhook.yaml", read(t, "docker/billhook/billhook.yaml"), env)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := config.ParseHandlers("handlers.yaml", read(t, "docker/billhook/handlers.yaml"), env, b); err != nil {
		t.Fatal(err)
	}
	var scrape struct {
		Jobs []struct {
			Authorization struct{ Credentials string }
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(read(t, "docker/prometheus/prometheus.yaml"), &scrape); err != nil {
		t.Fatal(err)
	}
	if token, _ := env("BILLHOOK_METRICS_TOKEN"); len(scrape.Jobs) != 1 || scrape.Jobs[0].Authorization.Credentials != token {
		t.Errorf("Prometheus asks with %+v, and the token is %q", scrape.Jobs, token)
	}
}
