// Package handlertest is the suite that every handler kind must pass: what the
// contract in package handler asks of an attempt, whatever it is that is called.
//
// A kind brings a receiver that does what a Behaviour says (an HTTP server, a
// script, a plugin), and Run puts the same cases to each: outcomes, deadlines,
// cancelling, huge and hostile input and output, answers, concurrency, and that
// nothing is left behind. What only one kind can do is tested beside it.
//
// Start with Kind and Run.
package handlertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/wal"
)

// Outcome is how a receiver ends a call.
type Outcome string

// The outcomes.
const (
	Succeed   Outcome = "succeed"
	Retry     Outcome = "retry"     // it asks to be called again
	Permanent Outcome = "permanent" // it says that trying again is no use
	Crash     Outcome = "crash"     // it breaks off in the middle of the call
	Hang      Outcome = "hang"      // it never ends the call
)

// Behaviour is what a receiver does with each call, in the order of the fields.
type Behaviour struct {
	Deaf     bool // never read the payload
	Stubborn bool // resist a polite request to end
	// Gate waits, once the call has arrived, until Subject.Release.
	Gate   bool
	Output int  // write so many bytes first
	Bad    bool // write what is neither UTF-8 nor fit for a terminal
	Leak   bool // write the secret that the handler was given (Kind.Secret)
	Echo   bool // write the payload
	Report bool // write the lines "id=<event id>", "attempt=<n>", "handler=<id>"
	// Answer is written as the JSON answer of the kind.
	Answer string
	// RetryAfter asks for this delay, in whole seconds, with Outcome Retry.
	RetryAfter time.Duration
	Outcome    Outcome
}

// Subject is a handler with the receiver that it calls.
type Subject struct {
	Handler handler.Handler
	// Entered waits until n calls have arrived at the receiver since the start
	// (before Gate and Outcome Hang). It reports an error when they do not come.
	Entered func(n int) error
	// Release lets all calls, waiting and to come, pass the gate.
	Release func()
	// Stop ends the receiver, after the handler was closed.
	Stop func()
}

// Kind is a handler kind under test.
type Kind struct {
	// New makes a handler and its receiver. The handler sets no timeout of its own
	// and captures Limit bytes of each body.
	New   func(t *testing.T, b Behaviour) *Subject
	Limit int
	// Secret is a secret that each handler is configured with.
	Secret string
	// Grace is how long after its context Handle may still take.
	Grace time.Duration
	// NoRetryAfter is set by a kind whose receivers cannot ask for a delay.
	NoRetryAfter bool
}

// Delivery returns a delivery of payload at attempt 3 for handler 7, of an event
// whose texts try to break out of wherever they are put.
func Delivery(payload []byte) *handler.Delivery {
	const hostile = "a'b\"c`id`$(id);|&<>\\\t\r\nX-Evil: 1\u202e é"
	return &handler.Delivery{
		Event: &event.Event{
			ID:         event.ID{Generation: 1, CommitLSN: wal.LSN(0x16B374D848), Ordinal: 3},
			Type:       "clients.balance_zero",
			Entity:     "clients",
			Object:     hostile,
			Lane:       hostile,
			XID:        7731,
			CommitTime: time.Date(2026, 11, 23, 10, 15, 0, 123456000, time.UTC),
			Source:     "billing",
			ObjectJSON: event.AppendJSONString(nil, hostile),
			Data:       slices.Concat([]byte(`{"id":4711,"balance":"-0.500000","name":`), event.AppendJSONString(nil, hostile), []byte("}")),
		},
		HandlerID:   7,
		Name:        hostile,
		Attempt:     3,
		Body:        payload,
		ContentType: "application/json",
	}
}

// patience is how long a test waits for what should come at once.
const patience = 30 * time.Second

