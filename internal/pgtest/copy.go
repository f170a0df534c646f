package pgtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/demo/cluster"
)

// Copy is a second server on a physical copy of a cluster: a standby, or the
// database as a backup would bring it back. It ends with its test.
type Copy struct {
	of   *cluster.Cluster
	dir  string
	port int
}

// NewCopy copies a cluster's files. The cluster is stopped for that and started
// again; the copy is not started.
func NewCopy(t testing.TB, c *cluster.Cluster) *Copy {
	t.Helper()
	db := &Database{Cluster: c, Name: "postgres", DSN: c.SuperuserURL("postgres")}
	data := Value[string](t, db, "SHOW data_directory")
	if err := c.Stop(cluster.Fast); err != nil {
		t.Fatal(err)
	}
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	n := &Copy{of: c, dir: filepath.Join(filepath.Dir(data), fmt.Sprintf("copy-%d", nextSerial())), port: port}
	if out, err := exec.Command("cp", "-a", data, n.dir).CombinedOutput(); err != nil {
		t.Fatalf("copy the cluster: %v\n%s", err, out)
	}
	if err := c.Restart(t.Context(), cluster.Fast); err != nil {
		t.Fatal(err)
	}
	n.Set(t, map[string]string{"port": strconv.Itoa(n.port)})
	return n
}

// Set appends settings; they take effect at the next start.
func (n *Copy) Set(t testing.TB, settings map[string]string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(n.dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, value := range settings {
		if _, err := fmt.Fprintf(f, "%s = '%s'\n", name, strings.ReplaceAll(value, "'", "''")); err != nil {
			t.Fatal(err)
		}
	}
}

// Follow makes the copy a standby of the cluster, without the cluster's slots, as
// a base backup has none. It streams by way of the named physical slot; the
// database is for the synchronisation of slots.
func (n *Copy) Follow(t testing.TB, slot, database string) {
	t.Helper()
	slots, err := filepath.Glob(filepath.Join(n.dir, "pg_replslot", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range slots {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(n.of.SuperuserURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	conninfo := fmt.Sprintf("host=127.0.0.1 port=%s user=%s password=%s sslmode=disable", u.Port(), u.User.Username(), password)
	if database != "" {
		conninfo += " dbname=" + database
	}
	n.Set(t, map[string]string{"primary_conninfo": conninfo, "primary_slot_name": slot, "hot_standby": "on"})
	if out, err := exec.Command("cp", "-a", filepath.Join(n.dir, "PG_VERSION"), filepath.Join(n.dir, "standby.signal")).CombinedOutput(); err != nil {
		t.Fatalf("make a standby: %v\n%s", err, out)
	}
}

// Start starts the copy and returns when it takes connections.
func (n *Copy) Start(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(n.log())
			t.Logf("the copy's log:\n%s", b[max(0, len(b)-4000):])
		}
		n.stop()
	})
	n.start(t)
}

// Restart stops a copy that runs and starts it again.
func (n *Copy) Restart(t testing.TB, m cluster.Mode) {
	t.Helper()
	if err := n.ctl(t, "-m", string(m), "-w", "stop"); err != nil {
		t.Fatal(err)
	}
	n.start(t)
}

func (n *Copy) start(t testing.TB) {
	t.Helper()
	if err := n.ctl(t, "-l", n.log(), "-w", "start"); err != nil {
		b, _ := os.ReadFile(n.log())
		t.Fatalf("start the copy: %v\n%s", err, b)
	}
}

func (n *Copy) log() string { return filepath.Join(n.dir, "copy.log") }

// Promote makes a standby a primary.
func (n *Copy) Promote(t testing.TB) {
	t.Helper()
	if err := n.ctl(t, "-w", "promote"); err != nil {
		t.Fatal(err)
	}
}

func (n *Copy) ctl(t testing.TB, args ...string) error {
	cmd := n.of.Command(t.Context(), "pg_ctl", append([]string{"-D", n.dir}, args...)...)
	var out bytes.Buffer
	if args[len(args)-1] != "start" { // the server would keep the pipe open
		cmd.Stdout, cmd.Stderr = &out, &out
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("pg_ctl %s: %w\n%s", args[len(args)-1], err, out.Bytes())
	}
	return nil
}

func (n *Copy) stop() {
	// Its exit code says nothing of use: it may be stopped already.
	_ = n.of.Command(context.Background(), "pg_ctl", "-D", n.dir, "-m", "immediate", "-w", "stop").Run()
}

// Port is the port on 127.0.0.1.
func (n *Copy) Port() int { return n.port }

// Database is a database of the copy.
func (n *Copy) Database(t testing.TB, name string) *Database {
	t.Helper()
	u, err := url.Parse(n.of.SuperuserURL(name))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(n.port))
	return &Database{Cluster: n.of, Name: name, DSN: u.String()}
}
