// Command example is a plugin of Billhook's to begin one's own with: it writes a line
// for each event into a file, once for each, whatever is repeated.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/billhook/billhook/plugins"
)

// Config is what the operator writes under plugin.config.
type Config struct {
	File     string `json:"file" jsonschema:"required,minLength=1,description=File to write to."`
	Currency string `json:"currency,omitempty" jsonschema:"description=Only clients with this currency are written."`
}

// Validate is asked after the types and tags above have been judged.
func (c Config) Validate() error {
	if !strings.HasPrefix(c.File, "/") {
		return plugins.Field("file", errors.New("it must begin with /"))
	}
	return nil
}

func main() {
	plugins.Serve(plugins.Plugin[Config]{Name: "example", Version: "1.0.0", New: newLedger})
}

// ledger is the file.
type ledger struct {
	config Config
	log    *slog.Logger

	mu   sync.Mutex // Handle is called from many goroutines
	file *os.File
	seen map[string]bool // event ids
}

func newLedger(_ context.Context, c Config, env plugins.Env) (plugins.Handler, error) {
	f, err := os.OpenFile(c.File, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err // Billhook says so, and tries again
	}
	l := &ledger{config: c, log: env.Logger, file: f, seen: map[string]bool{}}
	s := bufio.NewScanner(f)
	for s.Scan() {
		id, _, _ := strings.Cut(s.Text(), " ")
		l.seen[id] = true
	}
	if err := s.Err(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	env.Logger.Info("ready", "events", len(l.seen))
	return l, nil
}

// Handle writes one line.
func (l *ledger) Handle(_ context.Context, d *plugins.Delivery) (plugins.Result, error) {
	e, err := d.Decode()
	if err != nil {
		return plugins.Result{}, err // permanent: another attempt would read the same
	}
	if currency, _ := e.Data.Text("currency"); l.config.Currency != "" && currency != l.config.Currency {
		return plugins.Result{Received: plugins.Exchange{Head: []string{"skipped: its currency is " + currency}}}, nil
	}
	balance, _ := e.Data.Text("balance")
	line := fmt.Sprintf("%s %s %s balance %s\n", d.EventID, d.EventType, d.ObjectID, balance)

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[d.EventID] { // an attempt whose end Billhook did not see
		return plugins.Result{Received: plugins.Exchange{Head: []string{"written already"}}}, nil
	}
	if _, err := l.file.WriteString(line); err != nil {
		return plugins.Result{}, err // tried again
	}
	if err := l.file.Sync(); err != nil {
		return plugins.Result{}, err
	}
	l.seen[d.EventID] = true
	l.log.Debug("written", "event", d.EventID)
	return plugins.Result{Sent: plugins.Exchange{Body: []byte(line)}}, nil
}

// Close is called at the end, after the last Handle.
func (l *ledger) Close() error { return l.file.Close() }
