// Command dist makes a release: for each platform an archive with Billhook, its plugins,
// manual pages, completions and examples, for Linux also packages for Debian and Red Hat;
// a bill of materials (CycloneDX) of each program, and the digests of all.
//
// What it makes depends on the sources, the version, the time of the commit and the Go
// toolchain alone: the same bytes on every machine, in every folder.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"
	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // a packager
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm" // a packager
)

func main() {
	var r release
	flag.StringVar(&r.version, "version", "", "the release's version, such as 1.2.3")
	flag.StringVar(&r.root, "root", "..", "the repository")
	flag.StringVar(&r.out, "out", "../dist", "folder for what is made; emptied first")
	targets := flag.String("targets", "linux/amd64,linux/arm64,darwin/arm64", "platforms")
	flag.Parse()
	if err := r.run(strings.Split(*targets, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "dist:", err)
		os.Exit(1)
	}
}

// release is what is being made.
type release struct {
	version string
	root    string
	out     string
	time    time.Time // of the commit, or SOURCE_DATE_EPOCH
}

// plugins that come along.
var plugins = []string{"kamailio", "nats", "radius-disconnect", "smtp"}

// file is one of an archive or a package.
type file struct {
	path string // with slashes, from the archive's folder or the root
	mode fs.FileMode
	data []byte
}

var versions = regexp.MustCompile(`^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$`)

func (r *release) run(targets []string) error {
	if !versions.MatchString(r.version) {
		return fmt.Errorf("-version %q: want one such as 1.2.3 or 1.2.3-rc.1", r.version)
	}
	var err error
	if r.root, err = filepath.Abs(r.root); err != nil {
		return err
	}
	if r.time, err = r.commitTime(); err != nil {
		return err
	}
	if err := os.RemoveAll(r.out); err != nil {
		return err
	}
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	shared, err := r.shared()
	if err != nil {
		return err
	}
	for _, target := range targets {
		goos, arch, ok := strings.Cut(target, "/")
		if !ok {
			return fmt.Errorf("-targets: %q is no platform such as linux/amd64", target)
		}
		if err := r.platform(goos, arch, shared); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	return r.sums()
}

// commitTime is SOURCE_DATE_EPOCH, or the time of the commit that is checked out.
func (r *release) commitTime() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		cmd := exec.Command("git", "-C", r.root, "log", "-1", "--format=%ct")
		out, err := cmd.Output()
		if err != nil {
			return time.Time{}, fmt.Errorf("time of the commit: %w; SOURCE_DATE_EPOCH can give it", err)
		}
		text = strings.TrimSpace(string(out))
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("time of the commit: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// build builds a package of the repository for a platform, as a static binary.
func (r *release) build(goos, arch, pkg, to string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= -X main.version="+r.version, "-o", to, pkg)
	cmd.Dir = r.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+arch, "GOFLAGS=", "GOAMD64=v1", "GOARM64=v8.0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// shared is what is the same on all platforms: manual pages and completions, which the
// program of this machine writes, and files of the repository.
func (r *release) shared() (list []file, err error) {
	dir, err := os.MkdirTemp("", "billhook-dist-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	program := filepath.Join(dir, "billhook")
	if err := r.build("", "", "./cmd/billhook", program); err != nil {
		return nil, err
	}
	if out, err := exec.Command(program, "man", "--dir", filepath.Join(dir, "man")).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("manual pages: %w\n%s", err, out)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "man", "*"))
	if err != nil || len(pages) == 0 {
		return nil, fmt.Errorf("no manual pages: %w", err)
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			return nil, err
		}
		list = append(list, file{"man/" + filepath.Base(page), 0o644, b})
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		b, err := exec.Command(program, "completion", shell).Output()
		if err != nil {
			return nil, fmt.Errorf("completion for %s: %w", shell, err)
		}
		list = append(list, file{"completions/" + shell, 0o644, b})
	}
	for _, from := range []string{
		"LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md", "handlers.example.yaml", "config/billhook.example.yaml", "docs/*.md",
		"config/*.schema.json", "deploy/systemd/*", "deploy/sql/*", "deploy/grafana/*", "deploy/prometheus/*",
	} {
		found, err := filepath.Glob(filepath.Join(r.root, from))
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("%s: there is none: %w", from, err)
		}
		for _, name := range found {
			b, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			rel, err := filepath.Rel(r.root, name)
			if err != nil {
				return nil, err
			}
			list = append(list, file{filepath.ToSlash(rel), 0o644, b})
		}
	}
	return list, nil
}

