// Package client reaches a fleet's APIs from the command line: through the host's own
// socket, or a controller's port with an identity. It never follows docker's own
// variables to another engine.
package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/drover/drover/pkg/config"
	"github.com/drover/drover/pkg/dial"
	"github.com/drover/drover/pkg/pki"
)

// Variables that name the fleet and the identity to use.
const (
	EnvHost     = "DROVER_HOST"     // unix://PATH or tcp://HOST:PORT
	EnvOn       = "DROVER_ON"       // placement constraints, as --on
	EnvIdentity = "DROVER_IDENTITY" // directory with ca.pem, cert.pem and key.pem
)

// patience is how long to wait for a controller that is starting.
const patience = 5 * time.Second

// Target is the address of a fleet.
type Target struct {
	Host     string // unix://… or tcp://…
	identity string
	contact  string // id of this host's node, "" if unknown
}

// Find returns host ("" if no flag was given), the target named by the environment, or
// the socket of this host's configuration.
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
	t.contact = t.hints().Node
	return t, nil
}

// DefaultOn returns the placement constraints of the environment.
func DefaultOn() []string {
	if on := os.Getenv(EnvOn); on != "" {
		return strings.Split(on, ",")
	}
	return nil
}

// Hints are left by a host's processes beside its socket, for its clients.
type Hints struct {
	Node        string   // id of the host's node
	Controllers []string // host:port
	Identity    string   // directory of the admin's identity, "" for none
}

// HintsFile is their path, beside the socket.
const HintsFile = "fleet.json"

func (t Target) hints() (h Hints) {
	if path, ok := strings.CutPrefix(t.Host, "unix://"); ok {
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(path), HintsFile)); err == nil {
			_ = json.Unmarshal(b, &h) // without hints there is only the socket
		}
	}
	return h
}

// dialFunc is http.Transport's DialContext.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// dialer connects to the target: through the host's socket, or to whichever controller
// answers. If the socket does not answer, or frozen reports that it accepts connections
// but never answers, it connects to the fleet's other controllers.
func (t Target) dialer(frozen *atomic.Bool) (dialFunc, error) {
	u, err := url.Parse(t.Host)
	if err != nil {
		return nil, fmt.Errorf("host %q: %w", t.Host, err)
	}
	if u.Scheme == "unix" {
		return t.local(u.Path, frozen), nil
	}
	files, err := pki.LoadFiles(t.identity)
	if err != nil {
		return nil, fmt.Errorf("%s requires an identity (%s names its folder): %w", t.Host, EnvIdentity, err)
	}
	var addrs []string
	for addr := range strings.SplitSeq(u.Host, ",") {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			addr = net.JoinHostPort(strings.Trim(addr, "[]"), "7443")
		}
		addrs = append(addrs, addr)
	}
	conf := pki.PeerClientTLS(files, "http/1.1", pki.Kinds(pki.KindController))
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialAgain(ctx, func() (net.Conn, error) { return reach(ctx, conf, addrs) })
	}, nil
}

var errFrozen = errors.New("this host's controller does not answer")

func (t Target) local(path string, frozen *atomic.Bool) dialFunc {
	far := t.elsewhere()
	try := func(ctx context.Context) (c net.Conn, err error) {
		err = errFrozen
		if far == nil || !frozen.Load() {
			c, err = (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		if err == nil || far == nil {
			return c, err
		}
		if c, ferr := far(ctx); ferr == nil {
			return c, nil
		}
		return nil, err
	}
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialAgain(ctx, func() (net.Conn, error) { return try(ctx) })
	}
}

// elsewhere connects to the fleet's other controllers, if this host has an identity for
// that; nil if it has none.
func (t Target) elsewhere() func(context.Context) (net.Conn, error) {
	h := t.hints()
	if h.Identity == "" || len(h.Controllers) == 0 {
		return nil
	}
	return func(ctx context.Context) (net.Conn, error) {
		files, err := pki.LoadFiles(h.Identity)
		if err != nil {
			return nil, err
		}
		return reach(ctx, pki.PeerClientTLS(files, "http/1.1", pki.Kinds(pki.KindController)), h.Controllers)
	}
}

func reach(ctx context.Context, conf *tls.Config, addrs []string) (net.Conn, error) {
	return dial.Dialer(conf, func() []string { return addrs })(ctx, "", "")
}

// dialAgain retries while a controller restarts.
func dialAgain(ctx context.Context, try func() (net.Conn, error)) (net.Conn, error) {
	for end := time.Now().Add(patience); ; {
		c, err := try()
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) || time.Now().After(end) {
			return c, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
