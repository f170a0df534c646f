package config

import "time"

// Handlers is handlers.yaml, the operator's file.
type Handlers struct {
	// Version is the version of the file's format: 1.
	Version int `yaml:"version" jsonschema:"required,minimum=1,maximum=1"`
	// Defaults holds what handlers do unless they say otherwise.
	Defaults Defaults `yaml:"defaults,omitempty"`
	// Include names more files with handlers: patterns such as handlers.d/*.yaml, or
	// folders, from this file's folder on. They are read in this order, those of a
	// pattern by name. An included file has version and handlers alone.
	Include []string `yaml:"include,omitempty"`
	// Handlers lists who is called; it may be empty, or missing where there is an include.
	Handlers []Handler `yaml:"handlers"`

	// Files is every file that was read for this value, the file itself first, then
	// those that include and *_file keys name: what a watcher watches.
	Files []string `yaml:"-"`
}

// Defaults holds what handlers do unless they say otherwise. A handler that gives
// a part of retry or breaker keeps the rest of it from here.
type Defaults struct {
	// Timeout is the time for one attempt.
	Timeout time.Duration `yaml:"timeout,omitempty"`
	// Retry says when a failed attempt is tried again.
	Retry Retry `yaml:"retry,omitempty"`
	// Blocking makes the next handler of the event wait until this one is done.
	Blocking bool `yaml:"blocking"`
	// OnFailure says what becomes of the rest of the chain when a handler fails for
	// good.
	OnFailure OnFailure `yaml:"on_failure,omitempty" jsonschema:"enum=continue,enum=stop"`
	// Format is the payload's format.
	Format Format `yaml:"format,omitempty" jsonschema:"enum=billhook,enum=provisioning,enum=cloudevents"`
	// Concurrency is how many attempts of one handler run at once; by default 16 for
	// http and plugin, 4 for script.
	Concurrency int `yaml:"concurrency,omitempty" jsonschema:"minimum=1,maximum=10000"`
	// Rate bounds the attempts of one handler over time, such as 50/s, 600/m, 1000/h.
	Rate Rate `yaml:"rate,omitempty"`
	// Breaker rests a handler that is down, so that its executions wait and are not lost.
	Breaker *Breaker `yaml:"breaker,omitempty"`
	// FailingAfter is for how long attempts must have failed, and none succeeded, for a
	// handler to be shown as failing.
	FailingAfter time.Duration `yaml:"failing_after,omitempty"`
	// Capture is how much of each request and response is kept for people to see.
	Capture ByteSize `yaml:"capture,omitempty"`
}

