// Package client reaches a fleet's API from the command line: the host's own
// socket, or a controller's port with an identity. It never follows docker's
// own variables to a foreign engine.
package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/moby/client"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/config"
	"github.com/drover/drover/pkg/dial"
	"github.com/drover/drover/pkg/pki"
)

// Variables that say where the fleet is, and as whom to come.
const (
	EnvHost     = "DROVER_HOST"     // unix://PATH or tcp://HOST:PORT
	EnvOn       = "DROVER_ON"       // which nodes will do, as --on
	EnvIdentity = "DROVER_IDENTITY" // folder with ca.pem, cert.pem and key.pem
)

// patience is how long a controller that is starting is waited for.
const patience = 5 * time.Second

// Target is where a fleet answers.
type Target struct {
	Host     string // unix://… or tcp://…
	identity string
	contact  string // id of this host's node, "" if unknown
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
	t.contact = t.hints().Node
	return t, nil
}

// HTTP is a client whose requests to http://drover/… reach the target.
func (t Target) HTTP() (*http.Client, error) {
	connect, err := t.dialer()
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{DialContext: connect, DisableCompression: true}}, nil
}

// Docker is docker's own client on the target. Its requests are spans of tp.
func (t Target) Docker(tp trace.TracerProvider) (client.APIClient, error) {
	connect, err := t.dialer()
	if err != nil {
		return nil, err
	}
	otel.SetTextMapPropagator(propagation.TraceContext{})
	tr := &http.Transport{DialContext: connect, DisableCompression: true}
	inner, err := client.New(client.WithHost(t.Host), client.WithHTTPClient(&http.Client{Transport: tr}), client.WithDialContext(connect), client.WithHTTPRequestHook(t.mark), client.WithHTTPResponseHook(note), client.WithTraceProvider(tp), client.WithTraceOptions(otelhttp.WithSpanNameFormatter(spanName)), client.WithUserAgent("drover"))
	if err != nil {
		return nil, fmt.Errorf("preparing the client for %s: %w", t.Host, err)
	}
	return &fleetClient{APIClient: inner, warn: toStderr, far: t.elsewhere() != nil}, nil
}

func (t Target) dialer() (func(ctx context.Context, network, addr string) (net.Conn, error), error) {
	u, err := url.Parse(t.Host)
	if err != nil {
		return nil, fmt.Errorf("host %q: %w", t.Host, err)
	}
	if u.Scheme == "unix" {
		near := func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", u.Path) }
		far := t.elsewhere()
		return func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialAgain(ctx, func() (net.Conn, error) {
				var c net.Conn
				err := errFrozen
				if far == nil || !frozen.Load() {
					c, err = near(ctx)
				}
				if err == nil || far == nil {
					return c, err
				}
				if c, ferr := far(ctx); ferr == nil {
					return c, nil
				}
				return nil, err
			})
		}, nil
	}
	files, err := pki.LoadFiles(t.identity)
	if err != nil {
		return nil, fmt.Errorf("%s wants an identity (%s names its folder): %w", t.Host, EnvIdentity, err)
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

// frozen says that this host's controller takes connections and answers nothing.
var frozen atomic.Bool

var errFrozen = errors.New("this host's controller does not answer")

// elsewhere reaches the fleet's other controllers, where this host has an
// identity for that; nil where it has none.
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

// Hints are what a host's processes leave beside its socket for its clients.
type Hints struct {
	Node        string   // id of the host's node
	Controllers []string // host:port
	Identity    string   // folder of the admin's identity, "" for none
}

// HintsFile is where they are, beside the socket.
const HintsFile = "fleet.json"

func (t Target) hints() (h Hints) {
	if path, ok := strings.CutPrefix(t.Host, "unix://"); ok {
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(path), HintsFile)); err == nil {
			_ = json.Unmarshal(b, &h) // without them there is the socket
		}
	}
	return h
}

func reach(ctx context.Context, conf *tls.Config, addrs []string) (net.Conn, error) {
	return dial.Dialer(conf, func() []string { return addrs })(ctx, "", "")
}

// dialAgain dials anew while a controller is being restarted.
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

var longID = regexp.MustCompile(`[0-9a-f]{64}`)

// spanName is a request with ids as users know them.
func spanName(_ string, r *http.Request) string {
	return r.Method + " " + longID.ReplaceAllStringFunc(r.URL.Path, func(id string) string { return id[:12] })
}

// seen is the highest raft index that this command was answered with.
var seen atomic.Uint64

func note(r *http.Response) {
	if c, ok := r.Request.Context().Value(keyKey{}).(*call); ok && r.StatusCode == http.StatusServiceUnavailable && r.Header.Get("Retry-After") != "" {
		c.later.Store(r.Header.Get(wire.HeaderUndecided) != "" || seen.Load() > 0)
	}
	if taken, ok := r.Request.Context().Value(underway{}).(*atomic.Bool); ok && r.StatusCode == http.StatusOK {
		taken.Store(true)
	}
	i, err := strconv.ParseUint(r.Header.Get(wire.HeaderIndex), 10, 64)
	for err == nil {
		old := seen.Load()
		if i <= old || seen.CompareAndSwap(old, i) {
			break
		}
	}
	if w := r.Header.Get(wire.HeaderWarning); w != "" {
		toStderr(w)
	}
	if r.Header.Get(wire.HeaderStale) != "" {
		staleOnce()
	}
}

var staleOnce = sync.OnceFunc(func() {
	toStderr("the controllers have no leader: this is what the one that answered knew last")
})

// mark gives every change a key, so that a repetition is never done twice, and
// says what this command has seen, where it is, and that it reads frames.
func (t Target) mark(r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		k := key()
		if c, ok := r.Context().Value(keyKey{}).(*call); ok {
			k = c.key
		}
		r.Header.Set(wire.HeaderKey, k)
	}
	if i := seen.Load(); i > 0 {
		r.Header.Set(wire.HeaderIndex, strconv.FormatUint(i, 10))
	}
	if i, ok := r.Context().Value(afterKey{}).(uint64); ok {
		r.Header.Set(wire.HeaderAfter, strconv.FormatUint(i, 10))
	}
	if on := os.Getenv(EnvOn); on != "" {
		r.Header.Set(wire.HeaderOn, on)
	}
	if t.contact != "" {
		r.Header.Set(wire.HeaderContact, t.contact)
	}
	if from, ok := r.Context().Value(fromKey{}).(string); ok && from != "" {
		r.Header.Set(wire.HeaderFrom, from)
	}
	if strings.HasSuffix(r.URL.Path, "/attach") || strings.HasSuffix(r.URL.Path, "/logs") || strings.Contains(r.URL.Path, "/exec/") && strings.HasSuffix(r.URL.Path, "/start") {
		r.Header.Set(wire.HeaderFrames, "1")
	}
	return nil
}

func key() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
