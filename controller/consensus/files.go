package consensus

import (
	"errors"
	"fmt"

	"github.com/hashicorp/go-hclog"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
)

// files is raft's log. The log's own Close leaves its index locked. It does not
// keep the commit index (raft.CommitTrackingLogStore): raft 1.8.0 then passes
// over configurations between the last snapshot and that index.
type files struct {
	*wal.WAL
	meta *metadb.BoltMetaDB
}

func openFiles(dir string, hl hclog.Logger) (*files, error) {
	meta := &metadb.BoltMetaDB{}
	logs, err := wal.Open(dir, wal.WithLogger(hl), wal.WithMetaStore(meta))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening raft's log in %s: %w", dir, err), meta.Close())
	}
	return &files{WAL: logs, meta: meta}, nil
}

func (f *files) Close() error { return errors.Join(f.WAL.Close(), f.meta.Close()) }
