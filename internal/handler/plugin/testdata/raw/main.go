// Command raw is a plugin that is made of nothing but gRPC and what docs/plugins.md
// says of the wire: neither package plugins nor go-plugin is in it. It behaves as a
// test says.
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/billhook/billhook/plugins/pluginpb"
)

type config struct {
	Dir       string    `json:"dir"`
	Token     string    `json:"token"`
	Behaviour behaviour `json:"behaviour"`
}

type behaviour struct {
	Stubborn, Gate, Bad, Leak, Echo, Report bool
	Output                                  int
	Answer                                  string
	RetryAfter                              time.Duration
	Outcome                                 string
}

type server struct {
	pluginpb.UnimplementedPluginServer
	config config
}

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "ERROR:", err)
		os.Exit(1)
	}
}

func serve() error {
	if os.Getenv("BILLHOOK_PLUGIN") != "6d0d1a4f-handler" {
		return fmt.Errorf("this is a plugin of Billhook's")
	}
	if versions := strings.Split(os.Getenv("PLUGIN_PROTOCOL_VERSIONS"), ","); !slices.Contains(versions, "1") {
		return fmt.Errorf("Billhook speaks the versions %v, this is version 1", versions)
	}
	version := "1"
	args := strings.Join(os.Args[1:], " ")
	switch args { // what a plugin may do wrong
	case "another version":
		version = "7"
	case "chatter":
		fmt.Println("starting up")
	case "silence":
		select {}
	case "dies":
		return fmt.Errorf("no licence")
	}

	// The certificates: ours, made now, and Billhook's, which is the only one that may
	// call.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM([]byte(os.Getenv("PLUGIN_CLIENT_CERT"))) {
		return fmt.Errorf("no certificate in PLUGIN_CLIENT_CERT")
	}
	creds := credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: clients, MinVersion: tls.VersionTLS12,
	})

	var listener net.Listener
	if args == "tcp" {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	} else {
		listener, err = net.Listen("unix", filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "raw.sock"))
	}
	if err != nil {
		return err
	}
	g := grpc.NewServer(grpc.Creds(creds), grpc.MaxRecvMsgSize(64<<20), grpc.MaxSendMsgSize(64<<20))
	pluginpb.RegisterPluginServer(g, &server{})
	h := health.NewServer()
	h.SetServingStatus("plugin", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(g, h)
	cert := "|" + base64.RawStdEncoding.EncodeToString(der)
	if args == "no certificate" {
		cert = ""
	}
	fmt.Printf("1|%s|%s|%s|grpc%s\n", version, listener.Addr().Network(), listener.Addr(), cert)
	if args == "unwell" {
		h.SetServingStatus("plugin", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	}
	go func() { // when Billhook is gone
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	return g.Serve(listener)
}

func (s *server) Describe(context.Context, *pluginpb.DescribeRequest) (*pluginpb.DescribeResponse, error) {
	return &pluginpb.DescribeResponse{Name: "raw", Version: "0.1"}, nil
}

func (s *server) Configure(_ context.Context, r *pluginpb.ConfigureRequest) (*pluginpb.ConfigureResponse, error) {
	if err := json.Unmarshal(r.GetConfig(), &s.config); err != nil {
		return &pluginpb.ConfigureResponse{Problems: []*pluginpb.ConfigProblem{{Text: "it is not understood"}}}, nil
	}
	return &pluginpb.ConfigureResponse{}, nil
}

func (s *server) Handle(ctx context.Context, r *pluginpb.HandleRequest) (*pluginpb.HandleResponse, error) {
	b := s.config.Behaviour
	f, err := os.OpenFile(filepath.Join(s.config.Dir, "entered"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, _ = f.WriteString("1\n")
	_ = f.Close()
	for b.Gate {
		if _, err := os.Stat(filepath.Join(s.config.Dir, "gate")); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		time.Sleep(time.Millisecond)
	}
	out := bytes.NewBuffer(bytes.Repeat([]byte("x"), b.Output))
	resp := &pluginpb.HandleResponse{Outcome: pluginpb.Outcome_OUTCOME_SUCCESS, Answer: []byte(b.Answer)}
	failure := "no"
	if b.Bad {
		out.WriteString("\xff\xfe\x1b[2J\x00\r\n\u202e")
		failure += "\x1b[2J\x00\r\n\u202e"
		fmt.Fprintf(os.Stderr, "{\"@message\": 5, \"@level\": []}\n{\"@message\": \"x\", \"@timestamp\": 7}\n\xff\xfe\x1b[2J\n")
		fmt.Println(strings.Repeat("a long line ", 100_000))
	}
	if b.Leak {
		out.WriteString(s.config.Token)
		failure += s.config.Token
		fmt.Fprintln(os.Stderr, s.config.Token)
		resp.Sent = &pluginpb.Exchange{Head: []string{s.config.Token}, Body: []byte(s.config.Token)}
	}
	if b.Echo {
		out.Write(r.GetPayload())
	}
	if b.Report {
		fmt.Fprintf(out, "id=%s\nattempt=%d\nhandler=%d\n", r.GetEventId(), r.GetAttempt(), r.GetHandlerId())
	}
	resp.Received = &pluginpb.Exchange{Body: out.Bytes()}
	switch b.Outcome {
	case "retry":
		if b.RetryAfter == 0 {
			return nil, status.Error(codes.Internal, failure) // which is the same
		}
		resp.Outcome, resp.Error, resp.RetryAfterMs = pluginpb.Outcome_OUTCOME_RETRY, failure, b.RetryAfter.Milliseconds()
	case "permanent":
		resp.Outcome, resp.Error = pluginpb.Outcome_OUTCOME_PERMANENT, failure
	case "crash":
		os.Exit(3)
	case "hang":
		if b.Stubborn {
			select {}
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return resp, nil
}
