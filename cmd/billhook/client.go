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

// alive asks whether the process works, as /healthz tells.
func (i *instance) alive(ctx context.Context) error {
	base, err := i.base()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("/healthz").String(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return i.unreached(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // its status says enough
		return fmt.Errorf("the billhook at %s answers %s: %s", i.url, resp.Status, bytes.TrimSpace(b))
	}
	return nil
}

func (i *instance) base() (*url.URL, error) {
	base, err := url.Parse(i.url)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, usageError{fmt.Errorf("--url %q: want an address such as http://127.0.0.1:8321", i.url)}
	}
	return base, nil
}

// unreached words an error of a request that got no answer.
func (i *instance) unreached(err error) error {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err
	}
	return fmt.Errorf("ask the billhook at %s: %w; is it running? --url names another", i.url, err)
}

// maxAnswer is how many bytes of an answer are read into memory.
const maxAnswer = 64 << 20

// request sends body, unless it is nil, to a path with an encoded query. It returns the
// answer when that is no error; the caller closes its body.
func (i *instance) request(ctx context.Context, method, path string, body any) (*http.Response, error) {
	base, err := i.base()
	if err != nil {
		return nil, err
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
		return nil, i.unreached(err)
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
