package state

import dv1 "github.com/drover/drover/pkg/api/v1"

// clusters has one record at most: what this state is of.
var clusters = &kind[*dv1.Cluster]{
	name: "cluster",
	key:  func(*dv1.Cluster) string { return "" },
}

// Cluster is nil until Init was committed.
func (s *Snapshot) Cluster() *dv1.Cluster { return clusters.get(s, "") }
