// Package grant is a node's right to read an image's content from another node for
// a while: signed by a controller when the image is assigned to the node, carried
// with the assignment or pull, and checked by the node that is asked, also while no
// controller answers. Which content an image has is the serving node's to know.
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
	maxKept = 4096 // that a Maker remembers
)

// Maker makes grants as a controller. Safe for concurrent use.
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

// NewMaker signs as files say.
func NewMaker(files *pki.Files) *Maker { return &Maker{files: files, made: map[of]made{}} }

// For gives the node a grant for the image: one that it was given may be given
// again while it lasts for half an hour more.
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

// What a grant is refused for, besides its signer.
var (
	ErrExpired = errors.New("the grant has expired")
	ErrOthers  = errors.New("the grant is another node's")
)

// Check gives the digest that node may read. known says which controllers are the
// fleet's. A clock that is behind makes grants last longer, and never refuses one.
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
