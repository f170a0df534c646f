package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// arrival is one attempt as the other end saw it.
type arrival struct {
	handler  int
	attempt  int
	accepted bool
	id       string
	typ      string
	object   string
	lane     string
	xid      uint32
	old, new string // of the balance
	body     string
}

// readArrival reads what handlers are told from a payload in Billhook's format.
func readArrival(handler, attempt int, body []byte) (arrival, error) {
	var p struct {
		Event struct {
			Type   string          `json:"events_id"`
			ID     string          `json:"id"`
			Object json.RawMessage `json:"object_id"`
			Lane   string          `json:"lane"`
			XID    uint32          `json:"xid"`
		}
		Data    map[string]json.RawMessage
		Changed map[string]struct{ Old, New json.RawMessage }
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&p); err != nil {
		return arrival{}, fmt.Errorf("payload %q: %w", body, err)
	}
	a := arrival{
		handler: handler, attempt: attempt, id: p.Event.ID, typ: p.Event.Type, object: string(p.Event.Object),
		lane: p.Event.Lane, xid: p.Event.XID, body: string(body),
	}
	if c, ok := p.Changed["abalance"]; ok {
		a.old, a.new = string(c.Old), string(c.New)
	}
	if now := string(p.Data["abalance"]); now != a.new && a.new != "" {
		return a, fmt.Errorf("payload %q: data and changed disagree", body)
	}
	return a, nil
}

// arrivals collects attempts in the order in which they came.
type arrivals struct {
	mu    sync.Mutex
	list  []arrival
	wrong []string
}

func (l *arrivals) add(a arrival, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.wrong = append(l.wrong, err.Error())
		return
	}
	l.list = append(l.list, a)
}

// all returns what came so far, and fails the test if something made no sense.
func (l *arrivals) all(t testing.TB) []arrival {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.wrong {
		t.Error(w)
	}
	return l.list[:len(l.list):len(l.list)]
}

// receiver is an HTTP server that keeps what it is told.
type receiver struct {
	arrivals
	url string

	failing atomic.Int32 // per cent of requests that are refused: some answered 503, some cut off
	mode    atomic.Int32 // answering, hanging or nonsense
	slow    atomic.Int64 // how long an answer may take, as a time.Duration; each takes a random part of it

	address string
	server  *http.Server
	done    chan error
}

// What a receiver does that gets a request.
const (
	answering int32 = iota
	hanging         // says nothing until the other end gives up
	nonsense        // says what is no HTTP
)

func newReceiver(t testing.TB) *receiver {
	t.Helper()
	r := &receiver{}
	r.listen(t, "127.0.0.1:0")
	r.url = "http://" + r.address
	t.Cleanup(func() { r.close(t) })
	return r
}

func (r *receiver) listen(t testing.TB, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	r.done = done
	server := r.server
	go func() { done <- server.Serve(l) }()
}

// close goes away with all connections. It does nothing when it is away already.
func (r *receiver) close(t testing.TB) {
	t.Helper()
	if r.server == nil {
		return
	}
	_ = r.server.Close() // connections are cut on purpose
	if err := <-r.done; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	r.server = nil
}

// comeBack listens again at the same address.
func (r *receiver) comeBack(t testing.TB) {
	t.Helper()
	r.listen(t, r.address)
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // billhook was killed while it sent
	}
	handler, err1 := strconv.Atoi(req.Header.Get("Billhook-Handler"))
	attempt, err2 := strconv.Atoi(req.Header.Get("Billhook-Attempt"))
	a, err3 := readArrival(handler, attempt, body)
	err = errors.Join(err1, err2, err3)
	if id := req.Header.Get("Webhook-Id"); err == nil && id != a.id {
		err = fmt.Errorf("webhook-id is %q, the payload says %q", id, a.id)
	}
	refuse := rand.Int32N(100) < r.failing.Load()
	mode := r.mode.Load()
	a.accepted = !refuse && mode == answering
	r.add(a, err) // before the answer: what is answered for has been kept
	if d := r.slow.Load(); d > 0 {
		timer := time.NewTimer(time.Duration(rand.Int64N(d)))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-req.Context().Done():
		}
	}
	switch {
	case mode == hanging:
		<-req.Context().Done()
	case mode == nonsense:
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte("\x00\xffSMTP/7 999999 what?\r\n\r\n")) // to one who may have gone
		_ = c.Close()
	case !refuse:
		w.WriteHeader(http.StatusNoContent)
	case rand.IntN(2) == 0:
		w.WriteHeader(http.StatusServiceUnavailable)
	default:
		panic(http.ErrAbortHandler) // the connection breaks
	}
}

// script is a program that keeps what it is told in a file, a line for each run.
type script struct {
	path string
	log  string
	fail string // the file whose being there makes some runs fail
}

func newScript(t testing.TB) *script {
	t.Helper()
	dir := t.TempDir()
	s := &script{path: filepath.Join(dir, "told"), log: filepath.Join(dir, "log"), fail: filepath.Join(dir, "fail")}
	// One printf is one write, and short ones to a file end are whole. When Billhook
	// is killed, its scripts are, too; but one that has just been started may see the
	// end of its input a moment before that, and must not take that for a payload.
	text := fmt.Sprintf(`#!/bin/sh
IFS= read -r payload || :
case $payload in *'}') ;; *) exit 65 ;; esac
code=0
if [ -e %q ] && [ $(($$ %% 10)) -eq 0 ]; then code=75; fi
printf '%%s %%s %%s %%s\n' "$BILLHOOK_HANDLER" "$BILLHOOK_ATTEMPT" "$code" "$payload" >>%q
exit $code
`, s.fail, s.log)
	if err := os.WriteFile(s.path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// failing makes every tenth run or so fail, or none.
func (s *script) failing(t testing.TB, yes bool) {
	t.Helper()
	var err error
	if yes {
		err = os.WriteFile(s.fail, nil, 0o600)
	} else {
		err = os.Remove(s.fail)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// all returns what came so far.
func (s *script) all(t testing.TB) []arrival {
	t.Helper()
	b, err := os.ReadFile(s.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var list []arrival
	for line := range strings.Lines(string(b)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 {
			t.Errorf("a line of the script's log: %q", line)
			continue
		}
		handler, err1 := strconv.Atoi(fields[0])
		attempt, err2 := strconv.Atoi(fields[1])
		a, err3 := readArrival(handler, attempt, []byte(fields[3]))
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Error(err)
			continue
		}
		a.accepted = fields[2] == "0"
		list = append(list, a)
	}
	return list
}
