package controller

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// seals opens what is sealed in raft, with the data key of the state that it is
// in: the leader replaces it when a controller was removed.
type seals struct {
	c   *controller
	log *tracedLog

	mu   sync.Mutex // guards last
	last *bootstrap.DataKey
}

// key is the data key that a state's values are sealed with.
func (s *seals) key(snap *state.Snapshot) (*bootstrap.DataKey, error) {
	id := snap.Sealed(command.AuthorityName).GetDataKey()
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	if last != nil && last.ID == id {
		return last, nil
	}
	wrap := s.c.wrap(snap)
	if wrap == nil {
		return nil, fmt.Errorf("data key %s is not wrapped for this controller", id)
	}
	k, err := bootstrap.Unwrap(wrap, s.c.files.Seal)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = k
	return k, nil
}

// exposed says whether somebody who is no controller (any more) can open the data
// key.
func exposed(snap *state.Snapshot) bool {
	for w := range snap.SealedAll() {
		if _, id, ok := strings.Cut(strings.TrimPrefix(w.Name, command.WrapPrefix), "/"); ok && strings.HasPrefix(w.Name, command.WrapPrefix) && snap.Controller(id) == nil {
			return true
		}
	}
	return false
}

// rotation is a new data key for those who are controllers.
func (s *seals) rotation(snap *state.Snapshot) (*dv1.RotateDataKey, error) {
	key, err := s.key(snap)
	if err != nil {
		return nil, err
	}
	to := map[string][]byte{}
	for m := range snap.Controllers() {
		i := snap.Identity(pki.URI(snap.Cluster().GetId(), pki.KindController, m.Id))
		if len(i.GetSealPublic()) == 0 {
			return nil, fmt.Errorf("controller %s has no sealing key", m.Name)
		}
		to[m.Id] = i.SealPublic
	}
	return key.Rotate(snap.SealedAll(), to)
}

// authority signs identities: any controller does.
func (s *seals) authority() (*pki.Authority, error) {
	snap := s.log.Snapshot()
	key, err := s.key(snap)
	if err != nil {
		return nil, fmt.Errorf("unsealing the authority's key: %w", err)
	}
	b, err := key.Open(snap.Sealed(command.AuthorityName))
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
	for _, der := range snap.Cluster().GetTrustBundle() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("reading the trust bundle: %w", err)
		}
		if pub, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(signer.Public()) {
			return &pki.Authority{Cert: c, Key: signer}, nil
		}
	}
	return nil, fmt.Errorf("no certificate in the trust bundle belongs to the authority's key")
}

// gossipPrefix begins the names of the gossip's keys; the highest is the newest.
const gossipPrefix = "gossip-key/"

// gossipName is the key of now: its number grows with each member of the fleet
// that was removed, so that whoever leads finds out whether one is due.
func gossipName(snap *state.Snapshot) string {
	n := 1
	for i := range snap.Identities() {
		if p, err := pki.FromURI(i.Uri); err == nil && i.Revoked && p.Kind != pki.KindUser {
			n++
		}
	}
	return fmt.Sprintf("%s%08d", gossipPrefix, n)
}

// gossipNames gives those that are there, newest first.
func gossipNames(snap *state.Snapshot) (names []string) {
	for k := range snap.SealedAll() {
		if strings.HasPrefix(k.Name, gossipPrefix) {
			names = append(names, k.Name)
		}
	}
	slices.Sort(names)
	slices.Reverse(names)
	return names
}

// gossip gives the gossip's keys, newest first.
func (s *seals) gossip() [][]byte {
	snap := s.log.Snapshot()
	key, err := s.key(snap)
	if err != nil {
		return nil
	}
	var out [][]byte
	for _, n := range gossipNames(snap) {
		if b, err := key.Open(snap.Sealed(n)); err == nil {
			out = append(out, b)
		}
	}
	return out
}
