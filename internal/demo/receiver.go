package demo

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// receiver plays the CRM: an HTTP server that keeps what it is told. Some first
// attempts it refuses, as a server does that is being restarted.
type receiver struct {
	into *arrivals
	say  func(a arrival, answer int)
	// refuse is how many of 1,000 events are answered 503 at their first attempt.
	refuse uint32

	server   *http.Server
	listener net.Listener
	done     chan error

	mu   sync.Mutex
	seen map[string]bool // handler and event id of first attempts that were refused
}

func startReceiver(into *arrivals, refuse uint32, say func(arrival, int)) (*receiver, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the receiver: %w", err)
	}
	r := &receiver{into: into, say: say, refuse: refuse, listener: l, done: make(chan error, 1), seen: map[string]bool{}}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { r.done <- r.server.Serve(l) }()
	return r, nil
}

// url is where it listens, such as http://127.0.0.1:40123.
func (r *receiver) url() string { return "http://" + r.listener.Addr().String() }

func (r *receiver) close(ctx context.Context) error {
	err := r.server.Shutdown(ctx)
	if serveErr := <-r.done; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	if err != nil {
		return fmt.Errorf("stop the receiver: %w", err)
	}
	return nil
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	at := time.Now()
	body, err := io.ReadAll(io.LimitReader(req.Body, 16<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a, err := readArrival(body, req.Header.Get("Webhook-Id"))
	if err == nil {
		a.at = at
		a.handler, err = strconv.Atoi(req.Header.Get("Billhook-Handler"))
	}
	if err == nil {
		a.attempt, err = strconv.Atoi(req.Header.Get("Billhook-Attempt"))
	}
	if err == nil {
		a.signed, err = signed(req.Header, body)
	}
	if err != nil {
		r.into.problem(fmt.Sprintf("%s %s: %v", req.Method, req.URL.Path, err))
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer := http.StatusOK
	if r.refuses(a) {
		answer = http.StatusServiceUnavailable
	}
	a.accepted = answer == http.StatusOK
	// Kept before the answer: what is answered for has been kept.
	r.into.add(a)
	r.say(a, answer)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(answer)
	fmt.Fprintf(w, `{"status":%d}`, answer)
}

// crmSecret is what requests to the CRM are signed with: "whsec_" and the key in
// base64.
const crmSecret = "whsec_ZGVtbyBkZW1vIGRlbW8gZGVtbyBkZW1v"

// signed reports whether a request is signed by the Standard Webhooks
// specification with crmSecret. A wrong signature is an error.
func signed(h http.Header, body []byte) (bool, error) {
	signatures := strings.Fields(h.Get("Webhook-Signature"))
	if len(signatures) == 0 {
		return false, nil
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(crmSecret, "whsec_"))
	if err != nil {
		return false, err
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", h.Get("Webhook-Id"), h.Get("Webhook-Timestamp"), body)
	if !slices.Contains(signatures, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil))) {
		return false, fmt.Errorf("the signature of %s is wrong", h.Get("Webhook-Id"))
	}
	return true, nil
}

// refuses is true once for the events that it is true for.
func (r *receiver) refuses(a arrival) bool {
	key := strconv.Itoa(a.handler) + " " + a.id
	h := fnv.New32a()
	io.WriteString(h, key)
	if h.Sum32()%1000 >= r.refuse {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[key] {
		return false
	}
	r.seen[key] = true
	return true
}
