package e2e

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

func TestFleet(t *testing.T) {
	f := fleet.New(t, "a", "b", "c", "d")
	f.Quorum()
	a := f.Hosts[0]
	t.Log("\n" + a.Must("node", "ls") + a.Must("controller", "ls"))
	a.Must("pull", "alpine")
	for _, h := range f.Hosts {
		r := h.Drover("run", "--rm", "alpine", "echo", "hello")
		if r.Code != 0 || strings.TrimSpace(r.Out) != "hello" {
			t.Fatalf("run on %s: %v\n%s", h.Name, r, a.Logs())
		}
	}
}

// Every run ends with its output and code, exactly once, though the leader dies.
func TestLeaderDiesInTheMiddleOfRuns(t *testing.T) {
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a := f.Hosts[0]
	a.Must("pull", "alpine")
	var runs sync.WaitGroup
	var done atomic.Int32
	for n, h := range f.Hosts {
		runs.Go(func() {
			for i := range 34 {
				want := fmt.Sprintf("%s %d", h.Name, i)
				r := h.Drover("run", "--rm", "--name", "again-"+h.Name, "alpine", "/bin/sh", "-c", fmt.Sprintf("echo %s; exit %d", want, (i+n)%7))
				if r.Code != (i+n)%7 || strings.TrimSpace(r.Out) != want {
					t.Errorf("run %d on %s: %v", i, h.Name, r)
				}
				done.Add(1)
			}
		})
	}
	for k := range 3 {
		f.Eventually(time.Minute, "runs go on", func() bool { return int(done.Load()) > 10+25*k })
		l := f.Leader()
		l.Kill("controller", "--data-dir")
		t.Logf("the controller of %s was killed after %d runs", l.Name, done.Load())
	}
	runs.Wait()
	if left := a.Must("ps", "-aq"); left != "" {
		t.Fatalf("left behind: %s", left)
	}
}
