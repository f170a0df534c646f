//go:build unix

package plugin_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/plugin"
	"github.com/billhook/billhook/internal/servertest"
)

const (
	secret = "s3cr3t-t0ken-0123456789"
	limit  = 16 << 10
)

// bin is where TestMain puts the plugins that it builds.
func bin(name string) string { return filepath.Join(os.Getenv("PLUGIN_TEST_BIN"), name) }

func TestMain(m *testing.M) {
	if path, ok := os.LookupEnv("PLUGIN_TEST_HOST"); ok {
		os.Exit(hostMain(path))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "plugins-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, name := range []string{"receiver", "raw"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(dir, name), "./testdata/"+name).CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", name, err, out)
			return 1
		}
	}
	for name, mode := range map[string]os.FileMode{"receiver.py": 0o755, "plugin_pb2.py": 0o644} {
		b, err := os.ReadFile(filepath.Join("testdata", "python", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, mode)
		}
		if err == nil {
			err = os.Chmod(filepath.Join(dir, name), mode)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if err := os.Setenv("PLUGIN_TEST_BIN", dir); err != nil {
		return 1
	}
	return m.Run()
}

func TestConformance(t *testing.T) {
	t.Run("package plugins", func(t *testing.T) { conform(t, "receiver") })
	t.Run("nothing but gRPC", func(t *testing.T) { conform(t, "raw") })
	t.Run("Python", func(t *testing.T) {
		const python = "/usr/bin/python3" // the receiver's first line has it
		if out, err := exec.Command(python, "-c", "import grpc, google.protobuf, cryptography").CombinedOutput(); err != nil {
			t.Logf("%s", out)
			servertest.Missing(t, "gRPC for "+python, "python3-grpcio python3-protobuf python3-cryptography")
		}
		conform(t, "receiver.py")
	})
}

func conform(t *testing.T, receiver string) {
	handlertest.Run(t, handlertest.Kind{
		New:    func(t *testing.T, b handlertest.Behaviour) *handlertest.Subject { return subject(t, receiver, b) },
		Limit:  limit,
		Secret: secret,
		Grace:  5 * time.Second,
	})
}

// options are those of a receiver with a configuration.
func options(t *testing.T, receiver string, config map[string]any) plugin.Options {
	t.Helper()
	b, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return plugin.Options{
		Path: bin(receiver), Config: b, HandlerID: 7, HandlerName: "a test", CaptureLimit: limit, KillGrace: time.Second,
		Logger: logger(t), TempDir: "/tmp",
	}
}

func subject(t *testing.T, receiver string, b handlertest.Behaviour) *handlertest.Subject {
	t.Helper()
	dir := t.TempDir()
	o := options(t, receiver, map[string]any{"dir": dir, "token": secret, "behaviour": b})
	h, err := plugin.New(o)
	if err != nil {
		t.Fatal(err)
	}
	// The time that a start takes is not that of the calls.
	if err := h.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &handlertest.Subject{
		Handler: h,
		Entered: func(n int) error {
			return handlertest.Poll(fmt.Sprintf("%d calls", n), func() bool {
				seen, _ := os.ReadFile(filepath.Join(dir, "entered"))
				return len(seen) >= 2*n
			})
		},
		Release: func() {
			if err := os.WriteFile(filepath.Join(dir, "gate"), nil, 0o600); err != nil {
				t.Error(err)
			}
		},
		Stop: func() {},
	}
}
