package controller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/relay"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// sharedAdmin is the admin whose key all controllers' hosts had in fleets that earlier
// builds made. It can't be taken from one of them.
const sharedAdmin = "admin"

// ownAdmin gives this host an admin's identity of its own where it has the shared one,
// or the half of a new one that a crash left.
func (c *controller) ownAdmin(ctx context.Context, way *relay.Relay, seals *seals) error {
	dir := identity.AdminPKI(c.DataDir)
	has, err := pki.LoadFiles(dir)
	if err == nil && has.Principal.ID == pki.AdminOf(c.files.Principal.ID) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	t := time.NewTicker(memberEvery)
	defer t.Stop()
	for {
		if err = c.makeAdmin(ctx, dir, way, seals); err == nil {
			c.Logger.Info("this host has an admin's identity of its own now; copies of the one before are good until a controller is removed", "dir", dir)
			return nil
		}
		c.once("admin", func() { c.Logger.Warn("this host has no admin's identity of its own yet", "err", err) })
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *controller) makeAdmin(ctx context.Context, dir string, way *relay.Relay, seals *seals) error {
	snap := seals.log.Snapshot()
	uri := pki.URI(snap.Cluster().GetId(), pki.KindUser, pki.AdminOf(c.files.Principal.ID))
	if snap.Identity(uri) == nil {
		if err := decided(way.Own(ctx, putIdentity(&dv1.Identity{Uri: uri, Roles: []string{pki.RoleAdmin}}))); err != nil {
			return err
		}
	}
	ca, err := seals.authority()
	if err != nil {
		return err
	}
	key, err := pki.NewKey()
	if err != nil {
		return err
	}
	der, err := ca.Issue(uri, key.Public(), nil, time.Now())
	if err != nil {
		return err
	}
	return pki.WriteFiles(dir, snap.Cluster().GetTrustBundle(), der, key, nil)
}

func putIdentity(i *dv1.Identity) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: i}}}
}

// knownShared is the shared admin's identity if it counts, and somebody who is no
// controller any more has its key.
func knownShared(snap *state.Snapshot) *dv1.Identity {
	shared := snap.Identity(pki.URI(snap.Cluster().GetId(), pki.KindUser, sharedAdmin))
	if shared == nil || shared.Revoked {
		return nil
	}
	for i := range snap.Identities() {
		if p, err := pki.FromURI(i.Uri); err == nil && i.Revoked && p.Kind == pki.KindController {
			return shared
		}
	}
	return nil
}

// admins takes the shared admin back. It is one entry, due as long as it shows in the
// state: whoever leads next goes on.
func (m *members) admins(ctx context.Context) error {
	shared := knownShared(m.node.Snapshot())
	if shared == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, memberWait)
	defer cancel()
	shared = proto.CloneOf(shared)
	shared.Revoked = true
	cmd := putIdentity(shared)
	cmd.Principal = m.c.files.Principal.URI
	if err := decided(m.node.Propose(ctx, cmd)); err != nil {
		return fmt.Errorf("taking the shared admin back: %w", err)
	}
	m.c.Logger.Info("the admin whose key all controllers' hosts shared was revoked, for a controller that had it was removed")
	return nil
}
