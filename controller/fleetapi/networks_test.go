package fleetapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/drover/drover/controller/dispatch"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
)

func thirtyTwo(c string) []byte { return []byte(strings.Repeat(c, 32)) }

// networked is a fleet of three nodes, of which n1 has a container in the network red.
func networked(t *testing.T) (*fake, nodes) {
	t.Helper()
	f := &fake{snap: state.NewStore().Snapshot(), agents: map[string]http.HandlerFunc{}}
	f.put(t, aNode(1), aNode(2), aNode(3), &dv1.Effect{Of: &dv1.Effect_Network{Network: &dv1.Network{Id: thirtyTwo("r"), Name: "red", Number: 1}}},
		&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: thirtyTwo("1"), Name: "web", NodeId: "n1"}}},
		&dv1.Effect{Of: &dv1.Effect_Endpoint{Endpoint: &dv1.Endpoint{TaskId: thirtyTwo("1"), NetworkId: thirtyTwo("r"), NodeId: "n1", Ip: "10.220.0.2"}}})
	return f, nodes{&server{Options{Fleet: f}}}
}

func says(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) }
}

// right is the answer of a node on which all is as it should be.
func (f *fake) right(t *testing.T, node string) (c bulk.NetworkCheck) {
	t.Helper()
	told, err := dispatch.ToldOf(f.snap)
	if err != nil {
		t.Fatal(err)
	}
	c.Peers = told.Peers()
	if c.Networks, err = told.Networks(node); err != nil {
		t.Fatal(err)
	}
	return c
}

func checked(t *testing.T, s nodes, names ...string) (out []string) {
	t.Helper()
	resp, err := s.CheckNetworks(t.Context(), req(&dv1.CheckNetworksRequest{Nodes: names}))
	if err != nil {
		return []string{err.Error()}
	}
	for _, n := range resp.Msg.Nodes {
		out = append(out, fmt.Sprintf("%s: %s%s", n.Node, strings.Join(n.Differences, "; "), n.Error))
	}
	return out
}

func TestNetworksAreChecked(t *testing.T) {
	red, blue := fmt.Sprintf("%x", thirtyTwo("r")), fmt.Sprintf("%x", thirtyTwo("b"))
	for what, c := range map[string]struct {
		change func(f *fake, one *bulk.NetworkCheck)
		ask    []string
		want   []string
		takes  time.Duration
	}{
		"all is well": {nil, nil, []string{"h001: ", "h002: ", "h003: "}, 0},
		"by name":     {nil, []string{"h003", "n1"}, []string{"h001: ", "h003: "}, 0},
		"no such":     {nil, []string{"h001", "h009"}, []string{"not_found: No such node: h009"}, 0},
		"the kernel differs": {func(_ *fake, one *bulk.NetworkCheck) {
			one.Differences = []string{"link dvn1 is missing", "route x is left"}
		}, nil,
			[]string{"h001: link dvn1 is missing; route x is left", "h002: ", "h003: "}, settleWithin},
		"old news": {func(_ *fake, one *bulk.NetworkCheck) { one.Peers, one.Networks = "x", map[string]string{red: "x"} }, []string{"n1"},
			[]string{"h001: what the node was told of the fleet's nodes is not what they are now; network red: what the node was told of it is not what it is now"}, settleWithin},
		"other networks": {func(_ *fake, one *bulk.NetworkCheck) { one.Networks = map[string]string{blue: "x"} }, []string{"n1"},
			[]string{"h001: network red: the node was not told of it; network 626262626262: the node carries it, but has no container in it"}, settleWithin},
		"silent": {func(f *fake, _ *bulk.NetworkCheck) {
			f.silent = map[string]int64{"n2": time.Now().Add(-3 * time.Minute).UnixNano()}
		}, nil, []string{"h001: ", "h002: it has not answered for 3m0s", "h003: "}, 0},
		"unreachable": {func(f *fake, _ *bulk.NetworkCheck) { f.agents["n2"] = nil }, []string{"n2"},
			[]string{`h002: it does not answer: Get "http://agent/v1/network/check": no route to host`}, 0},
		"of an earlier build": {func(f *fake, _ *bulk.NetworkCheck) {
			f.agents["n2"] = func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusNotFound)
				_, _ = w.Write([]byte(`{"message":"GET /v1/network/check is not known here"}`))
			}
		}, []string{"n2"}, []string{"h002: GET /v1/network/check is not known here"}, 0},
		"nonsense": {func(f *fake, _ *bulk.NetworkCheck) { f.agents["n2"] = says("no") }, []string{"n2"},
			[]string{"h002: its answer can't be read: json: cannot unmarshal string into Go value of type bulk.NetworkCheck"}, 0},
		"stuck": {func(f *fake, _ *bulk.NetworkCheck) {
			f.agents["n2"] = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		}, []string{"n2"}, []string{"h002: it has not answered within 10s"}, checkWithin},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, s := networked(t)
				one := f.right(t, "n1")
				f.agents["n2"], f.agents["n3"] = says(f.right(t, "n2")), says(f.right(t, "n3"))
				if c.change != nil {
					c.change(f, &one)
				}
				f.agents["n1"] = says(one)
				began := time.Now()
				if got := checked(t, s, c.ask...); !slices.Equal(got, c.want) {
					t.Errorf("said is\n%q, want\n%q", got, c.want)
				}
				if took := time.Since(began); took < c.takes || took > c.takes+settleEvery {
					t.Errorf("it took %v, want %v", took, c.takes)
				}
			})
		})
	}
}

