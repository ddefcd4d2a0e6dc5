// Package vault opens and keeps what is sealed in raft: the data key as this
// controller's own key unwraps it, the authority's key, the gossip's keys. The leader's
// Keeper replaces what somebody knows who was removed.
package vault

import (
	"crypto"
	"crypto/hpke"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// Vault opens what is sealed, with the data key of the state that it is in: the leader
// replaces that key when a controller was removed. Safe for concurrent use.
type Vault struct {
	files    *pki.Files
	snapshot func() *state.Snapshot

	mu   sync.Mutex // guards last
	last *DataKey
}

// Open proves that the log is of the controller's own cluster, and that the
// controller's sealing key opens the data key.
func Open(files *pki.Files, snapshot func() *state.Snapshot) (*Vault, error) {
	v := &Vault{files: files, snapshot: snapshot}
	s := snapshot()
	cluster := s.Cluster()
	if cluster == nil {
		return nil, errors.New("the log of this controller holds no cluster")
	}
	if cluster.GetId() != files.Principal.Cluster {
		return nil, fmt.Errorf("the log of this controller is of cluster %s, this host's identity of %s", cluster.GetId(), files.Principal.Cluster)
	}
	if Wrapped(s, files.Principal.ID) == nil {
		return nil, errors.New("unsealing: the log holds no data key for this controller")
	}
	if _, err := v.Key(s); err != nil {
		return nil, fmt.Errorf("unsealing with the key in %s: %w", files.Dir, err)
	}
	return v, nil
}

// Wrapped is the data key of a state as a controller can open it, nil if it can't.
func Wrapped(s *state.Snapshot, controller string) *dv1.Sealed {
	return s.Sealed(command.WrapName(s.Sealed(command.AuthorityName).GetDataKey(), controller))
}

// Key returns the data key that a state's values are sealed with.
func (v *Vault) Key(s *state.Snapshot) (*DataKey, error) {
	id := s.Sealed(command.AuthorityName).GetDataKey()
	v.mu.Lock()
	last := v.last
	v.mu.Unlock()
	if last != nil && last.ID == id {
		return last, nil
	}
	wrap := Wrapped(s, v.files.Principal.ID)
	if wrap == nil {
		return nil, fmt.Errorf("data key %s is not wrapped for this controller", id)
	}
	k, err := Unwrap(wrap, v.files.Seal)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = k
	return k, nil
}

// WrapFor wraps the data key for a controller with the HPKE key pub.
func (v *Vault) WrapFor(controller string, pub hpke.PublicKey) (*dv1.Sealed, error) {
	key, err := v.Key(v.snapshot())
	if err != nil {
		return nil, err
	}
	return key.WrapFor(command.WrapName(key.ID, controller), pub)
}

// Authority opens the key that signs identities: any controller may sign.
func (v *Vault) Authority() (*pki.Authority, error) {
	s := v.snapshot()
	key, err := v.Key(s)
	if err != nil {
		return nil, fmt.Errorf("unsealing the authority's key: %w", err)
	}
	b, err := key.Open(s.Sealed(command.AuthorityName))
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("reading the authority's key: %w", err)
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the authority's key is a %T, which can't sign", k)
	}
	for _, der := range s.Cluster().GetTrustBundle() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("reading the trust bundle: %w", err)
		}
		if pub, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(signer.Public()) {
			return &pki.Authority{Cert: c, Key: signer}, nil
		}
	}
	return nil, errors.New("no certificate in the trust bundle belongs to the authority's key")
}

// GossipKeys returns the gossip's keys, newest first; none while they can't be opened.
func (v *Vault) GossipKeys() [][]byte {
	s := v.snapshot()
	key, err := v.Key(s)
	if err != nil {
		return nil
	}
	var out [][]byte
	for _, n := range gossipNames(s) {
		if b, err := key.Open(s.Sealed(n)); err == nil {
			out = append(out, b)
		}
	}
	return out
}

// gossipPrefix begins the names of the gossip's keys; the highest is the newest.
const gossipPrefix = "gossip-key/"

// gossipName names the key that is due in a state: its number grows with each member of
// the fleet that was removed, so that whoever leads finds out.
func gossipName(s *state.Snapshot) string {
	n := 1
	for i := range s.Identities() {
		if p, err := pki.FromURI(i.Uri); err == nil && i.Revoked && p.Kind != pki.KindUser {
			n++
		}
	}
	return fmt.Sprintf("%s%08d", gossipPrefix, n)
}

// gossipNames lists the keys that are there, newest first.
func gossipNames(s *state.Snapshot) (names []string) {
	for k := range s.SealedAll() {
		if strings.HasPrefix(k.Name, gossipPrefix) {
			names = append(names, k.Name)
		}
	}
	slices.Sort(names)
	slices.Reverse(names)
	return names
}
