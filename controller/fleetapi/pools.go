package fleetapi

import (
	"net/http"

	"github.com/drover/drover/controller/command"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/subnet"
)

// Pool is where nodes' subnets come from.
type Pool struct {
	Pool  string
	Nodes int // that it is for
	Used  int
}

func (s *server) pools(w http.ResponseWriter, r *http.Request) {
	snap, ok := s.state(w, r)
	if !ok {
		return
	}
	out := []Pool{}
	for _, p := range command.Pools(snap.Cluster()) {
		out = append(out, Pool{p.String(), subnet.Nodes(p), subnet.Taken(p, snap.Subnets(), snap.SubnetAt)})
	}
	answer(w, http.StatusOK, out)
}

func (s *server) addPool(w http.ResponseWriter, r *http.Request) {
	var p Pool
	if read(w, r, &p) {
		s.do(w, r, &dv1.Command{Of: &dv1.Command_AddPool{AddPool: &dv1.AddPool{Pool: p.Pool}}})
	}
}
