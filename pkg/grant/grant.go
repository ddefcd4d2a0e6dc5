// Package grant is a node's right to read an image's content, or a volume that moves there,
// from other nodes for a limited time. A controller signs it when the image is assigned to
// the node, it is sent with the assignment, pull or move, and the node that serves the content checks it, even
// while no controller answers. Which content belongs to an image is up to the serving
// node.
package grant

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

const (
	lasts   = time.Hour
	purpose = "drover-grant/1"
	maxKept = 4096 // by a Maker
)

// Maker issues a controller's grants. Safe for concurrent use.
type Maker struct {
	files *pki.Files

	mu   sync.Mutex // guards made
	made map[of]made
}

type of struct{ node, digest string }

type made struct {
	b     []byte
	until time.Time
}

// NewMaker signs with the identity in files.
func NewMaker(files *pki.Files) *Maker { return &Maker{files: files, made: map[of]made{}} }

// For returns a grant for the node and image. An earlier grant is reused while it is
// valid for at least another half hour.
func (m *Maker) For(node, digest string) ([]byte, error) {
	k, now := of{node, digest}, time.Now()
	m.mu.Lock()
	old, ok := m.made[k]
	m.mu.Unlock()
	if ok && old.until.Sub(now) > lasts/2 {
		return old.b, nil
	}
	until := now.Add(lasts)
	said, err := proto.Marshal(&dv1.Granted{Node: node, Digest: digest, Until: until.UnixNano()})
	if err != nil {
		return nil, fmt.Errorf("encoding a grant: %w", err)
	}
	sig, err := m.files.Sign(purpose, said)
	if err != nil {
		return nil, err
	}
	b, err := proto.Marshal(&dv1.Grant{Said: said, Signature: sig, Cert: m.files.Cert.Certificate[0]})
	if err != nil {
		return nil, fmt.Errorf("encoding a grant: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.made) >= maxKept {
		clear(m.made)
	}
	m.made[k] = made{b, until}
	return b, nil
}

// Why a grant is refused, besides its signer.
var (
	ErrExpired = errors.New("the grant has expired")
	ErrOthers  = errors.New("the grant is another node's")
)

// Check returns the digest that node may read. known verifies that the signer is one of
// the fleet's controllers. With a clock that is behind, grants last longer, and none is
// refused.
func Check(files *pki.Files, known pki.Verify, b []byte, node string, now time.Time) (digest string, err error) {
	var g dv1.Grant
	var said dv1.Granted
	if err := proto.Unmarshal(b, &g); err != nil {
		return "", fmt.Errorf("reading a grant: %w", err)
	}
	by, err := files.Signer(g.Cert, pki.All(pki.Kinds(pki.KindController), known))
	if err == nil {
		err = by.Check(purpose, g.Said, g.Signature)
	}
	if err == nil {
		err = proto.Unmarshal(g.Said, &said)
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("reading a grant: %w", err)
	case said.Node != node || node == "":
		return "", ErrOthers
	case now.UnixNano() > said.Until:
		return "", ErrExpired
	}
	return said.Digest, nil
}
