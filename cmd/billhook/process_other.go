//go:build !linux

package main

import "os"

func keepDescriptors() {}

// launcher is this program.
func launcher() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}
