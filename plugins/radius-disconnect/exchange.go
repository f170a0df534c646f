package main

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"time"

	"layeh.com/radius"

	"github.com/billhook/billhook/plugins"
)

// defaultPort is where RFC 5176 has servers listen.
const defaultPort = "3799"

func withPort(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = address, defaultPort
		if net.ParseIP(host) == nil {
			if _, _, err := net.SplitHostPort(host + ":" + port); err != nil {
				return "", errors.New("it is not host or host:port")
			}
		}
	}
	if n, err := strconv.Atoi(port); host == "" || err != nil || n < 1 || n > 65535 {
		return "", errors.New("it is not host or host:port")
	}
	return net.JoinHostPort(host, port), nil
}

// packet makes a request as it goes over the wire. Its signatures depend on the
// secret.
func (p *plan) packet(attributes radius.Attributes, secret []byte, now time.Time) ([]byte, error) {
	q := radius.New(p.code, secret)
	q.Authenticator = [16]byte{} // the signature is over zeros
	q.Attributes = append(q.Attributes, attributes...)
	if p.stamp {
		q.Attributes.Add(typeEventTimestamp, radius.NewInteger(uint32(now.Unix())))
	}
	if p.sign {
		// RFC 5176, 3.4: over the packet with zeros in place of the signature and of the
		// authenticator, which is made after it.
		signature := make(radius.Attribute, md5.Size)
		q.Attributes.Add(typeMessageAuthenticator, signature)
		b, err := q.MarshalBinary()
		if err != nil {
			return nil, err
		}
		copy(signature, sum(b, secret))
	}
	return q.Encode()
}

func sum(b, secret []byte) []byte {
	h := hmac.New(md5.New, secret)
	h.Write(b)
	return h.Sum(nil)
}

// server is one that takes requests.
type server struct {
	address    string
	secret     []byte
	retransmit time.Duration
}

// answer is a server's.
type answer struct {
	code  radius.Code
	cause int    // Error-Cause, 0 for none
	text  string // Reply-Message
	sent  int    // how often the request was sent
}

// exchange sends a request until it is answered, the same bytes each time so that the
// server can tell a repetition, or until ctx ends. It has a socket of its own: the
// identifier need not differ from those of requests that run beside.
func (s *server) exchange(ctx context.Context, request []byte) (answer, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", s.address)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()

	var (
		a        answer
		lastErr  error
		rejected string // what was wrong with an answer that was ignored
		wait     = s.retransmit
		buf      [radius.MaxPacketLength]byte
	)
	for ctx.Err() == nil {
		if _, err := conn.Write(request); err != nil {
			lastErr = err // such as refused, which the send before has met
		} else {
			a.sent++
		}
		// RFC 5080, 2.2.1: doubled, with jitter, up to 16s.
		again := time.Now().Add(time.Duration(float64(wait) * (0.9 + 0.2*rand.Float64())))
		wait = min(2*wait, maxRetransmit)
		for {
			if err := conn.SetReadDeadline(again); err != nil {
				return a, err
			}
			if ctx.Err() != nil { // its own deadline may have been overwritten
				break
			}
			n, err := conn.Read(buf[:])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				lastErr = err
				pause(ctx, time.Until(again))
				break
			}
			ok, why := s.accept(&a, buf[:n], request)
			if ok {
				return a, nil
			}
			rejected = why
		}
	}
	switch {
	case rejected != "":
		return a, plugins.Because(plugins.CauseServerError, errors.New(rejected))
	case lastErr != nil:
		return a, plugins.Because(plugins.CauseConnect, lastErr)
	case errors.Is(ctx.Err(), context.Canceled):
		return a, ctx.Err()
	}
	return a, plugins.Because(plugins.CauseTimeout, fmt.Errorf("no answer to a request that was sent %d times: does the server listen, know this machine as a client, and have the same secret?", a.sent))
}

// accept reads an answer, or says why it is none to the request.
func (s *server) accept(a *answer, b, request []byte) (ok bool, why string) {
	p, err := radius.Parse(b, s.secret)
	if err != nil {
		return false, "what came back is no RADIUS packet"
	}
	b = b[:int(b[2])<<8|int(b[3])]
	want := radius.Code(request[0])
	if p.Identifier != request[1] || p.Code != want+1 && p.Code != want+2 { // ACK and NAK
		return false, fmt.Sprintf("what came back is %s and no answer to %s", p.Code, want)
	}
	if !radius.IsAuthenticResponse(b, request, s.secret) || !s.signed(p, request) {
		return false, "the answer was not made with the same secret"
	}
	a.code = p.Code
	if v, ok := p.Lookup(typeErrorCause); ok {
		if n, err := radius.Integer(v); err == nil {
			a.cause = int(n)
		}
	}
	if v, ok := p.Lookup(typeReplyText); ok {
		a.text = string(v)
	}
	return true, ""
}

// signed checks the Message-Authenticator of an answer that has one.
func (s *server) signed(p *radius.Packet, request []byte) bool {
	v, ok := p.Lookup(typeMessageAuthenticator)
	if !ok {
		return true
	}
	if len(v) != md5.Size {
		return false
	}
	had := append([]byte(nil), v...)
	clear(v)
	copy(p.Authenticator[:], request[4:20])
	b, err := p.MarshalBinary()
	return err == nil && hmac.Equal(had, sum(b, s.secret))
}

// pause waits, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
