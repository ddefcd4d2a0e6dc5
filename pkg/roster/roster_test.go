package roster

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

func who(kind, id string) pki.Principal {
	return pki.Principal{Kind: kind, ID: id, URI: pki.URI("c", kind, id)}
}

func members(addrs ...string) (out []*dv1.Member) {
	for i := 0; i < len(addrs); i += 2 {
		out = append(out, &dv1.Member{Uri: pki.URI("c", pki.KindNode, addrs[i]), Addr: addrs[i+1]})
	}
	return out
}

func TestARosterFollowsTheNewsAndNeverGoesBack(t *testing.T) {
	a, b, c := who(pki.KindNode, "a"), who(pki.KindNode, "b"), who(pki.KindController, "c")
	var r *Roster
	state := func(what string, known, revoked []pki.Principal) {
		t.Helper()
		for _, p := range []pki.Principal{a, b, c} {
			if ok := r.Known(p) == nil; ok != slices.ContainsFunc(known, func(q pki.Principal) bool { return q.URI == p.URI }) {
				t.Errorf("%s: %s known: %v", what, p.URI, ok)
			}
			if no := errors.Is(r.NotRevoked(p), pki.ErrRevoked); no != slices.ContainsFunc(revoked, func(q pki.Principal) bool { return q.URI == p.URI }) {
				t.Errorf("%s: %s revoked: %v", what, p.URI, no)
			}
		}
	}
	news := func(what string, says bool, n *dv1.Roster) {
		t.Helper()
		next, said := r.Apply(n)
		if said != says {
			t.Errorf("%s: said something: %v", what, said)
		}
		r = next
	}
	ps := func(p ...pki.Principal) []pki.Principal { return p }
	state("at first", nil, nil)
	news("a part of nothing", false, &dv1.Roster{Epoch: 1, Index: 4, Members: members("a", "x")})
	news("no news", false, nil)
	news("everybody", true, &dv1.Roster{Epoch: 1, Index: 5, Full: true, Members: append(members("a", "10.0.0.1:7444"), &dv1.Member{Uri: c.URI})})
	state("everybody", ps(a, c), nil)
	news("b joins", true, &dv1.Roster{Epoch: 1, Index: 6, Members: members("b", "10.0.0.2:7444")})
	state("b joins", ps(a, b, c), nil)
	before := r.Sum()
	news("c is removed", true, &dv1.Roster{Epoch: 1, Index: 7, Revoked: []string{c.URI}})
	state("c is removed", ps(a, b), ps(c))
	if bytes.Equal(before, r.Sum()) {
		t.Error("a removal leaves the sum as it was")
	}
	news("an older leader says c is there", false, &dv1.Roster{Epoch: 1, Index: 6, Full: true, Members: []*dv1.Member{{Uri: c.URI}}})
	state("an older leader", ps(a, b), ps(c))
	raw, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Unmarshal(raw)
	if err != nil || !bytes.Equal(again.Sum(), r.Sum()) || again.Addr(b.URI) != "10.0.0.2:7444" {
		t.Fatalf("read again it is %v (%v)", again, err)
	}
	r = again
	news("an older word after a restart", false, &dv1.Roster{Epoch: 1, Index: 6, Members: []*dv1.Member{{Uri: c.URI}}})
	state("after a restart", ps(a, b), ps(c))
	news("a restored log", true, &dv1.Roster{Epoch: 2, Index: 1, Full: true, Members: members("a", "10.0.0.1:7444")})
	state("a restored log", ps(a), nil)
}

func FuzzUnmarshal(f *testing.F) {
	r, _ := (*Roster)(nil).Apply(&dv1.Roster{Full: true, Members: members("a", "x")})
	b, _ := r.Marshal()
	f.Add(b)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := Unmarshal(b); err == nil {
			if _, err := r.Marshal(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
