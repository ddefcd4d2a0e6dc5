package controller

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Probes of a silent node: by the leader itself always, and by other agents.
const (
	probeWithin  = 600 * time.Millisecond // a direct probe takes 300 ms at most
	probeHelpers = 3
)

// probe asks a node whether it is there, directly and through up to three others.
func (c *controller) probe(log *tracedLog) func(context.Context, string) bool {
	return func(ctx context.Context, id string) bool {
		snap := log.Snapshot()
		target := snap.Node(id)
		if target == nil || target.Addr == "" {
			return false
		}
		ctx, cancel := context.WithTimeout(ctx, probeWithin)
		defer cancel()
		var others []*dv1.Node
		for n := range snap.Nodes() {
			if n.Id != id && n.Liveness == dv1.Node_READY {
				others = append(others, n)
			}
		}
		rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
		others = others[:min(len(others), probeHelpers)]
		answers := make(chan bool, len(others)+1)
		ask := func(n *dv1.Node, path string) {
			hc, err := c.agents.client(n)
			if err != nil {
				answers <- false
				return
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
			if err != nil {
				answers <- false
				return
			}
			resp, err := hc.Do(req)
			if err == nil {
				_ = resp.Body.Close()
			}
			answers <- err == nil && resp.StatusCode == http.StatusNoContent
		}
		go ask(target, "/v1/probe")
		for _, n := range others {
			go ask(n, "/v1/probe?"+url.Values{"addr": {target.Addr}, "node": {id}}.Encode())
		}
		for range cap(answers) {
			if <-answers {
				return true
			}
		}
		return false
	}
}
