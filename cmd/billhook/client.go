package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// instance is a running billhook, asked over its API.
type instance struct {
	url   string
	token string
}

func (i *instance) flags(fs *pflag.FlagSet) {
	fs.StringVar(&i.url, "url", "http://127.0.0.1:8321", "address of the running billhook")
	fs.StringVar(&i.token, "token", "", "a token of http.tokens, or name:password of http.users; better given in the environment, where others do not see it")
}

// answerTimeout is longer than a running billhook lets a request wait.
const answerTimeout = 40 * time.Second

// ask sends body, unless it is nil, and reads the answer into v.
func (i *instance) ask(ctx context.Context, method, path string, body, v any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := i.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the billhook at %s: %w", i.url, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read the answer of %s: %w", i.url, err)
	}
	return nil
}

// maxAnswer is how many bytes of an answer are read into memory.
const maxAnswer = 64 << 20

// request sends body, unless it is nil, to a path with an encoded query. It returns the
// answer when that is no error; the caller closes its body.
func (i *instance) request(ctx context.Context, method, path string, body any) (*http.Response, error) {
	base, err := url.Parse(i.url)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, usageError{fmt.Errorf("--url %q: want an address such as http://127.0.0.1:8321", i.url)}
	}
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(b)
	}
	path, query, _ := strings.Cut(path, "?")
	at := base.JoinPath("/api/v1", path)
	at.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, method, at.String(), content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if name, password, ok := strings.Cut(i.token, ":"); ok {
		req.SetBasicAuth(name, password)
	} else if i.token != "" {
		req.Header.Set("Authorization", "Bearer "+i.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return nil, fmt.Errorf("ask the billhook at %s: %w; is it running? --url names another", i.url, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("ask the billhook at %s: %w", i.url, err)
	}
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(b, &said) != nil || said.Error == "" {
		return nil, fmt.Errorf("%s answers %s: is that a billhook of this version?", i.url, resp.Status)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		said.Error += "; give --token, or set " + variable("token")
	}
	return nil, errors.New(said.Error)
}
