// Package handler is the contract between the dispatcher and what it calls: an
// HTTP endpoint, a script or a plugin. Each kind lives in a package below this
// one, owns its Options, and decides for itself which of its failures may pass
// by themselves and which never will.
//
// It promises nothing about when or how often a Handler is called: that is the
// dispatcher's. It does not know the journal.
//
// Start with Handler and Delivery; package handlertest is the suite that every
// kind must pass.
package handler

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/billhook/billhook/internal/event"
)

// Handler makes attempts.
type Handler interface {
	// Handle makes one attempt to deliver d and blocks until its outcome is
	// known. The dispatcher calls it from many goroutines at once, each with a
	// context that carries the attempt's deadline; Handle must return soon after
	// the context ends and leave nothing running.
	//
	// A nil error is success. An error that Permanent made will not be tried
	// again. Any other error is tried again by the handler's schedule, or after
	// the delay that RetryAfter put in it. When the context was cancelled (not
	// when its deadline passed) the error is ignored and the attempt costs nothing.
	//
	// The Result says what was sent and what came back and is kept for both
	// outcomes, so a handler fills what it knows even when it fails.
	Handle(ctx context.Context, d *Delivery) (Result, error)

	// Close frees what the handler holds. It is called once, after the last
	// Handle has returned.
	Close() error
}

// Delivery is one event for one handler, at one attempt. It is read-only.
type Delivery struct {
	Event     *event.Event
	HandlerID int
	Name      string // the handler's name
	Attempt   int    // from 1
	// Body is the payload in the handler's format, ready to send. It is the same
	// at every attempt: whatever varies travels in headers or environment.
	Body        []byte
	ContentType string
}

// Result is what one attempt sent and what came back, for the execution log.
type Result struct {
	Request  Exchange
	Response Exchange
	// Code is the HTTP status, the script's exit code or the gRPC code; -1 when
	// there was none.
	Code   int
	Reason Reason // why it failed; empty on success
	// Answer is what the receiver asked for in a JSON answer, zero if nothing.
	Answer Answer
}

// Exchange is one direction of an attempt as it is shown to people: secrets
// masked, cut to the handler's capture limit.
type Exchange struct {
	// Head is one line per header, argument or variable: "name: value".
	Head []string
	Body []byte
	// Truncated is the number of bytes of Body that were dropped.
	Truncated int64
}

// Answer is the part of a JSON answer that Billhook obeys.
type Answer struct {
	Stop   bool   `json:"stop,omitempty"` // skip the rest of the event's chain
	Reason string `json:"reason,omitempty"`
	// Data is an object of columns to write back into the event's row, or nil. It is
	// obeyed when the attempt is a success, and only for columns that the operator has
	// named.
	Data json.RawMessage `json:"data,omitempty"`
}

// Reason is why an attempt failed: a closed set, fit for a metric label.
type Reason string

// The reasons.
const (
	ReasonTimeout     Reason = "timeout"      // the deadline passed
	ReasonConnect     Reason = "connect"      // no connection: refused, unreachable, DNS, TLS
	ReasonNetwork     Reason = "network"      // the connection broke after it was made
	ReasonBlocked     Reason = "blocked"      // the address guard refused
	ReasonRedirect    Reason = "redirect"     // the receiver redirected, which is never followed
	ReasonRateLimited Reason = "rate_limited" // the receiver said: slower
	ReasonClientError Reason = "client_error" // the receiver says the request is wrong
	ReasonServerError Reason = "server_error" // the receiver says it is broken
	ReasonExit        Reason = "exit"         // a script's exit code
	ReasonSignal      Reason = "signal"       // a script was killed
	ReasonStart       Reason = "start"        // a script or plugin could not be started
	ReasonCrash       Reason = "crash"        // a plugin died
	ReasonPayload     Reason = "payload"      // the payload could not be built
	ReasonWriteBack   Reason = "write_back"   // the source could not take what the answer wants written
	ReasonOther       Reason = "other"
)

// Reasons is every Reason, for metrics that start at zero.
func Reasons() []Reason {
	return []Reason{
		ReasonTimeout, ReasonConnect, ReasonNetwork, ReasonBlocked, ReasonRedirect,
		ReasonRateLimited, ReasonClientError, ReasonServerError, ReasonExit,
		ReasonSignal, ReasonStart, ReasonCrash, ReasonPayload, ReasonWriteBack, ReasonOther,
	}
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent marks err as one that trying again will not cure. It returns nil for
// a nil err.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// IsPermanent reports whether err is marked by Permanent.
func IsPermanent(err error) bool {
	var p *permanentError
	return errors.As(err, &p)
}

type retryAfterError struct {
	err   error
	delay time.Duration
}

func (e *retryAfterError) Error() string { return e.err.Error() }
func (e *retryAfterError) Unwrap() error { return e.err }

// RetryAfter marks err with the delay that the receiver asked for before the next
// attempt. It returns nil for a nil err.
func RetryAfter(err error, delay time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryAfterError{err, delay}
}

// RetryDelay returns the delay that RetryAfter put in err.
func RetryDelay(err error) (time.Duration, bool) {
	var r *retryAfterError
	if errors.As(err, &r) {
		return r.delay, true
	}
	return 0, false
}
