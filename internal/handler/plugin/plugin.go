//go:build unix

// Package plugin is the handler kind that calls a plugin: a program of its own that
// Billhook starts, keeps running and speaks gRPC with, by way of hashicorp/go-plugin.
// What the two say to each other is plugins/pluginpb; package plugins is the other
// side of it.
//
// Each Handler has a process to itself. It is started by New and judged at once:
// Ready says what is wrong with it. If it dies, it is started again, at once if it had
// run well and otherwise after a delay that grows. While it is down, attempts fail
// with handler.ReasonStart and say why; nothing else is touched by that. A process
// that neither ends a call which was given up, nor answers when it is asked whether it
// is well, is killed and started again.
//
// It promises that nothing of a plugin stays: its process leads a group of its own,
// which is killed when the process has ended or does not end in time. When Billhook
// itself is killed, the kernel kills the process (on Linux), and a plugin that watches
// its standard input, as those made with package plugins do, ends by itself and takes
// what it has started along. A plugin that starts a session of its own is out of reach.
//
// The environment of a plugin holds nothing of Billhook's. What a plugin prints goes
// into the log, line by line, up to a rate. Texts of its configuration that its schema
// calls secret are masked in all that is shown; so is all of the configuration as
// long as there is no schema.
//
// It does not limit how many calls run at once nor decide when: see package dispatch.
// Start with Options and New.
package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/billhook/billhook/internal/backoff"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/exchange"
	"github.com/billhook/billhook/internal/handler/program"
	"github.com/billhook/billhook/plugins"
	"github.com/billhook/billhook/plugins/schema"
)

// What zero fields of Options mean.
const (
	DefaultStartTimeout  = 15 * time.Second
	DefaultKillGrace     = 5 * time.Second
	DefaultHealthEvery   = 10 * time.Second
	DefaultHealthTimeout = 5 * time.Second
	DefaultSteady        = time.Minute
	DefaultCaptureLimit  = 64 << 10
	DefaultRetryAfterMax = time.Hour
)

// kind is what errors call a plugin.
const kind = "plugin"

// Options says what to run and how. Only Path is required.
type Options struct {
	Path     string   // absolute path of an executable file
	Args     []string // passed as they are
	Checksum string   // of the file: 64 hexadecimal digits of SHA-256; empty: any

	Config    []byte // a JSON object for the plugin; nil: {}
	ConfigDir string // where relative paths in it begin

	HandlerID   int
	HandlerName string

	Timeout time.Duration // for a call; 0 leaves it to the context
	// RetryAfterMax bounds what a plugin may ask for; 0 is DefaultRetryAfterMax.
	RetryAfterMax time.Duration
	// CaptureLimit is how many bytes are kept of each body; 0 is DefaultCaptureLimit,
	// negative is none.
	CaptureLimit int

	StartTimeout time.Duration // from the start of the process to the first call; 0 is DefaultStartTimeout
	// KillGrace is how long a call that was given up may go on, and a process that was
	// told to end, before the process is killed; 0 is DefaultKillGrace.
	KillGrace time.Duration
	// HealthEvery is how often a plugin is asked whether it is well, HealthTimeout how
	// long it may take to answer; it is killed after three answers that do not come.
	HealthEvery, HealthTimeout time.Duration
	// Restart says when a plugin that is down is started again; its Attempts are
	// ignored. The zero Restart waits 1s, 2s and so on up to 1m, with jitter.
	Restart backoff.Schedule
	// Steady is how long a plugin must have run for a crash to be taken for the first;
	// 0 is DefaultSteady.
	Steady time.Duration

	// Lazy starts the plugin not before the first call.
	Lazy bool
	// OnlyCheck has the plugin judge its configuration and not get ready for calls.
	OnlyCheck bool
	// Reattach is where a plugin runs that was started by hand; nil: it is started.
	Reattach *plugins.Reattach

	TempDir string       // where sockets are put; empty: os.TempDir
	Logger  *slog.Logger // nil: nowhere
	Metrics *Metrics     // nil: none
}

// ConfigError is what a plugin says of its configuration. It holds no value of it.
type ConfigError struct {
	Plugin   string // its name
	Problems []schema.Problem
}

// Error names all problems in one line.
func (e *ConfigError) Error() string {
	var parts []string
	for _, p := range e.Problems {
		if p.Field == "" {
			parts = append(parts, p.Text)
		} else {
			parts = append(parts, p.Field+": "+p.Text)
		}
	}
	return "plugin " + e.Plugin + " refuses its configuration: " + strings.Join(parts, "; ")
}

// Handler calls a plugin. It is made by New and safe for use by many goroutines.
type Handler struct {
	keeper *keeper
	opts   Options
	once   sync.Once
}

var _ handler.Handler = (*Handler)(nil)

