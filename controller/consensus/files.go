package consensus

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
)

// segmentSize is the size of a new file of the log. Only whole files are deleted, so
// it is small compared to the whole log.
const segmentSize = 16 << 20

// files is raft's log. It does not store the commit index
// (raft.CommitTrackingLogStore): with it raft 1.8.0 skips configurations between the
// last snapshot and that index.
type files struct{ *wal.WAL }

// openFiles opens the log in dir after checking that all of it can be read.
// Otherwise raft would panic at what it can't read, in a restart loop that doesn't
// say what to do.
func openFiles(dir string, size int, hl hclog.Logger) (_ *files, err error) {
	meta := &metadb.BoltMetaDB{}
	defer func() {
		if p := recover(); p != nil { // by bbolt, if the file isn't a database
			err = &DamagedError{Dir: dir, Err: fmt.Errorf("%v", p)}
		}
		if err != nil {
			err = errors.Join(fmt.Errorf("opening raft's log: %w", err), meta.Close())
		}
	}()
	if err := check(dir, meta, hl); err != nil {
		return nil, err
	}
	logs, err := wal.Open(dir, wal.WithLogger(hl), wal.WithMetaStore(meta), wal.WithSegmentSize(size))
	if errors.Is(err, wal.ErrCorrupt) {
		err = &DamagedError{Dir: dir, Err: err}
	}
	if err != nil {
		return nil, err
	}
	return &files{logs}, nil
}

// DamagedError reports a log that can't be read, and what an operator can do.
type DamagedError struct {
	Dir string // of the log
	Err error  // names the file
}

func (e *DamagedError) Error() string {
	controller := filepath.Dir(filepath.Dir(e.Dir))
	return fmt.Sprintf("the log in %s is damaged and was left as it is: %v. "+
		"If most of the other controllers work, let this one rejoin: stop drover here, "+
		"run 'drover controller rm NAME' on another host, move %s aside, and run 'drover join' here; containers keep running. "+
		"Otherwise restore a copy of %s that was made while drover was stopped", e.Dir, e.Err, controller, controller)
}

func (e *DamagedError) Unwrap() error { return e.Err }
