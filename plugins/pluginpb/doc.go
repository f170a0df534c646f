// Package pluginpb is what Billhook and a plugin say to each other, as generated
// from plugin.proto, which says what each part means. Authors of plugins in Go use
// package plugins instead and never see it; those in other languages generate their
// own from the same file. It promises that version 1 only grows: what is there keeps
// its number and meaning.
//
// After a change of plugin.proto: make proto.
package pluginpb
