package replication

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Class says what a Client does about an Error.
type Class uint8

// The classes. The zero class is Transient.
const (
	Transient Class = iota // connect again after a while, for ever
	Wait                   // somebody else has the slot: stand by
	Fatal                  // only a person can help: Run returns
)

// Reason names the cause of an Error. It labels metrics.
type Reason string

// The reasons.
const (
	ReasonUnreachable        Reason = "unreachable"     // no connection could be made
	ReasonConnectionLost     Reason = "connection_lost" // it broke
	ReasonSilence            Reason = "silence"         // the server no longer answered
	ReasonStalled            Reason = "stalled"         // its WAL grew, but it sent nothing of it
	ReasonServerStopped      Reason = "server_stopped"  // shutting down, starting up or crashed
	ReasonTooManyConnections Reason = "too_many_connections"
	ReasonServerError        Reason = "server_error" // any other error the server reported
	ReasonProtocol           Reason = "protocol"     // bytes that make no sense
	ReasonSlotActive         Reason = "slot_active"
	ReasonConfiguration      Reason = "configuration" // the DSN or an option is wrong
	ReasonAuthentication     Reason = "authentication"
	ReasonDatabaseMissing    Reason = "database_missing"
	ReasonPrivilege          Reason = "privilege"
	ReasonPooler             Reason = "pooler"
	ReasonServerUnfit        Reason = "server_unfit" // wal_level, version, too few slots, a standby
	ReasonSlotMissing        Reason = "slot_missing"
	ReasonSlotLost           Reason = "slot_lost"
	ReasonSlotUnfit          Reason = "slot_unfit" // another plugin or database
	ReasonPublicationMissing Reason = "publication_missing"
	ReasonTable              Reason = "table"      // missing, not published, or not fit to be
	ReasonPartitions         Reason = "partitions" // attached or detached under a server that does not notice
	ReasonIdentityChanged    Reason = "identity_changed"
	ReasonGap                Reason = "gap"
	ReasonAhead              Reason = "ahead" // the journal is ahead of the server
)

// reasons are all of them, for metrics to begin at zero.
func reasons() []Reason {
	return []Reason{
		ReasonUnreachable, ReasonConnectionLost, ReasonSilence, ReasonStalled, ReasonServerStopped, ReasonTooManyConnections,
		ReasonServerError, ReasonProtocol, ReasonSlotActive, ReasonConfiguration, ReasonAuthentication,
		ReasonDatabaseMissing, ReasonPrivilege, ReasonPooler, ReasonServerUnfit, ReasonSlotMissing, ReasonSlotLost,
		ReasonSlotUnfit, ReasonPublicationMissing, ReasonTable, ReasonPartitions, ReasonIdentityChanged, ReasonGap, ReasonAhead,
	}
}

// Error is why a connection could not be made, did not pass its checks, or ended.
// Its text is one line, says what to do, and never holds a secret.
type Error struct {
	Class  Class
	Reason Reason
	Text   string
	Err    error // the cause, if there is one
}

func (e *Error) Error() string { return e.Text }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func fatal(reason Reason, format string, args ...any) *Error {
	return &Error{Class: Fatal, Reason: reason, Text: fmt.Sprintf(format, args...)}
}

func transient(reason Reason, format string, args ...any) *Error {
	return &Error{Reason: reason, Text: fmt.Sprintf(format, args...)}
}

// target is what an error text says about where the connection goes.
type target struct {
	address, user, database, slot, publication string
}

// classify turns any error met on the way from dialing to streaming into an
// *Error. Unknown ones are transient: trying again for ever, visibly, is the
// safer mistake.
func (t target) classify(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		e := t.classifyState(pe)
		e.Err = err
		return e
	}
	if _, ok := errors.AsType[*pgconn.ParseConfigError](err); ok {
		return &Error{Class: Fatal, Reason: ReasonConfiguration, Text: "source.dsn: " + oneLine(err.Error()), Err: err}
	}
	e = &Error{Reason: ReasonConnectionLost, Err: err}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		e.Reason = ReasonUnreachable
		e.Text = fmt.Sprintf("cannot reach Postgres at %s: %s; check source.dsn, and that the server runs and listens there", t.address, rootCause(err))
		return e
	}
	e.Text = fmt.Sprintf("connection to Postgres at %s broke: %s", t.address, rootCause(err))
	return e
}

