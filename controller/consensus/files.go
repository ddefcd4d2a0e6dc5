package consensus

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
)

// segmentSize is what a file of the log is made with. Only whole files are ever
// deleted, so it is small beside what the log may hold.
const segmentSize = 16 << 20

// files is raft's log. It does not keep the commit index
// (raft.CommitTrackingLogStore): raft 1.8.0 then passes over configurations
// between the last snapshot and that index.
type files struct{ *wal.WAL }

// openFiles opens the log in dir once all of it was found readable. What raft
// can't read makes it panic, in a loop of restarts and without a word about what
// to do.
func openFiles(dir string, size int, hl hclog.Logger) (_ *files, err error) {
	meta := &metadb.BoltMetaDB{}
	defer func() {
		if p := recover(); p != nil { // bbolt, of a file that is no database
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

// DamagedError is a log that can't be read, with what an operator can do.
type DamagedError struct {
	Dir string // of the log
	Err error  // names the file
}

func (e *DamagedError) Error() string {
	controller := filepath.Dir(filepath.Dir(e.Dir))
	return fmt.Sprintf("the log in %s is damaged and was left as it is: %v. "+
		"If most of the other controllers work, let this one join anew: stop drover here, "+
		"run 'drover controller rm NAME' on another host, move %s aside, and run 'drover join' here; containers go on. "+
		"Otherwise put back a copy of %s that was made while drover was stopped", e.Dir, e.Err, controller, controller)
}

func (e *DamagedError) Unwrap() error { return e.Err }
