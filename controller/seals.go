package controller

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/controller/state"
	"github.com/drover/drover/pkg/pki"
)

// seals opens what is sealed in raft, with the data key.
type seals struct {
	key *bootstrap.DataKey
	log *tracedLog
}

// authority signs identities: any controller does.
func (s *seals) authority() (*pki.Authority, error) {
	snap := s.log.Snapshot()
	b, err := s.key.Open(snap.Sealed("ca-key"))
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
	var out [][]byte
	for _, n := range gossipNames(snap) {
		if b, err := s.key.Open(snap.Sealed(n)); err == nil {
			out = append(out, b)
		}
	}
	return out
}
