package exchange

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/billhook/billhook/internal/handler"
)

// MaxAnswer is the size in bytes above which an answer is not read.
const MaxAnswer = 64 << 10

// maxReason bounds the reason of an answer, in bytes.
const maxReason = 500

// Answer is what a receiver's JSON answer asks for.
type Answer struct {
	handler.Answer
	// RetryAfter is the delay asked for before the next attempt, from
	// "retry_after": seconds as a number or a duration as text. Zero if none.
	RetryAfter time.Duration
}

// ParseAnswer reads a JSON object with any of "stop" (boolean), "reason" (text),
// "data" (object) and "retry_after". Members of other names are a receiver's own
// affair. JSON that is no object asks for nothing. After an error nothing of the
// answer is to be obeyed.
func ParseAnswer(b []byte, m *Mask) (Answer, error) {
	if len(b) > MaxAnswer {
		return Answer{}, fmt.Errorf("it is longer than %d bytes", MaxAnswer)
	}
	if !utf8.Valid(b) {
		return Answer{}, errors.New("it is not UTF-8")
	}
	if !json.Valid(b) {
		return Answer{}, errors.New("it is not valid JSON")
	}
	// A map keeps names exact, where a struct would also take "STOP".
	var members map[string]json.RawMessage
	if json.Unmarshal(b, &members) != nil {
		return Answer{}, nil
	}
	var a Answer
	if raw, ok := members["stop"]; ok {
		if err := json.Unmarshal(raw, &a.Stop); err != nil {
			return Answer{}, errors.New(`its "stop" is not true or false`)
		}
	}
	if raw, ok := members["reason"]; ok {
		if err := json.Unmarshal(raw, &a.Reason); err != nil {
			return Answer{}, errors.New(`its "reason" is not text`)
		}
		a.Reason = m.Line(a.Reason, maxReason)
	}
	if raw, ok := members["data"]; ok && string(raw) != "null" {
		if raw[0] != '{' {
			return Answer{}, errors.New(`its "data" is not an object`)
		}
		a.Data = raw
	}
	if raw, ok := members["retry_after"]; ok {
		var seconds float64
		var text string
		if json.Unmarshal(raw, &seconds) == nil {
			a.RetryAfter = time.Duration(min(max(seconds, 0), 1e9) * float64(time.Second))
		} else if json.Unmarshal(raw, &text) == nil {
			d, err := time.ParseDuration(text)
			if err != nil || d < 0 {
				return Answer{}, errors.New(`its "retry_after" is neither seconds nor a duration such as "90s"`)
			}
			a.RetryAfter = d
		} else {
			return Answer{}, errors.New(`its "retry_after" is neither seconds nor a duration such as "90s"`)
		}
	}
	return a, nil
}
