// Package roster is who belongs to a fleet: the controllers and nodes of now, and
// those whose identity was revoked. Controllers make it from the log, agents keep
// it and let nobody else in. Sending and storing it is theirs.
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

// Roster is immutable: Apply makes another one. The nil Roster knows nobody.
type Roster struct {
	epoch, index uint64
	members      map[string]string // address by URI; a controller's is ""
	revoked      map[string]bool
}

// ErrUnknown: the identity is none of the fleet's, or not yet.
var ErrUnknown = errors.New("identity is not one of this fleet's")

// Apply gives the roster with news, and whether they said anything. News of an
// older state of the log say nothing.
func (r *Roster) Apply(news *dv1.Roster) (*Roster, bool) {
	if news == nil || r != nil && (news.Epoch < r.epoch || news.Epoch == r.epoch && news.Index < r.index) {
		return r, false
	}
	if r == nil && !news.Full {
		return r, false // a part of nothing
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

// Known is a pki.Verify for who comes: only members pass.
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

// NotRevoked is a pki.Verify for who is called: one that is not known yet passes,
// for a host that was away long may know nobody of today's controllers, and learns
// of them only from one of them.
func (r *Roster) NotRevoked(p pki.Principal) error {
	if r != nil && r.revoked[p.URI] {
		return fmt.Errorf("%s: %w", p.URI, pki.ErrRevoked)
	}
	return nil
}

// Addr is where a member's bulk listener is, "" for one that has none or is no member.
func (r *Roster) Addr(uri string) string {
	if r == nil {
		return ""
	}
	return r.members[uri]
}

// Proto is the whole roster, in an order of its own.
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

// Sum tells rosters of one epoch apart that say different things, as of whichever
// entry. It is nil for the nil Roster.
func (r *Roster) Sum() []byte {
	if r == nil {
		return nil
	}
	h := sha256.New()
	write := func(format string, of ...any) { _, _ = fmt.Fprintf(h, format, of...) } // a hash takes all
	write("%d\n", r.epoch)
	for _, uri := range slices.Sorted(maps.Keys(r.members)) {
		write("+%s %s\n", uri, r.members[uri])
	}
	for _, uri := range slices.Sorted(maps.Keys(r.revoked)) {
		write("-%s\n", uri)
	}
	return h.Sum(nil)
}

// magic begins the bytes of a stored roster, with their version.
const magic = "drover-roster 1\n"

// Marshal gives the bytes to store.
func (r *Roster) Marshal() ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Proto())
	if err != nil {
		return nil, fmt.Errorf("encoding the roster: %w", err)
	}
	return append([]byte(magic), b...), nil
}

// Unmarshal reads what Marshal gave.
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
