package grant

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

func identity(t *testing.T, ca *pki.Authority, kind, id string) *pki.Files {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Issue(pki.URI("c", kind, id), key.Public(), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := pki.WriteFiles(dir, [][]byte{ca.Cert.Raw}, der, key, nil); err != nil {
		t.Fatal(err)
	}
	f, err := pki.LoadFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func authority(t *testing.T) *pki.Authority {
	t.Helper()
	ca, err := pki.NewAuthority("c", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// A grant is of one node, for one image, for a while, by a controller of the fleet.
func TestAGrantIsOneNodesForAWhile(t *testing.T) {
	ca := authority(t)
	serving, ctl := identity(t, ca, pki.KindNode, "serving"), identity(t, ca, pki.KindController, "ctl")
	known := func(p pki.Principal) error {
		if p.ID == "removed" {
			return pki.ErrRevoked
		}
		return nil
	}
	g, err := NewMaker(ctl).For("n1", "sha256:a")
	if err != nil {
		t.Fatal(err)
	}
	if d, err := Check(serving, known, g, "n1", time.Now()); err != nil || d != "sha256:a" {
		t.Fatalf("a good grant: %q, %v", d, err)
	}
	refused := func(what string, b []byte, node string, at time.Time, want error) {
		t.Helper()
		if d, err := Check(serving, known, b, node, at); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %q, %v, want %v", what, d, err, want)
		}
	}
	by := func(f *pki.Files) []byte {
		t.Helper()
		b, err := NewMaker(f).For("n1", "sha256:a")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	refused("another node", g, "n2", time.Now(), ErrOthers)
	refused("nobody", g, "", time.Now(), ErrOthers)
	refused("later", g, "n1", time.Now().Add(lasts+time.Second), ErrExpired)
	refused("made by a node", by(identity(t, ca, pki.KindNode, "n1")), "n1", time.Now(), nil)
	refused("made by a removed controller", by(identity(t, ca, pki.KindController, "removed")), "n1", time.Now(), pki.ErrRevoked)
	refused("made by another fleet's controller", by(identity(t, authority(t), pki.KindController, "ctl")), "n1", time.Now(), nil)
	refused("nothing", nil, "n1", time.Now(), nil)
	refused("junk", []byte("{junk!}"), "n1", time.Now(), nil)
	var p dv1.Grant
	if err := proto.Unmarshal(g, &p); err != nil {
		t.Fatal(err)
	}
	p.Said, _ = proto.Marshal(&dv1.Granted{Node: "n1", Digest: "sha256:b", Until: time.Now().Add(time.Hour).UnixNano()})
	changed, _ := proto.Marshal(&p)
	refused("changed", changed, "n1", time.Now(), pki.ErrSignature)
}

func TestAGrantIsGivenAgainWhileItLasts(t *testing.T) {
	ctl := identity(t, authority(t), pki.KindController, "ctl")
	synctest.Test(t, func(t *testing.T) {
		m := NewMaker(ctl)
		first, _ := m.For("n1", "sha256:a")
		again, _ := m.For("n1", "sha256:a")
		other, _ := m.For("n2", "sha256:a")
		time.Sleep(lasts / 2)
		later, _ := m.For("n1", "sha256:a")
		if !bytes.Equal(first, again) || bytes.Equal(first, other) || bytes.Equal(first, later) {
			t.Error("a grant is made anew too often, or not at all")
		}
	})
}
