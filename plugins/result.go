package plugins

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/billhook/billhook/plugins/pluginpb"
)

// Result is what an attempt asks of Billhook, and what is shown of it in the
// execution log. All of it may be left out.
type Result struct {
	// Stop ends the event's chain of handlers: those that follow are skipped. Reason
	// says why, to people. It is obeyed after a success.
	Stop   bool
	Reason string
	// Data are columns to write back into the event's row. It is obeyed after a
	// success, for columns that the operator names in write_back. Amounts are best given
	// as text.
	Data map[string]any

	Sent     Exchange // what went out, such as the request to a switch
	Received Exchange // what came back
}

// Exchange is one direction of an attempt as people are to see it. Secrets of the
// configuration are masked; others must not be put here.
type Exchange struct {
	Head []string // lines such as "Server: 10.0.0.1:3799"
	Body []byte   // cut to what the operator wants kept
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent marks err as one that trying again will not cure: the execution becomes a
// dead letter. It returns nil for a nil err.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type retryAfterError struct {
	err   error
	delay time.Duration
}

func (e *retryAfterError) Error() string { return e.err.Error() }
func (e *retryAfterError) Unwrap() error { return e.err }

// RetryAfter marks err with the delay that the receiver asks for before the next
// attempt; Billhook takes up to an hour. It returns nil for a nil err.
func RetryAfter(err error, delay time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryAfterError{err, delay}
}

// Cause is why an attempt failed, for logs and metrics.
type Cause int

// The causes. Time limits and connections that cannot be made or break are found in
// an error without Because.
const (
	CauseTimeout     = Cause(pluginpb.Cause_CAUSE_TIMEOUT)      // the receiver did not answer in time
	CauseConnect     = Cause(pluginpb.Cause_CAUSE_CONNECT)      // no connection to the receiver
	CauseNetwork     = Cause(pluginpb.Cause_CAUSE_NETWORK)      // the connection broke
	CauseRateLimited = Cause(pluginpb.Cause_CAUSE_RATE_LIMITED) // the receiver says: slower
	CauseClientError = Cause(pluginpb.Cause_CAUSE_CLIENT_ERROR) // the receiver says the request is wrong
	CauseServerError = Cause(pluginpb.Cause_CAUSE_SERVER_ERROR) // the receiver says it is broken
	CausePayload     = Cause(pluginpb.Cause_CAUSE_PAYLOAD)      // the payload cannot be used
)

type causeError struct {
	err   error
	cause Cause
}

func (e *causeError) Error() string { return e.err.Error() }
func (e *causeError) Unwrap() error { return e.err }

// Because marks err with its cause. It returns nil for a nil err.
func Because(cause Cause, err error) error {
	if err == nil {
		return nil
	}
	return &causeError{err, cause}
}

// response is what an attempt's end is on the wire.
func response(err error) *pluginpb.HandleResponse {
	if err == nil {
		return &pluginpb.HandleResponse{Outcome: pluginpb.Outcome_OUTCOME_SUCCESS}
	}
	r := &pluginpb.HandleResponse{Outcome: pluginpb.Outcome_OUTCOME_RETRY, Error: valid(err.Error()), Cause: causeOf(err)}
	if p := (*permanentError)(nil); errors.As(err, &p) {
		r.Outcome = pluginpb.Outcome_OUTCOME_PERMANENT
		if r.Cause == pluginpb.Cause_CAUSE_UNSPECIFIED {
			r.Cause = pluginpb.Cause_CAUSE_CLIENT_ERROR
		}
		return r
	}
	if a := (*retryAfterError)(nil); errors.As(err, &a) {
		r.RetryAfterMs = a.delay.Milliseconds()
		if a.delay > 0 {
			r.RetryAfterMs = max(r.RetryAfterMs, 1)
		}
	}
	return r
}

func causeOf(err error) pluginpb.Cause {
	var c *causeError
	var dns *net.DNSError
	var op *net.OpError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &c):
		return pluginpb.Cause(c.cause)
	case errors.As(err, &dns), errors.As(err, &op) && op.Op == "dial":
		return pluginpb.Cause_CAUSE_CONNECT
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return pluginpb.Cause_CAUSE_TIMEOUT
	case op != nil:
		return pluginpb.Cause_CAUSE_NETWORK
	}
	return pluginpb.Cause_CAUSE_UNSPECIFIED
}