// classifyState goes by SQLSTATE; message texts may be in any language, so they
// decide only where a state has two causes.
func (t target) classifyState(pe *pgconn.PgError) *Error {
	server := oneLine(pe.Message)
	if pe.Detail != "" {
		server += " (" + strings.TrimSuffix(oneLine(pe.Detail), ".") + ")"
	}
	switch pe.Code {
	case "55006": // object_in_use
		return &Error{Class: Wait, Reason: ReasonSlotActive, Text: fmt.Sprintf("replication slot %q is in use: %s", t.slot, server)}
	case "28P01", "28000":
		return fatal(ReasonAuthentication, "Postgres at %s refuses role %q: %s; check the password in source.dsn and pg_hba.conf", t.address, t.user, server)
	case "3D000":
		return fatal(ReasonDatabaseMissing, "database %q is not on the server at %s; check source.dsn", t.database, t.address)
	case "42501":
		return fatal(ReasonPrivilege, "role %q lacks a privilege: %s; `billhook check` says what to grant", t.user, server)
	case "42704": // undefined_object: from the output plugin it is the publication
		if pe.Routine == "get_publication_by_name" || pe.Routine == "GetPublicationByName" || strings.Contains(pe.Message, "publication") {
			return t.publicationUnseen()
		}
		return t.slotMissing()
	case "55000": // object_not_in_prerequisite_state
		if strings.Contains(pe.Message, "wal_level") {
			return walLevel(server)
		}
		return fatal(ReasonSlotLost, "replication slot %q cannot be read any more: %s; drop it, start again with a new one, with an empty journal folder; what was committed in between makes no events", t.slot, server)
	case "53400": // configuration_limit_exceeded
		return fatal(ReasonServerUnfit, "%s; raise max_replication_slots (needs a restart) or drop a slot that nobody uses", server)
	case "53300":
		return transient(ReasonTooManyConnections, "Postgres at %s takes no more connections: %s; raise max_connections or max_wal_senders", t.address, server)
	case "57P01", "57P02", "57P03":
		return transient(ReasonServerStopped, "Postgres at %s is not up: %s", t.address, server)
	case "42601", "08P01": // syntax_error, protocol_violation: something that is no Postgres
		return fatal(ReasonPooler, "Postgres at %s does not understand replication (%s): a connection pooler answers there; let source.dsn name the database server itself", t.address, server)
	}
	return transient(ReasonServerError, "Postgres at %s reports: %s (SQLSTATE %s)", t.address, server, pe.Code)
}

func (t target) slotMissing() *Error {
	return fatal(ReasonSlotMissing, "replication slot %q does not exist; changes since it went are not in the WAL that a new one would send: make a new one, with an empty journal folder; what was committed in between makes no events", t.slot)
}

// publicationUnseen is for a publication that did not exist at the WAL position
// that is to be decoded. That never heals.
func (t target) publicationUnseen() *Error {
	return fatal(ReasonPublicationMissing, "publication %q does not exist at the position the slot has reached: it was dropped, or made after the slot; drop slot %q, start again with publication before slot, with an empty journal folder; what was committed in between makes no events", t.publication, t.slot)
}

// publicationRemade is for a publication that has another OID than before.
func (t target) publicationRemade() *Error {
	return fatal(ReasonPublicationMissing, "publication %q was dropped and made again; what was changed in between cannot be sent to slot %q any more: drop the slot, start with a new one, with an empty journal folder; what was committed in between makes no events", t.publication, t.slot)
}

func walLevel(have string) *Error {
	return fatal(ReasonServerUnfit, "the server keeps too little in its WAL for logical replication (%s); run ALTER SYSTEM SET wal_level = 'logical' and restart it", have)
}

// rootCause returns the text of the innermost error that says something, without
// the connection string around it.
func rootCause(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Err != nil {
		return oneLine(e.Err.Error())
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return oneLine(err.Error())
		}
		err = next
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
