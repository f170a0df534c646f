package demo

import (
	_ "embed"
	"strconv"
	"strings"
)

//go:embed schema.sql
var schemaSQL string

//go:embed role.sql
var roleSQL string

//go:embed seed.sql
var seedSQL string

//go:embed ledger.sql
var ledgerSQL string

// The example files, which stand where a package cannot embed them. A test holds
// these copies against them; its flag -update renews them.
var (
	//go:embed billhook.yaml
	configExample []byte
	//go:embed handlers.yaml
	handlersExample []byte
)

//go:embed switch.sh
var switchScript string

// Schema returns the SQL of the demo's billing database, as testdata/schema/jerasoft.sql.
func Schema() string { return schemaSQL }

// Role returns the SQL that makes Billhook's least-privilege role, named
// billhook, with the given password, and its publication.
func Role(password string) string {
	return strings.Replace(roleSQL, "'change me'", "'"+strings.ReplaceAll(password, "'", "''")+"'", 1)
}

// Seed returns the SQL that fills the database with clients, who have balances,
// accounts, custom fields and packages.
func Seed(clients int) string {
	return strings.ReplaceAll(seedSQL, "$clients", strconv.Itoa(clients))
}
