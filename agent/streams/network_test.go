package streams

import (
	"context"
	"errors"
	"testing"

	"github.com/drover/drover/agent/task/faketask"
	"github.com/drover/drover/pkg/bulk"
)

// asked is a node's network in memory.
type asked struct {
	check bulk.NetworkCheck
	ways  []bulk.Way
	err   error
}

func (a *asked) Check(context.Context) (bulk.NetworkCheck, error) { return a.check, a.err }
func (a *asked) Ways(context.Context) ([]bulk.Way, error)         { return a.ways, a.err }

func TestControllersAskAboutTheNetwork(t *testing.T) {
	a := &asked{}
	e := faketask.New()
	t.Cleanup(e.Close)
	n := &node{t: t, e: e, hc: serve(t, e, e.Images, Options{Network: a})}
	said := func(path string, code int, want string) {
		t.Helper()
		if c, body := n.ask("GET", path, ""); c != code || body != want+"\n" && body != want {
			t.Errorf("GET %s: %d %q, want %d %q", path, c, body, code, want)
		}
	}
	said("/v1/network/check", 200, `{"Differences":null,"Peers":"","Networks":null}`)
	said("/v1/network/ways", 200, `[]`)
	a.check = bulk.NetworkCheck{Differences: []string{"link dvn1 is missing"}, Peers: "p", Networks: map[string]string{"00": "n"}}
	a.ways = []bulk.Way{{Node: "b", Link: "eth0", Direct: true, MTU: 1500, RTT: 200}}
	said("/v1/network/check", 200, `{"Differences":["link dvn1 is missing"],"Peers":"p","Networks":{"00":"n"}}`)
	said("/v1/network/ways", 200, `[{"Node":"b","Link":"eth0","Direct":true,"MTU":1500,"RTT":200}]`)
	a.err = errors.New("reaching nftables: no")
	said("/v1/network/check", 500, `{"message":"reaching nftables: no"}`)
	said("/v1/network/ways", 500, `{"message":"reaching nftables: no"}`)
}
