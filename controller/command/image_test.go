package command

import (
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// What a digest is was decided when it was first seen: a later word adds a place
// where it is found, or that anybody may pull it, and changes nothing else.
func TestAKnownDigestIsNeverAnotherImage(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a")
	put := func(config, repo string, public bool) {
		t.Helper()
		f.ok(&dv1.Command{Of: &dv1.Command_CommitImage{CommitImage: &dv1.CommitImage{Refs: []string{"docker.io/library/web:1"}, Image: &dv1.Image{
			Digest: "sha256:2222222222222222222222222222222222222222222222222222222222222222", ConfigDigest: config, Config: []byte(config), RepoDigests: []string{repo}, Public: public}}}})
	}
	put("first", "a@x", false)
	put("other", "b@x", true)
	put("other", "b@x", false)
	i := f.store.Snapshot().Image("sha256:2222222222222222222222222222222222222222222222222222222222222222")
	if i.ConfigDigest != "first" || string(i.Config) != "first" || len(i.RepoDigests) != 2 || !i.Public {
		t.Fatalf("the image is %v now", i)
	}
}
