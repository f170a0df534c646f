package config

import "time"

// Billhook is billhook.yaml, the DBA's file.
type Billhook struct {
	// Version is the version of the file's format: 1.
	Version int `yaml:"version" jsonschema:"required,minimum=1,maximum=1"`
	// Source says which database is followed.
	Source Source `yaml:"source" jsonschema:"required"`
	// Preset names a ready mapping: jerasoft, jerasoft-old, lago, yeti or generic. An
	// entity that the file maps itself replaces the preset's entity of that name as a
	// whole, and with it the preset's own events of that entity.
	Preset string `yaml:"preset,omitempty"`
	// Entities maps what billing talks about to tables. Required without preset.
	Entities Entities `yaml:"entities,omitempty"`
	// Events adds the user's own event types, beside the built-in ones. The key is
	// the event type, such as clients.low_balance.
	Events map[string]Event `yaml:"events,omitempty"`
	// Journal is where events and executions are kept.
	Journal Journal `yaml:"journal,omitempty"`
	// Dispatch bounds the work of all handlers together.
	Dispatch Dispatch `yaml:"dispatch,omitempty"`
	// HTTP is Billhook's own listener: console, API, metrics, health.
	HTTP Listener `yaml:"http,omitempty"`
	// Log says what is logged and how.
	Log Log `yaml:"log,omitempty"`

	// Files is every file that was read for this value, the file itself first, then
	// those that *_file keys name: what a watcher watches.
	Files []string `yaml:"-"`

	pos map[string]Pos
}

// At returns the place of a field such as "entities.clients.balance.column". For
// a field that the file does not have (a default, or one from a preset) it is
// the place of the nearest field around it.
func (b *Billhook) At(field string) Pos { return at(b.pos, field) }

// Source is the database that is followed.
type Source struct {
	// Name is the source's name in payloads and metrics.
	Name string `yaml:"name,omitempty"`
	// DSN is the connection string of the primary: a postgres:// URL or keyword=value
	// pairs. The role needs REPLICATION, and SELECT on the mapped tables. Give this
	// or dsn_file.
	DSN Secret `yaml:"dsn,omitempty"`
	// DSNFile names a file that holds the connection string.
	DSNFile string `yaml:"dsn_file,omitempty"`
	// Slot is the name of the replication slot.
	Slot string `yaml:"slot,omitempty"`
	// Publication is the name of the publication.
	Publication string `yaml:"publication,omitempty"`
	// Create allows Billhook to create the publication and the slot where they are
	// missing on the first attach. With false the DBA creates them; `billhook check`
	// prints how.
	Create bool `yaml:"create"`
	// Failover makes the slot one that standbys keep (Postgres 17 and later).
	Failover bool `yaml:"failover,omitempty"`
	// TimeZone is the zone of dates and of timestamps without one, such as
	// Europe/Berlin, for events by the clock (at). A date begins at midnight there. A
	// change of it counts for what is set after it.
	TimeZone string `yaml:"time_zone,omitempty"`
	// FillRate is how many rows are read at most, such as 50000/s, when memory is
	// filled from the tables on the first attach and after rules have changed.
	FillRate Rate `yaml:"fill_rate,omitempty"`
}

// Entities is the mapping; an entity that is nil is not followed.
type Entities struct {
	// Clients maps the clients. Their key is the lane: events of one client run in
	// commit order.
	Clients *Clients `yaml:"clients,omitempty"`
	// Accounts maps the clients' accounts.
	Accounts *Accounts `yaml:"accounts,omitempty"`
	// Packages maps the packages (subscriptions) that clients have.
	Packages *Packages `yaml:"packages,omitempty"`
}

