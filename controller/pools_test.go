package controller

import (
	"strings"
	"testing"

	"github.com/drover/drover/pkg/identity"
)

func TestPoolsAreListedAndAdded(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.up()
	if _, err := h.open(h.files(identity.AgentPKI(h.data)), 1, "127.0.0.1:7444"); err != nil {
		t.Fatal(err)
	}
	if r := h.fleet("Nodes/AddPool", `{"pool":"10.210.4.0/24"}`); r.code != 400 || !strings.Contains(r.body, "overlaps") {
		t.Errorf("one that overlaps: %v", r)
	}
	if r := h.fleet("Nodes/AddPool", `{"pool":"10.224.0.0/12"}`); r.code != 200 {
		t.Errorf("adding one: %v", r)
	}
	if r := h.fleet("Nodes/AddPool", `{"networkPool":"base=10.64.0.0/12,size=24"}`); r.code != 200 {
		t.Errorf("adding one for networks: %v", r)
	}
	want := `{"pools":[{"pool":"10.210.0.0/16","nodes":256,"used":1},{"pool":"10.224.0.0/12","nodes":4096}],"networkPools":[{"base":"10.220.0.0/14","size":20,"subnets":64},{"base":"10.64.0.0/12","size":24,"subnets":4096}]}`
	if r := h.fleet("Nodes/ListPools", "{}"); r.code != 200 || r.body != want {
		t.Errorf("the list: %v", r)
	}
}
