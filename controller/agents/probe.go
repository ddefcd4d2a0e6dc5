package agents

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A silent node is always probed by the leader itself, and also by other agents.
const (
	probeWithin  = 600 * time.Millisecond // a direct probe takes 300 ms at most
	probeHelpers = 3
)

// Probe pings a node directly and, at the same time, through up to three other nodes
// that are ready. It reports whether any probe was answered within probeWithin.
func (a *Agents) Probe(ctx context.Context, s *state.Snapshot, id string) bool {
	target := s.Node(id)
	if target.GetAddr() == "" {
		return false
	}
	var helpers []*dv1.Node
	for n := range s.Nodes() {
		if n.Id != id && n.Liveness == dv1.Node_READY {
			helpers = append(helpers, n)
		}
	}
	rand.Shuffle(len(helpers), func(i, j int) { helpers[i], helpers[j] = helpers[j], helpers[i] })
	helpers = helpers[:min(len(helpers), probeHelpers)]

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
