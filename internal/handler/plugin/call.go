//go:build unix

package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/exchange"
	"github.com/billhook/billhook/plugins"
	"github.com/billhook/billhook/plugins/pluginpb"
)

const (
	maxError = 1 << 10 // bytes of an error's text
	maxLine  = 4 << 10 // bytes of one line that is shown
	maxLines = 400     // lines of each direction that are shown
	// maxPayload leaves room for what goes with a payload.
	maxPayload = plugins.MaxSize - 64<<10
	// endTime is how long the end of a process may take to be noticed once its
	// connection has broken.
	endTime = time.Second
)

// failure is an error whose text is fit for people and whose cause can still be
// examined.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

// valid is s as protobuf wants text.
func valid(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

// attempt is one call of a plugin.
type attempt struct {
	*Handler
	delivery *handler.Delivery
	parent   context.Context
	begin    time.Time
	res      handler.Result
	mask     *exchange.Mask
	name     string
}

// Handle makes one attempt, as handler.Handler says.
func (h *Handler) Handle(parent context.Context, d *handler.Delivery) (handler.Result, error) {
	k := h.keeper
	a := &attempt{Handler: h, delivery: d, parent: parent, begin: time.Now(), res: handler.Result{Code: -1}, mask: k.mask.Load(), name: *k.name.Load()}
	ctx := parent
	if h.opts.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(parent, h.opts.Timeout)
		defer cancel()
	}
	a.sent(ctx)
	if ctx.Err() != nil {
		return a.ended()
	}
	if len(d.Body) > maxPayload {
		return a.failed(handler.ReasonPayload, handler.Permanent(a.error(fmt.Sprintf("the payload has %d bytes, and a plugin takes %d at most", len(d.Body), maxPayload), nil)))
	}
	i, err := k.get(ctx)
	if err != nil {
		if parent.Err() != nil && !errors.Is(parent.Err(), context.DeadlineExceeded) {
			return a.ended()
		}
		return a.failed(handler.ReasonStart, &failure{a.mask.Line(err.Error(), maxError), err})
	}
	a.mask, a.name = k.mask.Load(), i.name
	call := k.calls.Add(1)
	resp, err := i.rpc.Handle(ctx, &pluginpb.HandleRequest{
		EventType: valid(string(d.Event.Type)), EventId: d.Event.ID.String(), ObjectId: valid(d.Event.Object), Lane: valid(d.Event.Lane),
		Attempt: int64(d.Attempt), HandlerId: int64(d.HandlerID), HandlerName: valid(d.Name),
		Payload: d.Body, ContentType: d.ContentType, Call: call,
	})
	a.head("plugin: %s %s", i.name, i.version)
	if err != nil {
		a.res.Code = int(status.Code(err))
		return a.broken(ctx, i, call, err)
	}
	a.res.Code = int(codes.OK)
	return a.judge(resp)
}

func (a *attempt) head(format string, args ...any) {
	a.res.Response.Head = append(a.res.Response.Head, a.mask.Line(fmt.Sprintf(format, args...), maxLine))
}

// error is an error about this call.
func (a *attempt) error(text string, cause error) error {
	if cause == nil {
		cause = errors.New(text)
	}
	return &failure{"plugin " + a.name + ": " + a.mask.Line(text, maxError), cause}
}

func (a *attempt) failed(reason handler.Reason, err error) (handler.Result, error) {
	a.res.Reason = reason
	return a.res, err
}

// sent is the request as it is shown.
func (a *attempt) sent(ctx context.Context) {
	d := a.delivery
	e := &a.res.Request
	for _, l := range []struct{ name, value string }{
		{"path", a.opts.Path},
		{"event", string(d.Event.Type)},
		{"event id", d.Event.ID.String()},
		{"object", d.Event.Object},
		{"lane", d.Event.Lane},
		{"attempt", strconv.Itoa(d.Attempt)},
		{"handler", strconv.Itoa(d.HandlerID)},
		{"handler name", d.Name},
		{"content type", d.ContentType},
	} {
		e.Head = append(e.Head, a.mask.Line(l.name+": "+l.value, maxLine))
	}
	if deadline, ok := ctx.Deadline(); ok {
		e.Head = append(e.Head, "deadline: "+deadline.UTC().Format("2006-01-02T15:04:05.000Z07:00"))
	}
	keep := max(a.opts.CaptureLimit, 0)
	e.Body = a.mask.Prefix(d.Body, keep)
	e.Truncated = int64(max(len(d.Body)-keep, 0))
}

// ended classes an attempt whose context ended.
func (a *attempt) ended() (handler.Result, error) {
	if err := a.parent.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return a.failed(handler.ReasonOther, a.error(context.Cause(a.parent).Error(), context.Cause(a.parent)))
	}
	text := fmt.Sprintf("not done within %s", time.Since(a.begin).Round(time.Millisecond))
	return a.failed(handler.ReasonTimeout, a.error(text, fmt.Errorf("%s: %w", text, context.DeadlineExceeded)))
}

