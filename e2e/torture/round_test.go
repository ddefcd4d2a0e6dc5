package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

const (
	settleWithin = 15 * time.Second // until what was answered is so, after a kill
	goneWithin   = 15 * time.Second // until nothing is left of what was removed
	keptWithin   = 45 * time.Second // the same for auto-removed containers, whose output may be kept for a reader
)

// outcome is what a round's operation answered, and what is known of its container.
type outcome struct {
	fleet.Result
	name, id string
	answered time.Duration // until it was
	fired    bool
}

// play plays a round and returns what is wrong afterwards.
func (w *world) play(seed uint64, p plan) (o outcome, err error) {
	w.round++
	h := w.hosts[w.round%len(w.hosts)]
	at := h
	if processOf(p.Point) == controller {
		at = w.leader(h)
	}
	o.name = fmt.Sprintf("r%d-%d", seed, os.Getpid())
	ctx, cancel := context.WithCancel(w.t.Context())
	var meanwhile sync.WaitGroup
	defer func() {
		cancel()
		meanwhile.Wait()
	}()
	if o.id, err = h.prepare(p.Op, o.name); err != nil {
		return o, fmt.Errorf("before the round: %w", err)
	}
	if err := at.arm(p, w.round); err != nil {
		return o, err
	}
	if p.Victim != "" {
		meanwhile.Go(func() { at.whileStopped(ctx, p.Victim) })
	}
	began := time.Now()
	o.Result = h.perform(p.Op, o.name)
	o.answered = time.Since(began)
	if o.id == "" {
		b, _ := os.ReadFile(h.cid(o.name))
		o.id = string(b)
	}
	if p.Op == runRemoved && o.id != "" {
		h.removed = append(h.removed, o.id)
	}
	err = w.settle(ctx, h, p, &o)
	if err == nil {
		err = w.clean(ctx, h, o)
	}
	o.fired = at.disarm() // what is passed behind the answer, or when the container is removed, counts
	if err == nil {
		err = w.untouched(ctx)
	}
	return o, err
}

// leader is the host whose controller leads.
func (w *world) leader(h *host) *host {
	if len(w.hosts) == 1 {
		return h
	}
	l := w.f.Leader()
	return w.hosts[slices.IndexFunc(w.hosts, func(x *host) bool { return x.Host == l })]
}

func (h *host) cid(name string) string { return filepath.Join(h.Dir, "cid-"+name) }

func (h *host) args(op, name string, more ...string) []string {
	return slices.Concat([]string{op}, more, []string{"--name", name, "-v", h.marks() + ":/m", "alpine", "/bin/sh", "-c", script(name)})
}

// prepare creates what an operation needs.
func (h *host) prepare(op, name string) (id string, err error) {
	var r fleet.Result
	switch op {
	case start:
		r = h.Drover(h.args("create", name)...)
	case stop, restart, restartAnew, remove, execute, die, dieAgent:
		more := []string{"-d"}
		if op == restartAnew {
			more = append(more, "--cap-add=NET_ADMIN")
		}
		r = h.Drover(h.args("run", name, more...)...)
		for until := time.Now().Add(settleWithin); r.Code == 0 && h.begun(name) == 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(until) {
				return "", errors.New("the container does not begin")
			}
		}
	}
	if r.Code != 0 {
		return "", fmt.Errorf("%v", r)
	}
	return strings.TrimSpace(r.Out), nil
}

func (h *host) perform(op, name string) fleet.Result {
	cid := "--cidfile=" + h.cid(name)
	switch op {
	case runDetached:
		return h.Drover(h.args("run", name, "-d", cid)...)
	case runPublished:
		return h.Drover(h.args("run", name, "-d", cid, "-p", "8080:80")...)
	case runRemoved:
		return h.Drover("run", "--rm", cid, "--name", name, "-v", h.marks()+":/m", "alpine", "/bin/sh", "-c", "echo begun >>/m/"+name+"; echo said; exit 3")
	case runInVain:
		return h.Drover("run", "-d", cid, "--name", name, "alpine", "/not/there")
	case create:
		return h.Drover(h.args("create", name, cid)...)
	case execute:
		return h.Drover("exec", name, "echo", "within")
	case die:
		id := h.idOf(name)
		pids := slices.DeleteFunc(h.Pids(shim), func(pid int) bool { return bundleOf(pid) != id })
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return fleet.Result{Code: len(pids) - 1}
	case dieAgent:
		for until := time.Now().Add(time.Second); len(h.waiting()) == 0 && time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		}
		pids := h.Pids(agent)
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return fleet.Result{Code: min(len(pids), 1) - 1}
	case stop, restart, restartAnew:
		verb, _, _ := strings.Cut(op, " ")
		return h.Drover(verb, "-t", "5", name)
	}
	return h.Drover(append(strings.Fields(op), name)...)
}

