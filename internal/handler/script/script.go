//go:build unix

// Package script is the handler kind that runs a program of the operator's.
//
// One attempt is one run. The file is executed directly, never through a shell.
// The payload stands on its standard input, followed by end of file; it need not
// read it. Its environment is PATH, LANG and HOME, the operator's own variables,
// and:
//
//	BILLHOOK_EVENT         event type, such as clients.balance_zero
//	BILLHOOK_EVENT_ID      event id, the same at every attempt
//	BILLHOOK_OBJECT_ID     key of the row
//	BILLHOOK_LANE          ordering key
//	BILLHOOK_ATTEMPT       number of the attempt, from 1
//	BILLHOOK_HANDLER       id of the handler
//	BILLHOOK_HANDLER_NAME  its name
//	BILLHOOK_DEADLINE      Unix time, in whole seconds, at which it will be told to end
//
// Exit code 0 is success; 75 (EX_TEMPFAIL) and all others are tried again, except
// 64, 65, 77 and 78 (EX_USAGE, EX_DATAERR, EX_NOPERM, EX_CONFIG), which are
// permanent. The operator may class codes otherwise. If the last line of its
// standard output is a JSON object, that is its answer; "retry_after" in it,
// seconds or a duration such as "90s", names the delay before the next attempt.
//
// It promises that nothing of a run stays: the program gets a process group of its
// own, which gets SIGTERM when the attempt's context ends and SIGKILL after
// KillGrace or when the program itself has ended, whatever it started in the
// background. A program that starts a session of its own (setsid) leaves that
// group and is out of reach. On Linux the program itself, though not what it
// started, is killed too if Billhook dies. If the kernel will not let a process
// die (it waits on a dead network disk), Handle waits with it, so that such
// processes do not pile up.
//
// The program and the directory it is in may be writable only by their owner, who
// must be root, the user that runs Billhook or the user that the program runs as.
// This is judged by New and before every run. A program that has gone missing or
// may not be started is a failure that is tried again, since replacing a file
// takes a moment and the remedy is outside: it ends as a dead letter if nobody
// puts it right.
//
// It limits neither how many run at once nor when: see package dispatch. Start
// with Options and New.
package script

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/exchange"
	"github.com/billhook/billhook/internal/handler/program"
)

// What zero fields of Options mean.
const (
	DefaultKillGrace     = 5 * time.Second
	DefaultCaptureLimit  = 64 << 10
	DefaultRetryAfterMax = time.Hour
)

// kind is what errors call a script.
const kind = "script"

// defaultPath is the PATH of a run.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Options says what to run and how. Only Path is required.
type Options struct {
	Path string   // absolute path of an executable file
	Args []string // passed as they are
	Env  []Var    // variables beside those the package names; may replace PATH, LANG and HOME
	Dir  string   // working directory, absolute; "/" if empty

	// User and Group are names or numeric ids to run as, which needs root. The
	// user's supplementary groups are taken on. Group alone keeps the user.
	User, Group string

	Timeout   time.Duration // for the run; 0 leaves it to the context
	KillGrace time.Duration // from SIGTERM to SIGKILL; 0 is DefaultKillGrace

	// Exit codes that the operator classes, as "3" or "10-19". Others are judged
	// as the package says.
	Success, Retry, Permanent []string

	// RetryAfterMax bounds what the program's answer may ask for; 0 is
	// DefaultRetryAfterMax.
	RetryAfterMax time.Duration

	// CaptureLimit is how many bytes are kept of standard output and of standard
	// error each, the first quarter and the last three; 0 is DefaultCaptureLimit,
	// negative is none.
	CaptureLimit int

	Limits Limits
	// Launcher is the path of a command that hands its arguments to Launch, which
	// sets Limits; it is required with them.
	Launcher string
}

// Var is an environment variable that the operator adds.
type Var struct {
	Name, Value string
	// Secret masks the value wherever it would be shown. It is implied by names
	// such as CRM_TOKEN or DB_PASSWORD.
	Secret bool
}