// platform makes what there is for one platform.
func (r *release) platform(goos, arch string, shared []file) (err error) {
	dir, err := os.MkdirTemp("", "billhook-dist-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	programs := map[string]string{"billhook": "./cmd/billhook"}
	for _, p := range plugins {
		programs["plugins/"+p] = "./plugins/" + p
	}
	list := slices.Clone(shared)
	for name, pkg := range programs {
		to := filepath.Join(dir, path.Base(name))
		if err := r.build(goos, arch, pkg, to); err != nil {
			return err
		}
		b, err := os.ReadFile(to)
		if err != nil {
			return err
		}
		list = append(list, file{name, 0o755, b})
	}
	slices.SortFunc(list, func(a, b file) int { return strings.Compare(a.path, b.path) })

	base := fmt.Sprintf("billhook_%s_%s_%s", r.version, goos, arch)
	bill, err := r.bill(dir, base)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.out, base+".cdx.json"), bill, 0o644); err != nil {
		return err
	}
	archive, err := r.archive(base, append(slices.Clone(list), file{"billhook.cdx.json", 0o644, bill}))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.out, base+".tar.gz"), archive, 0o644); err != nil {
		return err
	}
	if goos != "linux" {
		return nil
	}
	for _, format := range []string{"deb", "rpm"} {
		if err := r.pack(format, arch, list, bill); err != nil {
			return fmt.Errorf("%s: %w", format, err)
		}
	}
	return nil
}

