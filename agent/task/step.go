package task

import (
	"fmt"
	"strings"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// step is what a worker does next.
type step string

const (
	idle    step = "idle"    // nothing, until something is wanted
	prepare step = "prepare" // snapshot and container
	start   step = "start"   // the wanted attempt
	never   step = "never"   // the wanted attempt was stopped before it ran
	stop    step = "stop"    // signal the running process
	await   step = "await"   // its exit
	release step = "release" // what an ended life holds
	rewire  step = "rewire"  // the running process's networks
	leave   step = "leave"   // acknowledge that endpoints are gone
	hold    step = "hold"    // keep the logs for a reader
	remove  step = "remove"  // everything
)

// have is what a worker knows about the engine's state.
type have struct {
	prepared bool
	tried    bool      // prepare failed, and is retried only along with an attempt
	life     life.Life // the last one that ran or failed
	running  bool
	held     bool // the network and shim of an ended life aren't released yet
	failed   bool // the last life never began
	stopping stopping
	wired    string // the endpoints that the last life has, as by wiring; "?" if it is not known
	unwired  bool   // the last attempt to change that failed a moment ago
	left     string // the endpoints that were acknowledged to be gone
	reading  bool   // somebody reads the log of a life up to the last
	read     bool   // a reader has the end of the last life's log, and nobody is reading
	waited   bool   // the time for readers has passed
}

// stopping distinguishes orders to stop.
type stopping struct {
	ordered  bool
	killing  bool
	revision uint64
}

// next decides on one step. What raft doesn't know about is left alone.
func next(w want, h have) step {
	if w.tomb != nil {
		return nextOfRemoved(w, h)
	}
	if h.running {
		if o := order(w, h); o.ordered && o != h.stopping {
			return stop
		}
		if w.task != nil && !w.orphan && w.wiring() != h.wired && !h.unwired {
			return rewire
		}
		if w.wiring() == h.wired && w.leaving() != h.left {
			return leave
		}
		return await
	}
	switch {
	case w.task != nil && w.wants(w.task.Attempt) && w.task.Attempt > h.life.Attempt:
		return start // which releases, but keeps what the attempt before it had of the network
	case h.held:
		return release
	case w.leaving() != h.left: // it has no endpoints
		return leave
	case w.task == nil || w.orphan:
		return idle
	case w.task.Attempt > h.life.Attempt && w.task.Desired == dv1.Desired_STOPPED:
		return never
	case !h.prepared && !h.tried && h.life.Attempt == 0:
		return prepare
	}
	return idle
}

func nextOfRemoved(w want, h have) step {
	switch {
	case h.running && !h.stopping.killing:
		return stop
	case h.running:
		return await
	case h.life.Attempt == 0 || h.failed || h.waited || !h.reading && (!w.task.GetAutoRemove() || w.tomb.Force || h.read):
		return remove // which releases too
	case h.held:
		return release
	}
	return hold
}

// wants reports whether an attempt has yet to be started; 0 stands for the container
// without one.
func (w want) wants(attempt int32) bool {
	if w.tomb != nil || w.task == nil || w.orphan {
		return false
	}
	return attempt == 0 || attempt == w.task.Attempt && w.task.Desired == dv1.Desired_RUNNING
}

// wiring identifies the endpoints that a task should have.
func (w want) wiring() string { return w.keys(false) }

// leaving identifies the endpoints that a task has to leave.
func (w want) leaving() string { return w.keys(true) }

func (w want) keys(leaving bool) string {
	var b strings.Builder
	for _, e := range w.ends {
		if e.Leaving == leaving {
			fmt.Fprintf(&b, "%x %x %s %s %s\n", e.NetworkId, e.Id, e.Ip, e.Ip6, e.Mac)
		}
	}
	return b.String()
}

// endpoints returns those that a task should have.
func (w want) endpoints() (out []*dv1.Endpoint) {
	for _, e := range w.ends {
		if !e.Leaving {
			out = append(out, e)
		}
	}
	return out
}

// order reports whether the running attempt is to be stopped. It does not apply to an
// attempt above the wanted one.
func order(w want, h have) stopping {
	if w.tomb != nil {
		return stopping{ordered: true, killing: true}
	}
	if w.task == nil || w.orphan || w.task.Attempt < h.life.Attempt {
		return stopping{}
	}
	if w.task.Desired == dv1.Desired_STOPPED || w.task.Attempt > h.life.Attempt {
		return stopping{ordered: true, killing: w.task.StopTimeout == 0, revision: w.task.Revision}
	}
	return stopping{}
}

// forward reports whether a status may follow another: lives and, within one, phases
// only grow.
func forward(old, s *dv1.TaskStatus) bool {
	if c := life.Of(s).Compare(life.Of(old)); old == nil || c != 0 {
		return c >= 0
	}
	return s.Phase >= old.Phase
}
