package state

// table is all that a state holds, in the order of a snapshot file: what others are
// counted by comes first, as a task's spec.
var table = numbered(
	clusters,
	specs,
	runs,
	tasks,
	tombstones,
	nodes,
	images,
	tags,
	identities,
	sealed,
	results,
	controllers,
	tokens,
	ended,
)

// effects is how each effect of the log is applied to it.
var effects = applying(table)

func numbered(rows ...row) []row {
	for i, r := range rows {
		r.place(i)
	}
	return rows
}
