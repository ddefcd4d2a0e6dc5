package access

import (
	"errors"
	"fmt"

	"github.com/drover/drover/controller/state"
	"github.com/drover/drover/pkg/pki"
)

// Identities judges peers by the state as this member has it now. Safe for concurrent
// use if snapshot is.
type Identities struct {
	snapshot func() *state.Snapshot // nil while the log is not open
}

// NewIdentities reads the state with snapshot, which returns nil while there is none.
func NewIdentities(snapshot func() *state.Snapshot) Identities { return Identities{snapshot} }

// Authorize refuses whoever is not known, is revoked, or lacks a role.
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
		return fmt.Errorf("%s has not the role %s", p.URI, role)
	}
	return nil
}

// Verify returns Authorize with a role, for handshakes.
func (i Identities) Verify(role string) pki.Verify {
	return func(p pki.Principal) error { return i.Authorize(p, role) }
}

// NotRevoked passes identities that this member doesn't know yet: it may learn of them
// through the very connection that it asks about.
func (i Identities) NotRevoked(p pki.Principal) error {
	if s := i.snapshot(); s != nil && s.Identity(p.URI).GetRevoked() {
		return fmt.Errorf("%s: %w", p.URI, pki.ErrRevoked)
	}
	return nil
}
