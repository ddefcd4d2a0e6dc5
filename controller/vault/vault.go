// Package vault opens what is sealed in raft: the data key, with this controller's
// own key, and with that the authority's key and the gossip keys. The leader's
// Keeper rotates keys that removed members know.
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

// Vault opens sealed values with the data key of their state: the leader rotates
// that key when a controller is removed. It is safe for concurrent use.
type Vault struct {
	files    *pki.Files
	snapshot func() *state.Snapshot

	mu   sync.Mutex // guards last
	last *DataKey
}

// Open verifies that the log belongs to the controller's own cluster, and that the
// controller's sealing key opens the data key.
func Open(files *pki.Files, snapshot func() *state.Snapshot) (*Vault, error) {
	v := &Vault{files: files, snapshot: snapshot}
	s := snapshot()
	cluster := s.Cluster()
	if cluster == nil {
		return nil, errors.New("this controller's log has no cluster")
	}
	if cluster.GetId() != files.Principal.Cluster {
		return nil, fmt.Errorf("this controller's log belongs to cluster %s, but this host's identity to %s", cluster.GetId(), files.Principal.Cluster)
	}
	if Wrapped(s, files.Principal.ID) == nil {
		return nil, errors.New("unsealing: the log holds no data key for this controller")
	}
	if _, err := v.Key(s); err != nil {
		return nil, fmt.Errorf("unsealing with the key in %s: %w", files.Dir, err)
	}
	return v, nil
}

// Wrapped returns a state's data key, wrapped for a controller, nil if there is
// none.
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

// WrapFor wraps the data key for a controller whose HPKE key is pub.
func (v *Vault) WrapFor(controller string, pub hpke.PublicKey) (*dv1.Sealed, error) {
	key, err := v.Key(v.snapshot())
	if err != nil {
		return nil, err
	}
	return key.WrapFor(command.WrapName(key.ID, controller), pub)
}

// Authority opens the key that signs identities. Any controller may sign.
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

// GossipKeys returns the gossip keys, newest first; none if they can't be opened.
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

// gossipPrefix is the prefix of the gossip keys' names; the highest name is the
// newest.
const gossipPrefix = "gossip-key/"

// gossipName returns the name of the gossip key that a state should have: its number
// grows with each removed member, so any leader can tell.
func gossipName(s *state.Snapshot) string {
	n := 1
	for i := range s.Identities() {
		if p, err := pki.FromURI(i.Uri); err == nil && i.Revoked && p.Kind != pki.KindUser {
			n++
		}
	}
	return fmt.Sprintf("%s%08d", gossipPrefix, n)
}

// gossipNames returns the names of the existing keys, newest first.
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
