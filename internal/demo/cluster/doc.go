// Package cluster starts throwaway Postgres servers on loopback.
//
// It promises that a server listens on 127.0.0.1 only, never runs as root, lives
// in one folder of its own, and leaves neither process nor folder behind: not
// after Close, and not when the process that started it dies, by whatever
// signal. For the latter a small shell waits on a pipe whose other end only this
// process holds.
//
// It does not install Postgres: where no server is found, the error says how to
// get one. It is for tests and the demo: by default a crash of the machine may
// lose what was written.
//
// Start with Start and Cluster.URL.
package cluster
