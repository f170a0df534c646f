package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/billhook/billhook/plugins"
)

// maxReply is how many bytes of a reply are read.
const maxReply = 256 << 10

// codeNotFound is htable.delete's answer when there is no such key.
const codeNotFound = 404

// client calls one Kamailio.
type client struct {
	url   string
	name  string // host:port
	token string
	http  *http.Client
}

func newClients(servers []*url.URL, c Config) ([]*client, error) {
	transport := &http.Transport{
		MaxIdleConnsPerHost: 16,
		// Kamailio closes idle connections after two minutes unless it is told otherwise.
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, plugins.Field("ca_file", errors.New("the file holds no certificate in PEM"))
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	shared := &http.Client{
		Transport: transport,
		// A POST that is redirected may become a GET.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	out := make([]*client, len(servers))
	for i, u := range servers {
		out[i] = &client{url: u.String(), name: u.Host, token: c.Token.Reveal(), http: shared}
	}
	return out, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

// fault is an error that Kamailio answered with.
type fault struct {
	method string
	code   int
	text   string
}

func (f *fault) Error() string { return fmt.Sprintf("%s: %s (%d)", f.method, f.text, f.code) }

// permanent reports whether Kamailio does not like what it was asked, rather than
// lacking what it needs to do it. What an operator can put right on the switch, such as
// a table that is not there (500), is tried again.
func (f *fault) permanent() bool { return f.code >= 400 && f.code < 500 }

// call makes one call. A *fault is Kamailio's own answer.
func (c *client) call(ctx context.Context, id, method string, params []any) (json.RawMessage, error) {
	body, err := json.Marshal(struct {
		Version string `json:"jsonrpc"`
		ID      string `json:"id"`
		Method  string `json:"method"`
		Params  []any  `json:"params,omitempty"`
	}{"2.0", id, method, params})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "billhook")
	// All calls may be repeated, which lets net/http do so when Kamailio has just closed
	// the connection that it took.
	req.Header.Set("Idempotency-Key", id)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer to %s: %w", method, err)
	}
	if len(text) > maxReply {
		return nil, plugins.Because(plugins.CauseServerError, fmt.Errorf("the answer to %s has more than %d bytes", method, maxReply))
	}
	// An error stands in the body, and its code is the status as well.
	var reply struct {
		Version string          `json:"jsonrpc"`
		ID      any             `json:"id"`
		Result  json.RawMessage `json:"result"`
		Error   *struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(text, &reply); err != nil || reply.Version != "2.0" || reply.Result == nil && reply.Error == nil {
		return nil, plugins.Because(cause(resp.StatusCode), fmt.Errorf("the answer to %s is no JSON-RPC but HTTP status %d: is the path right, and does Kamailio let Billhook in?", method, resp.StatusCode))
	}
	if reply.ID != id {
		return nil, plugins.Because(plugins.CauseServerError, fmt.Errorf("the answer to %s is one to something else", method))
	}
	if reply.Error != nil {
		return nil, plugins.Because(cause(reply.Error.Code), &fault{method, reply.Error.Code, reply.Error.Message})
	}
	return reply.Result, nil
}

func cause(code int) plugins.Cause {
	switch {
	case code == http.StatusTooManyRequests:
		return plugins.CauseRateLimited
	case code >= 300 && code < 500:
		return plugins.CauseClientError
	}
	return plugins.CauseServerError
}

// transcript is what is shown of the calls to one server.
type transcript struct{ sent, received []string }

// work is what one event asks of each server.
type work struct {
	plan    *plan
	do      action
	event   string
	id      string // event id
	keys    []string
	further []further
}

func (w *work) run(ctx context.Context, c *client, log *transcript) error {
	call := func(method string, params ...any) (json.RawMessage, error) {
		shown, err := json.Marshal(params)
		if err != nil {
			return nil, err
		}
		log.sent = append(log.sent, method+" "+string(shown))
		result, err := c.call(ctx, w.id, method, params)
		if err != nil {
			log.received = append(log.received, "error: "+err.Error())
			return nil, fmt.Errorf("kamailio %s: %w", c.name, err)
		}
		var compact bytes.Buffer
		if json.Compact(&compact, result) == nil {
			log.received = append(log.received, compact.String())
		}
		return result, nil
	}
	for _, key := range w.keys {
		if err := w.change(call, key); err != nil {
			return err
		}
	}
	for _, f := range w.further {
		if _, err := call(f.method, f.params...); err != nil {
			return err
		}
	}
	return nil
}

// change brings one key to where the event wants it. The value in the table is the
// event that put it there. Billhook calls for the events of one client one after
// another, so nothing comes between looking and changing.
func (w *work) change(call func(method string, params ...any) (json.RawMessage, error), key string) error {
	if w.do == block || w.do == unblock {
		// That a key is not there is a fault whose code and text depend on Kamailio's
		// version. One that is about something else is met again by the change.
		result, err := call("htable.get", w.plan.table, key)
		if f := (*fault)(nil); err != nil && !errors.As(err, &f) {
			return err
		}
		if err == nil && w.closed(result) {
			return nil
		}
	}
	if w.do == block || w.do == shut {
		_, err := call("htable.sets", w.plan.table, key, w.event)
		return err
	}
	if _, err := call("htable.delete", w.plan.table, key); err != nil && !notFound(err) {
		return err
	}
	return nil
}

// closed reports whether the answer of htable.get says that the client is blocked for
// good.
func (w *work) closed(result json.RawMessage) bool {
	var got struct {
		Item struct {
			Value any `json:"value"`
		} `json:"item"`
	}
	if err := json.Unmarshal(result, &got); err != nil {
		return false
	}
	event, ok := got.Item.Value.(string)
	return ok && slices.Contains(w.plan.closing, event)
}

// notFound reports whether Kamailio has no such key to delete.
func notFound(err error) bool {
	var f *fault
	return errors.As(err, &f) && f.code == codeNotFound
}
