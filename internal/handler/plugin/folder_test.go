//go:build unix

package plugin

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestFolder: the folders of a Billhook that was killed are removed by the next, those
// in use are not; a path that is too long for a socket is not used.
func TestFolder(t *testing.T) {
	base, err := os.MkdirTemp("/tmp", "f")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	used, err := newFolder(base)
	if err != nil {
		t.Fatal(err)
	}
	stale, foreign, making, old := filepath.Join(base, folderPrefix+"1"), filepath.Join(base, "other"), filepath.Join(base, folderPrefix+"2"), filepath.Join(base, folderPrefix+"3")
	for _, dir := range []string{stale, filepath.Join(stale, "plugin-dir1"), foreign, making, old} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{filepath.Join(stale, lockName), filepath.Join(foreign, lockName), filepath.Join(used.path, "socket")} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}
	again, err := newFolder(base)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{stale: false, foreign: true, making: true, old: false, used.path: true, again.path: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %t", path, err, want)
		}
	}
	used.empty()
	if _, err := os.Stat(filepath.Join(used.path, lockName)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(used.path, "socket")); err == nil {
		t.Error("the socket is still there")
	}
	used.remove()
	again.remove()
	deep := filepath.Join(base, strings.Repeat("x", 60))
	if err := os.Mkdir(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	short, err := newFolder(deep)
	if err != nil {
		t.Fatal(err)
	}
	defer short.remove()
	if filepath.Dir(short.path) != "/tmp" {
		t.Errorf("the folder is %s", short.path)
	}
}

// TestFolders: many that are made at once do not sweep each other away.
func TestFolders(t *testing.T) {
	base, err := os.MkdirTemp("/tmp", "f")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				f, err := newFolder(base)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(filepath.Join(f.path, lockName)); err != nil {
					t.Error(err)
				}
				f.remove()
			}
		})
	}
	wg.Wait()
	if entries, err := os.ReadDir(base); err != nil || len(entries) > 0 {
		t.Errorf("%d folders are left: %v", len(entries), err)
	}
}
