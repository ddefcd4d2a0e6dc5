package engine_test

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/pkg/life"
)

// A container that is started again at once keeps its address. Its network namespace
// stays, too, unless something that ran in it could have changed it; and it goes with the
// container, however many agents there were.
func TestARestartKeepsTheNetwork(t *testing.T) {
	w := newWorld(t)
	w.pulled(t, w.open(t))
	for _, c := range []struct {
		name  string
		host  func(*container.HostConfig)
		exec  bool // as root with all capabilities
		next  bool // agent
		stays bool
	}{
		{name: "a usual container", stays: true},
		{name: "by the next agent", next: true, stays: true},
		{name: "one that may configure its network", host: func(h *container.HostConfig) { h.CapAdd = []string{"NET_ADMIN"} }},
		{name: "a privileged one", host: func(h *container.HostConfig) { h.Privileged = true }},
		{name: "one with other rules than docker's", host: func(h *container.HostConfig) { h.SecurityOpt = []string{"seccomp=unconfined"} }},
		{name: "one in which an exec was privileged", exec: true},
		{name: "the same, by the next agent", exec: true, next: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := w.open(t)
			s := w.spec("exec sleep 1000")
			if c.host != nil {
				c.host(s.Create.HostConfig)
			}
			if err := e.Prepare(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			first, err := e.Start(t.Context(), s.ID, life.First(1), nil)
			if err != nil {
				t.Fatal(err)
			}
			was, err := netns.GetFromPath(w.o.Network.NetnsPath(s.ID))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = was.Close() }()
			if c.exec {
				w.privileged(t, e, s.ID)
			}
			if err := e.Signal(t.Context(), s.ID, "SIGKILL"); err != nil {
				t.Fatal(err)
			}
			if _, err := e.Wait(t.Context(), s.ID, life.First(1)); err != nil {
				t.Fatal(err)
			}
			n := e
			if c.next {
				_ = e.Close()
				n = w.open(t)
			}
			second, err := n.Start(t.Context(), s.ID, life.First(2), nil)
			if err != nil {
				t.Fatal(err)
			}
			if second.IP == "" || second.IP != first.IP {
				t.Errorf("it is at %s, was at %s", second.IP, first.IP)
			}
			is, err := netns.GetFromPath(w.o.Network.NetnsPath(s.ID))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = is.Close() }()
			if is.Equal(was) != c.stays {
				t.Errorf("its namespace stays: %v", !c.stays)
			}
			if err := n.Remove(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
			if left := w.traces(t, s.ID); len(left) > 0 || w.o.Network.Get(s.ID) != nil {
				t.Errorf("left: %s, network %+v", left, w.o.Network.Get(s.ID))
			}
			if err := unix.Access(w.o.Network.NetnsPath(s.ID), unix.F_OK); err != unix.ENOENT {
				t.Errorf("its namespace is left: %v", err)
			}
		})
	}
}

// privileged runs an exec with all capabilities, which hosts that lack some refuse late.
func (w *world) privileged(t *testing.T, e *node, id string) {
	t.Helper()
	exec := strings.Repeat("e", 63) + id[:1]
	if err := e.ExecCreate(t.Context(), id, exec, container.ExecCreateRequest{Cmd: []string{"true"}, Privileged: true, AttachStdout: true}); err != nil {
		t.Fatal(err)
	}
	st, err := e.ExecStart(t.Context(), id, exec, true, 0, 0)
	if err != nil {
		t.Log(err)
		return
	}
	defer func() { _ = st.Close() }()
	if _, err := frames(st); err != nil {
		t.Fatal(err)
	}
}
