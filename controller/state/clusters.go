package state

import dv1 "github.com/drover/drover/pkg/api/v1"

// clusters has at most one record: the cluster that this state belongs to.
var clusters = &kind[*dv1.Cluster]{
	name: "cluster",
	key:  func(*dv1.Cluster) string { return "" },
}

// Cluster returns the cluster's record, nil until Init is committed.
func (s *Snapshot) Cluster() *dv1.Cluster { return clusters.get(s, "") }
