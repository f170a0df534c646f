package lint

// An arrow says that packages must not import others. Packages are written
// without the module's path; "x/..." is x and all below it.
type arrow struct {
	from    string   // who
	except  []string // who of them may
	to      []string // what they must not import
	allowed []string // what of it they may
	tests   bool     // holds for tests as well
	reason  string
}

// io is what a package imports that talks to the world.
func io() []string {
	return []string{"os/...", "net/...", "syscall/...", "database/...", "log/slog", "github.com/jackc/...", "github.com/cockroachdb/pebble/..."}
}

func arrows() []arrow {
	return []arrow{
		{
			from: "...", except: []string{"internal/app"},
			to:     []string{"config"},
			reason: "configuration is the operator's: inner packages get plain values as Options, which internal/app translates",
		},
		{
			from: "config", to: []string{"internal/...", "cmd/...", "plugins/..."},
			reason: "config is a leaf: the format of the files depends on nothing that runs",
		},
		{
			from: "internal/wal", to: []string{"internal/..."},
			reason: "wal is the vocabulary that everything else speaks: it depends on nobody",
		},
		{
			from: "internal/event", to: []string{"internal/..."}, allowed: []string{"internal/wal"},
			reason: "event is a leaf beside wal",
		},
		{
			from: "internal/backoff", to: []string{"internal/..."},
			reason: "a schedule is a function of its arguments",
		},
		{
			from: "internal/steady", to: []string{"internal/..."},
			reason: "a clock depends on nobody",
		},
		{from: "internal/wal", to: io(), reason: "decoding is a function of bytes, so that it can be fuzzed and replayed"},
		{from: "internal/event", to: io(), reason: "an event is a value"},
		{from: "internal/expr", to: io(), reason: "a condition is a function of a row"},
		{from: "internal/billing", to: io(), reason: "deriving events is a function of transaction and memory: after a crash it gives the same"},
		{from: "internal/backoff", to: io(), reason: "a schedule is a function of its arguments"},
		{
			from: "...", except: []string{"internal/journal/..."},
			to:     []string{"github.com/cockroachdb/pebble/..."},
			reason: "only journal opens the store: one place knows what is durable and when",
		},
		{
			from: "...", except: []string{"internal/replication/...", "internal/doctor/...", "internal/demo/...", "internal/pgtest", "internal/bench"},
			to:     []string{"github.com/jackc/..."},
			reason: "only replication, doctor, demo and bench talk to Postgres: the rest gets changes, not connections",
		},
		{
			from: "internal/handler/...", to: []string{"internal/dispatch/...", "internal/journal/..."},
			reason: "a handler makes one attempt; when it is made and what is kept of it is not its affair",
		},
		{
			from: "internal/journal/...", to: []string{"internal/dispatch/...", "internal/replication/...", "internal/billing/...", "internal/web/...", "internal/intake/..."},
			reason: "the journal stores what it is given: intake, dispatch and web come to it",
		},
		{
			from: "internal/dispatch/...", to: []string{"internal/replication/...", "internal/billing/...", "internal/web/...", "internal/intake/...", "internal/handler/http", "internal/handler/script", "internal/handler/plugin"},
			reason: "dispatch knows the handler contract, not the kinds, and not where events come from",
		},
		{
			from: "internal/replication/...", to: []string{"internal/journal/...", "internal/dispatch/...", "internal/billing/...", "internal/web/...", "internal/handler/...", "internal/intake/..."},
			reason: "replication follows a slot for whoever reads it, and waits for nobody behind",
		},
		{
			from: "internal/billing", to: []string{"internal/journal/...", "internal/dispatch/...", "internal/replication/...", "internal/handler/..."},
			reason: "billing derives events; who keeps them and who is told is decided elsewhere",
		},
		{
			from: "internal/replay", to: []string{"internal/dispatch/...", "internal/replication/...", "internal/intake/...", "internal/web/..."},
			reason: "a replay makes executions in the journal and tells whoever it is given; when they are made is not its affair",
		},
		{
			from: "internal/web/...", to: []string{"internal/dispatch/...", "internal/replication/...", "internal/billing/...", "internal/intake/..."},
			reason: "web reads the journal and writes only through small interfaces that it declares",
		},
		{
			from: "...", except: []string{"cmd/..."},
			to:     []string{"internal/app", "cmd/..."},
			reason: "arrows point one way: cmd calls app, app calls everything, nobody calls back",
		},
		{
			from: "...", except: []string{"cmd/...", "internal/demo/...", "internal/pgtest", "internal/servertest", "internal/bench"},
			to:     []string{"internal/demo/..."},
			reason: "the demo is no part of the product",
		},
		{
			from:    "internal/demo/...",
			to:      []string{"internal/...", "config"},
			allowed: []string{"internal/demo/..."},
			reason:  "the demo takes nothing from Billhook on trust: it counts by itself",
		},
		{
			from: "...", to: []string{"internal/pgtest", "internal/servertest", "internal/lint", "internal/handler/handlertest", "internal/handler/plugin/plugintest", "testing/..."},
			except: []string{"internal/pgtest", "internal/servertest", "internal/handler/handlertest", "internal/handler/plugin/plugintest"},
			reason: "what is there for tests does not go into the binary",
		},
		{
			from: "plugins/...", to: []string{"internal/...", "config", "cmd/..."},
			reason: "plugin authors import it, and cannot import internal packages; the plugins that come along are made of no more than theirs",
		},
		{
			from: "...", tests: true, to: []string{"C"},
			reason: "the binary is static: no cgo",
		},
		{
			from: "...", to: []string{"log"},
			reason: "there is no global logger: a *slog.Logger comes in through Options",
		},
		{
			from: "...", to: []string{"github.com/prometheus/client_golang/prometheus/promauto"},
			reason: "there is no global registry: a prometheus.Registerer comes in through Options",
		},
	}
}

