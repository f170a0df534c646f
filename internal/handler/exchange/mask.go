package exchange

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Masked is what stands in place of a secret.
const Masked = "***"

// shortest is the length below which a value is not looked for: masking every
// "1" would hide all and protect nothing.
const shortest = 4

// Mask replaces known secrets in text that people will see. A nil Mask knows none.
type Mask struct{ secrets [][]byte } // longest first

// NewMask returns a Mask for secrets and for the forms in which a receiver might
// echo them: escaped for a URL or JSON, or in base64. Secrets of fewer than 4
// bytes are not looked for.
func NewMask(secrets ...string) *Mask {
	m := &Mask{}
	seen := map[string]bool{}
	add := func(s string) {
		if len(s) >= shortest && !seen[s] {
			seen[s] = true
			m.secrets = append(m.secrets, []byte(s))
		}
	}
	for _, s := range secrets {
		if len(s) < shortest {
			continue
		}
		add(s)
		add(url.QueryEscape(s))
		add(url.PathEscape(s))
		if quoted, err := json.Marshal(s); err == nil {
			add(string(quoted[1 : len(quoted)-1]))
		}
		add(strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(s)), "="))
		add(strings.TrimRight(base64.URLEncoding.EncodeToString([]byte(s)), "="))
	}
	slices.SortFunc(m.secrets, func(a, b []byte) int { return len(b) - len(a) })
	return m
}

// Bytes returns b with secrets masked; b itself if it holds none.
func (m *Mask) Bytes(b []byte) []byte {
	if m == nil {
		return b
	}
	for _, s := range m.secrets {
		if bytes.Contains(b, s) {
			b = bytes.ReplaceAll(b, s, []byte(Masked))
		}
	}
	return b
}

// Prefix returns the first n bytes of b, masked, also where the cut leaves only
// the beginning of a secret.
func (m *Mask) Prefix(b []byte, n int) []byte {
	if len(b) <= n {
		return m.Bytes(b)
	}
	return m.head(b[:n:n])
}

// head masks b, which was cut at its end.
func (m *Mask) head(b []byte) []byte {
	b = m.Bytes(b)
	if m == nil {
		return b
	}
	longest := 0
	for _, s := range m.secrets {
		for k := min(len(s)-1, len(b)); k > longest; k-- {
			if bytes.HasSuffix(b, s[:k]) {
				longest = k
			}
		}
	}
	if longest == 0 {
		return b
	}
	return append(b[:len(b)-longest:len(b)-longest], Masked...)
}

// tail masks b, which was cut at its beginning.
func (m *Mask) tail(b []byte) []byte {
	b = m.Bytes(b)
	if m == nil {
		return b
	}
	longest := 0
	for _, s := range m.secrets {
		for k := min(len(s)-1, len(b)); k > longest; k-- {
			if bytes.HasPrefix(b, s[len(s)-k:]) {
				longest = k
			}
		}
	}
	if longest == 0 {
		return b
	}
	return append([]byte(Masked), b[longest:]...)
}

// Line returns s fit for one line of text of at most n bytes: secrets masked,
// valid UTF-8, white space and control characters as single spaces, an ellipsis
// where it was cut.
func (m *Mask) Line(s string, n int) string {
	if m != nil {
		for _, secret := range m.secrets {
			if strings.Contains(s, string(secret)) {
				s = strings.ReplaceAll(s, string(secret), Masked)
			}
		}
	}
	if !isPlain(s) {
		s = strings.ToValidUTF8(s, string(utf8.RuneError))
		s = strings.Join(strings.FieldsFunc(s, func(r rune) bool {
			return unicode.IsSpace(r) || !unicode.IsGraphic(r)
		}), " ")
	}
	if len(s) <= n {
		return s
	}
	const ellipsis = "…"
	cut := max(n-len(ellipsis), 0)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + ellipsis
}

// isPlain tells a text of printable ASCII with single spaces, which most are.
func isPlain(s string) bool {
	last := byte(' ')
	for i := range len(s) {
		c := s[i]
		if c < ' ' || c > '~' || c == ' ' && last == ' ' {
			return false
		}
		last = c
	}
	return len(s) == 0 || last != ' '
}

// Sensitive reports whether a header, variable or query parameter of this name
// usually carries a secret.
func Sensitive(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{
		"auth", "cookie", "credential", "key", "passphrase", "passw", "passwd", "pwd",
		"secret", "session", "sig", "token",
	} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}