// broken classes a call that brought no response.
func (a *attempt) broken(ctx context.Context, i *instance, call int64, err error) (handler.Result, error) {
	code := status.Code(err)
	if ctx.Err() != nil {
		i.settle(call)
		return a.ended()
	}
	if code == codes.Unavailable || code == codes.Canceled {
		timer := time.NewTimer(endTime)
		select {
		case <-i.exited():
		case <-timer.C:
		}
		timer.Stop()
	}
	if i.gone() {
		reason := restartCrash
		if why := i.why.Load(); why != nil {
			reason = *why
		}
		return a.failed(handler.ReasonCrash, &failure{a.mask.Line(i.died(reason).Error(), maxError), err})
	}
	text := status.Convert(err).Message()
	if code != codes.Unknown {
		text = code.String() + ": " + text
	}
	return a.failed(reasonOf(code), a.error(text, err))
}

// reasonOf is what a gRPC code says of who is at fault.
func reasonOf(code codes.Code) handler.Reason {
	switch code {
	case codes.DeadlineExceeded:
		return handler.ReasonTimeout
	case codes.Unavailable:
		return handler.ReasonNetwork
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition, codes.OutOfRange:
		return handler.ReasonClientError
	case codes.Internal, codes.Unknown, codes.Unimplemented, codes.DataLoss:
		return handler.ReasonServerError
	}
	return handler.ReasonOther
}

// judge classes a response.
func (a *attempt) judge(r *pluginpb.HandleResponse) (handler.Result, error) {
	for _, line := range clip(r.GetSent().GetHead()) {
		a.head("sent: %s", line)
	}
	if body := r.GetSent().GetBody(); len(body) > 0 {
		shown, _ := a.body(body, r.GetSent().GetTruncated())
		for _, line := range clip(strings.Split(strings.TrimRight(string(shown), "\r\n"), "\n")) {
			a.head("sent: %s", line)
		}
	}
	for _, line := range clip(r.GetReceived().GetHead()) {
		a.head("received: %s", line)
	}
	a.res.Response.Body, a.res.Response.Truncated = a.body(r.GetReceived().GetBody(), r.GetReceived().GetTruncated())

	var answer exchange.Answer
	if b := r.GetAnswer(); len(b) > 0 {
		var err error
		if answer, err = exchange.ParseAnswer(b, a.mask); err != nil {
			a.head("billhook-note: the JSON answer was ignored: %v", err)
		}
		a.res.Answer = answer.Answer
	}
	if r.GetOutcome() == pluginpb.Outcome_OUTCOME_SUCCESS {
		return a.res, nil
	}
	text := r.GetError()
	if text == "" {
		text = answer.Reason
	}
	if text == "" {
		text = "it failed and does not say why"
	}
	err := a.error(text, nil)
	switch after := max(time.Duration(r.GetRetryAfterMs())*time.Millisecond, answer.RetryAfter); {
	case r.GetOutcome() == pluginpb.Outcome_OUTCOME_PERMANENT:
		err = handler.Permanent(err)
	case r.GetRetryAfterMs() > a.opts.RetryAfterMax.Milliseconds() || after > a.opts.RetryAfterMax:
		a.head("billhook-note: it asks for a longer delay than %s, which is cut to that", a.opts.RetryAfterMax)
		err = handler.RetryAfter(err, a.opts.RetryAfterMax)
	case after > 0:
		err = handler.RetryAfter(err, after)
	}
	return a.failed(causeReason(r.GetCause()), err)
}

// body cuts a body to what is kept, and returns how much was left out.
func (a *attempt) body(b []byte, before int64) ([]byte, int64) {
	keep := max(a.opts.CaptureLimit, 0)
	if before > 0 { // its end is not there
		return a.mask.Prefix(b, keep), max(before, 0) + int64(max(len(b)-keep, 0))
	}
	buffer := exchange.NewBuffer(keep)
	_, _ = buffer.Write(b)
	return buffer.Bytes(a.mask), buffer.Dropped()
}

func clip(lines []string) []string {
	if dropped := len(lines) - maxLines; dropped > 0 {
		lines = slices.Replace(slices.Clone(lines), maxLines/4, maxLines/4+dropped, fmt.Sprintf("[... %d lines dropped ...]", dropped))
	}
	return lines
}

func causeReason(c pluginpb.Cause) handler.Reason {
	switch c {
	case pluginpb.Cause_CAUSE_TIMEOUT:
		return handler.ReasonTimeout
	case pluginpb.Cause_CAUSE_CONNECT:
		return handler.ReasonConnect
	case pluginpb.Cause_CAUSE_NETWORK:
		return handler.ReasonNetwork
	case pluginpb.Cause_CAUSE_RATE_LIMITED:
		return handler.ReasonRateLimited
	case pluginpb.Cause_CAUSE_CLIENT_ERROR:
		return handler.ReasonClientError
	case pluginpb.Cause_CAUSE_SERVER_ERROR:
		return handler.ReasonServerError
	case pluginpb.Cause_CAUSE_PAYLOAD:
		return handler.ReasonPayload
	}
	return handler.ReasonOther
}
