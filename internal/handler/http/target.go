package http

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/billhook/billhook/internal/handler/exchange"
)

// target is where requests go: a fixed URL, or one whose path and query are made
// anew for each event.
type target struct {
	base     *url.URL // as written; of a template only what stands before its first action
	fixed    *url.URL // what is sent if there is no template: without user
	template *template
	secret   bool
	shown    string // for messages before there is a request
}

func parseTarget(text string, secret bool) (target, error) {
	t := target{secret: secret, shown: "***"}
	if text == "" {
		return t, errors.New("url: it is missing")
	}
	static, _, templated := strings.Cut(text, "{{")
	u, err := url.Parse(static)
	if err != nil {
		// The library's error quotes the URL.
		var ue *url.Error
		if errors.As(err, &ue) && !strings.Contains(ue.Err.Error(), "userinfo") {
			err = ue.Err
		} else {
			err = errors.New("not a URL")
		}
		if secret {
			err = errors.New("not a URL")
		}
		return t, fmt.Errorf("url: %w", err)
	}
	t.base = u
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return t, fmt.Errorf("url: scheme %q: want http or https, as in https://host/path", u.Scheme)
	case u.Fragment != "":
		return t, errors.New("url: what follows # is never sent: remove it, or write %23")
	case templated && u.Path == "" && u.RawQuery == "":
		return t, errors.New("url: scheme and host must be fixed: actions may stand in the path and query only")
	case u.Host == "" || u.Hostname() == "":
		return t, errors.New("url: no host: want https://host/path")
	}
	t.shown = t.show(u)
	if !templated {
		fixed := *u
		fixed.User = nil
		t.fixed = &fixed
		return t, nil
	}
	if t.template, err = parseTemplate(text, urlValue); err != nil {
		return t, fmt.Errorf("url: %w", err)
	}
	return t, nil
}

// resolve returns the URL for one event. An error is the event's fault.
func (t *target) resolve(doc map[string]any) (*url.URL, error) {
	if t.template == nil {
		return t.fixed, nil
	}
	text, err := t.template.render(doc)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil || u.Scheme != t.base.Scheme || u.Host != t.base.Host {
		return nil, errors.New("url: the template makes no URL of the same host")
	}
	// Values are escaped, so only dots are left that could climb the path.
	for segment := range strings.SplitSeq(u.EscapedPath(), "/") {
		if segment == "." || segment == ".." {
			return nil, fmt.Errorf("url: the template makes a path with %q in it", segment)
		}
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	return u, nil
}

// show returns u for people: without user, with the values of its query masked,
// and of a secret URL only scheme and host.
func (t *target) show(u *url.URL) string {
	s := u.Scheme + "://" + u.Host
	if t.secret {
		return s + "/" + exchange.Masked
	}
	return s + u.EscapedPath() + showQuery(u.RawQuery)
}

func showQuery(raw string) string {
	if raw == "" {
		return ""
	}
	parts := strings.Split(raw, "&")
	for i, p := range parts {
		if name, value, ok := strings.Cut(p, "="); ok && value != "" {
			parts[i] = name + "=" + exchange.Masked
		} else if !ok {
			parts[i] = exchange.Masked // "?s3cret"
		}
	}
	return "?" + strings.Join(parts, "&")
}

// showLocation returns the Location of a redirect for people.
func (t *target) showLocation(from *url.URL, location string) string {
	u, err := from.Parse(location)
	if err != nil {
		return "an unreadable Location"
	}
	if t.secret && u.Host == from.Host {
		return t.show(u)
	}
	return u.Scheme + "://" + u.Host + u.EscapedPath() + showQuery(u.RawQuery)
}

// literal returns the address that is written in the URL, if its host is one.
func (t *target) literal() (netip.Addr, bool) { return literalAddr(t.base) }

func literalAddr(u *url.URL) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(u.Hostname())
	return addr, err == nil
}

func parseProxy(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return nil, errors.New("proxy: want http://host:port, https://host:port or socks5://host:port")
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		return u, nil
	}
	return nil, fmt.Errorf("proxy: scheme %q: want http, https or socks5", u.Scheme)
}