// Run puts the suite to a kind.
func Run(t *testing.T, k Kind) {
	payload := Delivery(nil).Event.AppendPayload(nil)
	s := suite{k}

	s.run(t, "success", Behaviour{Echo: true, Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		res, err := s.call(t, sub, context.Background(), payload)
		s.succeeded(t, res, err)
		if !bytes.Contains(res.Response.Body, payload) {
			t.Errorf("the receiver got other bytes:\n%q\nwant\n%q", res.Response.Body, payload)
		}
		if !bytes.Equal(res.Request.Body, payload) || res.Request.Truncated != 0 {
			t.Errorf("the request is logged as %q", res.Request.Body)
		}
	})
	s.run(t, "identity of the attempt", Behaviour{Report: true, Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		res, err := s.call(t, sub, context.Background(), payload)
		s.succeeded(t, res, err)
		for _, line := range []string{"id=1-16/B374D848-3", "attempt=3", "handler=7"} {
			if !bytes.Contains(res.Response.Body, []byte(line+"\n")) {
				t.Errorf("no line %q in what the receiver saw:\n%s", line, res.Response.Body)
			}
		}
	})
	s.run(t, "permanent", Behaviour{Outcome: Permanent}, func(t *testing.T, sub *Subject) {
		res, err := s.call(t, sub, context.Background(), payload)
		s.failed(t, res, err)
		if !handler.IsPermanent(err) {
			t.Errorf("error %v is not permanent", err)
		}
	})
	s.run(t, "retry", Behaviour{Outcome: Retry}, func(t *testing.T, sub *Subject) {
		res, err := s.call(t, sub, context.Background(), payload)
		s.retryable(t, res, err)
		if d, ok := handler.RetryDelay(err); ok {
			t.Errorf("a delay of %s that nobody asked for", d)
		}
	})
	if !k.NoRetryAfter {
		s.run(t, "retry after", Behaviour{RetryAfter: 17 * time.Second, Outcome: Retry}, func(t *testing.T, sub *Subject) {
			res, err := s.call(t, sub, context.Background(), payload)
			s.retryable(t, res, err)
			if d, ok := handler.RetryDelay(err); !ok || d != 17*time.Second {
				t.Errorf("delay %s, %t, want 17s", d, ok)
			}
		})
	}
	s.run(t, "crash in mid-call", Behaviour{Outcome: Crash}, func(t *testing.T, sub *Subject) {
		for range 2 { // and again: the kind recovers
			res, err := s.call(t, sub, context.Background(), payload)
			s.retryable(t, res, err)
		}
	})

	for _, stubborn := range []bool{false, true} {
		name := map[bool]string{false: "", true: ", stubborn"}[stubborn]
		s.run(t, "deadline"+name, Behaviour{Stubborn: stubborn, Outcome: Hang}, func(t *testing.T, sub *Subject) {
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			start := time.Now()
			res, err := s.call(t, sub, ctx, payload)
			s.retryable(t, res, err)
			s.inTime(t, start.Add(300*time.Millisecond))
			if res.Reason != handler.ReasonTimeout {
				t.Errorf("reason %q, want timeout", res.Reason)
			}
		})
		s.run(t, "cancel"+name, Behaviour{Stubborn: stubborn, Outcome: Hang}, func(t *testing.T, sub *Subject) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var ended time.Time
			done := make(chan struct{})
			var entered error
			go func() {
				defer close(done)
				entered = sub.Entered(1)
				ended = time.Now()
				cancel()
			}()
			_, err := s.call(t, sub, ctx, payload)
			<-done
			if entered != nil {
				t.Fatal(entered)
			}
			s.inTime(t, ended)
			if err == nil {
				t.Error("no error from a call that was cancelled")
			}
		})
	}
	s.run(t, "cancelled before", Behaviour{Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := s.call(t, sub, ctx, payload); err == nil {
			t.Error("no error from a call that was cancelled")
		}
	})
	s.run(t, "deadline passed before", Behaviour{Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
		defer cancel()
		res, err := s.call(t, sub, ctx, payload)
		s.retryable(t, res, err)
		if res.Reason != handler.ReasonTimeout {
			t.Errorf("reason %q, want timeout", res.Reason)
		}
	})
	s.run(t, "slow start", Behaviour{Gate: true, Echo: true, Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		type outcome struct {
			res handler.Result
			err error
		}
		done := make(chan outcome, 1)
		go func() {
			res, err := s.call(t, sub, context.Background(), payload)
			done <- outcome{res, err}
		}()
		if err := sub.Entered(1); err != nil {
			t.Error(err)
		}
		select {
		case o := <-done:
			t.Errorf("the call ended before the receiver answered: %v", o.err)
			return
		default:
		}
		sub.Release()
		o := <-done
		s.succeeded(t, o.res, o.err)
	})

	const huge = 10 << 20
	for _, o := range []Outcome{Succeed, Permanent} {
		s.run(t, "huge output, "+string(o), Behaviour{Output: huge, Outcome: o}, func(t *testing.T, sub *Subject) {
			res, err := s.call(t, sub, context.Background(), payload)
			if o == Succeed {
				s.succeeded(t, res, err)
			} else {
				s.failed(t, res, err)
			}
			const marker = 100
			if n := len(res.Response.Body); n == 0 || n > k.Limit+marker {
				t.Errorf("%d bytes captured, want up to %d", n, k.Limit)
			}
			if res.Response.Truncated <= 0 {
				t.Errorf("truncated %d, want the number of bytes dropped", res.Response.Truncated)
			}
		})
	}
	s.run(t, "huge payload", Behaviour{Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		big := append(append([]byte(`{"data":"`), bytes.Repeat([]byte("x"), huge)...), `"}`...)
		res, err := s.call(t, sub, context.Background(), big)
		s.succeeded(t, res, err)
		if got := int64(len(res.Request.Body)) + res.Request.Truncated; got != int64(len(big)) || len(res.Request.Body) > k.Limit {
			t.Errorf("%d bytes of the request logged, %d truncated, want %d in all and at most %d logged",
				len(res.Request.Body), res.Request.Truncated, len(big), k.Limit)
		}
	})
	s.run(t, "payload that is never read", Behaviour{Deaf: true, Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		for _, size := range []int{10, 200 << 10} {
			res, err := s.call(t, sub, context.Background(), bytes.Repeat([]byte("x"), size))
			s.succeeded(t, res, err)
		}
	})
	s.run(t, "empty payload", Behaviour{Echo: true, Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		res, err := s.call(t, sub, context.Background(), nil)
		s.succeeded(t, res, err)
	})
	s.run(t, "hostile payload", Behaviour{Echo: true, Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		hostile := []byte("$(id) `id` ; rm -rf / && \"quotes\" 'single' \\ \x00 \xff\xfe \r\n\r\n0\r\n\r\nHTTP/1.1 200\n--\n-n %s \x1b[2J")
		res, err := s.call(t, sub, context.Background(), hostile)
		s.succeeded(t, res, err)
		if !bytes.Contains(res.Response.Body, hostile) {
			t.Errorf("the receiver got other bytes:\n%q\nwant\n%q", res.Response.Body, hostile)
		}
	})
	for _, o := range []Outcome{Succeed, Retry, Permanent} {
		s.run(t, "bad bytes, "+string(o), Behaviour{Bad: true, Outcome: o}, func(t *testing.T, sub *Subject) {
			res, err := s.call(t, sub, context.Background(), payload)
			if o == Succeed {
				s.succeeded(t, res, err)
			} else {
				s.failed(t, res, err)
			}
		})
		s.run(t, "secrets, "+string(o), Behaviour{Leak: true, Outcome: o}, func(t *testing.T, sub *Subject) {
			res, err := s.call(t, sub, context.Background(), payload)
			if len(res.Response.Body) == 0 && len(res.Response.Head) == 0 {
				t.Error("nothing was captured")
			}
			shown, _ := json.Marshal(res)
			text := fmt.Sprintf("%s %+v %v %+v", shown, res, err, err) + string(res.Response.Body) + string(res.Request.Body)
			if strings.Contains(text, k.Secret) {
				t.Errorf("the secret is shown:\n%s", text)
			}
		})
	}

	s.run(t, "answer", Behaviour{Answer: `{"stop":true,"reason":"a vip","data":{"limit":"10.00"}}`, Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		res, err := s.call(t, sub, context.Background(), payload)
		s.succeeded(t, res, err)
		var data map[string]string
		if err := json.Unmarshal(res.Answer.Data, &data); err != nil || data["limit"] != "10.00" || !res.Answer.Stop || res.Answer.Reason != "a vip" {
			t.Errorf("answer %+v with data %s", res.Answer, res.Answer.Data)
		}
	})
	for _, bad := range []string{`{"stop":true,"rea`, `{"stop":"yes"}`, `{"stop":true}}`} {
		s.run(t, "bad answer "+bad, Behaviour{Answer: bad, Outcome: Succeed}, func(t *testing.T, sub *Subject) {
			res, err := s.call(t, sub, context.Background(), payload)
			s.succeeded(t, res, err)
			if res.Answer.Stop || res.Answer.Reason != "" || res.Answer.Data != nil {
				t.Errorf("a bad answer was obeyed: %+v", res.Answer)
			}
			if !slices.ContainsFunc(res.Response.Head, func(l string) bool { return strings.HasPrefix(l, "billhook-note: ") }) {
				t.Errorf("no billhook-note in %q", res.Response.Head)
			}
		})
	}

	s.run(t, "concurrent calls", Behaviour{Gate: true, Echo: true, Outcome: Succeed}, func(t *testing.T, sub *Subject) {
		const n = 16
		errs := make(chan error, n)
		for i := range n {
			go func() {
				own := fmt.Appendf(nil, `{"call":%d,"pad":"%s"}`, i, strings.Repeat("p", i*100))
				res, err := s.call(t, sub, context.Background(), own)
				if err == nil && !bytes.Contains(res.Response.Body, own) {
					err = fmt.Errorf("call %d got %q back", i, res.Response.Body)
				}
				errs <- err
			}()
		}
		// All are inside at the same time.
		if err := sub.Entered(n); err != nil {
			t.Error(err)
		}
		sub.Release()
		for range n {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

type suite struct{ Kind }

// run makes a subject for one case and checks that nothing of it stays.
func (s suite) run(t *testing.T, name string, b Behaviour, f func(t *testing.T, sub *Subject)) {
	t.Run(name, func(t *testing.T) {
		before := Snapshot()
		sub := s.New(t, b)
		f(t, sub)
		if err := sub.Handler.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		sub.Stop()
		before.Check(t)
	})
}

// call makes one attempt and checks what holds for all.
func (s suite) call(t *testing.T, sub *Subject, ctx context.Context, payload []byte) (handler.Result, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	sent := bytes.Clone(payload)
	d := Delivery(payload)
	res, err := sub.Handler.Handle(ctx, d)
	if !bytes.Equal(sent, d.Body) {
		t.Error("the handler changed the payload")
	}
	s.shown(t, res, err)
	return res, err
}

// shown checks the reason, and that nothing that is shown commands a terminal.
func (s suite) shown(t *testing.T, res handler.Result, err error) {
	t.Helper()
	if (err == nil) != (res.Reason == "") || res.Reason != "" && !slices.Contains(handler.Reasons(), res.Reason) {
		t.Errorf("reason %q with error %v", res.Reason, err)
	}
	lines := slices.Concat(res.Request.Head, res.Response.Head)
	if err != nil {
		lines = append(lines, err.Error())
	}
	for _, l := range lines {
		if !utf8.ValidString(l) || strings.ContainsFunc(l, unicode.IsControl) {
			t.Errorf("not fit to be shown: %q", l)
		}
	}
}

func (s suite) succeeded(t *testing.T, res handler.Result, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("error: %v\nresult: %+v", err, res)
	}
}

func (s suite) failed(t *testing.T, res handler.Result, err error) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; result: %+v", res)
	}
}

func (s suite) retryable(t *testing.T, res handler.Result, err error) {
	t.Helper()
	s.failed(t, res, err)
	if handler.IsPermanent(err) {
		t.Errorf("error %v is permanent", err)
	}
}

func (s suite) inTime(t *testing.T, end time.Time) {
	t.Helper()
	if late := time.Since(end); late > s.Grace {
		t.Errorf("Handle took %s after its context had ended, want at most %s", late, s.Grace)
	}
}

// Poll waits until ok, and reports what was waited for if it never comes. It is
// for receivers that can only be looked at from outside, such as a script's file.
func Poll(what string, ok func() bool) error {
	deadline := time.Now().Add(patience)
	for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
		if ok() {
			tick.Stop()
			return nil
		}
		if time.Now().After(deadline) {
			tick.Stop()
			return errors.New("waited in vain: " + what)
		}
	}
}
