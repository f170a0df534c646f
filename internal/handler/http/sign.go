package http

import (
	"encoding/base64"
	"fmt"
	nethttp "net/http"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const signingPrefix = "whsec_"

// signer makes Standard Webhooks signatures with one secret.
type signer struct{ webhook *standardwebhooks.Webhook }

// newSigner reads "whsec_" + base64, or the base64 alone. Its errors do not quote
// the secret.
func newSigner(text string) (signer, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, signingPrefix))
	if err != nil {
		return signer{}, fmt.Errorf("not base64: want %s and the base64 of 24 to 64 random bytes; make one with: echo %s$(openssl rand -base64 32)",
			signingPrefix, signingPrefix)
	}
	if len(key) < 24 || len(key) > 64 {
		return signer{}, fmt.Errorf("it decodes to %d bytes, and Standard Webhooks wants 24 to 64; make one with: echo %s$(openssl rand -base64 32)",
			len(key), signingPrefix)
	}
	w, err := standardwebhooks.NewWebhookRaw(key)
	if err != nil {
		return signer{}, err
	}
	return signer{w}, nil
}

// sign sets the three Standard Webhooks headers for exactly these bytes of body.
func sign(header nethttp.Header, signers []signer, id string, at time.Time, body []byte) error {
	signatures := make([]string, len(signers))
	for i, s := range signers {
		var err error
		if signatures[i], err = s.webhook.Sign(id, at, body); err != nil {
			return fmt.Errorf("sign: %w", err)
		}
	}
	// Set, so that names are canonical as Go sends them.
	header.Set(standardwebhooks.HeaderWebhookID, id)
	header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	header.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	return nil
}
