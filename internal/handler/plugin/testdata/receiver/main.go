// Command receiver is a plugin that behaves as a test says. It is made with package
// plugins, as plugins are, and tells by files that a call has arrived.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/billhook/billhook/plugins"
)

type config struct {
	Dir       string         `json:"dir" jsonschema:"required"`
	Token     plugins.Secret `json:"token,omitempty"`
	Behaviour behaviour      `json:"behaviour,omitempty"`
	// For tests of the start.
	SlowStart plugins.Duration `json:"slow_start,omitempty"`
	Refuse    string           `json:"refuse,omitempty"`
	NotReady  string           `json:"not_ready,omitempty"`
	SlowClose plugins.Duration `json:"slow_close,omitempty"`
	Say       string           `json:"say,omitempty"`
}

type behaviour struct {
	Deaf, Stubborn, Gate, Bad, Leak, Echo, Report bool
	Output                                        int
	Answer                                        string
	RetryAfter                                    time.Duration
	Outcome                                       string
}

func (c config) Validate() error {
	if c.Refuse != "" {
		return plugins.Field(c.Refuse, errors.New("it is refused: "+c.Say))
	}
	return nil
}

func main() {
	plugins.Serve(plugins.Plugin[config]{Name: "receiver", Version: "1.2.3", New: newReceiver})
}

type receiver struct {
	config
	log *slog.Logger
}

func newReceiver(ctx context.Context, c config, env plugins.Env) (plugins.Handler, error) {
	if c.SlowStart > 0 {
		time.Sleep(c.SlowStart.Std())
	}
	if c.NotReady != "" {
		return nil, errors.New(c.NotReady)
	}
	if c.Say != "" {
		env.Logger.Warn("a warning", "said", c.Say)
		fmt.Println("printed: " + c.Say)
		fmt.Fprintln(os.Stderr, "[ERROR] printed as an error: "+c.Say)
	}
	// Whole at once: the test reads it while a plugin is started again.
	path := filepath.Join(c.Dir, "pid")
	if err := os.WriteFile(path+".new", fmt.Append(nil, os.Getpid()), 0o600); err != nil {
		return nil, err
	}
	return &receiver{c, env.Logger}, os.Rename(path+".new", path)
}

func (r *receiver) Close() error {
	time.Sleep(r.SlowClose.Std())
	return os.WriteFile(filepath.Join(r.Dir, "closed"), nil, 0o600)
}

func (r *receiver) enter() {
	f, err := os.OpenFile(filepath.Join(r.Dir, "entered"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, _ = f.WriteString("1\n")
		_ = f.Close()
	}
}

func (r *receiver) Handle(ctx context.Context, d *plugins.Delivery) (plugins.Result, error) {
	b := r.Behaviour
	if b.Outcome != "payload" {
		r.enter()
	}
	for b.Gate {
		if _, err := os.Stat(filepath.Join(r.Dir, "gate")); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return plugins.Result{}, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	var out bytes.Buffer
	var res plugins.Result
	failure := "no"
	out.Write(bytes.Repeat([]byte("x"), b.Output))
	if b.Bad {
		const bad = "\xff\xfe\x1b[2J\x00\r\n\u202e"
		out.WriteString(bad)
		failure += bad
		res.Received.Head = append(res.Received.Head, bad)
		fmt.Fprintln(os.Stderr, bad)
		r.log.Info(bad)
	}
	if b.Leak {
		text := r.Token.Reveal()
		out.WriteString(text)
		failure += text
		res.Sent = plugins.Exchange{Head: []string{"Authorization: " + text}, Body: []byte(text)}
		fmt.Fprintln(os.Stderr, text)
		r.log.Info(text, "token", text)
	}
	if b.Echo {
		out.Write(d.Payload)
	}
	if b.Report {
		fmt.Fprintf(&out, "id=%s\nattempt=%d\nhandler=%d\n", d.EventID, d.Attempt, d.HandlerID)
	}
	if b.Answer != "" {
		var answer struct {
			Stop   bool
			Reason string
			Data   map[string]any
		}
		if err := json.Unmarshal([]byte(b.Answer), &answer); err != nil {
			answer.Data = map[string]any{"x": make(chan int)} // as bad as it gets with package plugins
		}
		res.Stop, res.Reason, res.Data = answer.Stop, answer.Reason, answer.Data
	}
	res.Received.Body = out.Bytes()
	err := errors.New(failure)
	outcome := b.Outcome
	if outcome == "payload" {
		outcome = string(d.Payload)
	}
	switch outcome {
	case "retry":
		if b.RetryAfter > 0 {
			return res, plugins.RetryAfter(err, b.RetryAfter)
		}
		return res, err
	case "permanent":
		return res, plugins.Permanent(err)
	case "crash":
		os.Exit(3)
	case "panic":
		panic(failure)
	case "stop":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		select {}
	case "stubborn":
		select {}
	case "hang":
		if b.Stubborn {
			select {}
		}
		<-ctx.Done()
		return res, ctx.Err()
	}
	return res, nil
}
