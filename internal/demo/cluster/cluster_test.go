package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/demo/cluster"
)

func connect(t *testing.T, c *cluster.Cluster) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.SuperuserURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func show(t *testing.T, c *cluster.Cluster, setting string) string {
	t.Helper()
	var s string
	if err := connect(t, c).QueryRow(t.Context(), "select current_setting($1)", setting).Scan(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLife(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // the server's user must reach into it
		t.Fatal(err)
	}
	c, err := cluster.Start(t.Context(), cluster.Options{
		Dir:      dir,
		Settings: map[string]string{"work_mem": "5MB", "application_name": "it's"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	for setting, want := range map[string]string{
		"wal_level": "logical", "fsync": "off", "listen_addresses": "127.0.0.1",
		"work_mem": "5MB", "port": fmt.Sprint(c.Port()),
	} {
		if got := show(t, c, setting); got != want {
			t.Errorf("%s = %q, want %q", setting, got, want)
		}
	}
	conn := connect(t, c)
	if _, err := conn.Exec(t.Context(), "create table kept (n int); insert into kept values (1)"); err != nil {
		t.Fatal(err)
	}
	if _, err := pgx.Connect(t.Context(), c.URL("postgres", "wrong", "postgres")); err == nil {
		t.Error("a wrong password was accepted")
	}

	// A restart after a crash keeps port and data and applies what was set.
	if err := c.Set(map[string]string{"max_connections": "33"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(map[string]string{"max_connections": "34"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Restart(t.Context(), cluster.Immediate); err != nil {
		t.Fatal(err)
	}
	if got := show(t, c, "max_connections"); got != "34" {
		t.Errorf("max_connections = %s, want 34", got)
	}
	var n int
	if err := connect(t, c).QueryRow(t.Context(), "select n from kept").Scan(&n); err != nil || n != 1 {
		t.Errorf("after the restart: n = %d, err %v", n, err)
	}
	if log := c.LogTail(50); !strings.Contains(log, "not properly shut down") {
		t.Errorf("the server's log does not tell of the crash:\n%s", log)
	}

	if err := c.Stop(cluster.Fast); err != nil {
		t.Fatal(err)
	}
	if _, err := pgx.Connect(t.Context(), c.SuperuserURL("postgres")); err == nil {
		t.Error("a stopped server took a connection")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatalf("second Close: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("Close left %v", left)
	}
}

func TestBadSetting(t *testing.T) {
	_, err := cluster.Start(t.Context(), cluster.Options{Settings: map[string]string{"wal_level": "nonsense"}})
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "wal_level"`) {
		t.Errorf("err = %v, want the server's own words", err)
	}
}

func TestNoServer(t *testing.T) {
	t.Setenv("BILLHOOK_PG_BIN", t.TempDir())
	_, err := cluster.Start(t.Context(), cluster.Options{})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "BILLHOOK_PG_BIN") {
		t.Errorf("err = %v, want it to name BILLHOOK_PG_BIN", err)
	}
}

// TestKilled kills a process that holds a cluster, as go test does after its
// timeout, and sees server and folder disappear.
func TestKilled(t *testing.T) {
	if os.Getenv("CLUSTER_TEST_CHILD") != "" {
		c, err := cluster.Start(t.Context(), cluster.Options{})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("up %s\n", c.SuperuserURL("postgres"))
		select {} // until killed
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "CLUSTER_TEST_CHILD=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dsn string
	if _, err := fmt.Fscanf(out, "up %s\n", &dsn); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	var data string
	if err := conn.QueryRow(t.Context(), "show data_directory").Scan(&data); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, statErr := os.Stat(filepath.Dir(data))
		pingErr := conn.Ping(t.Context())
		if errors.Is(statErr, os.ErrNotExist) && pingErr != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("30 s after the kill: folder %v, connection %v", statErr, pingErr)
		}
	}
}
