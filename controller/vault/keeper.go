package vault

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// Log is a controller's own log.
type Log interface {
	Snapshot() *state.Snapshot
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
}

// KeeperOptions configures NewKeeper.
type KeeperOptions struct {
	Vault  *Vault
	Self   pki.Principal // this controller
	Log    Log
	Logger *slog.Logger
	// Overlap is how long the previous gossip key is still accepted: agents with a
	// session get the new one at once, the others when they reconnect. 0 is 10 s.
	Overlap time.Duration
}

// Keeper rotates keys that a removed member knows. Each step is one entry, and is
// due for as long as the state shows it: if the leader fails before committing it,
// nothing has changed, and the next leader does it.
type Keeper struct {
	o     KeeperOptions
	due   chan struct{} // signalled when an entry may have made something due
	since time.Time     // when this leader first saw a surplus gossip key
}

// NewKeeper returns a Keeper whose Run is the leader's.
func NewKeeper(o KeeperOptions) *Keeper {
	if o.Overlap == 0 {
		o.Overlap = 10 * time.Second
	}
	return &Keeper{o: o, due: make(chan struct{}, 1)}
}

const (
	retryAfter = 500 * time.Millisecond
	proposeFor = 5 * time.Second
)

// Committed is called with each entry's effects, once they are in the state. It
// never blocks.
func (k *Keeper) Committed(effects []*dv1.Effect) {
	for _, e := range effects {
		if e.GetIdentity() != nil || e.GetSealed() != nil || e.GetDeleteSealed() != "" || e.GetDeleteController() != "" {
			k.notify()
			return
		}
	}
}

func (k *Keeper) notify() {
	select {
	case k.due <- struct{}{}:
	default:
	}
}

// Run serves one term of this controller's leadership, until ctx is done.
func (k *Keeper) Run(ctx context.Context) error {
	k.since = time.Time{}
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-k.due:
		case <-wake.C:
		case <-ctx.Done():
			return nil
		}
		again, err := k.step(ctx)
		if err != nil && ctx.Err() == nil {
			k.o.Logger.Warn("rotating the fleet's keys failed, retrying", "err", err)
			again = retryAfter
		}
		if again > 0 {
			wake.Reset(again)
		}
	}
}

// step does what is due, and returns when to check again even without a commit; 0 is
// never. New values wait until a due rotation of the data key is done.
func (k *Keeper) step(ctx context.Context) (again time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, proposeFor)
	defer cancel()
	if err := k.dataKey(ctx); err != nil {
		return 0, err
	}
	again, err = k.gossipKey(ctx)
	return again, errors.Join(err, k.sharedAdmin(ctx))
}

// exposed reports whether anybody other than a current controller can open the data
// key.
func exposed(s *state.Snapshot) bool {
	for w := range s.SealedAll() {
		if _, id, ok := strings.Cut(strings.TrimPrefix(w.Name, command.WrapPrefix), "/"); ok && strings.HasPrefix(w.Name, command.WrapPrefix) && s.Controller(id) == nil {
			return true
		}
	}
	return false
}

// dataKey replaces a data key that a removed controller knows.
func (k *Keeper) dataKey(ctx context.Context) error {
	s := k.o.Log.Snapshot()
	if !exposed(s) {
		return nil
	}
	c, err := k.rotation(s)
	if err != nil {
		return fmt.Errorf("generating a new data key: %w", err)
	}
	res, err := k.o.Log.Propose(ctx, &dv1.Command{Principal: k.o.Self.URI, Of: &dv1.Command_RotateDataKey{RotateDataKey: c}})
	if err == nil && res.GetError().GetKind() == dv1.Error_STALE_KEY {
		k.notify() // retry from the current state
		return nil
	}
	if err := decided(res, err); err != nil {
		return fmt.Errorf("replacing the data key: %w", err)
	}
	k.o.Logger.Info("the data key was replaced, since a controller that knew it was removed")
	if r := s.Sealed(command.RecoveryName); r != nil && len(r.Recipient) == 0 {
		k.o.Logger.Warn("the recovery key can't open what is sealed from now on: it was created before drover stored its public half")
	}
	return nil
}

