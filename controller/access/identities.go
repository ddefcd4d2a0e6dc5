package access

import (
	"errors"
	"fmt"

	"github.com/drover/drover/controller/state"
	"github.com/drover/drover/pkg/pki"
)

// Identities authorizes peers by this member's current state. It is safe for
// concurrent use if snapshot is.
type Identities struct {
	snapshot func() *state.Snapshot // returns nil until the log is open
}

// NewIdentities returns Identities that read the state with snapshot, which returns
// nil until there is one.
func NewIdentities(snapshot func() *state.Snapshot) Identities { return Identities{snapshot} }

// Authorize refuses identities that are unknown, revoked, or without the role.
func (i Identities) Authorize(p pki.Principal, role string) error {
	s := i.snapshot()
	if s == nil {
		return errors.New("this controller is starting: identities are not known yet")
	}
	p, err := Known(s, p.URI)
	if err != nil {
		return err
	}
	if !p.Has(role) {
		return fmt.Errorf("%s lacks the role %s", p.URI, role)
	}
	return nil
}

// Verify returns Authorize for one role, for TLS handshakes.
func (i Identities) Verify(role string) pki.Verify {
	return func(p pki.Principal) error { return i.Authorize(p, role) }
}

// NotRevoked accepts identities that this member doesn't know yet: it may learn of
// them through the very connection being verified.
func (i Identities) NotRevoked(p pki.Principal) error {
	if s := i.snapshot(); s != nil && s.Identity(p.URI).GetRevoked() {
		return fmt.Errorf("%s: %w", p.URI, pki.ErrRevoked)
	}
	return nil
}