// Handler runs one program. It is made by New and safe for use by many
// goroutines.
type Handler struct {
	path, dir  string
	argv       []string
	env        []string // fixed part
	shownEnv   []string // the operator's variables as they are shown
	identity   program.Identity
	classes    exchange.Classes
	mask       *exchange.Mask
	timeout    time.Duration
	killGrace  time.Duration
	retryLimit time.Duration
	capture    int
	limits     []rlimit
	launcher   string
	adopts     bool
}

var _ handler.Handler = (*Handler)(nil)

// New checks o, with the file it names, and returns its Handler.
func New(o Options) (*Handler, error) {
	h := &Handler{
		path:       o.Path,
		dir:        o.Dir,
		argv:       append([]string{o.Path}, o.Args...),
		timeout:    max(o.Timeout, 0),
		killGrace:  o.KillGrace,
		retryLimit: o.RetryAfterMax,
		capture:    o.CaptureLimit,
		launcher:   o.Launcher,
		adopts:     program.Adopts(),
	}
	if h.dir == "" {
		h.dir = "/"
	}
	if h.killGrace <= 0 {
		h.killGrace = DefaultKillGrace
	}
	if h.retryLimit <= 0 {
		h.retryLimit = DefaultRetryAfterMax
	}
	if h.capture == 0 {
		h.capture = DefaultCaptureLimit
	}
	for i, a := range o.Args {
		if strings.Contains(a, "\x00") {
			return nil, fmt.Errorf("argument %d holds a NUL byte", i+1)
		}
	}
	var err error
	if h.identity, err = program.NewIdentity(o.User, o.Group); err != nil {
		return nil, err
	}
	if h.classes, err = exchange.ParseClasses(o.Success, o.Retry, o.Permanent, 0, 255); err != nil {
		return nil, err
	}
	if h.limits, err = o.Limits.list(); err != nil {
		return nil, err
	}
	if len(h.limits) > 0 && h.launcher == "" {
		return nil, errors.New("limits need a launcher, and there is none")
	}
	if err := h.setEnv(o.Env); err != nil {
		return nil, err
	}
	if err := program.CheckFile(kind, h.path, h.identity); err != nil {
		return nil, err
	}
	if err := program.CheckInterpreter(kind, h.path); err != nil {
		return nil, err
	}
	if info, err := os.Stat(h.dir); err != nil || !info.IsDir() || h.dir[0] != '/' {
		return nil, fmt.Errorf("working directory %s: want the absolute path of a directory", h.dir)
	}
	return h, nil
}

// Close does nothing: a Handler holds nothing between runs.
func (h *Handler) Close() error { return nil }

func (h *Handler) setEnv(vars []Var) error {
	h.env = []string{"PATH=" + defaultPath, "LANG=C.UTF-8", "HOME=" + h.identity.Home}
	var secrets []string
	seen := map[string]bool{}
	for _, v := range vars {
		switch {
		case v.Name == "" || strings.ContainsAny(v.Name, "=\x00"):
			return fmt.Errorf("variable %q: not a name", v.Name)
		case strings.HasPrefix(v.Name, "BILLHOOK_"):
			return fmt.Errorf("variable %s: names that begin with BILLHOOK_ are set by Billhook: choose another", v.Name)
		case strings.Contains(v.Value, "\x00"):
			return fmt.Errorf("variable %s: its value holds a NUL byte", v.Name)
		case seen[v.Name]:
			return fmt.Errorf("variable %s: given twice", v.Name)
		}
		seen[v.Name] = true
		h.env = slices.DeleteFunc(h.env, func(s string) bool { return strings.HasPrefix(s, v.Name+"=") })
		h.env = append(h.env, v.Name+"="+v.Value)
		shown := v.Value
		if v.Secret || exchange.Sensitive(v.Name) {
			secrets = append(secrets, v.Value)
			shown = exchange.Masked
		}
		h.shownEnv = append(h.shownEnv, v.Name+": "+shown)
	}
	h.mask = exchange.NewMask(secrets...)
	return nil
}

// failure is an error whose text is fit for people and whose cause can still be
// examined.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

const (
	maxError  = 1 << 10 // bytes of an error's text
	maxDetail = 200     // bytes of it that quote the program
	maxLine   = 4 << 10 // bytes of one line that is shown
	maxLines  = 400     // lines of standard error that are shown
)