// A node that is a moment behind differs only for that moment, and others are not asked
// again meanwhile.
func TestWhatChangesWhileItIsCheckedIsNoDifference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := networked(t)
		behind, asked := f.right(t, "n1"), 0
		f.agents["n2"] = says(f.right(t, "n2"))
		f.put(t, &dv1.Effect{Of: &dv1.Effect_Slice{Slice: &dv1.Slice{NetworkId: thirtyTwo("r"), NodeId: "n1", Prefixes: []string{"10.220.0.0/26"}}}})
		f.agents["n1"] = func(w http.ResponseWriter, r *http.Request) {
			if asked++; asked < 4 {
				says(behind)(w, r)
				return
			}
			says(f.right(t, "n1"))(w, r)
		}
		began := time.Now()
		if got := checked(t, s, "n1", "n2"); !slices.Equal(got, []string{"h001: ", "h002: "}) || time.Since(began) != 3*settleEvery || f.states != 4 {
			t.Errorf("said is %q, after %v and %d states", got, time.Since(began), f.states)
		}
	})
}

func TestWaysAreListed(t *testing.T) {
	f, s := networked(t)
	f.agents["n1"] = says([]bulk.Way{{Node: "n3", Link: "dvx", MTU: 1450, RTT: 300}, {Node: "n2", Link: "eth0", Direct: true, MTU: 1500, RTT: 200}, {Node: "n9"}})
	resp, err := s.ListWays(t.Context(), req(&dv1.ListWaysRequest{Node: "h001"}))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range resp.Msg.Ways {
		got = append(got, fmt.Sprintln(w.Node, w.Addr, w.Kind, w.Link, w.Mtu, w.Rtt))
	}
	if want := []string{"h002 10.0.0.2 DIRECT eth0 1500 200\n", "h003 10.0.0.3 TUNNEL dvx 1450 300\n", "n9  UNREACHED  0 0\n"}; !slices.Equal(got, want) {
		t.Errorf("ways are %q, want %q", got, want)
	}
	for node, want := range map[string]string{"h009": "No such node: h009", "h002": `node h002 does not say how it reaches others: it does not answer: Get "http://agent/v1/network/ways": no route to host`} {
		_, err := s.ListWays(t.Context(), req(&dv1.ListWaysRequest{Node: node}))
		if words(err) != want || node == "h002" && wire.KindOf(err) != dv1.Error_UNAVAILABLE || connect.CodeOf(err) == connect.CodeUnknown {
			t.Errorf("%s: %v, want %s", node, err, want)
		}
	}
}
