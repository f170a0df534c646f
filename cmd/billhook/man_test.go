package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestMan wants a manual page for every command, with its text, and the same again.
func TestMan(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	write := func() string {
		t.Helper()
		dir := t.TempDir()
		if code := run([]string{"man", "--dir", dir}); code != exitOK {
			t.Fatalf("exit code %d", code)
		}
		return dir
	}
	first, second := write(), write()
	pages := 0
	var look func(c *cobra.Command)
	look = func(c *cobra.Command) {
		if c.Hidden || !c.IsAvailableCommand() && c.HasParent() {
			return
		}
		pages++
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		a, err := os.ReadFile(filepath.Join(first, name))
		if err != nil {
			t.Error(err)
			return
		}
		if b, err := os.ReadFile(filepath.Join(second, name)); err != nil || string(a) != string(b) {
			t.Errorf("%s is another one the second time (%v)", name, err)
		}
		for _, want := range []string{".SH SYNOPSIS", "Nov 2023"} {
			if !strings.Contains(string(a), want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
		for _, below := range c.Commands() {
			look(below)
		}
	}
	look(rootCommand())
	if pages < 30 {
		t.Errorf("%d pages", pages)
	}
	text, err := os.ReadFile(filepath.Join(first, "billhook-init.1"))
	if err != nil {
		t.Fatal(err)
	}
	// A list keeps its lines.
	if !strings.Contains(string(text), ".EX\nbillhook.yaml   the mapping, from a preset that fits or as it was guessed\nhandlers.yaml   a first") {
		t.Errorf("%s", text)
	}
}
