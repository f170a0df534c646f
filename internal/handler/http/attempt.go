package http

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	nethttp "net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/exchange"
)

const (
	// maxDrain is how much of a body is read, beyond what is kept, for the sake of
	// using the connection again.
	maxDrain = 64 << 10
	// maxHeadLines and maxHeadLine bound the headers that are kept of a response.
	maxHeadLines = 64
	maxHeadLine  = 1 << 10
	// maxError bounds the text of an error, in bytes.
	maxError = 1 << 10
	// maxDetail bounds what an error quotes of a response.
	maxDetail = 200
)

// attempt is one request on its way.
type attempt struct {
	h           *Handler
	parent, ctx context.Context // parent is the dispatcher's, ctx has the handler's own timeout too
	start       time.Time
	shown       string
	connected   atomic.Bool // the request has a connection: what breaks now is the network
}

// trace returns the context to send with.
func (a *attempt) trace() context.Context {
	return httptrace.WithClientTrace(a.ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { a.connected.Store(true) },
	})
}

// failure is an error whose text is fit for people and whose cause can still be
// examined.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

func (h *Handler) failure(err error) error {
	return &failure{h.mask.Line(err.Error(), maxError), err}
}

// sent returns the request as it is shown. The line "POST https://..." comes
// before the headers.
func (h *Handler) sent(req *nethttp.Request, shown string, body []byte) handler.Exchange {
	e := handler.Exchange{Head: make([]string, 0, len(req.Header)+1)}
	e.Head = append(e.Head, req.Method+" "+shown)
	for name, values := range req.Header {
		v := strings.Join(values, ", ")
		if h.hidden[name] {
			v = exchange.Masked
		}
		e.Head = append(e.Head, h.mask.Line(name+": "+v, maxHeadLine))
	}
	slices.Sort(e.Head[1:])
	e.Body = h.mask.Prefix(body, h.capture)
	e.Truncated = int64(max(len(body)-h.capture, 0))
	return e
}

// broken classes an attempt that got no response.
func (a *attempt) broken(res handler.Result, err error) (handler.Result, error) {
	what := a.h.method + " " + a.shown
	var blocked *blockedError
	switch {
	case a.parent.Err() != nil && !errors.Is(a.parent.Err(), context.DeadlineExceeded):
		res.Reason = handler.ReasonOther
		return res, a.h.failure(fmt.Errorf("%s: %w", what, context.Cause(a.parent)))
	case a.ctx.Err() != nil:
		res.Reason = handler.ReasonTimeout
		phase := "no connection"
		if a.connected.Load() {
			phase = "connected, but no answer"
		}
		return res, a.h.failure(fmt.Errorf("%s: %s within %s: %w", what, phase,
			time.Since(a.start).Round(time.Millisecond), a.ctx.Err()))
	case errors.As(err, &blocked):
		res.Reason = handler.ReasonBlocked
		return res, handler.Permanent(a.h.failure(fmt.Errorf("%s: %w", what, blocked)))
	}
	res.Reason = handler.ReasonNetwork
	if !a.connected.Load() || isTLS(err) {
		res.Reason = handler.ReasonConnect
	}
	return res, a.h.failure(fmt.Errorf("%s: %w%s", what, err, hint(err)))
}

// isTLS tells errors of trust and of the TLS protocol, which a server may report
// as late as after the handshake.
func isTLS(err error) bool {
	var (
		verify *tls.CertificateVerificationError
		record tls.RecordHeaderError
	)
	return errors.As(err, &verify) || errors.As(err, &record) || isAlert(err)
}

// isAlert tells a TLS alert, ours or the server's.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error")
}