// New checks o with the file that it names, begins to start the plugin unless o is lazy,
// and returns its Handler. It does not wait: Ready does.
func New(o Options) (*Handler, error) {
	setDefaults(&o)
	if err := check(o); err != nil {
		return nil, err
	}
	return &Handler{keeper: newKeeper(o), opts: o}, nil
}

func setDefaults(o *Options) {
	set := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	set(&o.StartTimeout, DefaultStartTimeout)
	set(&o.KillGrace, DefaultKillGrace)
	set(&o.HealthEvery, DefaultHealthEvery)
	set(&o.HealthTimeout, DefaultHealthTimeout)
	set(&o.Steady, DefaultSteady)
	set(&o.RetryAfterMax, DefaultRetryAfterMax)
	if o.CaptureLimit == 0 {
		o.CaptureLimit = DefaultCaptureLimit
	}
	if o.Restart.Initial <= 0 && len(o.Restart.List) == 0 {
		o.Restart = backoff.Schedule{Initial: time.Second, Max: time.Minute, Factor: 2, Jitter: 0.2}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if len(o.Config) == 0 {
		o.Config = []byte("{}")
	}
}

// check judges what can be judged without starting anything. The checksum is none of
// it: a file that was replaced holds one handler up, not the whole of handlers.yaml.
func check(o Options) error {
	for i, a := range o.Args {
		if strings.Contains(a, "\x00") {
			return fmt.Errorf("argument %d holds a NUL byte", i+1)
		}
	}
	if o.Checksum != "" {
		if b, err := hex.DecodeString(o.Checksum); err != nil || len(b) != sha256.Size {
			return errors.New("checksum: want the 64 digits that sha256sum prints")
		}
	}
	if o.Reattach != nil {
		return nil
	}
	id, err := program.NewIdentity("", "")
	if err != nil {
		return err
	}
	if err := program.CheckFile(kind, o.Path, id); err != nil {
		return err
	}
	return program.CheckInterpreter(kind, o.Path)
}

// Ready waits until the first start has succeeded or failed, and says which. The
// plugin goes on to be started again after a failure. A *ConfigError is what the
// plugin says of its configuration.
func (h *Handler) Ready(ctx context.Context) error {
	h.keeper.want()
	select {
	case <-h.keeper.tried:
		return h.keeper.firstErr
	case <-ctx.Done():
		return fmt.Errorf("plugin %s: still starting: %w", h.opts.Path, context.Cause(ctx))
	}
}

// Status is how a plugin's process is.
type Status struct {
	Wanted        bool // it was started, or is to be
	Up            bool
	Name, Version string    // of the one that is up
	Since         time.Time // when it was started
	Err           error     // why it is not up; nil also while it is being started
}

// Status returns how the process is now.
func (h *Handler) Status() Status { return h.keeper.status() }

// Changed reports whether the plugin's file is another than the one that was last
// started.
func (h *Handler) Changed() bool {
	if h.opts.Reattach != nil {
		return false
	}
	was := h.keeper.file.Load()
	now, err := stamp(h.opts.Path)
	return was != nil && err == nil && *was != now
}

// Again returns another Handler that uses the same process, if o asks for one that
// would be the same. Each is to be closed; the process ends with the last. A lazy one
// does not go on with a process that somebody wanted.
func (h *Handler) Again(o Options) (*Handler, bool) {
	setDefaults(&o)
	if !sameProcess(h.opts, o) || o.Lazy && !h.opts.Lazy || h.Changed() || !h.keeper.share() {
		return nil, false
	}
	if !o.Lazy {
		h.keeper.want()
	}
	return &Handler{keeper: h.keeper, opts: o}, true
}

func sameProcess(a, b Options) bool {
	return a.Path == b.Path && slices.Equal(a.Args, b.Args) && a.Checksum == b.Checksum && string(a.Config) == string(b.Config) &&
		a.ConfigDir == b.ConfigDir && a.HandlerID == b.HandlerID && a.HandlerName == b.HandlerName && a.CaptureLimit == b.CaptureLimit &&
		!a.OnlyCheck && !b.OnlyCheck && a.Reattach == nil && b.Reattach == nil
}

// Close tells the plugin to end and waits for it, up to KillGrace, then kills it.
func (h *Handler) Close() error {
	h.once.Do(h.keeper.release)
	return nil
}

// fileStamp tells a file from what is put in its place.
type fileStamp struct {
	dev, inode uint64
	size       int64
	modified   time.Time
}

func stamp(path string) (fileStamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}, err
	}
	s := fileStamp{size: info.Size(), modified: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.dev, s.inode = uint64(sys.Dev), sys.Ino
	}
	return s, nil
}

// fingerprint returns the SHA-256 of an open file.
func fingerprint(f io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// configMask masks texts of the configuration: those that s calls secret.
func configMask(s *schema.Schema, config []byte, more []string) *exchange.Mask {
	return exchange.NewMask(append(s.Secrets(config), more...)...)
}
