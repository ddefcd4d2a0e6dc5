// Package pki holds identities: the cluster's authority, SPIFFE URIs in certificates,
// the files they are kept in, and TLS configurations that verify them. What an identity
// may do is decided by roles in raft, not here.
package pki

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Kinds of identity.
const (
	KindController = "controller"
	KindNode       = "node"
	KindUser       = "user"
	KindLocal      = "local" // the peer of a unix socket
	KindToken      = "token" // a host that joins with a token
)

// RoleAdmin may do everything; the other roles are named like their kinds.
const RoleAdmin = "admin"

// Principal is the caller, however it was authenticated.
type Principal struct {
	Kind    string
	ID      string
	Cluster string
	URI     string // spiffe://CLUSTER/KIND/ID; of a host's users, its URI + "/uid/" + UID; token:ID
	Roles   []string
}

// Has reports whether the principal has a role; an admin has a user's as well.
func (p Principal) Has(role string) bool { return slices.Contains(p.Roles, role) }

// URI returns the name of an identity, as in its certificate.
func URI(cluster, kind, id string) string {
	return (&url.URL{Scheme: "spiffe", Host: cluster, Path: "/" + kind + "/" + id}).String()
}

// AdminOf returns the id of the admin whose identity is on a controller's host. Each
// host has its own, so that it can be revoked with the host.
func AdminOf(host string) string { return "admin-" + host }

// Account returns the owner of a request's idempotency key: the caller. The admins of
// controllers' hosts, and root on those hosts' sockets, count as one: a client whose
// socket is gone retries elsewhere with its host's certificate.
func Account(uri string) string {
	if host, uid, ok := HostOf(uri); ok {
		if p, err := FromURI(host); err == nil && p.Kind == KindController && uid == "0" {
			return RoleAdmin
		}
		return uri
	}
	if p, err := FromURI(uri); err == nil && p.Kind == KindUser && strings.HasPrefix(p.ID, AdminOf("")) {
		return RoleAdmin
	}
	return uri
}

// FromURI parses spiffe://CLUSTER/KIND/ID. Only what URI returns is accepted: roles and
// revocations are looked up by URI, so no identity may have a second one.
func FromURI(s string) (Principal, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Principal{}, fmt.Errorf("identity %q: %w", s, err)
	}
	kind, id, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	known := kind == KindController || kind == KindNode || kind == KindUser
	if u.Scheme != "spiffe" || u.Host == "" || !ok || !known || id == "" || strings.Contains(id, "/") || s != URI(u.Host, kind, id) {
		return Principal{}, fmt.Errorf("identity %q is not spiffe://CLUSTER/{controller,node,user}/ID", s)
	}
	return Principal{Kind: kind, ID: id, Cluster: u.Host, URI: s}, nil
}

// FromCert returns the identity in a verified certificate, without roles.
func FromCert(c *x509.Certificate) (Principal, error) {
	if len(c.URIs) != 1 {
		return Principal{}, fmt.Errorf("certificate %q has %d identity URIs, want 1", c.Subject, len(c.URIs))
	}
	return FromURI(c.URIs[0].String())
}

// uidPart separates a host's URI from the uid of one of its users.
const uidPart = "/uid/"

// At returns the peer of a unix socket as the fleet knows it: a user of a controller's
// or node's host.
func (p Principal) At(host Principal) Principal {
	p.Cluster, p.URI = host.Cluster, host.URI+uidPart+p.ID
	return p
}

// HostOf splits what At wrote into a host's URI and a uid. It returns false if s is no
// such URI.
func HostOf(s string) (host, uid string, ok bool) { return strings.Cut(s, uidPart) }

// TokenURI names a host that joins with a token.
func TokenURI(id string) string { return KindToken + ":" + id }

// Local is the peer of a unix socket before its host is known.
func Local(uid int, roles ...string) Principal {
	id := strconv.Itoa(uid)
	return Principal{Kind: KindLocal, ID: id, URI: "unix:" + id, Roles: roles}
}

type principalKey struct{}

// WithPrincipal puts the caller into a request's context.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// ErrNoPrincipal reports that the caller is not authenticated.
var ErrNoPrincipal = errors.New("no identity: a client certificate of this cluster is needed")

// PrincipalFrom returns the caller that WithPrincipal stored.
func PrincipalFrom(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(Principal)
	return p, ok
}