// hint adds what to do about an error, where that is clear.
func hint(err error) string {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		record  tls.RecordHeaderError
		dns     *net.DNSError
	)
	switch {
	case errors.As(err, &unknown):
		return "; if its authority is your own, name its file in the handler's tls ca_file"
	case errors.As(err, &name):
		return "; if that is right, name it in the handler's tls server_name"
	case errors.As(err, &record):
		return "; does the server speak plain http on this port?"
	case isAlert(err) && strings.Contains(err.Error(), "certificate"):
		return "; does it want a client certificate?"
	case errors.As(err, &dns) && dns.IsNotFound:
		return "; check the host name in the url"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "; is the receiver running?"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return "; the receiver closed the connection without an answer"
	}
	return ""
}

// judge reads the response and classes the attempt.
func (a *attempt) judge(res handler.Result, resp *nethttp.Response) (handler.Result, error) {
	h := a.h
	res.Code = resp.StatusCode
	res.Response.Head = h.received(resp)
	note := func(format string, args ...any) {
		res.Response.Head = append(res.Response.Head, h.mask.Line("billhook-note: "+fmt.Sprintf(format, args...), maxHeadLine))
	}

	body, size, readErr := h.read(resp)
	res.Response.Body = h.mask.Prefix(body, h.capture)
	res.Response.Truncated = size - int64(min(len(body), h.capture))
	if readErr != nil {
		note("the body broke off after %d bytes: %v", size, readErr)
	}

	encoding := resp.Header.Get("Content-Encoding") // the transport removes what it decoded
	isJSON := isJSON(resp.Header.Get("Content-Type"))
	var answer exchange.Answer
	if isJSON && readErr == nil && size > 0 {
		var err error
		switch {
		case size > int64(len(body)):
			err = fmt.Errorf("it is longer than %d bytes", exchange.MaxAnswer)
		case encoding != "" && !strings.EqualFold(encoding, "identity"):
			err = fmt.Errorf("its content encoding is %s", encoding)
		default:
			answer, err = exchange.ParseAnswer(body, h.mask)
		}
		if err != nil {
			note("the JSON answer was ignored: %v", err)
		}
		res.Answer = answer.Answer
	}

	code := resp.StatusCode
	class := h.classes.Of(code)
	configured := class != exchange.Unclassified
	if !configured {
		class = classOf(code)
	}
	if class == exchange.Success {
		if readErr != nil && isJSON {
			// The answer that was lost may have been a veto.
			res.Reason = handler.ReasonNetwork
			if a.ctx.Err() != nil {
				res.Reason = handler.ReasonTimeout
			}
			return res, h.failure(fmt.Errorf("%s: %s, but its JSON answer broke off: %w", h.method+" "+a.shown, status(resp), readErr))
		}
		return res, nil
	}

	res.Reason = reasonOf(code)
	text := status(resp)
	switch detail := a.detail(res, resp, encoding); {
	case code >= 300 && code < 400 && code != nethttp.StatusNotModified:
		if location := resp.Header.Get("Location"); location != "" {
			text += " to " + h.url.showLocation(resp.Request.URL, location)
		}
		text += ": redirects are never followed; put the final address in the handler's url"
	case code == nethttp.StatusGone && !configured:
		text += ": the receiver says that this endpoint is gone for good; disable the handler or change its url"
		if detail != "" {
			text += " (" + detail + ")"
		}
	case detail != "":
		text += ": " + detail
	}
	err := h.failure(fmt.Errorf("%s: %s", h.method+" "+a.shown, text))
	if class == exchange.Permanent {
		return res, handler.Permanent(err)
	}
	delay, ok := retryAfter(resp.Header, time.Now())
	if !ok && answer.RetryAfter > 0 {
		delay, ok = answer.RetryAfter, true
	}
	if ok {
		if delay > h.retryAfterMax {
			note("retry-after asks for %s, which is cut to %s", delay, h.retryAfterMax)
			delay = h.retryAfterMax
		}
		return res, handler.RetryAfter(err, delay)
	}
	return res, err
}

// classOf is what a status means unless the operator says otherwise.
func classOf(code int) exchange.Class {
	switch {
	case code >= 200 && code < 300:
		return exchange.Success
	case code == nethttp.StatusRequestTimeout, code == nethttp.StatusConflict, code == nethttp.StatusTooEarly,
		code == nethttp.StatusTooManyRequests, code >= 500:
		return exchange.Retry
	}
	return exchange.Permanent
}