func (h *Handler) failure(err error) error {
	return &failure{h.mask.Line(err.Error(), maxError), err}
}

// variables are those of one attempt, as "NAME=value".
func variables(ctx context.Context, d *handler.Delivery) []string {
	v := []string{
		"BILLHOOK_EVENT=" + string(d.Event.Type),
		"BILLHOOK_EVENT_ID=" + d.Event.ID.String(),
		"BILLHOOK_OBJECT_ID=" + d.Event.Object,
		"BILLHOOK_LANE=" + d.Event.Lane,
		"BILLHOOK_ATTEMPT=" + strconv.Itoa(d.Attempt),
		"BILLHOOK_HANDLER=" + strconv.Itoa(d.HandlerID),
		"BILLHOOK_HANDLER_NAME=" + d.Name,
	}
	if deadline, ok := ctx.Deadline(); ok {
		v = append(v, "BILLHOOK_DEADLINE="+strconv.FormatInt(deadline.Unix(), 10))
	}
	for i, s := range v {
		if strings.Contains(s, "\x00") { // which no variable can hold
			v[i] = strings.ReplaceAll(s, "\x00", "\ufffd")
		}
	}
	return v
}

// sent returns the run as it is shown: the command, then the variables.
func (h *Handler) sent(vars []string, body []byte) handler.Exchange {
	e := handler.Exchange{Head: make([]string, 0, 1+len(h.argv)+len(h.shownEnv)+len(vars))}
	e.Head = append(e.Head, h.mask.Line("path: "+h.path, maxLine))
	for _, a := range h.argv[1:] {
		e.Head = append(e.Head, h.mask.Line("argument: "+a, maxLine))
	}
	for _, v := range h.shownEnv {
		e.Head = append(e.Head, h.mask.Line(v, maxLine))
	}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		e.Head = append(e.Head, h.mask.Line(name+": "+value, maxLine))
	}
	keep := max(h.capture, 0)
	e.Body = h.mask.Prefix(body, keep)
	e.Truncated = int64(max(len(body)-keep, 0))
	return e
}

// Handle makes one attempt, as handler.Handler says.
func (h *Handler) Handle(parent context.Context, d *handler.Delivery) (handler.Result, error) {
	res := handler.Result{Code: -1}
	ctx := parent
	if h.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(parent, h.timeout)
		defer cancel()
	}
	vars := variables(ctx, d)
	res.Request = h.sent(vars, d.Body)
	begin := time.Now()
	if ctx.Err() != nil {
		return h.ended(res, parent, begin)
	}
	if err := program.CheckFile(kind, h.path, h.identity); err != nil {
		res.Reason = handler.ReasonStart
		return res, h.failure(err)
	}
	r := run{
		path: h.path, argv: h.argv, dir: h.dir, env: slices.Concat(h.env, vars), identity: h.identity,
		stdin: d.Body, killGrace: h.killGrace, limits: h.limits, launcher: h.launcher, adopts: h.adopts,
		stdout: exchange.NewBuffer(h.capture), stderr: exchange.NewBuffer(h.capture),
	}
	exit, err := r.do(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return h.ended(res, parent, begin)
		}
		if errors.Is(err, syscall.E2BIG) {
			res.Reason = handler.ReasonPayload
			return res, handler.Permanent(h.failure(fmt.Errorf("start %s: the event's texts are too long for its environment: %w", h.path, err)))
		}
		res.Reason = handler.ReasonStart
		return res, h.failure(program.ExplainStart(kind, h.path, h.dir, h.identity, err))
	}
	return h.judge(res, &r, exit, parent, begin)
}

// ended classes an attempt whose context ended.
func (h *Handler) ended(res handler.Result, parent context.Context, begin time.Time) (handler.Result, error) {
	if err := parent.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		res.Reason = handler.ReasonOther
		return res, h.failure(fmt.Errorf("run %s: %w", h.path, context.Cause(parent)))
	}
	res.Reason = handler.ReasonTimeout
	return res, h.failure(fmt.Errorf("run %s: not done within %s: %w", h.path, time.Since(begin).Round(time.Millisecond), context.DeadlineExceeded))
}

