package deploy_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// TestDist makes a release for this platform twice, from two folders, and compares the
// bytes; then looks into what was made, and installs the Debian package in a folder.
func TestDist(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("packages are for Linux")
	}
	made := t.TempDir()
	version := "1.2.3"
	release := func(root, out string) {
		run(t, ".", []string{"SOURCE_DATE_EPOCH=1790000000"}, "go", "run", "./dist", "-version", version, "-root", root, "-out", out, "-targets", "linux/"+runtime.GOARCH)
	}
	release("..", made)
	copied := t.TempDir()
	for _, name := range tracked(t) {
		to := filepath.Join(copied, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, read(t, filepath.Join("..", name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := t.TempDir()
	release(copied, again)
	sums := read(t, filepath.Join(made, "SHA256SUMS"))
	if other := read(t, filepath.Join(again, "SHA256SUMS")); !bytes.Equal(sums, other) {
		t.Errorf("two builds differ:\n%s\n%s", sums, other)
	}
	run(t, made, nil, "sha256sum", "--check", "--strict", "SHA256SUMS")

	base := "billhook_" + version + "_linux_" + runtime.GOARCH
	var bill cdx.BOM
	if err := json.Unmarshal(read(t, filepath.Join(made, base+".cdx.json")), &bill); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, c := range *bill.Components {
		names[c.Name] = true
	}
	for _, want := range []string{"std", "github.com/jackc/pgx/v5", "github.com/hashicorp/go-plugin", "github.com/nats-io/nats.go"} {
		if !names[want] {
			t.Errorf("the bill of materials lacks %s", want)
		}
	}

	list := run(t, made, nil, "tar", "-tzf", base+".tar.gz")
	for _, want := range []string{"billhook", "plugins/kamailio", "man/billhook-run.1", "completions/zsh", "README.md", "handlers.example.yaml", "deploy/systemd/billhook.service"} {
		if !strings.Contains(list, base+"/"+want+"\n") {
			t.Errorf("the archive lacks %s", want)
		}
	}

	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("dpkg is not there")
	}
	deb := filepath.Join(made, "billhook_"+version+"_"+runtime.GOARCH+".deb")
	if fields := run(t, made, nil, "dpkg-deb", "--field", deb, "Package", "Version"); fields != "Package: billhook\nVersion: 1.2.3\n" {
		t.Errorf("%s", fields)
	}
	control := t.TempDir()
	run(t, made, nil, "dpkg-deb", "--control", deb, control)
	if conf := string(read(t, filepath.Join(control, "conffiles"))); conf != "/etc/billhook/environment\n" {
		t.Errorf("conffiles: %q", conf)
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		run(t, control, nil, "sh", "-n", script)
	}
	root := t.TempDir()
	run(t, made, nil, "dpkg-deb", "--extract", deb, root)
	if v := run(t, root, nil, filepath.Join(root, "usr/bin/billhook"), "version"); !strings.HasPrefix(v, "billhook 1.2.3 ") {
		t.Errorf("version: %s", v)
	}
	unit := string(read(t, filepath.Join(root, "usr/lib/systemd/system/billhook.service")))
	program := regexp.MustCompile(`(?m)^ExecStart=(\S+) run `).FindStringSubmatch(unit)
	if program == nil {
		t.Fatalf("the unit starts nothing:\n%s", unit)
	}
	if _, err := os.Stat(filepath.Join(root, program[1])); err != nil {
		t.Errorf("the unit starts a program that is not there: %v", err)
	}
	// What the README and the pages link to came along.
	for _, page := range []string{"README.md", "docs/attach.md", "docs/runbook.md", "CHANGELOG.md"} {
		if _, err := os.Stat(filepath.Join(root, "usr/share/doc/billhook", page)); err != nil {
			t.Error(err)
		}
	}

	// Where dpkg may, it installs and removes for real, in a system of its own.
	if os.Getuid() != 0 {
		return
	}
	admin := t.TempDir()
	for _, dir := range []string{"updates", "info"} {
		if err := os.MkdirAll(filepath.Join(admin, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"status", "available"} {
		if err := os.WriteFile(filepath.Join(admin, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	target := t.TempDir()
	dpkg := func(args ...string) string {
		// It is not configured: its scripts would make a user on this machine.
		return run(t, made, nil, "dpkg", append([]string{"--admindir=" + admin, "--instdir=" + target, "--force-script-chrootless", "--force-not-root", "--no-triggers"}, args...)...)
	}
	dpkg("--unpack", deb)
	env := filepath.Join(target, "etc/billhook/environment.dpkg-new") // until it is configured
	if info, err := os.Stat(env); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v", env, err)
	}
	if info, err := os.Stat(filepath.Join(target, "usr/lib/billhook/plugins/nats")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("plugins: %v", err)
	}
}
