package dispatch

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// What a part says of its images: whether anybody may pull one, the node's grant, and,
// where the node may lack it, who has it. It is said once for each image.
func TestAPartSaysWhereItsImagesAre(t *testing.T) {
	f := newFakeLog()
	refused := false
	f.hub.o.Grant = func(node, digest string) ([]byte, error) {
		if refused {
			return nil, errors.New("no key yet")
		}
		return []byte(node + " reads " + digest), nil
	}
	effects := []*dv1.Effect{
		{Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: "public", Public: true}}}, {Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: "private"}}},
		{Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: "held", Public: true}}},
		{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "nowhere", Name: "nowhere"}}},
	}
	for i := range 2 * maxHolders {
		effects = append(effects, aNode(fmt.Sprintf("h%02d", i)))
	}
	f.put(append(effects, aNode("reader"))...)
	term := f.hub.begin()
	for n := range f.Snapshot().Nodes() {
		has := []*dv1.ImageStatus{{Digest: "held"}, {Digest: "private"}}
		if n.Id == "reader" {
			has = has[:1]
		}
		s := newSession(n.Id, func(error) {})
		if err := term.enter(s, 1); err != nil {
			t.Fatal(err)
		}
		observe(f.hub, s, &dv1.Observation{Images: has})
	}
	spec := func(id int, digest string) *dv1.Spec { return &dv1.Spec{Id: tid(id), Digest: digest} }
	task := func(specID int, attempt int32) *dv1.Assignment {
		return &dv1.Assignment{Task: &dv1.Task{SpecId: tid(specID), Attempt: attempt}}
	}
	for _, c := range []struct {
		name    string
		part    *dv1.Sync
		refused bool
		want    string // digest, "public", holders, "grant", of each source
	}{
		{name: "a first start of what others have", part: &dv1.Sync{Specs: []*dv1.Spec{spec(1, "private")}, Tasks: []*dv1.Assignment{task(1, 1)}},
			want: fmt.Sprintf("private %d grant", maxHolders)},
		{name: "a further attempt: the node has the image", part: &dv1.Sync{Specs: []*dv1.Spec{spec(1, "private")}, Tasks: []*dv1.Assignment{task(1, 2)}},
			want: "private 0 grant"},
		{name: "all of its tasks, as after a hello", part: &dv1.Sync{Full: true, Specs: []*dv1.Spec{spec(1, "private")}, Tasks: []*dv1.Assignment{task(1, 1)}},
			want: "private 0 grant"},
		{name: "all of its tasks, one of an image that it holds", part: &dv1.Sync{Full: true, Specs: []*dv1.Spec{spec(1, "held"), spec(2, "private")}, Tasks: []*dv1.Assignment{task(1, 1)}},
			want: "held public 0 | private 0 grant"},
		{name: "a new task of an image that it holds", part: &dv1.Sync{Specs: []*dv1.Spec{spec(1, "held")}, Tasks: []*dv1.Assignment{task(1, 1)}},
			want: "held public 0"},
		{name: "two specs of one image", part: &dv1.Sync{Specs: []*dv1.Spec{spec(1, "private"), spec(2, "private")}, Tasks: []*dv1.Assignment{task(1, 3), task(2, 1)}},
			want: fmt.Sprintf("private %d grant", maxHolders)},
		{name: "one that nobody has", part: &dv1.Sync{Specs: []*dv1.Spec{spec(1, "public")}, Tasks: []*dv1.Assignment{task(1, 1)}},
			want: "public public 0 grant"},
		{name: "no image", part: &dv1.Sync{Specs: []*dv1.Spec{spec(1, "")}, Tasks: []*dv1.Assignment{task(1, 1)}}},
		{name: "no grant to be had", refused: true, part: &dv1.Sync{Specs: []*dv1.Spec{spec(1, "public"), spec(2, "private")}},
			want: "public public 0 | private 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused = c.refused
			var got []string
			for _, s := range term.sources("reader", c.part) {
				words := []string{s.Digest}
				if s.Public {
					words = append(words, "public")
				}
				words = append(words, fmt.Sprint(len(s.Holders)))
				if string(s.Grant) == "reader reads "+s.Digest {
					words = append(words, "grant")
				}
				got = append(got, strings.Join(words, " "))
				if slices.Contains(s.Holders, "") || slices.Contains(s.Holders, "reader:7444") {
					t.Errorf("holders are %v", s.Holders)
				}
			}
			if got := strings.Join(got, " | "); got != c.want {
				t.Errorf("it says %q, want %q", got, c.want)
			}
		})
	}
}

// A node that holds the image itself is not sent to itself, and two nodes are not sent
// to the same few.
func TestHoldersAreSpread(t *testing.T) {
	f := newFakeLog()
	var effects []*dv1.Effect
	for i := range 4 * maxHolders {
		effects = append(effects, aNode(fmt.Sprintf("h%02d", i)))
	}
	f.put(effects...)
	term := f.hub.begin()
	for n := range f.Snapshot().Nodes() {
		s := newSession(n.Id, func(error) {})
		if err := term.enter(s, 1); err != nil {
			t.Fatal(err)
		}
		observe(f.hub, s, &dv1.Observation{Images: []*dv1.ImageStatus{{Digest: "d"}}})
	}
	seen := map[string]int{}
	for n := range f.Snapshot().Nodes() {
		holders := term.holders(f.Snapshot(), n.Id, "d")
		if len(holders) != maxHolders || slices.Contains(holders, n.Addr) {
			t.Errorf("%s is sent to %v", n.Id, holders)
		}
		for _, h := range holders {
			seen[h]++
		}
	}
	for h, n := range seen {
		if n != maxHolders {
			t.Errorf("%s is named to %d nodes, others to %d", h, n, maxHolders)
		}
	}
}
