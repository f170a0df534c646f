package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// TestFault takes a table out of the publication under a running instance: it says
// so where people and machines look, and takes that back when the table is there
// again.
func TestFault(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, plainSchema)
	name := "billhook_" + db.Name
	in := install(t, db.DSN, strings.NewReplacer("${SLOT}", name).Replace(plainBillhook), plainHandlers)
	in.start()
	in.waitReady()
	const metric = `billhook_replication_fault{fault="publication"}`
	ready := func(code int, text string, value float64) {
		t.Helper()
		eventually(t, time.Minute, func() string { // it looks every 15 s
			in.alive()
			got, body, err := in.get("/readyz")
			if err != nil {
				return err.Error()
			}
			if v := in.metric(metric); got != code || !strings.Contains(string(body), text) || v != value {
				return fmt.Sprintf("/readyz says %d %s, %s is %v", got, body, metric, v)
			}
			return ""
		})
	}
	ready(http.StatusOK, "", 0)
	db.Exec(t, "ALTER PUBLICATION "+name+" DROP TABLE accounts")
	ready(http.StatusServiceUnavailable, "was altered and no longer holds table public.accounts", 1)
	db.Exec(t, "ALTER PUBLICATION "+name+" ADD TABLE accounts")
	ready(http.StatusOK, "", 0)
	in.stop()
}