// Handler is someone who is called. Exactly one of HTTP, Script and Plugin is not
// nil. Everything that Defaults knows is filled in.
type Handler struct {
	// ID is the handler's lasting number, unique in the file. Executions refer to it,
	// so a number is never used again for another handler.
	ID int `yaml:"id" jsonschema:"required,minimum=1,maximum=2147483647"`
	// Name is what people see.
	Name string `yaml:"name" jsonschema:"required"`
	// Event is the event type: its name, an alias, its title, or a wildcard such as
	// clients.*. Give this or events. After loading it is empty and Events holds it.
	Event string `yaml:"event,omitempty"`
	// Events lists several event types. After loading it holds canonical names and
	// wildcards.
	Events []string `yaml:"events,omitempty"`
	// Priority orders the handlers of one event, lowest first; ties by id.
	Priority int `yaml:"priority" jsonschema:"minimum=0,maximum=1000000"`
	// Status is enabled, disabled (executions are held) or archived (hidden, pending
	// executions are cancelled).
	Status Status `yaml:"status,omitempty" jsonschema:"enum=enabled,enum=disabled,enum=archived"`
	// Blocking makes the next handler of the event wait until this one has succeeded
	// or is dead. With false its retries happen aside.
	Blocking bool `yaml:"blocking"`
	// OnFailure says what becomes of the rest of the chain when this handler is dead:
	// continue, or stop (the rest is skipped).
	OnFailure OnFailure `yaml:"on_failure,omitempty" jsonschema:"enum=continue,enum=stop"`
	// When is a condition in CEL over event, data and changed.
	When Expr `yaml:"when,omitempty"`
	// Format is the payload's format: billhook, provisioning (the vendor's envelope),
	// cloudevents or template. It is template by itself when a template is given.
	Format Format `yaml:"format,omitempty" jsonschema:"enum=billhook,enum=provisioning,enum=cloudevents,enum=template"`
	// Template is a Go template that makes the payload.
	Template Expr `yaml:"template,omitempty"`
	// TemplateFile names a file with the template. After loading Template holds it.
	TemplateFile string `yaml:"template_file,omitempty"`
	// ContentType is the media type of what the template makes.
	ContentType string `yaml:"content_type,omitempty"`
	// Timeout is the time for one attempt.
	Timeout time.Duration `yaml:"timeout,omitempty"`
	// Retry says when a failed attempt is tried again.
	Retry Retry `yaml:"retry,omitempty"`
	// Concurrency is how many attempts of this handler run at once; by default 16 for
	// http and plugin, 4 for script.
	Concurrency int `yaml:"concurrency,omitempty" jsonschema:"minimum=1,maximum=10000"`
	// Rate bounds the attempts over time, such as 50/s, 600/m, 1000/h.
	Rate Rate `yaml:"rate,omitempty"`
	// Breaker rests the handler when it is down. Its executions wait and lose no
	// attempts.
	Breaker *Breaker `yaml:"breaker,omitempty"`
	// FailingAfter is for how long attempts must have failed, and none succeeded, for
	// the handler to be shown as failing.
	FailingAfter time.Duration `yaml:"failing_after,omitempty"`
	// Collapse with latest makes only the newest of several executions that wait for
	// one object, and skips the others: for a handler that wants to know how an object
	// is, not all that happened to it.
	Collapse Collapse `yaml:"collapse,omitempty" jsonschema:"enum=none,enum=latest"`
	// OnDead is the id of a handler that is called with the event when an execution of
	// this one is dead; what failed and why is in the payload as dead. That handler
	// needs no events of its own.
	OnDead int `yaml:"on_dead,omitempty" jsonschema:"minimum=1,maximum=2147483647"`
	// Capture is how much of each request and response is kept for people to see.
	Capture ByteSize `yaml:"capture,omitempty"`
	// WriteBack lists the columns that an answer may change in the row of the event's
	// object, where they still hold what the event said. The role needs UPDATE on them.
	// Empty means that answers change nothing.
	WriteBack Columns `yaml:"write_back,omitempty"`

	// HTTP calls a URL.
	HTTP *HTTP `yaml:"http,omitempty"`
	// Script runs a program.
	Script *Script `yaml:"script,omitempty"`
	// Plugin calls a plugin.
	Plugin *Plugin `yaml:"plugin,omitempty"`

	// Pos is where the handler stands; Pos.Field is its field in that file, such as
	// "handlers[1]".
	Pos Pos `yaml:"-"`

	places map[string]Pos // of its file
}

// At returns the place of a field of the handler such as "http.url", or of the nearest
// field around it that the file has.
func (h *Handler) At(field string) Pos { return at(h.places, join(h.Pos.Field, field)) }

// WithoutPlaces returns the handler as it is, wherever it stands: two that are equal
// then do the same.
func (h Handler) WithoutPlaces() Handler {
	h.Pos, h.places = Pos{}, nil
	h.When = Expr{Text: h.When.Text}
	h.Template = Expr{Text: h.Template.Text}
	return h
}

// Kind returns "http", "script" or "plugin".
func (h *Handler) Kind() string {
	switch {
	case h.HTTP != nil:
		return "http"
	case h.Script != nil:
		return "script"
	case h.Plugin != nil:
		return "plugin"
	}
	return ""
}

// Matches reports whether the handler is called for an event type, given by its
// canonical name.
func (h *Handler) Matches(eventType string) bool {
	for _, p := range h.Events {
		if MatchEvent(p, eventType) {
			return true
		}
	}
	return false
}

// Status is whether a handler is called.
type Status string

// The statuses.
const (
	Enabled  Status = "enabled"
	Disabled Status = "disabled"
	Archived Status = "archived"
)

// OnFailure is what becomes of the rest of a chain.
type OnFailure string

// The ways on.
const (
	Continue OnFailure = "continue"
	Stop     OnFailure = "stop"
)

// Collapse is what becomes of executions that a newer one of their object outdates.
type Collapse string

// What becomes of them.
const (
	None   Collapse = "none"
	Latest Collapse = "latest"
)

// Format is the format of a payload.
type Format string

// The formats.
const (
	FormatBillhook     Format = "billhook"
	FormatProvisioning Format = "provisioning"
	FormatCloudEvents  Format = "cloudevents"
	FormatTemplate     Format = "template"
)

// Retry says when a failed attempt is tried again: by initial, factor and max, or
// by a written schedule.
type Retry struct {
	// Attempts is how many attempts an execution has, the first included. With a
	// schedule it is by default one more than the schedule has delays; more than that
	// repeat the last delay.
	Attempts int `yaml:"attempts,omitempty" jsonschema:"minimum=1,maximum=10000"`
	// Initial is the delay before the second attempt.
	Initial time.Duration `yaml:"initial,omitempty"`
	// Max is the longest delay.
	Max time.Duration `yaml:"max,omitempty"`
	// Factor is what each delay is multiplied by to give the next.
	Factor float64 `yaml:"factor,omitempty" jsonschema:"minimum=1,maximum=100"`
	// Jitter is the share of a delay, from 0 to 1, by which it varies at random.
	Jitter float64 `yaml:"jitter" jsonschema:"minimum=0,maximum=1"`
	// Schedule lists the delays instead, such as [15s, 1m, 10m, 1h, 6h, 1d].
	Schedule []time.Duration `yaml:"schedule,omitempty"`
	// MaxAge is the age of an execution after which it is tried no more, whatever
	// attempts are left. 0s means no limit.
	MaxAge time.Duration `yaml:"max_age,omitempty"`
}

