package plugins

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/plugins/pluginpb"
)

func newServer(h Handler, err error, log *bytes.Buffer) *server {
	level := &slog.LevelVar{}
	return &server{
		make:  func(context.Context, *pluginpb.ConfigureRequest, Env) (Handler, []string, error) { return h, nil, err },
		level: level, log: slog.New(newLogHandler(log, level)),
	}
}

func TestOutcomes(t *testing.T) {
	base := errors.New("no")
	for _, c := range []struct {
		err   error
		out   pluginpb.Outcome
		cause pluginpb.Cause
		after int64
	}{
		{nil, pluginpb.Outcome_OUTCOME_SUCCESS, 0, 0},
		{base, pluginpb.Outcome_OUTCOME_RETRY, 0, 0},
		{Permanent(base), pluginpb.Outcome_OUTCOME_PERMANENT, pluginpb.Cause_CAUSE_CLIENT_ERROR, 0},
		{fmt.Errorf("x: %w", Permanent(base)), pluginpb.Outcome_OUTCOME_PERMANENT, pluginpb.Cause_CAUSE_CLIENT_ERROR, 0},
		{Permanent(Because(CausePayload, base)), pluginpb.Outcome_OUTCOME_PERMANENT, pluginpb.Cause_CAUSE_PAYLOAD, 0},
		{RetryAfter(Because(CauseRateLimited, base), 17*time.Second), pluginpb.Outcome_OUTCOME_RETRY, pluginpb.Cause_CAUSE_RATE_LIMITED, 17000},
		{RetryAfter(base, time.Microsecond), pluginpb.Outcome_OUTCOME_RETRY, 0, 1},
		{context.DeadlineExceeded, pluginpb.Outcome_OUTCOME_RETRY, pluginpb.Cause_CAUSE_TIMEOUT, 0},
		{os.ErrDeadlineExceeded, pluginpb.Outcome_OUTCOME_RETRY, pluginpb.Cause_CAUSE_TIMEOUT, 0},
		{&net.OpError{Op: "dial", Err: base}, pluginpb.Outcome_OUTCOME_RETRY, pluginpb.Cause_CAUSE_CONNECT, 0},
		{&net.OpError{Op: "read", Err: base}, pluginpb.Outcome_OUTCOME_RETRY, pluginpb.Cause_CAUSE_NETWORK, 0},
	} {
		if r := response(c.err); r.GetOutcome() != c.out || r.GetCause() != c.cause || r.GetRetryAfterMs() != c.after {
			t.Errorf("%v: %v", c.err, r)
		}
	}
	for _, nothing := range []error{Permanent(nil), RetryAfter(nil, 1), Because(CauseTimeout, nil), Field("x", nil)} {
		if nothing != nil {
			t.Errorf("an error of none: %v", nothing)
		}
	}
}

type closing struct {
	HandlerFunc
	closed *int
}

func (c closing) Close() error { *c.closed++; return nil }

func TestServer(t *testing.T) {
	var log bytes.Buffer
	closed := 0
	s := newServer(closing{func(ctx context.Context, d *Delivery) (Result, error) {
		switch string(d.Payload) {
		case "panic":
			panic("bad \xff bytes")
		case "channel":
			return Result{Data: map[string]any{"x": make(chan int)}}, nil
		}
		return Result{Stop: true, Reason: "a vip", Received: Exchange{Head: []string{"bad \xff"}, Body: bytes.Repeat([]byte("x"), 10<<20)}}, nil
	}, &closed}, nil, &log)
	ctx := t.Context()
	if _, err := s.Handle(ctx, &pluginpb.HandleRequest{}); err == nil {
		t.Error("no error before Configure")
	}
	for range 2 {
		if resp, err := s.Configure(ctx, &pluginpb.ConfigureRequest{CaptureLimit: 1000}); err != nil || len(resp.GetProblems()) > 0 {
			t.Fatal(resp, err)
		}
	}
	if closed != 1 {
		t.Errorf("closed %d times, want the first handler only", closed)
	}
	resp, err := s.Handle(ctx, &pluginpb.HandleRequest{})
	if err != nil || string(resp.GetAnswer()) != `{"stop":true,"reason":"a vip"}` {
		t.Errorf("%s, %v", resp.GetAnswer(), err)
	}
	if e := resp.GetReceived(); int64(len(e.GetBody()))+e.GetTruncated() != 10<<20 || len(e.GetBody()) > 6000 {
		t.Errorf("%d bytes sent, %d left out", len(e.GetBody()), e.GetTruncated())
	}
	resp, err = s.Handle(ctx, &pluginpb.HandleRequest{Payload: []byte("panic")})
	if err != nil || resp.GetOutcome() != pluginpb.Outcome_OUTCOME_RETRY || !strings.HasPrefix(resp.GetError(), "panic: bad") {
		t.Errorf("%v, %v", resp, err)
	}
	resp, err = s.Handle(ctx, &pluginpb.HandleRequest{Payload: []byte("channel")})
	if err != nil || resp.GetOutcome() != pluginpb.Outcome_OUTCOME_SUCCESS || string(resp.GetAnswer()) != "{" {
		t.Errorf("%v, %v", resp, err)
	}
	s.close()
	if closed != 2 {
		t.Errorf("closed %d times", closed)
	}
	for line := range strings.Lines(log.String()) {
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil || l["@level"] != "error" || l["@message"] == "" || l["@timestamp"] == "" {
			t.Errorf("log line %s: %v", line, err)
		}
	}
}

func TestConfigure(t *testing.T) {
	var log bytes.Buffer
	fields := errors.Join(Field("a.b", errors.New("wrong")), fmt.Errorf("more: %w", Field("", errors.New("wrong, too"))))
	resp, err := newServer(nil, fields, &log).Configure(t.Context(), &pluginpb.ConfigureRequest{})
	if err != nil || len(resp.GetProblems()) != 2 || resp.GetProblems()[0].GetField() != "a.b" || resp.GetProblems()[1].GetText() != "wrong, too" {
		t.Errorf("%v, %v", resp, err)
	}
	if _, err := newServer(nil, errors.New("no route"), &log).Configure(t.Context(), &pluginpb.ConfigureRequest{}); err == nil || !strings.Contains(err.Error(), "no route") {
		t.Errorf("error %v", err)
	}
	if _, err := newServer(nil, nil, &log).Configure(t.Context(), &pluginpb.ConfigureRequest{}); err == nil {
		t.Error("no handler and no error")
	}
}
