package main

import (
	"math"

	"golang.org/x/sys/unix"
)

// keepDescriptors keeps what this process inherited away from the scripts it runs.
func keepDescriptors() {
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // kernels before 5.11 know it not; then they are passed on
}

// launcher is this program as it runs, even if its file has been replaced since.
func launcher() string { return "/proc/self/exe" }