func reasonOf(code int) handler.Reason {
	switch {
	case code == nethttp.StatusTooManyRequests:
		return handler.ReasonRateLimited
	case code >= 300 && code < 400:
		return handler.ReasonRedirect
	case code >= 400 && code < 500:
		return handler.ReasonClientError
	case code >= 500 && code < 600:
		return handler.ReasonServerError
	}
	return handler.ReasonOther
}

func status(resp *nethttp.Response) string {
	if text := nethttp.StatusText(resp.StatusCode); text != "" {
		return fmt.Sprintf("%d %s", resp.StatusCode, text)
	}
	return resp.Status
}

// detail returns what the receiver says about its refusal, if that is short text.
func (a *attempt) detail(res handler.Result, resp *nethttp.Response, encoding string) string {
	if res.Answer.Reason != "" {
		return res.Answer.Reason
	}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if encoding != "" || mediaType != "text/plain" && !isJSON(mediaType) {
		return ""
	}
	return a.h.mask.Line(string(res.Response.Body[:min(len(res.Response.Body), 4*maxDetail)]), maxDetail)
}

func isJSON(contentType string) bool {
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && (mediaType == "application/json" || strings.HasSuffix(mediaType, "+json"))
}

// received returns the status line and the headers of a response.
func (h *Handler) received(resp *nethttp.Response) []string {
	lines := make([]string, 0, len(resp.Header)+1)
	for name, values := range resp.Header {
		v := strings.Join(values, ", ")
		switch name {
		case "Set-Cookie":
			v = exchange.Masked
		case "Location", "Content-Location", "Refresh":
			v = h.url.showLocation(resp.Request.URL, v)
		}
		if h.hidden[name] {
			v = exchange.Masked
		}
		lines = append(lines, h.mask.Line(name+": "+v, maxHeadLine))
	}
	slices.Sort(lines)
	if dropped := len(lines) - maxHeadLines; dropped > 0 {
		lines = append(lines[:maxHeadLines], fmt.Sprintf("billhook-note: %d more headers", dropped))
	}
	return slices.Insert(lines, 0, h.mask.Line(resp.Proto+" "+status(resp), maxHeadLine))
}

// read returns the beginning of the body, and its size as far as it was read or
// is known; then the connection can be used again unless the rest was too long.
func (h *Handler) read(resp *nethttp.Response) (body []byte, size int64, err error) {
	if resp.ContentLength == 0 {
		return nil, 0, nil
	}
	keep := int64(max(h.capture, exchange.MaxAnswer))
	body, err = io.ReadAll(io.LimitReader(resp.Body, keep))
	size = int64(len(body))
	if err != nil || size < keep {
		return body, size, err
	}
	// What comes after the kept part cannot change the outcome, so neither can
	// an error there.
	n, _ := io.CopyN(io.Discard, resp.Body, maxDrain)
	size += n
	if !resp.Uncompressed && resp.ContentLength > size {
		size = resp.ContentLength
	}
	return body, size, nil
}

// retryAfter reads the header in both its forms. A date is taken relative to the
// receiver's own clock if it tells it.
func retryAfter(header nethttp.Header, now time.Time) (time.Duration, bool) {
	text := strings.TrimSpace(header.Get("Retry-After"))
	if text == "" {
		return 0, false
	}
	if strings.Trim(text, "0123456789") == "" {
		var seconds int64
		for _, c := range text {
			if seconds = seconds*10 + int64(c-'0'); seconds > 1e9 {
				seconds = 1e9
			}
		}
		return time.Duration(seconds) * time.Second, seconds > 0
	}
	at, err := nethttp.ParseTime(text)
	if err != nil {
		return 0, false
	}
	if date, err := nethttp.ParseTime(header.Get("Date")); err == nil {
		now = date
	}
	d := at.Sub(now)
	return d, d > 0
}
