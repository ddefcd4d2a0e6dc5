package state

// table lists everything that a state holds, in the order of a snapshot file: what
// other kinds' totals depend on comes first, such as a task's spec.
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
	volumes,
	networks,
	addressSlices,
	endpoints,
)

// effects maps each effect of the log to the function that applies it.
var effects = applying(table)

func numbered(rows ...row) []row {
	for i, r := range rows {
		r.place(i)
	}
	return rows
}
