package vault

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// sharedAdmin is the admin whose key was shared by all controllers' hosts in fleets
// created by earlier builds.
const sharedAdmin = "admin"

// AdminOptions configures OwnAdmin.
type AdminOptions struct {
	Dir       string        // of the admin's identity on this host
	Self      pki.Principal // this controller
	Snapshot  func() *state.Snapshot
	Propose   func(context.Context, *dv1.Command) (*dv1.CommandResult, error) // relays to the leader
	Authority func() (*pki.Authority, error)
	Logger    *slog.Logger
}

// OwnAdmin creates an admin identity for this host if it has the shared one, or an
// incomplete one after a crash. It retries until that succeeds or ctx is done.
func OwnAdmin(ctx context.Context, o AdminOptions) error {
	has, err := pki.LoadFiles(o.Dir)
	if err == nil && has.Principal.ID == pki.AdminOf(o.Self.ID) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	t := time.NewTicker(retryAfter)
	defer t.Stop()
	for warned := false; ; warned = true {
		err := makeAdmin(ctx, o)
		if err == nil {
			o.Logger.Info("this host now has its own admin identity; copies of the previous one stay valid until a controller is removed", "dir", o.Dir)
			return nil
		}
		if ctx.Err() == nil && !warned {
			o.Logger.Warn("creating an admin identity for this host failed, retrying", "err", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func makeAdmin(ctx context.Context, o AdminOptions) error {
	s := o.Snapshot()
	uri := pki.URI(s.Cluster().GetId(), pki.KindUser, pki.AdminOf(o.Self.ID))
	if s.Identity(uri) == nil {
		if err := decided(o.Propose(ctx, putIdentity(&dv1.Identity{Uri: uri, Roles: []string{pki.RoleAdmin}}))); err != nil {
			return err
		}
	}
	ca, err := o.Authority()
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
	return pki.WriteFiles(o.Dir, s.Cluster().GetTrustBundle(), der, key, nil)
}

func putIdentity(i *dv1.Identity) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: i}}}
}
