package task_test

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/task/faketask"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// vault is a node's volumes, whose removals end when they are let go.
type vault struct {
	mu    sync.Mutex
	calls []string
	ends  chan error
}

func (v *vault) Remove(ctx context.Context, id string) error {
	v.mu.Lock()
	v.calls = append(v.calls, id)
	v.mu.Unlock()
	select {
	case err := <-v.ends:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *vault) called() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.calls)
}

// A removal of a volume is acknowledged once the data is deleted, is tried again until it
// is, and is one however often a controller repeats it.
func TestARemovedVolumeIsAcknowledgedOnceItsDataIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := faketask.New()
		defer e.Close()
		store, err := task.OpenStore(filepath.Join(t.TempDir(), "tasks.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = store.Close() }()
		b, v := &box{changed: make(chan struct{}), last: map[string]*dv1.TaskStatus{}}, &vault{ends: make(chan error)}
		r := task.New(task.Options{Runtime: e, Images: e.Images, Volumes: v, Store: store, Reporter: b, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = r.Run(ctx) }()
		<-r.Ready()
		take := func(index uint64, ids ...byte) {
			y := &dv1.Sync{Epoch: 1, Term: 1, Index: index}
			for _, c := range ids {
				y.VolumesRemoved = append(y.VolumesRemoved, &dv1.Tombstone{VolumeId: id(c), NodeId: "n"})
			}
			if err := r.Take(ctx, y); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		removed := func() []string {
			b.mu.Lock()
			defer b.mu.Unlock()
			return slices.Clone(b.removed)
		}
		take(1, 'v')
		take(2, 'v') // repeated
		if want := []string{hexID('v')}; !slices.Equal(v.called(), want) || len(removed()) > 0 {
			t.Fatalf("removals of %v, acknowledged %q", v.called(), removed())
		}
		v.ends <- errors.New("the disk says no")
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(v.called()) != 2 || len(removed()) > 0 {
			t.Fatalf("after a failure: removals of %v, acknowledged %q", v.called(), removed())
		}
		v.ends <- nil
		synctest.Wait()
		if !slices.Equal(removed(), []string{string(id('v'))}) {
			t.Fatalf("acknowledged %q", removed())
		}
		if err := r.Take(ctx, &dv1.Sync{Epoch: 1, Term: 1, Index: 1, VolumesRemoved: []*dv1.Tombstone{{VolumeId: id('w')}}}); !errors.Is(err, task.ErrStale) {
			t.Fatalf("an old sync: %v", err)
		}
		take(3, 'x')
		if got := v.called(); got[len(got)-1] != hexID('x') || slices.Contains(got, hexID('w')) {
			t.Fatalf("removals of %v", got)
		}
		cancel() // an agent that ends does not wait for it, and acknowledges nothing
		<-done
		if len(removed()) != 1 {
			t.Fatalf("acknowledged %q", removed())
		}
	})
}

// What a task mounts reaches the runtime with the volumes' options.
func TestMountsReachTheRuntime(t *testing.T) {
	n, _ := begin(t)
	a := assigned('a', dv1.Desired_CREATED, 0, `"x"`)
	a.Volumes = []*dv1.Volume{{Id: id('v'), Name: "data", Options: map[string]string{"type": "tmpfs"}}}
	a.Task.Mounts = []*dv1.Mount{{VolumeId: id('v'), Target: "/d", ReadOnly: true, NoCopy: true, Subpath: "s"}, {Source: "/srv", Target: "/p", CreateSource: true, Propagation: "rslave"}}
	lost := assigned('b', dv1.Desired_CREATED, 0, `"x"`)
	lost.Task.Mounts = []*dv1.Mount{{VolumeId: id('w'), Target: "/d"}}
	n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 1, Full: true, Tasks: []*dv1.Assignment{a, lost}})
	n.until("both were prepared, or refused", func(b *box) bool {
		return b.last[string(id('a'))].GetPhase() == dv1.Phase_READY && b.last[string(id('b'))].GetPhase() == dv1.Phase_FAILED
	})
	all, err := n.engine.List(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	got := all[0].Spec.Mounts
	if len(got) != 2 || got[0].Volume == nil || got[0].Volume.ID != hex.EncodeToString(id('v')) || got[0].Volume.Options["type"] != "tmpfs" || !got[0].ReadOnly || !got[0].NoCopy || got[0].Subpath != "s" ||
		got[1].Volume != nil || got[1].Source != "/srv" || !got[1].CreateSource || got[1].Propagation != "rslave" {
		t.Errorf("%+v", got)
	}
}