// Breaker rests a handler that is down. While it rests, one attempt at a time finds out
// whether it is back, and attempts that fail do not count.
type Breaker struct {
	// Failures is of how many executions attempts must fail in a row, none succeeding in
	// between. 0 means that there is no breaker.
	Failures int `yaml:"failures" jsonschema:"minimum=0,maximum=100000"`
	// Pause is how long the handler rests before one attempt is let through. It doubles
	// each time that one fails.
	Pause time.Duration `yaml:"pause,omitempty"`
	// Max is the longest pause, unless the receiver asks for a longer one.
	Max time.Duration `yaml:"max,omitempty"`
}

// HTTP is a URL that events are posted to.
type HTTP struct {
	// URL is where to send; http or https. Its path and query may hold template
	// actions over the payload, such as {{.event.object_id}}. It is shown to people:
	// a URL that is a secret itself comes by url_env or url_file.
	URL string `yaml:"url,omitempty"`
	// URLEnv names the environment variable that holds a secret URL.
	URLEnv string `yaml:"url_env,omitempty"`
	// URLFile names the file that holds a secret URL.
	URLFile string `yaml:"url_file,omitempty"`
	// SecretURL is the URL when it came by url_env or url_file.
	SecretURL Secret `yaml:"-"`
	// Method is the request's method.
	Method string `yaml:"method,omitempty" jsonschema:"enum=POST,enum=PUT,enum=PATCH,enum=DELETE"`
	// Headers are sent with each request. Values may hold template actions, as url may.
	Headers map[string]Secret `yaml:"headers,omitempty"`
	// Bearer is a token for the Authorization header.
	Bearer Secret `yaml:"bearer,omitempty"`
	// BearerEnv names the environment variable that holds the token.
	BearerEnv string `yaml:"bearer_env,omitempty"`
	// BearerFile names the file that holds the token.
	BearerFile string `yaml:"bearer_file,omitempty"`
	// Basic is a name and password for the Authorization header.
	Basic *Basic `yaml:"basic,omitempty"`
	// TLS says whom to trust and who we are.
	TLS *TLS `yaml:"tls,omitempty"`
	// Proxy is the URL of a proxy: http, https or socks5. The proxy variables of the
	// environment are not used.
	Proxy Secret `yaml:"proxy,omitempty"`
	// Secret signs requests by the Standard Webhooks specification.
	Secret Secret `yaml:"secret,omitempty"`
	// SecretEnv names the environment variable that holds the signing secret.
	SecretEnv string `yaml:"secret_env,omitempty"`
	// SecretFile names the file that holds the signing secret.
	SecretFile string `yaml:"secret_file,omitempty"`
	// Secrets lists several signing secrets while keys are rotated, the new one first:
	// every request bears a signature of each. After loading it holds all signing
	// secrets, also the one of secret, secret_env or secret_file.
	Secrets []SecretRef `yaml:"secrets,omitempty"`
	// ConnectTimeout is the time for the connection alone.
	ConnectTimeout time.Duration `yaml:"connect_timeout,omitempty"`
	// Statuses says what an answer's status means, where it is not what it usually
	// means.
	Statuses Statuses `yaml:"statuses,omitempty"`
	// Allow lists addresses that are called whatever deny says.
	Allow Addresses `yaml:"allow,omitempty"`
	// Deny lists addresses that are never called. Link-local and metadata addresses
	// are always denied unless allow names them.
	Deny Addresses `yaml:"deny,omitempty"`
}

// Basic is a name and a password. At most one of password, password_env and
// password_file is given; after loading Password holds it.
type Basic struct {
	// Username is the name.
	Username string `yaml:"username" jsonschema:"required"`
	// Password is the password.
	Password Secret `yaml:"password,omitempty"`
	// PasswordEnv names the environment variable that holds the password.
	PasswordEnv string `yaml:"password_env,omitempty"`
	// PasswordFile names the file that holds the password.
	PasswordFile string `yaml:"password_file,omitempty"`
}