// archive is a tar.gz of one folder.
func (r *release) archive(folder string, list []file) ([]byte, error) {
	var buf bytes.Buffer
	zip, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(zip)
	for _, f := range list {
		head := &tar.Header{Name: folder + "/" + f.path, Mode: int64(f.mode.Perm()), Size: int64(len(f.data)), ModTime: r.time, Format: tar.FormatPAX, Typeflag: tar.TypeReg}
		if err := w.WriteHeader(head); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(w.Close(), zip.Close()); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// bill is the bill of materials of all programs of a folder, as their own build
// information has it.
func (r *release) bill(dir, name string) ([]byte, error) {
	doc := cdx.NewBOM()
	doc.SerialNumber = uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/billhook/billhook/"+name)).URN()
	component := func(path, version, sum string) cdx.Component {
		c := cdx.Component{
			Type: cdx.ComponentTypeLibrary, BOMRef: "pkg:golang/" + path + "@" + version, Name: path, Version: version,
			PackageURL: "pkg:golang/" + path + "@" + version,
		}
		if sum != "" {
			c.Properties = &[]cdx.Property{{Name: "go:sum", Value: sum}}
		}
		return c
	}
	self := component("github.com/billhook/billhook", "v"+r.version, "")
	self.Type = cdx.ComponentTypeApplication
	self.Licenses = &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}}
	doc.Metadata = &cdx.Metadata{Timestamp: r.time.Format(time.RFC3339), Component: &self}
	var components []cdx.Component
	programs, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, err
		}
		components = append(components, component("std", strings.TrimPrefix(info.GoVersion, "go"), ""))
		for _, d := range info.Deps {
			if d.Replace != nil {
				d = d.Replace
			}
			components = append(components, component(d.Path, d.Version, d.Sum))
		}
	}
	slices.SortFunc(components, func(a, b cdx.Component) int { return strings.Compare(a.BOMRef, b.BOMRef) })
	components = slices.CompactFunc(components, func(a, b cdx.Component) bool { return a.BOMRef == b.BOMRef })
	doc.Components = &components
	var refs []string
	for _, c := range components {
		refs = append(refs, c.BOMRef)
	}
	doc.Dependencies = &[]cdx.Dependency{{Ref: self.BOMRef, Dependencies: &refs}}
	var buf bytes.Buffer
	if err := cdx.NewBOMEncoder(&buf, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(doc, cdx.SpecVersion1_6); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// where says where a file of the archive goes on a machine; "" is nowhere.
func where(name string) string {
	dir, base := path.Split(name)
	switch {
	case name == "billhook":
		return "/usr/bin/billhook"
	case dir == "plugins/":
		return "/usr/lib/billhook/plugins/" + base
	case dir == "man/":
		return "/usr/share/man/man1/" + base + ".gz"
	case name == "completions/bash":
		return "/usr/share/bash-completion/completions/billhook"
	case name == "completions/zsh":
		return "/usr/share/zsh/vendor-completions/_billhook"
	case name == "completions/fish":
		return "/usr/share/fish/vendor_completions.d/billhook.fish"
	case name == "deploy/systemd/billhook.service":
		return "/usr/lib/systemd/system/billhook.service"
	case name == "LICENSE":
		return "/usr/share/doc/billhook/copyright"
	default:
		return "/usr/share/doc/billhook/" + name
	}
}

const (
	sysusers    = "u billhook - \"Billhook\" /var/lib/billhook\n"
	environment = `# Secrets for billhook.yaml and handlers.yaml, as NAME=value lines. Read by root when the
# service starts; nobody else may read this file.
#BILLHOOK_DSN=postgres://billhook:...@db.example.net:5432/billing
`
	installed = `#!/bin/sh
set -e
if command -v systemd-sysusers >/dev/null 2>&1; then
	systemd-sysusers billhook.conf
elif ! getent passwd billhook >/dev/null; then
	useradd --system --user-group --home-dir /var/lib/billhook --shell /usr/sbin/nologin billhook
fi
chown root:billhook /etc/billhook
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# One that runs goes on with the new program; none is started by itself.
	systemctl try-restart billhook.service
fi
`
	removing = `#!/bin/sh
set -e
# Not when it is only upgraded.
case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now billhook.service || true
	fi
	;;
esac
`
	removed = `#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
case "$1" in
purge)
	if [ -d /var/lib/billhook ]; then
		echo "The journal stays in /var/lib/billhook. The slot keeps WAL on the primary until it is dropped: billhook uninstall."
	fi
	;;
esac
`
)

// pack makes a package for Linux.
func (r *release) pack(format, arch string, list []file, bill []byte) (err error) {
	dir, err := os.MkdirTemp("", "billhook-dist-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var contents files.Contents
	n := 0
	add := func(to, typ string, mode fs.FileMode, data []byte) error {
		n++
		from := filepath.Join(dir, strconv.Itoa(n))
		if err := os.WriteFile(from, data, 0o600); err != nil {
			return err
		}
		contents = append(contents, &files.Content{
			Source: from, Destination: to, Type: typ,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: r.time},
		})
		return nil
	}
	script := func(name, text string) (string, error) {
		p := filepath.Join(dir, name)
		return p, os.WriteFile(p, []byte(text), 0o755)
	}
	for _, f := range list {
		data := f.data
		to := where(f.path)
		if strings.HasSuffix(to, ".gz") {
			var buf bytes.Buffer
			zip, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
			if err != nil {
				return err
			}
			if _, err := zip.Write(data); err != nil {
				return err
			}
			if err := zip.Close(); err != nil {
				return err
			}
			data = buf.Bytes()
		}
		if strings.HasSuffix(to, "/billhook.service") {
			data = bytes.ReplaceAll(data, []byte("/usr/local/bin/billhook"), []byte("/usr/bin/billhook"))
		}
		if err := add(to, files.TypeFile, f.mode, data); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		to, typ string
		mode    fs.FileMode
		data    []byte
	}{
		{"/usr/share/doc/billhook/billhook.cdx.json", files.TypeFile, 0o644, bill},
		{"/usr/lib/sysusers.d/billhook.conf", files.TypeFile, 0o644, []byte(sysusers)},
		{"/etc/billhook/environment", files.TypeConfigNoReplace, 0o600, []byte(environment)},
	} {
		if err := add(f.to, f.typ, f.mode, f.data); err != nil {
			return err
		}
	}
	contents = append(contents, &files.Content{Destination: "/etc/billhook", Type: files.TypeDir, FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: 0o750, MTime: r.time}})

	info := &nfpm.Info{
		Name: "billhook", Arch: arch, Platform: "linux", Version: r.version, VersionSchema: "semver",
		Section: "net", Priority: "optional", Maintainer: "Billhook <billhook@users.noreply.github.com>", Homepage: "https://github.com/billhook/billhook", License: "Apache-2.0",
		Description: "calls handlers when something happens in a billing database\nBillhook follows a Postgres billing database by logical replication, derives\nbusiness events (a client was created, a balance reached zero, a package was\nactivated) and calls HTTP endpoints, scripts and plugins, in order and durably.",
		MTime:       r.time,
		Overridables: nfpm.Overridables{
			Contents: contents,
			Deb:      nfpm.Deb{Compression: "gzip"},
			RPM:      nfpm.RPM{Compression: "gzip", BuildHost: "localhost"},
		},
	}
	if info.Scripts.PostInstall, err = script("postinst", installed); err != nil {
		return err
	}
	if info.Scripts.PreRemove, err = script("prerm", removing); err != nil {
		return err
	}
	if info.Scripts.PostRemove, err = script("postrm", removed); err != nil {
		return err
	}
	for _, p := range []string{info.Scripts.PostInstall, info.Scripts.PreRemove, info.Scripts.PostRemove} {
		if err := os.Chtimes(p, r.time, r.time); err != nil {
			return err
		}
	}
	info = nfpm.WithDefaults(info)
	if err := nfpm.PrepareForPackager(info, format); err != nil {
		return err
	}
	packager, err := nfpm.Get(format)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	if err := packager.Package(info, &buf); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.out, packager.ConventionalFileName(info)), buf.Bytes(), 0o644)
}

// sums writes the digests of all that was made.
func (r *release) sums() error {
	made, err := os.ReadDir(r.out)
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, e := range made {
		data, err := os.ReadFile(filepath.Join(r.out, e.Name()))
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		fmt.Fprintf(&b, "%s  %s\n", hex.EncodeToString(sum[:]), e.Name())
	}
	return os.WriteFile(filepath.Join(r.out, "SHA256SUMS"), []byte(b.String()), 0o644)
}