// pure packages start no goroutine.
func pure() map[string]bool {
	return map[string]bool{
		"internal/wal": true, "internal/event": true, "internal/expr": true, "internal/billing": true,
		"internal/backoff": true, "internal/steady": true, "config": true,
	}
}

// variables are the package-level variables that may stand, each with its reason.
// Sentinel errors, compiled regular expressions and templates, embedded files and
// assertions with a blank name need none.
func variables() map[string]string {
	return map[string]string{
		"cmd/billhook.version":         "set by the linker when a release is built",
		"internal/billing.masked":      "a constant text, as bytes",
		"internal/billing.jsonNil":     "a constant text, as bytes",
		"internal/expr.decimalType":    "a type of the CEL library, which has no constants for them",
		"internal/expr.context":        "the precision of decimals, read only",
		"internal/journal.keyPosition": "a constant key, as bytes",
		"internal/journal.keyStage":    "a constant key, as bytes",
		"internal/pgtest.shared":       "a test binary has one server: it is the binary's",
	}
}

// words are avoided in names, each with the word to use.
func words() map[string]string {
	return map[string]string{
		"record": "event, execution, row", "job": "execution", "task": "execution", "item": "what it is",
		"hook": "handler", "processor": "what it does", "manager": "what it does", "service": "what it does",
		"helper": "what it does", "helpers": "what it does", "util": "what it does", "utils": "what it does",
		"common": "what it holds", "message": "change, event", "messages": "changes, events",
	}
}

// names are the packages that may use such a word all the same, as "package
// word", each with the reason.
func names() map[string]string {
	return map[string]string{
		"plugins/radius-disconnect message": "Message-Authenticator: RADIUS' own word",
		"config item":                       "an item of a YAML sequence: YAML's own word",
		"internal/wal message":              "a message of the replication protocol: Postgres' own word",
		"internal/intake message":           "a message of the replication protocol: Postgres' own word",
		"internal/replication message":      "a message of the replication protocol: Postgres' own word",
		"internal/journal record":           "a verb: an outcome is recorded",
		"internal/dispatch record":          "a verb: an outcome is recorded",
		"internal/billing record":           "what memory keeps of one row, as it is encoded",
	}
}