// Mapping is what every entity has.
type Mapping struct {
	// Table is the entity's table, schema.table; without a schema, public.
	Table Table `yaml:"table" jsonschema:"required"`
	// Key lists the key columns: what object_id tells. Several are joined by commas, with
	// a backslash before a comma or a backslash in one of them.
	Key Columns `yaml:"key" jsonschema:"required"`
	// Ignore lists columns that alone make no update event.
	Ignore Columns `yaml:"ignore,omitempty"`
	// Mask lists columns that show as "***" in payloads, logs, API and console, of the
	// table and of those beside it: to mask the values of custom fields, name their
	// column of values.
	Mask Columns `yaml:"mask,omitempty"`
	// Exclude lists columns that are never read from the database, of the table and of
	// those beside it.
	Exclude Columns `yaml:"exclude,omitempty"`
	// Truncate makes a TRUNCATE of the table an event.
	Truncate bool `yaml:"truncate,omitempty"`
	// Remember keeps memory of the rows of tables with REPLICA IDENTITY FULL too, whose
	// old values come with the stream, so that `billhook reconcile` can compare them.
	Remember bool `yaml:"remember,omitempty"`
}

// Clients is the entity "clients".
type Clients struct {
	Mapping `yaml:",inline"`
	// Archive says when a client counts as archived: clients.archive.
	Archive *Transition `yaml:"archive,omitempty"`
	// Balance says where the balance is: clients.balance_zero and
	// clients.balance_notzero.
	Balance *Balance `yaml:"balance,omitempty"`
	// CustomFields says where custom fields are: clients.custom_fields.update.
	CustomFields *CustomFields `yaml:"custom_fields,omitempty"`
}

// Accounts is the entity "accounts".
type Accounts struct {
	Mapping `yaml:",inline"`
	// Client is the column that leads to the client, whose lane the entity then
	// shares. Without it every row is its own lane.
	Client Columns `yaml:"client,omitempty"`
	// Balance says where an account's balance is, when accounts have one of their
	// own: clients.accounts.balance_zero and clients.accounts.balance_notzero. It
	// stands in the accounts' own table.
	Balance *Balance `yaml:"balance,omitempty"`
}

// Packages is the entity "packages".
type Packages struct {
	Mapping `yaml:",inline"`
	// Client is the column that leads to the client, whose lane the entity then
	// shares. Without it every row is its own lane.
	Client Columns `yaml:"client,omitempty"`
	// Activate says what clients.packages.activate is.
	Activate *Transition `yaml:"activate,omitempty"`
	// Deactivate says what clients.packages.deactivate is.
	Deactivate *Transition `yaml:"deactivate,omitempty"`
	// Renew says what clients.packages.renew is.
	Renew *Transition `yaml:"renew,omitempty"`
	// Close says what clients.packages.close is.
	Close *Transition `yaml:"close,omitempty"`
}

// Transition is something that happens to a row: a column takes a value (value,
// in), becomes set or empty (set), moves (moves), a time in a column comes (at), or
// the row is deleted (deleted). Exactly one of value, in, set, moves, at and deleted
// is given.
type Transition struct {
	// Column is the column that is looked at. Not with at and deleted.
	Column string `yaml:"column,omitempty"`
	// Value fires when the column turns to this value.
	Value *Text `yaml:"value,omitempty"`
	// In fires when the column turns from a value outside this list to one in it.
	In []Text `yaml:"in,omitempty"`
	// Set fires when the column turns from NULL to a value (true) or to NULL (false).
	Set *bool `yaml:"set,omitempty"`
	// Moves fires when the column's value moves forward or backward.
	Moves Direction `yaml:"moves,omitempty" jsonschema:"enum=forward,enum=backward"`
	// At names a column with a date or time: fires by the clock when that time has
	// come and the row still holds it.
	At string `yaml:"at,omitempty"`
	// Deleted fires when the row is deleted, and only then. For close alone, where
	// closed rows are deleted and not marked.
	Deleted bool `yaml:"deleted,omitempty"`
	// When is a further condition in CEL over old, new, changed, op and tx. With at,
	// over new, as the row is when the time comes.
	When Expr `yaml:"when,omitempty"`
}

// Direction is where a value moves.
type Direction string

// The directions.
const (
	Forward  Direction = "forward"
	Backward Direction = "backward"
)

