package consensus

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Recover makes a member that lost the majority of its cluster the only voter, with
// everything in its log, committed or not, and with change's effects on top. Writing
// the snapshot is the atomic step: before it nothing has changed, after it
// everything has. The member must not be open.
func Recover(o Options, change func(*state.Snapshot) ([]*dv1.Effect, error)) error {
	o.Transport = nil
	if o.Layer == nil {
		_, o.Transport = raft.NewInmemTransport(o.Addr)
	}
	if err := o.validate(); err != nil {
		return err
	}
	hl := &logAdapter{l: o.Logger.With("part", "raft")}
	logs, err := openFiles(filepath.Join(o.Dir, "wal"), o.segment, hl)
	if err != nil {
		return err
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(o.Dir, 2, hl)
	if err != nil {
		return errors.Join(fmt.Errorf("opening raft's snapshots in %s: %w", o.Dir, err), logs.Close())
	}
	n := &Node{o: o, lead: make(chan bool, 64)}
	n.pace.Store(&o.Timing)
	only := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(o.ID), Address: o.Addr}}}
	f := &changing{fsm: newFSM(nil, nil), change: change}
	err = raft.RecoverCluster(n.config(hl), f, logs, logs, snaps, o.Transport, only)
	if err != nil {
		err = fmt.Errorf("making this controller the only voter: %w", err)
	}
	return errors.Join(err, logs.Close())
}

// changing is an fsm whose snapshots contain a change that isn't in the log.
type changing struct {
	*fsm
	change func(*state.Snapshot) ([]*dv1.Effect, error)
}

// Snapshot implements raft.FSM.
func (c *changing) Snapshot() (raft.FSMSnapshot, error) {
	if err := c.store.Fatal(); err != nil {
		return nil, err
	}
	t := state.NewTxn(c.store.Snapshot())
	effects, err := c.change(t.View())
	if err != nil {
		return nil, err
	}
	if err := t.Apply(effects...); err != nil {
		return nil, err
	}
	return snapshot{t.View()}, nil
}
