package http_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/http"
)

// authority signs certificates for a test.
type authority struct {
	t      *testing.T
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	file   string
	serial int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	der, key := a.make(&x509.Certificate{
		Subject: pkix.Name{CommonName: "Test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, a.key, a.file = cert, key, writePEM(t, "CERTIFICATE", der)
	return a
}

// make signs a certificate with a new key; the first signs itself.
func (a *authority) make(c *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.serial++
	c.SerialNumber = big.NewInt(a.serial)
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return der, key
}

func (a *authority) server(names ...string) tls.Certificate {
	der, key := a.make(&x509.Certificate{
		DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// client writes a client certificate and its key into dir.
func (a *authority) client(dir, name string) (certFile, keyFile string) {
	a.t.Helper()
	der, key := a.make(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// serveTLS starts a server that answers with the name of the client's certificate.
func serveTLS(t *testing.T, c *tls.Config) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if len(r.TLS.PeerCertificates) > 0 {
			_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
		}
	}))
	srv.TLS = c
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func TestTrust(t *testing.T) {
	ours, other := newAuthority(t), newAuthority(t)
	srv := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ours.server("crm.internal")}})
	byName := strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
	old := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ours.server()}, MaxVersion: tls.VersionTLS12})
	for _, tc := range []struct {
		name, url string
		tls       http.TLS
		want      string // "" is success
	}{
		{"own authority", srv.URL, http.TLS{CAFile: ours.file}, ""},
		{"name in server_name", byName, http.TLS{CAFile: ours.file, ServerName: "crm.internal"}, ""},
		{"trust anyone", byName, http.TLS{InsecureSkipVerify: true}, ""},
		{"the system's authorities", srv.URL, http.TLS{}, "name its file in the handler's tls ca_file"},
		{"another authority", srv.URL, http.TLS{CAFile: other.file}, "name its file in the handler's tls ca_file"},
		{"another name", byName, http.TLS{CAFile: ours.file}, "name it in the handler's tls server_name"},
		{"1.2 only", old.URL, http.TLS{CAFile: ours.file}, ""},
		{"1.2 only, 1.3 wanted", old.URL, http.TLS{CAFile: ours.file, MinVersion: "1.3"}, "protocol version"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res, err := handle(t, http.Options{URL: tc.url, TLS: tc.tls})
			if tc.want == "" && err != nil {
				t.Error(err)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || res.Reason != handler.ReasonConnect || handler.IsPermanent(err)) {
				t.Errorf("reason %q: %v\nwant an error with %q", res.Reason, err, tc.want)
			}
		})
	}
}

func TestClientCertificate(t *testing.T) {
	ca := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	srv := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.server()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})

	res, err := handle(t, http.Options{URL: srv.URL, TLS: http.TLS{CAFile: ca.file}})
	if err == nil || res.Reason != handler.ReasonConnect || !strings.Contains(err.Error(), "does it want a client certificate?") {
		t.Errorf("without a certificate: reason %q: %v", res.Reason, err)
	}

	dir := t.TempDir()
	cert, key := ca.client(dir, "billhook one")
	h := newHandler(t, http.Options{URL: srv.URL, TLS: http.TLS{CAFile: ca.file, CertFile: cert, KeyFile: key}})
	defer h.Close()
	for _, want := range []string{"billhook one", "billhook two"} {
		res, err := h.Handle(context.Background(), handlertest.Delivery(payload))
		if err != nil || string(res.Response.Body) != want {
			t.Errorf("the server saw %q, %v, want %q", res.Response.Body, err, want)
		}
		ca.client(dir, "billhook two") // renewed in place
		_ = h.Close()                  // and the next connection shows it
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	_ = h.Close()
	res, err = h.Handle(context.Background(), handlertest.Delivery(payload))
	if err == nil || handler.IsPermanent(err) || res.Reason != handler.ReasonConnect || !strings.Contains(err.Error(), key) {
		t.Errorf("without its key: reason %q: %v", res.Reason, err)
	}
}