// Balance is where a balance is, a client's or an account's, and when it counts as
// run out.
type Balance struct {
	// Table is the table of balances, when it is not the clients' own. A client has at
	// most one row in it; where it can have several, each is an account: see
	// entities.accounts.balance.
	Table Table `yaml:"table,omitempty"`
	// Key lists the columns of that table that hold the client's key. Required with
	// table.
	Key Columns `yaml:"key,omitempty"`
	// Column is the column of the balance. Give this or expression.
	Column string `yaml:"column,omitempty"`
	// Expression is arithmetic over columns, such as balance + credit. With table it may
	// use columns of both tables; a column that both have is written with its table,
	// such as clients.credit.
	Expression Expr `yaml:"expression,omitempty"`
	// Value is the threshold.
	Value Decimal `yaml:"value,omitempty"`
	// Sides holds the options that thresholds share.
	Sides `yaml:",inline"`
}

// Sides is how a threshold judges the sides of its value.
type Sides struct {
	// OnCreate lets a row fire that is created at or below the value.
	OnCreate bool `yaml:"on_create,omitempty"`
	// PerChange judges every change of a transaction. By default only the net effect
	// of the transaction is judged.
	PerChange bool `yaml:"per_change,omitempty"`
	// Hysteresis is how far beyond the value the way back must go before it counts.
	Hysteresis Decimal `yaml:"hysteresis,omitempty"`
	// Settle fires only if the new side still holds after this time, by the
	// database's clock. Whatever holds in the end is told.
	Settle time.Duration `yaml:"settle,omitempty"`
}

// CustomFields is where a client's custom fields are: a side table with a row for
// each field, one JSON column, or a list of columns. Exactly one of table, column
// and columns is given.
type CustomFields struct {
	// Table is a side table with a row for each field.
	Table Table `yaml:"table,omitempty"`
	// Key lists the side table's key columns; by default client and name together.
	Key Columns `yaml:"key,omitempty"`
	// Client is the side table's column that leads to the client. Required with table.
	Client Columns `yaml:"client,omitempty"`
	// Name is the side table's column of the field's name. Required with table.
	Name string `yaml:"name,omitempty"`
	// Value is the side table's column of the field's value. Required with table.
	Value string `yaml:"value,omitempty"`
	// Column is a json or jsonb column of the clients' table.
	Column string `yaml:"column,omitempty"`
	// Columns lists columns of the clients' table.
	Columns Columns `yaml:"columns,omitempty"`
}

// Event is an event type of the user's own. At most one of threshold, becomes,
// changes, moves and at is given; without any, on and when alone decide.
type Event struct {
	// Title is what people see; by default the event type.
	Title string `yaml:"title,omitempty"`
	// Entity is the entity whose rows are judged.
	Entity string `yaml:"entity" jsonschema:"required,enum=clients,enum=accounts,enum=packages"`
	// On lists the kinds of change that are judged; one may stand without brackets.
	// By default insert and update with becomes, else update. Not with threshold
	// and at.
	On Ops `yaml:"on,omitempty"`
	// When is a condition in CEL over old, new, changed, op and tx. With at, over new,
	// as the row is when the time comes.
	When Expr `yaml:"when,omitempty"`
	// Threshold fires when an amount reaches a value.
	Threshold *Threshold `yaml:"threshold,omitempty"`
	// Becomes fires when a column turns to a value.
	Becomes *Becomes `yaml:"becomes,omitempty"`
	// Changes fires when at least one of these columns differs.
	Changes Columns `yaml:"changes,omitempty"`
	// Moves fires when a column's value moves one way.
	Moves *Moves `yaml:"moves,omitempty"`
	// At names a column with a date or time: fires by the clock when that time has
	// come and the row still holds it.
	At string `yaml:"at,omitempty"`
}

// Ops is a list of kinds of change: insert, update, delete. In YAML one may stand
// without brackets.
type Ops []Op

// Op is a kind of change.
type Op string

// The kinds of change.
const (
	Insert Op = "insert"
	Update Op = "update"
	Delete Op = "delete"
)

// Threshold fires when an amount that was above the value comes to be at or below
// it.
type Threshold struct {
	// Column is the column of the amount. Give this or expression.
	Column string `yaml:"column,omitempty"`
	// Expression is arithmetic over columns, such as balance + credit. For clients with
	// a balance table it may use columns of both tables; a column that both have is
	// written with its table, such as clients.credit.
	Expression Expr `yaml:"expression,omitempty"`
	// Value is the threshold.
	Value Decimal `yaml:"value" jsonschema:"required"`
	// Back is the event type for the way back, at or above the value: a second event
	// type of the user's own. The two fire alternately.
	Back string `yaml:"back,omitempty"`
	// Sides holds the options that thresholds share.
	Sides `yaml:",inline"`
}

