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

// Recovered is the result of Recover.
type Recovered struct {
	Epoch   uint64
	Index   uint64   // of this controller's last entry
	Removed []string // names of controllers
}

// Recover makes this host's controller the only one of its fleet, in a new epoch,
// for when most controllers are lost for good. The others are revoked, and agents
// that have seen the new epoch ignore them. What this controller had not received is
// lost. The controller must not be running; others will dial it at advertise.
func Recover(dataDir, advertise string, log *slog.Logger) (*Recovered, error) {
	dir := identity.ControllerDir(dataDir)
	if !identity.HasController(dataDir) {
		return nil, errors.New("this host is not a controller of a fleet")
	}
	unlock, err := durable.Lock(dir)
	if err != nil {
		return nil, fmt.Errorf("this host's controller is running: stop drover here first: %w", err)
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

// alone returns the effects that leave a fleet with one controller, at the given
// address.
func alone(s *state.Snapshot, self, advertise string) (out Recovered, effects []*dv1.Effect, err error) {
	if s.Cluster() == nil || s.Controller(self) == nil {
		return out, nil, errors.New("this host's log does not list it as a controller: it was removed, or never caught up")
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
