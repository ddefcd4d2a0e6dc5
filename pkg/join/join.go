// Package join is the protocol between a joining host and a controller, over a TLS
// connection of its own (ALPN drover-join/1): the token's pin authenticates the
// controller, and the token's secret the host.
package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
)

// Path is that of the only request: POST Request, 200 Answer, or a status with a
// message.
const Path = "/v1/join"

// AgentsOnly is the status returned to a controller that joins with a token for agents.
const AgentsOnly = http.StatusNotAcceptable

// MaxBody bounds a Request.
const MaxBody = 64 << 10

// MaxSkew is how far a joining host's clock may be off.
const MaxSkew = 24 * time.Hour

// Request is what a host sends. Public keys are PKIX, DER.
type Request struct {
	TokenID       string
	Secret        string
	Name          string
	Hosts         []string // IP addresses and DNS names that clients dial
	Agent         string   // host:port of its agent
	Labels        map[string]string
	Now           time.Time
	NodeKey       []byte
	Controller    string // host:port of its controller; "" for an agent only
	ControllerKey []byte
	AdminKey      []byte
	SealPublic    []byte // HPKE
}

// Bounds of a Request's fields. A host's name is a DNS name.
const (
	maxName   = 253
	maxAddr   = maxName + len(":65535")
	maxHosts  = 64
	maxLabels = 128
	maxLabel  = 1024
	maxKey    = 1024
)

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// Validate reports fields that are too long or malformed. What is missing is up to the
// controller.
func (r *Request) Validate() error {
	text := func(what, s string, most int) error {
		if len(s) > most || strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) {
			return fmt.Errorf("%s is longer than %d bytes, or not printable", what, most)
		}
		return nil
	}
	errs := []error{text("the token's id", r.TokenID, 64), text("the secret", r.Secret, 256), text("the agent's address", r.Agent, maxAddr), text("the controller's address", r.Controller, maxAddr)}
	if r.Name != "" && (len(r.Name) > maxName || !hostName.MatchString(r.Name)) {
		errs = append(errs, fmt.Errorf("a host's name has letters, digits, dots, dashes and underscores, at most %d", maxName))
	}
	if len(r.Hosts) > maxHosts || len(r.Labels) > maxLabels {
		errs = append(errs, fmt.Errorf("more than %d addresses, or than %d labels", maxHosts, maxLabels))
	}
	for _, h := range r.Hosts {
		errs = append(errs, text("an address", h, maxName))
	}
	for k, v := range r.Labels {
		errs = append(errs, text("a label's name", k, maxLabel), text("a label", v, maxLabel))
	}
	for _, k := range [][]byte{r.NodeKey, r.ControllerKey, r.AdminKey, r.SealPublic} {
		if len(k) > maxKey {
			errs = append(errs, fmt.Errorf("a key is longer than %d bytes", maxKey))
		}
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Answer is what a controller returns. Certificates are DER.
type Answer struct {
	Cluster        string
	Node           string // id
	Bundle         [][]byte
	NodeCert       []byte
	ControllerCert []byte
	AdminCert      []byte
	Controllers    []string
	Timing         string // of raft, for a controller; "" is the default, LAN
}

// RefusedError is a controller's refusal of a join.
type RefusedError struct {
	Code    int
	Message string
}

func (e *RefusedError) Error() string { return e.Message }

// Ask joins through the controller at addr. It talks only to the authority that the
// token pins.
func Ask(ctx context.Context, addr string, token pki.Token, req *Request) (*Answer, error) {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{wire.ALPNJoin},
		InsecureSkipVerify: true, // the pin is checked below
		VerifyConnection:   func(cs tls.ConnectionState) error { return verify(cs, token.Pin) },
	}
	tr := &http.Transport{DisableKeepAlives: true, DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: conf}).DialContext(ctx, "tcp", addr)
	}}
	b, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encoding the request to join: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+Path, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", addr, err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		return nil, fmt.Errorf("asking the controller at %s: %w", addr, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", addr, err)
	}
	if resp.StatusCode != http.StatusOK {
		var m struct{ Message string }
		if json.Unmarshal(body, &m) != nil || m.Message == "" {
			m.Message = resp.Status
		}
		return nil, &RefusedError{resp.StatusCode, m.Message}
	}
	a := &Answer{}
	if err := json.Unmarshal(body, a); err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", addr, err)
	}
	return a, nil
}

// verify accepts a controller whose chain ends in the pinned authority. It ignores the
// clock, which may be what is wrong on this host.
func verify(cs tls.ConnectionState, pin string) error {
	for _, root := range cs.PeerCertificates {
		if pki.Pin(root.Raw) != pin {
			continue
		}
		leaf, roots := cs.PeerCertificates[0], x509.NewCertPool()
		roots.AddCert(root)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: leaf.NotBefore.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
			return fmt.Errorf("the controller's certificate is not its authority's: %w", err)
		}
		p, err := pki.FromCert(leaf)
		if err != nil {
			return err
		}
		if p.Kind != pki.KindController {
			return fmt.Errorf("%s is no controller", p.URI)
		}
		return nil
	}
	return errors.New("this is not the fleet that the token is for: its authority is another one")
}
