package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/billhook/billhook/plugins/pluginpb"
)

// server answers Billhook.
type server struct {
	pluginpb.UnimplementedPluginServer
	describe *pluginpb.DescribeResponse
	// make returns neither a Handler nor an error when it only was to judge.
	make  func(context.Context, *pluginpb.ConfigureRequest, Env) (h Handler, secrets []string, err error)
	level *slog.LevelVar
	log   *slog.Logger

	mu      sync.RWMutex // guards what follows; calls hold it for reading
	handler Handler
	capture int64

	callsMu sync.Mutex
	calls   map[int64]chan struct{} // that run; closed when they have ended
}

// Describe says what the plugin is.
func (s *server) Describe(context.Context, *pluginpb.DescribeRequest) (*pluginpb.DescribeResponse, error) {
	return s.describe, nil
}

// Configure makes the handler. Only in a debugger it comes more than once: then the
// one before is closed.
func (s *server) Configure(ctx context.Context, r *pluginpb.ConfigureRequest) (resp *pluginpb.ConfigureResponse, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in New", "panic", fmt.Sprint(p), "stack", stack())
			err = status.Errorf(codes.Internal, "panic in New: %v", p)
		}
	}()
	s.level.Set(levelOf(r.GetLogLevel()))
	h, secrets, err := s.make(ctx, r, Env{Logger: s.log, HandlerID: int(r.GetHandlerId()), HandlerName: r.GetHandlerName()})
	switch {
	case err != nil && isField(err):
		resp := &pluginpb.ConfigureResponse{}
		for _, f := range fieldErrors(err) {
			resp.Problems = append(resp.Problems, &pluginpb.ConfigProblem{Field: f.field, Text: valid(f.err.Error())})
		}
		return resp, nil
	case err != nil:
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case r.GetOnlyCheck():
		return &pluginpb.ConfigureResponse{Secrets: secrets}, nil
	case h == nil:
		return nil, status.Error(codes.Internal, "New returned neither a Handler nor an error")
	}
	s.mu.Lock()
	before := s.handler
	s.handler, s.capture = h, r.GetCaptureLimit()
	s.mu.Unlock()
	closeHandler(before, s.log)
	return &pluginpb.ConfigureResponse{Secrets: secrets}, nil
}

// begin notes that a call runs, until end is called.
func (s *server) begin(call int64) (end func()) {
	s.callsMu.Lock()
	defer s.callsMu.Unlock()
	if s.calls == nil {
		s.calls = map[int64]chan struct{}{}
	}
	done := make(chan struct{})
	s.calls[call] = done
	return func() {
		s.callsMu.Lock()
		defer s.callsMu.Unlock()
		delete(s.calls, call)
		close(done)
	}
}

// Await waits for a call to end.
func (s *server) Await(ctx context.Context, r *pluginpb.AwaitRequest) (*pluginpb.AwaitResponse, error) {
	s.callsMu.Lock()
	done, ok := s.calls[r.GetCall()]
	s.callsMu.Unlock()
	if ok {
		select {
		case <-done:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	return &pluginpb.AwaitResponse{}, nil
}

// Handle makes an attempt.
func (s *server) Handle(ctx context.Context, r *pluginpb.HandleRequest) (resp *pluginpb.HandleResponse, err error) {
	// A call that Await did not find was over before it began, so the order matters.
	defer s.begin(r.GetCall())()
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.handler == nil {
		return nil, status.Error(codes.FailedPrecondition, "Configure comes before Handle")
	}
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in Handle", "panic", fmt.Sprint(p), "event", r.GetEventId(), "stack", stack())
			resp, err = &pluginpb.HandleResponse{Outcome: pluginpb.Outcome_OUTCOME_RETRY, Error: valid(fmt.Sprintf("panic: %v", p))}, nil
		}
	}()
	result, failed := s.handler.Handle(ctx, &Delivery{
		EventType: r.GetEventType(), EventID: r.GetEventId(), ObjectID: r.GetObjectId(), Lane: r.GetLane(),
		Attempt: int(r.GetAttempt()), HandlerID: int(r.GetHandlerId()), HandlerName: r.GetHandlerName(),
		Payload: r.GetPayload(), ContentType: r.GetContentType(),
	})
	resp = response(failed)
	resp.Sent = s.exchange(result.Sent)
	resp.Received = s.exchange(result.Received)
	if resp.Answer, err = answer(result); err != nil {
		// The attempt is what it was: only what it asks for cannot be told. Billhook notes
		// that the answer is not JSON.
		s.log.Error("what the handler answers cannot be written as JSON", "event", r.GetEventId(), "err", err)
		resp.Answer = []byte("{")
	}
	return resp, nil
}

// exchange cuts a body to what will be kept.
func (s *server) exchange(e Exchange) *pluginpb.Exchange {
	out := &pluginpb.Exchange{Body: e.Body}
	for _, line := range e.Head {
		out.Head = append(out.Head, valid(line))
	}
	// Somewhat more is sent, so that Billhook can mask a secret that the cut goes through.
	limit := int(max(s.capture, 0)) + 4<<10
	if len(e.Body) > limit {
		out.Body, out.Truncated = e.Body[:limit], int64(len(e.Body)-limit)
	}
	return out
}

// answer is what a result asks for, as JSON; nil when that is nothing.
func answer(r Result) ([]byte, error) {
	if !r.Stop && r.Reason == "" && r.Data == nil {
		return nil, nil
	}
	return json.Marshal(struct {
		Stop   bool           `json:"stop,omitempty"`
		Reason string         `json:"reason,omitempty"`
		Data   map[string]any `json:"data,omitempty"`
	}{r.Stop, r.Reason, r.Data})
}

// close closes the handler, after the last call.
func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	closeHandler(s.handler, s.log)
	s.handler = nil
}

func closeHandler(h Handler, log *slog.Logger) {
	c, ok := h.(io.Closer)
	if !ok {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic in Close", "panic", fmt.Sprint(p))
		}
	}()
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		log.Warn("close", "err", err)
	}
}

// valid is s as valid UTF-8, which protobuf wants of text.
func valid(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

// stack is where a panic came from, without what is always there.
func stack() string {
	s := string(debug.Stack())
	if _, after, ok := strings.Cut(s, "\npanic("); ok {
		_, s, _ = strings.Cut(after, "\n\t")
		_, s, _ = strings.Cut(s, "\n")
	}
	s, _, _ = strings.Cut(s, "\ngithub.com/billhook/billhook/plugins.(*server)")
	return s
}
