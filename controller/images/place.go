package images

import (
	"slices"
	"strings"

	"github.com/containerd/platforms"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// fits reports whether a pull's content may go to a node.
type fits func(*dv1.Node) (bool, error)

// where returns which nodes a pull may use. A platform's variant is ignored.
func where(snap *state.Snapshot, req PullRequest) (fits, error) {
	platform := func(*dv1.Node) bool { return true }
	if req.Platform != "" {
		p, err := platforms.Parse(req.Platform)
		if err != nil {
			return nil, refuse(dv1.Error_INVALID, "%v", err)
		}
		platform = func(n *dv1.Node) bool {
			return n.GetCapacity().GetArch() == p.Architecture && n.GetCapacity().GetOs() == p.OS
		}
		if !slices.ContainsFunc(slices.Collect(snap.Nodes()), platform) {
			return nil, refuse(dv1.Error_INVALID, "platform %s does not run on any node of this fleet", req.Platform)
		}
	}
	return func(n *dv1.Node) (bool, error) {
		if !platform(n) || len(req.On) == 0 {
			return platform(n), nil
		}
		ok, err := scheduler.Matches(n, req.On)
		if err != nil {
			return false, refuse(dv1.Error_INVALID, "%v", err)
		}
		return ok, nil
	}, nil
}

// place chooses a pull's node among those that fit and were not tried: the contact,
// a node that has the content already, or any other that answers.
func place(snap *state.Snapshot, seen *fleet.Observations, digest string, req PullRequest, fits fits, tried []string) (string, error) {
	var able []string
	for n := range snap.Nodes() {
		ok, err := fits(n)
		if err != nil {
			return "", err
		}
		if _, silent := seen.Silent(n.Id); ok && !silent && !slices.Contains(tried, n.Id) {
			able = append(able, n.Id)
		}
	}
	if len(able) == 0 {
		if len(req.On) > 0 {
			return "", refuse(dv1.Error_UNAVAILABLE, "no node answers that is %s", strings.Join(req.On, " and "))
		}
		return "", refuse(dv1.Error_UNAVAILABLE, "no node answers that could hold the image")
	}
	for _, first := range append([]string{req.Contact}, seen.Holders(digest)...) {
		if slices.Contains(able, first) {
			return first, nil
		}
	}
	return able[0], nil
}