// rotation generates a new data key for the current controllers.
func (k *Keeper) rotation(s *state.Snapshot) (*dv1.RotateDataKey, error) {
	key, err := k.o.Vault.Key(s)
	if err != nil {
		return nil, err
	}
	to := map[string][]byte{}
	for m := range s.Controllers() {
		i := s.Identity(pki.URI(s.Cluster().GetId(), pki.KindController, m.Id))
		if len(i.GetSealPublic()) == 0 {
			return nil, fmt.Errorf("controller %s has no sealing key", m.Name)
		}
		to[m.Id] = i.SealPublic
	}
	return key.Rotate(s.SealedAll(), to)
}

// gossipKey creates the first gossip key, and another one when a member that knows
// it was removed; the old one is deleted after Overlap.
func (k *Keeper) gossipKey(ctx context.Context) (again time.Duration, err error) {
	s := k.o.Log.Snapshot()
	want := gossipName(s)
	if s.Sealed(want) == nil {
		b := make([]byte, 32)
		if _, err := rand.Read(b); err != nil {
			return 0, err
		}
		key, err := k.o.Vault.Key(s)
		if err != nil {
			return 0, err
		}
		sealed, err := key.Seal(want, b)
		if err != nil {
			return 0, err
		}
		k.since = time.Time{}
		return 0, k.put(ctx, sealed)
	}
	old := gossipNames(s)[1:]
	if len(old) == 0 {
		k.since = time.Time{}
		return 0, nil
	}
	if k.since.IsZero() {
		k.since = time.Now()
	}
	if left := k.o.Overlap - time.Since(k.since); left > 0 {
		return left, nil
	}
	for _, name := range old {
		if err := k.put(ctx, &dv1.Sealed{Name: name}); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// put commits a sealed value; one without a blob is deleted.
func (k *Keeper) put(ctx context.Context, s *dv1.Sealed) error {
	err := decided(k.o.Log.Propose(ctx, &dv1.Command{Principal: k.o.Self.URI, Of: &dv1.Command_PutSealed{PutSealed: &dv1.PutSealed{Sealed: s}}}))
	if err != nil {
		return fmt.Errorf("committing %s: %w", s.Name, err)
	}
	return nil
}

// sharedAdmin revokes the admin whose key all controllers' hosts shared in fleets
// created by earlier builds, once a controller is removed: the key can't be taken
// back from one host only.
func (k *Keeper) sharedAdmin(ctx context.Context) error {
	shared := exposedAdmin(k.o.Log.Snapshot())
	if shared == nil {
		return nil
	}
	shared = proto.CloneOf(shared)
	shared.Revoked = true
	cmd := putIdentity(shared)
	cmd.Principal = k.o.Self.URI
	if err := decided(k.o.Log.Propose(ctx, cmd)); err != nil {
		return fmt.Errorf("revoking the shared admin: %w", err)
	}
	k.o.Logger.Info("the admin whose key all controllers' hosts shared was revoked, since a controller that had it was removed")
	return nil
}

// exposedAdmin returns the shared admin's identity if it is valid and somebody other
// than a current controller has its key, or nil.
func exposedAdmin(s *state.Snapshot) *dv1.Identity {
	shared := s.Identity(pki.URI(s.Cluster().GetId(), pki.KindUser, sharedAdmin))
	if shared == nil || shared.Revoked {
		return nil
	}
	for i := range s.Identities() {
		if p, err := pki.FromURI(i.Uri); err == nil && i.Revoked && p.Kind == pki.KindController {
			return shared
		}
	}
	return nil
}

func decided(r *dv1.CommandResult, err error) error {
	if err == nil && r.GetError() != nil {
		err = errors.New(r.Error.Message)
	}
	return err
}
