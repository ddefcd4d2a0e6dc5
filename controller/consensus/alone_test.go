package consensus

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// disk holds up what is written to it, once it is told to.
type disk struct {
	memory
	slow    atomic.Bool
	writing chan struct{}
	proceed chan struct{}
}

func (d *disk) StoreLogs(logs []*raft.Log) error {
	if d.slow.Load() {
		d.writing <- struct{}{}
		<-d.proceed
	}
	return d.memory.StoreLogs(logs)
}

// A read asks nobody where there is nobody else, and so does not wait behind an entry that
// is being written.
func TestAReadOfTheOnlyMemberDoesNotWaitForItsDisk(t *testing.T) {
	_, tr := raft.NewInmemTransport("c1")
	o := Options{ID: "c1", Dir: t.TempDir(), Addr: "c1", Transport: tr}
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	d := &disk{memory: memory{raft.NewInmemStore()}, writing: make(chan struct{}), proceed: make(chan struct{})}
	n, err := open(o, d, raft.NewInmemSnapshotStore(), silent)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{Node: n, cancel: cancel, ended: make(chan error, 1)}
	go func() { m.ended <- n.Run(ctx) }()
	t.Cleanup(func() { m.kill(t) })
	if err := m.Bootstrap([]raft.Server{{ID: "c1", Address: "c1"}}); err != nil {
		t.Fatal(err)
	}
	m.prepare(t)
	before := m.Snapshot().Index()

	d.slow.Store(true)
	proposed := make(chan error, 1)
	go func() {
		_, err := m.Propose(t.Context(), createRun("web"))
		proposed <- err
	}()
	<-d.writing
	read := make(chan uint64, 1)
	go func() {
		index, err := m.Verify()
		if err != nil {
			t.Error(err)
		}
		read <- index
	}()
	select {
	case index := <-read:
		if index != before {
			t.Errorf("it is of index %d, the last entry that was answered is %d", index, before)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for the disk")
	}
	d.slow.Store(false)
	close(d.proceed)
	if err := <-proposed; err != nil {
		t.Error(err)
	}
}

// Somebody else may lead as soon as a configuration has another voter, and not before.
func TestAMemberIsAloneWithoutAnotherVoter(t *testing.T) {
	m := single(t, t.TempDir())
	m.prepare(t)
	if !m.alone() {
		t.Error("a single member is not alone")
	}
	if err := m.Raft().AddNonvoter("c2", "127.0.0.1:1", 0, 0).Error(); err != nil {
		t.Fatal(err)
	}
	if !m.alone() {
		t.Error("a member that does not vote counts")
	}
	_ = m.Raft().AddVoter("c2", "127.0.0.1:1", 0, 0).Error() // c2 does not answer: committed or not
	if m.alone() {
		t.Error("a member with another voter is alone")
	}
}
