package task_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// The output of an auto-removed task is kept until a reader has all of it: a slow one may
// take its time, one whose connection broke may return within a while. A reader that waits
// for a life that never begins delays nothing.
func TestOutputIsKeptUntilItIsRead(t *testing.T) {
	for _, c := range []struct {
		name  string
		force bool
		fails bool // to start
		do    func(n *node, kept func(bool))
	}{
		{"read to its end", false, false, func(n *node, kept func(bool)) {
			r := n.Reading(hexID('a'))
			kept(true)
			r.Left(true)
			kept(false)
		}},
		{"read slowly", false, false, func(n *node, kept func(bool)) {
			r := n.Reading(hexID('a'))
			time.Sleep(10 * time.Minute)
			kept(true)
			r.Left(true)
			kept(false)
		}},
		{"cut off, and read when the reader returns", false, false, func(n *node, kept func(bool)) {
			r := n.Reading(hexID('a'))
			time.Sleep(time.Minute)
			r.Left(false)
			time.Sleep(29 * time.Second)
			kept(true)
			r = n.Reading(hexID('a'))
			time.Sleep(time.Minute)
			kept(true)
			r.Left(true)
			kept(false)
		}},
		{"cut off, and nobody returns", false, false, func(n *node, kept func(bool)) {
			n.Reading(hexID('a')).Left(false)
			time.Sleep(31 * time.Second)
			kept(false)
		}},
		{"a reader of the next attempt", false, false, func(n *node, kept func(bool)) {
			r := n.Reading(hexID('a'))
			r.Of(life.First(2))
			time.Sleep(31 * time.Second)
			kept(false)
			r.Left(false)
		}},
		{"of a start that failed", false, true, func(n *node, kept func(bool)) {
			r := n.Reading(hexID('a'))
			kept(false)
			r.Left(false)
		}},
		{"removed by force while it is read", true, false, func(n *node, kept func(bool)) {
			r := n.Reading(hexID('a'))
			n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 6, Tombstones: []*dv1.Tombstone{{TaskId: id('a'), Force: true}}})
			kept(true)
			r.Left(true)
			kept(false)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, _ := begin(t)
				cmd, phase := `"true"`, dv1.Phase_EXITED
				if c.fails {
					cmd, phase = `"nosuch"`, dv1.Phase_FAILED
				}
				a := assigned('a', dv1.Desired_RUNNING, 1, cmd)
				a.Task.AutoRemove = true
				n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 4, Full: true, Tasks: []*dv1.Assignment{a}})
				n.phase('a', 1, phase)
				if !c.force {
					n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 5, Tombstones: []*dv1.Tombstone{{TaskId: id('a')}}})
				}
				c.do(n, func(want bool) {
					t.Helper()
					if !want {
						n.until("removed", func(b *box) bool { return slices.Contains(b.removed, string(id('a'))) })
						return
					}
					synctest.Wait()
					if k := n.did("remove"); k != 0 {
						t.Fatalf("it is gone: %v", n.engine.Calls())
					}
				})
				n.stop()
				n.engine.Close()
			})
		})
	}
}