// Becomes fires when a column turns to a value, to one of several, or from or to
// NULL. Exactly one of value, in and set is given.
type Becomes struct {
	// Column is the column that is looked at.
	Column string `yaml:"column" jsonschema:"required"`
	// Value fires when the column turns to this value.
	Value *Text `yaml:"value,omitempty"`
	// In fires when the column turns from a value outside this list to one in it.
	In []Text `yaml:"in,omitempty"`
	// Set fires when the column turns from NULL to a value (true) or to NULL (false).
	Set *bool `yaml:"set,omitempty"`
}

// Moves fires when a column's value moves one way.
type Moves struct {
	// Column is the column that is looked at.
	Column string `yaml:"column" jsonschema:"required"`
	// Direction is the way that counts.
	Direction Direction `yaml:"direction,omitempty" jsonschema:"enum=forward,enum=backward"`
}

// Journal is the durable store.
type Journal struct {
	// Path is the journal's directory.
	Path string `yaml:"path,omitempty"`
	// Retention is how long finished executions and their events are kept.
	Retention time.Duration `yaml:"retention,omitempty"`
}

// Dispatch bounds the work of all handlers together.
type Dispatch struct {
	// Concurrency is how many attempts run at once, over all handlers.
	Concurrency int `yaml:"concurrency,omitempty" jsonschema:"minimum=1,maximum=10000"`
	// Grace is how long running attempts may take to end when Billhook stops.
	Grace time.Duration `yaml:"grace,omitempty"`
}

// Listener is Billhook's own HTTP listener.
type Listener struct {
	// Listen is the address, host:port. Any other than a loopback address demands
	// tokens or users.
	Listen string `yaml:"listen,omitempty"`
	// Tokens lists bearer tokens for the API.
	Tokens []Token `yaml:"tokens,omitempty"`
	// Users lists people who log in with a password.
	Users []User `yaml:"users,omitempty"`
	// EditHandlers lets operators write handlers.yaml in the console. By default they may
	// where tokens or users say who is one; false also keeps them from enabling, disabling
	// and archiving handlers over HTTP.
	EditHandlers *bool `yaml:"edit_handlers,omitempty"`
}

// Token is a bearer token. Exactly one of token, token_env and token_file is
// given; after loading Token holds it.
type Token struct {
	// Name says whose token it is, for the audit log.
	Name string `yaml:"name" jsonschema:"required"`
	// Role is what the token may do: look, or also act.
	Role Role `yaml:"role,omitempty" jsonschema:"enum=viewer,enum=operator"`
	// Token is the token, at least 16 characters.
	Token Secret `yaml:"token,omitempty"`
	// TokenEnv names the environment variable that holds the token.
	TokenEnv string `yaml:"token_env,omitempty"`
	// TokenFile names the file that holds the token.
	TokenFile string `yaml:"token_file,omitempty"`
}

// User is a person who logs in. Exactly one of password, password_env and
// password_file is given; after loading Password holds it.
type User struct {
	// Name is the login name.
	Name string `yaml:"name" jsonschema:"required"`
	// Role is what the user may do: look, or also act.
	Role Role `yaml:"role,omitempty" jsonschema:"enum=viewer,enum=operator"`
	// Password is the password.
	Password Secret `yaml:"password,omitempty"`
	// PasswordEnv names the environment variable that holds the password.
	PasswordEnv string `yaml:"password_env,omitempty"`
	// PasswordFile names the file that holds the password.
	PasswordFile string `yaml:"password_file,omitempty"`
}

// Role is what a token or user may do.
type Role string

// The roles.
const (
	Viewer   Role = "viewer"
	Operator Role = "operator"
)

// Log says what is logged and how.
type Log struct {
	// Level is the least level that is logged.
	Level string `yaml:"level,omitempty" jsonschema:"enum=debug,enum=info,enum=warn,enum=error"`
	// Format is text for people or json for machines.
	Format string `yaml:"format,omitempty" jsonschema:"enum=text,enum=json"`
}