// judge classes a run that was started.
func (h *Handler) judge(res handler.Result, r *run, exit exit, parent context.Context, begin time.Time) (handler.Result, error) {
	res.Response.Body = r.stdout.Bytes(h.mask)
	res.Response.Truncated = r.stdout.Dropped()
	head := func(format string, args ...any) {
		res.Response.Head = append(res.Response.Head, h.mask.Line(fmt.Sprintf(format, args...), maxLine))
	}
	res.Code = exit.code
	if exit.signal != 0 {
		res.Code = -1
		head("signal: %s", program.SignalName(exit.signal))
	} else {
		head("exit: %d", exit.code)
	}
	head("cpu: %s user, %s system", exit.user.Round(time.Millisecond), exit.system.Round(time.Millisecond))
	if exit.maxRSS > 0 {
		head("memory: %d bytes at most", exit.maxRSS)
	}
	if stderr := strings.TrimRight(string(r.stderr.Bytes(h.mask)), "\r\n"); stderr != "" {
		lines := strings.Split(stderr, "\n")
		if dropped := len(lines) - maxLines; dropped > 0 {
			lines = slices.Replace(lines, maxLines/4, maxLines/4+dropped, fmt.Sprintf("[... %d lines dropped ...]", dropped))
		}
		for _, line := range lines {
			head("stderr: %s", line)
		}
	}
	if exit.held {
		head("billhook-note: a process that left the program's group still held its output")
	}

	var answer exchange.Answer
	if last := r.stdout.LastLine(); len(last) > 0 && last[0] == '{' && !exit.told {
		var err error
		if answer, err = exchange.ParseAnswer(last, h.mask); err != nil {
			head("billhook-note: the JSON answer in the last line was ignored: %v", err)
		}
	}
	res.Answer = answer.Answer

	if exit.told {
		return h.ended(res, parent, begin)
	}
	// What the program says of itself: its answer's reason, or the last line that
	// it wrote as an error.
	detail := answer.Reason
	if detail == "" {
		detail = h.mask.Line(string(h.mask.Bytes(r.stderr.LastLine())), maxDetail)
	}
	if detail != "" {
		detail = ": " + detail
	}
	if exit.signal != 0 {
		res.Reason = handler.ReasonSignal
		return res, h.failure(fmt.Errorf("run %s: killed by %s%s", h.path, program.SignalName(exit.signal), detail))
	}
	class := h.classes.Of(exit.code)
	if class == exchange.Unclassified {
		class = classOf(exit.code)
	}
	if class == exchange.Success {
		return res, nil
	}
	res.Reason = handler.ReasonExit
	err := h.failure(fmt.Errorf("run %s: exit code %s%s", h.path, codeName(exit.code), detail))
	switch {
	case class == exchange.Permanent:
		return res, handler.Permanent(err)
	case answer.RetryAfter > h.retryLimit:
		head("billhook-note: retry_after asks for %s, which is cut to %s", answer.RetryAfter, h.retryLimit)
		return res, handler.RetryAfter(err, h.retryLimit)
	case answer.RetryAfter > 0:
		return res, handler.RetryAfter(err, answer.RetryAfter)
	}
	return res, err
}

// The exit codes of sysexits.h that mean something here.
const (
	exUsage    = 64
	exDataErr  = 65
	exTempFail = 75
	exNoPerm   = 77
	exConfig   = 78
)

// classOf is what an exit code means unless the operator says otherwise.
func classOf(code int) exchange.Class {
	switch code {
	case 0:
		return exchange.Success
	case exUsage, exDataErr, exNoPerm, exConfig:
		return exchange.Permanent
	}
	return exchange.Retry
}

func codeName(code int) string {
	names := map[int]string{
		exUsage: "EX_USAGE", exDataErr: "EX_DATAERR", exTempFail: "EX_TEMPFAIL", exNoPerm: "EX_NOPERM", exConfig: "EX_CONFIG",
		126: "cannot execute", 127: "command not found",
	}
	if name, ok := names[code]; ok {
		return fmt.Sprintf("%d (%s)", code, name)
	}
	if code > 128 && code <= 128+64 {
		return fmt.Sprintf("%d (as shells report %s)", code, program.SignalName(syscall.Signal(code-128)))
	}
	return strconv.Itoa(code)
}