// TLS says whom to trust and who we are. Files are read when the handler is made.
type TLS struct {
	// CAFile names a PEM file with the authorities to trust instead of the system's.
	CAFile string `yaml:"ca_file,omitempty"`
	// CertFile names a PEM file with our certificate. Needs key_file.
	CertFile string `yaml:"cert_file,omitempty"`
	// KeyFile names a PEM file with our certificate's key.
	KeyFile string `yaml:"key_file,omitempty"`
	// ServerName is the name to expect in the receiver's certificate; by default the
	// URL's host.
	ServerName string `yaml:"server_name,omitempty"`
	// MinVersion is the oldest version of TLS that is spoken.
	MinVersion string `yaml:"min_version,omitempty" jsonschema:"enum=1.2,enum=1.3"`
	// InsecureSkipVerify trusts any certificate. For tests only.
	InsecureSkipVerify bool `yaml:"insecure_skip_verify,omitempty"`
}

// Statuses sorts HTTP statuses: 429, classes such as 5xx, ranges such as 500-504.
// What is in no list means what it usually means: 2xx success; 408, 409, 425, 429
// and 5xx retry; everything else permanent.
type Statuses struct {
	// Success lists what counts as delivered.
	Success []StatusClass `yaml:"success,omitempty"`
	// Retry lists what is tried again.
	Retry []StatusClass `yaml:"retry,omitempty"`
	// Permanent lists what is not tried again.
	Permanent []StatusClass `yaml:"permanent,omitempty"`
}

// SecretRef is one secret of a list: a text, or a mapping with one of env and
// file. After loading Value holds it.
type SecretRef struct {
	// Value is the secret.
	Value Secret `yaml:"value,omitempty"`
	// Env names the environment variable that holds the secret.
	Env string `yaml:"env,omitempty"`
	// File names the file that holds the secret.
	File string `yaml:"file,omitempty"`
}

// Script is a program that is run for each attempt, without a shell, with the
// payload on its standard input.
type Script struct {
	// Path is the program: an executable file.
	Path string `yaml:"path" jsonschema:"required"`
	// Args are its arguments.
	Args []Text `yaml:"args,omitempty"`
	// Env is added to the clean environment.
	Env map[string]Secret `yaml:"env,omitempty"`
	// EnvPass lists variables of Billhook's own environment to pass on.
	EnvPass []string `yaml:"env_pass,omitempty"`
	// Workdir is the working directory; by default the root directory.
	Workdir string `yaml:"workdir,omitempty"`
	// User is the user to run as, by name or number. Needs Billhook to run as root.
	User string `yaml:"user,omitempty"`
	// Group is the group to run as, by name or number; by default the user's own.
	Group string `yaml:"group,omitempty"`
	// ExitCodes says what an exit code means, where it is not what it usually means.
	ExitCodes ExitCodes `yaml:"exit_codes,omitempty"`
	// KillGrace is the time between SIGTERM and SIGKILL.
	KillGrace time.Duration `yaml:"kill_grace,omitempty"`
	// Limits bounds what a run may use.
	Limits Limits `yaml:"limits,omitempty"`
}

// ExitCodes sorts exit codes: 75, ranges such as 10-19. What is in no list means
// what it usually means: 0 success; 64, 65, 77 and 78 permanent; everything else
// retry.
type ExitCodes struct {
	// Success lists what counts as delivered.
	Success []ExitCode `yaml:"success,omitempty"`
	// Retry lists what is tried again.
	Retry []ExitCode `yaml:"retry,omitempty"`
	// Permanent lists what is not tried again.
	Permanent []ExitCode `yaml:"permanent,omitempty"`
}

// Limits bounds what a run may use; what is not given is not limited.
type Limits struct {
	// OpenFiles is how many files a process may have open.
	OpenFiles int `yaml:"open_files,omitempty" jsonschema:"minimum=1,maximum=1000000000"`
	// Processes is how many processes the user may have: of use with a user of its own.
	Processes int `yaml:"processes,omitempty" jsonschema:"minimum=1,maximum=1000000000"`
	// AddressSpace is the memory that a process may map.
	AddressSpace ByteSize `yaml:"address_space,omitempty"`
	// FileSize is how large a file may be written.
	FileSize ByteSize `yaml:"file_size,omitempty"`
	// CPU is the processor time of a process.
	CPU time.Duration `yaml:"cpu,omitempty"`
}

// Plugin is a program that speaks Billhook's plugin protocol.
type Plugin struct {
	// Path is the plugin: an executable file that, like its folder, nobody else can change.
	Path string `yaml:"path" jsonschema:"required"`
	// Args are its arguments.
	Args []Text `yaml:"args,omitempty"`
	// Checksum pins the file: sha256: and 64 hexadecimal digits. A plugin with another is not
	// started.
	Checksum string `yaml:"checksum,omitempty"`
	// Config is passed to the plugin, which judges it when the file is loaded: see plugins.md.
	Config Object `yaml:"config,omitempty"`
}
