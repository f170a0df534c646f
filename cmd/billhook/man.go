package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand is for whoever makes packages.
func manCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:    "man",
		Short:  "Write the manual pages",
		Long:   `Write a manual page for each command into a folder, as packages carry them.`,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("make the folder: %w", err)
			}
			date := time.Now()
			// As builds that are to be the same everywhere say it.
			if s, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
				date = time.Unix(s, 0).UTC()
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			marked(root)
			if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Date: &date, Source: "Billhook " + buildVersion(), Manual: "Billhook"}, dir); err != nil {
				return fmt.Errorf("write the manual pages: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "man", "folder to write to")
	markTyped(cmd.Flags(), "dir")
	return cmd
}

// marked has the texts of a command and those below it read as Markdown, which the pages
// are made of: what is indented stays as it is, and no sign means more than itself.
func marked(c *cobra.Command) {
	var b strings.Builder
	for line := range strings.Lines(c.Long) {
		if strings.HasPrefix(line, "  ") {
			b.WriteString("  " + line)
			continue
		}
		b.WriteString(strings.NewReplacer("*", `\*`, "_", `\_`, "<", `\<`).Replace(line))
	}
	c.Long = b.String()
	for _, below := range c.Commands() {
		marked(below)
	}
}
