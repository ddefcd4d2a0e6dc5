package agents

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A silent node is always probed by the leader itself, and also by other agents.
const (
	probeWithin  = 600 * time.Millisecond // a direct probe takes 300 ms at most
	probeHelpers = 3
	probeLots    = 64 // nodes that are looked at for these
)

// Probe pings a node directly and, at the same time, through up to three other nodes
// that are ready. It reports whether any probe was answered within probeWithin.
func (a *Agents) Probe(ctx context.Context, s *state.Snapshot, id string) bool {
	target := s.Node(id)
	if target.GetAddr() == "" {
		return false
	}
	helpers := helpers(s, id)
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	answers := make(chan bool, len(helpers)+1)
	var probes sync.WaitGroup
	probes.Go(func() { answers <- a.ask(ctx, target, "/v1/probe") })
	for _, n := range helpers {
		probes.Go(func() {
			answers <- a.ask(ctx, n, "/v1/probe?"+url.Values{"addr": {target.Addr}, "node": {id}}.Encode())
		})
	}
	there := false
	for range cap(answers) {
		if there = <-answers; there {
			cancel() // one answer is enough
			break
		}
	}
	probes.Wait()
	return there
}

// helpers returns some ready nodes, by lot, other than the given one. In a large fleet
// with few ready nodes it may find fewer than there are: many that are silent at once
// must not mean a walk over all nodes for each.
func helpers(s *state.Snapshot, than string) (out []*dv1.Node) {
	all := s.NodeCount()
	first, step := rand.IntN(all), 1
	if all > probeLots {
		step = 1 + rand.IntN(all-1)
	}
	for i := range min(all, probeLots) {
		n := s.NodeAt((first + i*step) % all)
		if n.Id != than && n.Liveness == dv1.Node_READY && !slices.Contains(out, n) {
			out = append(out, n)
		}
		if len(out) == probeHelpers {
			break
		}
	}
	return out
}

func (a *Agents) ask(ctx context.Context, n *dv1.Node, path string) bool {
	hc, err := a.Client(n)
	if err != nil {
		return false
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return false
	}
	resp, err := hc.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusNoContent
}
