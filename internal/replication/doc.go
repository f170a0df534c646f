// Package replication follows one logical replication slot of a Postgres 14 to
// 18 server with pgoutput protocol 1, and sets the slot and its publication up.
//
// It promises:
//   - One goroutine owns the replication connection: it reads, answers keepalives
//     and sends status updates on time, however slow the consumer of the chunks
//     is; memory is bounded by a few buffers of 1 MB.
//   - What is confirmed to the server is what was given to Client.Confirm, and
//     nothing else: no position is made by arithmetic.
//   - Before a connection streams, it has made sure that the server, the timeline,
//     the slot and the publication are those that were followed before and that
//     the slot has not moved past what the journal holds. A slot that is in use is
//     waited for; a slot that is lost or missing ends Run; none is made anew
//     silently.
//   - Every failure is an *Error with a class, a reason from a closed set, and one
//     line that names the remedy.
//
// Under backlog, and only then, the reader lets the kernel gather before it is
// woken (SO_RCVLOWAT, Linux), which spares the server's walsender a send and a
// wake-up per message: gather.go.
//
// It does not decode changes (package wal does), does not know what is durable,
// and keeps nothing on disk.
//
// Start with New, Client.Run and Chunk; package catalog reads what a server says
// about itself.
package replication
