// Package state holds what the replicated log has decided, as immutable copy-on-
// write snapshots behind a typed store. It is deterministic: deciding, proposing and
// informing agents are left to command, consensus and dispatch, and times come from
// log entries.
//
// A state is a table of kinds (table.go), each in a file of its own.
package state

// Feature levels: what entries hold that earlier builds can't apply. What a level
// brought is emitted once the cluster's level is that one.
const (
	// LevelRuns has runs over nodes, with slots, and agents' own restarts.
	LevelRuns = 2
	// LevelNetworks has networks, slices and endpoints.
	LevelNetworks = 3
	// LevelVolumes has volumes, their removals, and tasks' mounts.
	LevelVolumes = 4
	// LevelMoves has volumes that are being moved, which nobody may use.
	LevelMoves = 5
	// FeatureLevel is the highest level of entries that this build can apply.
	FeatureLevel = LevelMoves
)

// Level is what entries may hold now, from 1.
func (s *Snapshot) Level() uint32 { return max(1, s.Cluster().GetFeatureLevel()) }

// Snapshot is an immutable view of the state at one index. It is safe for
// concurrent use; the messages it returns must not be modified.
type Snapshot struct {
	index  uint64
	time   int64
	rows   []any // *rows[M] for each kind of the table
	writer *Txn  // which may still write to it; nil if it is immutable
}

func empty() *Snapshot {
	s := &Snapshot{}
	for _, k := range table {
		s.rows = append(s.rows, k.empty())
	}
	return s
}

// Index returns the raft index of the last entry that changed the state: its
// version.
func (s *Snapshot) Index() uint64 { return s.index }

// Time returns the state's time in Unix nanoseconds, which never decreases.
func (s *Snapshot) Time() int64 { return s.time }
