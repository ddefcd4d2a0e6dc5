// Package roster lists who belongs to a fleet: its current controllers and nodes, and
// identities that were revoked. Controllers build it from the log; agents keep it, and
// accept nobody else. Sending and storing it is up to them.
package roster

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// Roster is immutable: Apply returns a new one. The nil Roster knows nobody.
type Roster struct {
	epoch, index uint64
	members      map[string]string // address by URI; a controller's is ""
	revoked      map[string]bool
}

// ErrUnknown reports an identity that does not belong to the fleet, or not yet.
var ErrUnknown = errors.New("identity is not one of this fleet's")

// Apply returns the roster with an update applied, and whether that changed anything. An
// update from an older state of the log changes nothing.
func (r *Roster) Apply(news *dv1.Roster) (*Roster, bool) {
	if news == nil || r != nil && (news.Epoch < r.epoch || news.Epoch == r.epoch && news.Index < r.index) {
		return r, false
	}
	if r == nil && !news.Full {
		return r, false // a partial update needs a base
	}
	out := &Roster{epoch: news.Epoch, index: news.Index, members: map[string]string{}, revoked: map[string]bool{}}
	if !news.Full {
		maps.Copy(out.members, r.members)
		maps.Copy(out.revoked, r.revoked)
	}
	for _, m := range news.Members {
		out.members[m.Uri] = m.Addr
		delete(out.revoked, m.Uri)
	}
	for _, uri := range news.Revoked {
		delete(out.members, uri)
		out.revoked[uri] = true
	}
	return out, true
}

// Known is a pki.Verify for accepted connections: only members pass.
func (r *Roster) Known(p pki.Principal) error {
	if err := r.NotRevoked(p); err != nil {
		return err
	}
	if r != nil {
		if _, ok := r.members[p.URI]; ok {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", p.URI, ErrUnknown)
}

// NotRevoked is a pki.Verify for dialed connections: an unknown identity passes, since a
// host that was away for long may know none of today's controllers, and learns of them
// only from one of them.
func (r *Roster) NotRevoked(p pki.Principal) error {
	if r != nil && r.revoked[p.URI] {
		return fmt.Errorf("%s: %w", p.URI, pki.ErrRevoked)
	}
	return nil
}

// Addr returns a member's bulk listener, "" if it has none or is not a member.
func (r *Roster) Addr(uri string) string {
	if r == nil {
		return ""
	}
	return r.members[uri]
}

// Proto returns the whole roster, in a stable order.
func (r *Roster) Proto() *dv1.Roster {
	if r == nil {
		return nil
	}
	out := &dv1.Roster{Epoch: r.epoch, Index: r.index, Full: true, Revoked: slices.Sorted(maps.Keys(r.revoked))}
	for _, uri := range slices.Sorted(maps.Keys(r.members)) {
		out.Members = append(out.Members, &dv1.Member{Uri: uri, Addr: r.members[uri]})
	}
	return out
}

// Sum is a hash of the roster's content: rosters of one epoch with the same members have
// the same sum, whatever entry they are as of. It is nil for the nil Roster.
func (r *Roster) Sum() []byte {
	if r == nil {
		return nil
	}
	h := sha256.New()
	write := func(format string, of ...any) { _, _ = fmt.Fprintf(h, format, of...) } // a hash never fails to write
	write("%d\n", r.epoch)
	for _, uri := range slices.Sorted(maps.Keys(r.members)) {
		write("+%s %s\n", uri, r.members[uri])
	}
	for _, uri := range slices.Sorted(maps.Keys(r.revoked)) {
		write("-%s\n", uri)
	}
	return h.Sum(nil)
}

// magic starts the bytes of a stored roster, and holds their version.
const magic = "drover-roster 1\n"

// Marshal returns the bytes to store.
func (r *Roster) Marshal() ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Proto())
	if err != nil {
		return nil, fmt.Errorf("encoding the roster: %w", err)
	}
	return append([]byte(magic), b...), nil
}

// Unmarshal parses what Marshal returned.
func Unmarshal(b []byte) (*Roster, error) {
	b, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok {
		return nil, fmt.Errorf("it does not begin with %q", strings.TrimSpace(magic))
	}
	p := &dv1.Roster{}
	if err := proto.Unmarshal(b, p); err != nil {
		return nil, err
	}
	if !p.Full {
		return nil, errors.New("it is not a whole one")
	}
	r, _ := (*Roster)(nil).Apply(p)
	return r, nil
}
