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
	if r := h.local("POST", "/drover/v1/pools", `{"Pool":"10.210.4.0/24"}`); r.code != 409 || !strings.Contains(r.body, "overlaps") {
		t.Errorf("one that overlaps: %v", r)
	}
	if r := h.local("POST", "/drover/v1/pools", `{"Pool":"10.224.0.0/12"}`); r.code != 200 {
		t.Errorf("adding one: %v", r)
	}
	want := `[{"Pool":"10.210.0.0/16","Nodes":256,"Used":1},{"Pool":"10.224.0.0/12","Nodes":4096,"Used":0}]`
	if r := h.local("GET", "/drover/v1/pools", ""); r.code != 200 || strings.TrimSpace(r.body) != want {
		t.Errorf("the list: %v", r)
	}
}
