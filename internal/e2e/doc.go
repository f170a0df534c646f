// Package e2e holds the proof tests: the real billhook program, built once per
// test run, against real Postgres servers, real HTTP receivers and real scripts.
//
// What handlers got is compared with a ledger that a trigger kept in the
// database, from which the test works out by itself what must have been told: the
// same events, in the same order for each client, and no id for two events. It
// promises to leave no process behind, also when it is killed, and else no
// database and no folder either.
//
// It looks at nothing inside Billhook: it knows the two files, the signals, the
// HTTP face, what a handler receives, and what is in the database. From the
// catalogue of config it takes which event types a mapping must be able to make.
//
// BILLHOOK_E2E_SCALE multiplies traffic and kills (1 by default: a minute or so on
// two cores), BILLHOOK_E2E_SEED chooses the moments of the kills,
// BILLHOOK_E2E_RACE=1 builds the program with the race detector, and
// BILLHOOK_E2E_BIN tests a program that is already built. Tests that set the clock build
// one of their own.
//
// Start with instance_test.go (the program as a process), ledger_test.go (what is
// expected) and compare_test.go (what counts as a difference). What lies between the
// program and others, and may be unwell, is in wire_test.go, its clock in clock_test.go.
// Scripts of what people get wrong are in testdata/script at the top; statements and the
// events that they make, for each preset, in testdata/presets; payloads in every format
// in testdata/payloads.
package e2e
