// Package client reaches a fleet's API from the command line: the host's own
// socket, or a controller's port with an identity. It never follows docker's
// own variables to a foreign engine.
package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/client"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/drover/drover/pkg/config"
	"github.com/drover/drover/pkg/pki"
)

// Variables that say where the fleet is, and as whom to come.
const (
	EnvHost     = "DROVER_HOST"     // unix://PATH or tcp://HOST:PORT
	EnvIdentity = "DROVER_IDENTITY" // folder with ca.pem, cert.pem and key.pem
)

// patience is how long a controller that is starting is waited for.
const patience = 5 * time.Second

// Target is where a fleet answers.
type Target struct {
	Host     string // unix://… or tcp://…
	identity string
}

// Find says where: host ("" if no flag was given), the environment, or the
// socket of this host's configuration.
func Find(host string) (Target, error) {
	t := Target{Host: host, identity: os.Getenv(EnvIdentity)}
	if t.Host == "" {
		t.Host = os.Getenv(EnvHost)
	}
	if t.Host != "" && !strings.HasPrefix(t.Host, "unix://") && !strings.HasPrefix(t.Host, "tcp://") {
		return t, fmt.Errorf("host %q begins with neither unix:// nor tcp://", t.Host)
	}
	if t.Host == "" || strings.HasPrefix(t.Host, "tcp://") && t.identity == "" {
		c, err := config.Load("", nil)
		if err != nil {
			return t, err
		}
		if t.Host == "" {
			t.Host = "unix://" + c.RunDir + "/drover.sock"
		}
		if t.identity == "" {
			t.identity = c.DataDir + "/admin"
		}
	}
	return t, nil
}

// HTTP is a client whose requests to http://drover/… reach the target.
func (t Target) HTTP() (*http.Client, error) {
	dial, err := t.dialer()
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true}}, nil
}

// Docker is docker's own client on the target. Its requests are spans of tp.
func (t Target) Docker(tp trace.TracerProvider) (client.APIClient, error) {
	dial, err := t.dialer()
	if err != nil {
		return nil, err
	}
	otel.SetTextMapPropagator(propagation.TraceContext{})
	tr := &http.Transport{DialContext: dial, DisableCompression: true}
	c, err := client.New(client.WithHost(t.Host), client.WithHTTPClient(&http.Client{Transport: tr}), client.WithDialContext(dial), client.WithHTTPRequestHook(mark), client.WithTraceProvider(tp), client.WithTraceOptions(otelhttp.WithSpanNameFormatter(spanName)), client.WithUserAgent("drover"))
	if err != nil {
		return nil, fmt.Errorf("preparing the client for %s: %w", t.Host, err)
	}
	return c, nil
}

func (t Target) dialer() (func(ctx context.Context, network, addr string) (net.Conn, error), error) {
	u, err := url.Parse(t.Host)
	if err != nil {
		return nil, fmt.Errorf("host %q: %w", t.Host, err)
	}
	if u.Scheme == "unix" {
		return func(ctx context.Context, _, _ string) (net.Conn, error) {
			return again(ctx, func() (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", u.Path) })
		}, nil
	}
	files, err := pki.LoadFiles(t.identity)
	if err != nil {
		return nil, fmt.Errorf("%s wants an identity (%s names its folder): %w", t.Host, EnvIdentity, err)
	}
	addr := u.Host
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), "7443")
	}
	conf := pki.PeerClientTLS(files, "http/1.1", pki.Kinds(pki.KindController))
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return again(ctx, func() (net.Conn, error) { return dialTLS(ctx, conf, addr) })
	}, nil
}

// again dials anew while a controller is being restarted.
func again(ctx context.Context, dial func() (net.Conn, error)) (net.Conn, error) {
	for end := time.Now().Add(patience); ; {
		c, err := dial()
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(end) {
			return c, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

var longID = regexp.MustCompile(`[0-9a-f]{64}`)

// spanName is a request with ids as users know them.
func spanName(_ string, r *http.Request) string {
	return r.Method + " " + longID.ReplaceAllStringFunc(r.URL.Path, func(id string) string { return id[:12] })
}

// mark gives every change a key, so that a repetition is never done twice.
func mark(r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		r.Header.Set("Drover-Idempotency-Key", key())
	}
	return nil
}

func key() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
