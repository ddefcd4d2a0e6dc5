package membership

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// Recovered is what Recover did.
type Recovered struct {
	Epoch   uint64
	Index   uint64   // of the last entry that this controller had
	Removed []string // controllers, by name
}

// Recover makes this host's controller the only one of its fleet, in a new epoch:
// the way back where most controllers are lost for good. The others are revoked, and
// agents that heard of the new epoch take nothing from them any more. What this
// controller had not received is lost. Its controller must not run; advertise is
// where others dial it.
func Recover(dataDir, advertise string, log *slog.Logger) (*Recovered, error) {
	dir := identity.ControllerDir(dataDir)
	if !identity.HasController(dataDir) {
		return nil, errors.New("this host is no controller of a fleet")
	}
	unlock, err := durable.Lock(dir)
	if err != nil {
		return nil, fmt.Errorf("the controller of this host runs: stop drover here first: %w", err)
	}
	defer unlock()
	files, err := pki.LoadFiles(identity.ControllerPKI(dataDir))
	if err != nil {
		return nil, fmt.Errorf("reading this controller's identity: %w", err)
	}
	out := &Recovered{}
	err = consensus.Recover(consensus.Options{ID: files.Principal.ID, Dir: filepath.Join(dir, "raft"), Addr: raft.ServerAddress(advertise), Logger: log},
		func(s *state.Snapshot) (effects []*dv1.Effect, err error) {
			*out, effects, err = alone(s, files.Principal.ID, advertise)
			return effects, err
		})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// alone is the state's change to a fleet with one controller, where others dial it
// from now on.
func alone(s *state.Snapshot, self, advertise string) (out Recovered, effects []*dv1.Effect, err error) {
	if s.Cluster() == nil || s.Controller(self) == nil {
		return out, nil, errors.New("the log of this host does not have it as a controller: it was removed, or never had caught up")
	}
	c := proto.CloneOf(s.Cluster())
	c.Epoch++
	out.Epoch, out.Index = c.Epoch, s.Index()
	effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: c}})
	for m := range s.Controllers() {
		if m.Id == self {
			if m.Addr != advertise {
				m = proto.CloneOf(m)
				m.Addr = advertise
				effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Controller{Controller: m}})
			}
			continue
		}
		out.Removed = append(out.Removed, m.Name)
		effects = append(effects, command.Expel(s, m.Id)...)
	}
	return out, effects, nil
}
