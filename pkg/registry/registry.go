// Package registry configures how upstream registries are reached (mirrors, plain HTTP,
// private authorities, credentials), and resolves references there. Fetching content is
// up to containerd, keeping it up to the agent.
package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Mirror describes how the registry called Name is reached. Name is as in references
// (docker.io, registry.lan:5000); Endpoint is the host[:port][/prefix] to use instead,
// "" for Name itself.
type Mirror struct {
	Name, Endpoint        string
	PlainHTTP, SkipVerify bool
	CAFile                string // PEM, trusted besides the system's
	Username, Password    string // used if the caller has none
}

// Credentials are a caller's, as in docker's X-Registry-Auth. They are sent to the
// registry that ServerAddress names, or to any if it is empty.
type Credentials struct{ Username, Password, IdentityToken, ServerAddress string }

// Errors of Resolve, besides *UnreachableError.
var (
	ErrNotFound     = errors.New("manifest unknown")
	ErrUnauthorized = errors.New("unauthorized: authentication required")
	ErrInvalid      = errors.New("invalid reference format")
)

// UnreachableError means that the registry did not answer.
type UnreachableError struct {
	Host string
	Err  error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("registry %s does not answer: %v", e.Host, e.Err)
}
func (e *UnreachableError) Unwrap() error { return e.Err }

// Registry is immutable and safe for concurrent use.
type Registry struct {
	hosts map[string]host
	other *http.Client
	plain *http.Client
}

type host struct {
	Mirror
	scheme, addr, path string
	client             *http.Client
}

const dockerHub = "docker.io"

// New validates the mirrors and reads their CA files.
func New(mirrors []Mirror) (*Registry, error) {
	r := &Registry{hosts: map[string]host{}, other: client(&tls.Config{}), plain: client(nil)}
	for _, m := range mirrors {
		h, err := newHost(m)
		if err != nil {
			return nil, fmt.Errorf("registry %q: %w", m.Name, err)
		}
		name := canonical(m.Name)
		if _, twice := r.hosts[name]; twice {
			return nil, fmt.Errorf("registry %q is configured twice", m.Name)
		}
		r.hosts[name] = h
	}
	return r, nil
}

func newHost(m Mirror) (host, error) {
	if m.Name == "" {
		return host{}, errors.New("name is missing")
	}
	endpoint := m.Endpoint
	if endpoint == "" {
		endpoint = upstream(canonical(m.Name))
	}
	h := host{Mirror: m, scheme: "https"}
	if m.PlainHTTP {
		h.scheme = "http"
	}
	if scheme, rest, ok := strings.Cut(endpoint, "://"); ok {
		if scheme != "http" && scheme != "https" {
			return host{}, fmt.Errorf("endpoint %q: scheme is neither http nor https", endpoint)
		}
		h.scheme, endpoint = scheme, rest
	}
	u, err := url.Parse(h.scheme + "://" + endpoint)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return host{}, fmt.Errorf("endpoint %q is not host[:port][/prefix]", endpoint)
	}
	h.addr, h.path = u.Host, "/v2"+strings.TrimSuffix(u.Path, "/")
	conf := &tls.Config{InsecureSkipVerify: m.SkipVerify} //nolint:gosec // set in the configuration
	if m.CAFile != "" {
		pem, err := os.ReadFile(m.CAFile)
		if err != nil {
			return host{}, fmt.Errorf("reading its CA: %w", err)
		}
		if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
			conf.RootCAs = x509.NewCertPool()
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return host{}, fmt.Errorf("%s holds no certificate", m.CAFile)
		}
	}
	h.client = client(conf)
	return h, nil
}

func client(conf *tls.Config) *http.Client {
	t := docker.DefaultHTTPTransport(conf)
	t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t.ResponseHeaderTimeout = 30 * time.Second
	return &http.Client{Transport: t}
}

func canonical(name string) string {
	switch name {
	case "index.docker.io", "registry-1.docker.io":
		return dockerHub
	}
	return name
}

func upstream(name string) string {
	if name == dockerHub {
		return "registry-1.docker.io"
	}
	return name
}

// Hosts configures containerd's resolver: where to send requests, with c if it belongs
// to that registry, and with the configured credentials otherwise. c may be nil. Peers,
// nodes that may hold the content, are tried first.
func (r *Registry) Hosts(c *Credentials, peers ...*http.Client) docker.RegistryHosts {
	return func(name string) ([]docker.RegistryHost, error) {
		var all []docker.RegistryHost
		for _, p := range peers {
			all = append(all, docker.RegistryHost{Client: p, Host: "agent", Scheme: "http", Path: "/v2", Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve})
		}
		name = canonical(name)
		h, ok := r.hosts[name]
		if !ok {
			h = host{scheme: "https", addr: upstream(name), path: "/v2", client: r.other}
			if local, _ := docker.MatchLocalhost(name); local {
				h.scheme, h.client = "http", r.plain
			}
		}
		auth := docker.NewDockerAuthorizer(
			docker.WithAuthClient(h.client),
			docker.WithAuthCreds(func(string) (string, string, error) {
				if c.isFor(name) {
					if c.IdentityToken != "" {
						return "", c.IdentityToken, nil
					}
					return c.Username, c.Password, nil
				}
				return h.Username, h.Password, nil
			}))
		return append(all, docker.RegistryHost{
			Client: h.client, Authorizer: auth, Host: h.addr, Scheme: h.scheme, Path: h.path,
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		}), nil
	}
}

// Public reports whether anybody may pull ref (with a digest), which was just resolved
// with c: either there was no credential to use, or the pull works without. It contacts
// the registry only if there was one.
func (r *Registry) Public(ctx context.Context, ref string, c *Credentials) bool {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return false
	}
	name := canonical(reference.Domain(named))
	h := r.hosts[name]
	if !c.isFor(name) && h.Username == "" && h.Password == "" {
		return true
	}
	bare := h
	bare.Username, bare.Password = "", ""
	anybody := &Registry{hosts: map[string]host{}, other: r.other, plain: r.plain}
	if h.client != nil {
		anybody.hosts[name] = bare
	}
	_, err = anybody.Resolve(ctx, named.String(), nil)
	return err == nil
}

// isFor keeps one registry's credentials from being sent to another.
func (c *Credentials) isFor(name string) bool {
	if c == nil || c.Username == "" && c.IdentityToken == "" {
		return false
	}
	addr := c.ServerAddress
	if _, rest, ok := strings.Cut(addr, "://"); ok {
		addr = rest
	}
	addr, _, _ = strings.Cut(addr, "/")
	return addr == "" || canonical(addr) == name
}

// Resolve asks the registry which digest ref ("alpine", "registry.lan/x@sha256:…") names
// now. It fetches no content.
func (r *Registry) Resolve(ctx context.Context, ref string, c *Credentials) (ocispec.Descriptor, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("resolving %q: %w: %w", ref, ErrInvalid, err)
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: r.Hosts(c)})
	_, desc, err := resolver.Resolve(ctx, named.String())
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("resolving %s: %w", named, classify(reference.Domain(named), err))
	}
	return desc, nil
}

// classify derives the kind of failure from the error of containerd's resolver.
func classify(domain string, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	var neterr net.Error
	switch {
	case errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden),
		errors.Is(err, docker.ErrInvalidAuthorization), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return fmt.Errorf("%w: %w", ErrUnauthorized, err)
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &neterr):
		return &UnreachableError{Host: domain, Err: err}
	}
	return err
}