func (h *host) idOf(name string) string {
	return strings.TrimSpace(h.Drover("inspect", "-f", "{{.Id}}", name).Out)
}

// expectation is what an operation's answer promises.
type expectation struct {
	code   int
	states []string // of the container; "" is that there is none
	begun  []int    // how often its process has begun
}

func expected(p plan, o outcome) (e expectation) {
	one := []int{1}
	switch p.Op {
	case runDetached, runPublished, start, execute, dieAgent:
		e = expectation{0, []string{"running"}, one}
	case restart, restartAnew:
		e = expectation{0, []string{"running"}, []int{2}}
	case runRemoved:
		e = expectation{3, []string{""}, one}
	case runInVain:
		e = expectation{127, []string{"created"}, []int{0}}
	case create:
		e = expectation{0, []string{"created"}, []int{0}}
	case stop, die:
		e = expectation{0, []string{"exited"}, one}
	case remove:
		e = expectation{0, []string{""}, one}
	}
	if p.killsShim() { // its container goes with it, whatever was asked for
		e.states, e.begun = append(e.states, "exited", "created"), append(e.begun, 0, 1)
	}
	if o.Code != e.code && mayFail(p) {
		e = expectation{o.Code, []string{"", "created", "exited"}, []int{0, 1, 2}}
		if p.Op == execute || p.Op == stop || p.Op == remove || p.Op == restart || p.Op == restartAnew {
			e.states = append(e.states, "running")
		}
	}
	return e
}

// mayFail reports whether an operation may be refused for what happens in its round. A
// process that dies is no reason, unless it is the container's shim or has an exec, which
// can't be repeated.
func mayFail(p plan) bool {
	return p.killsShim() || strings.HasPrefix(p.Action, "error") || p.Op == execute
}

// settle waits until everything is as it was answered.
func (w *world) settle(ctx context.Context, h *host, p plan, o *outcome) error {
	e := expected(p, *o)
	if o.Code != e.code {
		return fmt.Errorf("it ended with %d, not with %d", o.Code, e.code)
	}
	if p.Op == runRemoved && o.Code == 3 && o.Out != "said\n" {
		return fmt.Errorf("its output is %q", o.Out)
	}
	if p.Op == execute && o.Code == 0 && o.Out != "within\n" {
		return fmt.Errorf("its output is %q", o.Out)
	}
	return eventually(ctx, settleWithin, func() error {
		all, err := h.list(ctx)
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(s seen) bool { return !slices.Contains(s.Names, "/"+o.name) })
		if len(all) > 1 {
			return fmt.Errorf("it is there %d times", len(all))
		}
		state := ""
		if len(all) == 1 {
			state = all[0].State
			o.id = all[0].ID
		}
		if !slices.Contains(e.states, state) {
			return fmt.Errorf("it is %q, not %q", state, e.states)
		}
		if n := h.begun(o.name); !slices.Contains(e.begun, n) {
			return fmt.Errorf("it has begun %d times, not %v", n, e.begun)
		}
		if n := len(h.running(o.name)); n > 1 || (n == 1) != (state == "running") && p.Op != runInVain {
			return fmt.Errorf("it is %q and has %d processes", state, n)
		}
		return nil
	})
}

// clean removes the round's container, of which nothing may be left.
func (w *world) clean(ctx context.Context, h *host, o outcome) error {
	err := eventually(ctx, settleWithin, func() error {
		r := h.Drover("rm", "-f", o.name)
		if r.Code != 0 && !strings.Contains(r.Err, "No such container") {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing it: %w", err)
	}
	_ = os.Remove(h.cid(o.name))
	_ = os.Remove(filepath.Join(h.marks(), o.name))
	return eventually(ctx, goneWithin, func() error { return h.left(ctx, w.f, true) })
}

// untouched checks that the containers that no round has to do with go on.
func (w *world) untouched(ctx context.Context) error {
	for _, h := range w.hosts {
		err := eventually(ctx, settleWithin, func() error {
			all, err := h.list(ctx)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(all, func(s seen) bool { return s.ID == h.bystander })
			if i < 0 || all[i].State != "running" {
				return fmt.Errorf("it is not shown as running: %+v", all)
			}
			return nil
		})
		if begun, n := h.begun(h.idle()), len(h.running(h.idle())); err == nil && (begun != 1 || n != 1) {
			err = fmt.Errorf("it has begun %d times, and has %d processes", begun, n)
		}
		if err != nil {
			return fmt.Errorf("the container that nothing was done to on %s: %w", h.Name, err)
		}
	}
	return nil
}

// eventually polls for what no event reports: the state of other processes.
func eventually(ctx context.Context, within time.Duration, ok func() error) error {
	for until := time.Now().Add(within); ; {
		err := ok()
		if err == nil {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("after %v: %w", within, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(15 * time.Millisecond):
		}
	}
}

// number reads a number from the environment.
func number(name string, otherwise uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return otherwise
}
