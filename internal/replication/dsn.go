package replication

import (
	"strconv"

	"github.com/jackc/pgx/v5"
)

// User returns who a DSN connects as, "" when it cannot be read.
func User(dsn string) string {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return ""
	}
	return c.User
}

// Address returns where a DSN leads, without who and how; empty texts when it cannot be
// read.
func Address(dsn string) (host, port, database string) {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return "", "", ""
	}
	return c.Host, strconv.Itoa(int(c.Port)), c.Database
}
