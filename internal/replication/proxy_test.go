package replication

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// proxy stands between a client and a server and can break in two ways.
type proxy struct {
	address string
	target  string

	mu     sync.Mutex
	conns  []net.Conn
	holed  chan struct{} // closed while connections of before carry nothing any more
	closed bool
}

func newProxy(t testing.TB, port int) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String(), target: fmt.Sprintf("127.0.0.1:%d", port), holed: make(chan struct{})}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", p.target)
			if err != nil {
				c.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, c, s)
			hole := p.holed
			if p.closed {
				c.Close()
				s.Close()
			}
			p.mu.Unlock()
			all.Go(func() { p.pipe(c, s, hole) })
			all.Go(func() { p.pipe(s, c, hole) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.cut()
		all.Wait()
	})
	return p
}

// pipe copies until an end closes. Once the hole is open it swallows all, and says
// nothing even of an end.
func (p *proxy) pipe(to, from net.Conn, hole <-chan struct{}) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		select {
		case <-hole:
			if err == nil {
				continue
			}
			return
		default:
		}
		if n > 0 {
			if _, werr := to.Write(b[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			if err == io.EOF {
				to.Close()
			}
			return
		}
	}
}

// cut closes all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// hole makes the present connections swallow everything.
func (p *proxy) hole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.holed)
}

// heal lets new connections through.
func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holed = make(chan struct{})
}

// certificate gives a server a certificate of its own making and turns TLS on, by
// way of SQL, as the server's files belong to its user.
func certificate(t testing.TB, db *pgtest.Database) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"server.crt": {Type: "CERTIFICATE", Bytes: der}, "server.key": {Type: "PRIVATE KEY", Bytes: private}} {
		lines := strings.Split(strings.TrimSpace(string(pem.EncodeToMemory(block))), "\n")
		db.Exec(t, "COPY (SELECT unnest('{"+strings.Join(lines, ",")+"}'::text[])) TO PROGRAM 'umask 077; cat > "+name+"'")
	}
	db.Exec(t, "ALTER SYSTEM SET ssl = on")
}
