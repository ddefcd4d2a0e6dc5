// Package faketask is a task.Runtime, a task.Streams and a task.Images in memory, for
// tests and for simulated agents by the thousand. It runs a few small programs instead
// of containers; what real containers do beyond these contracts is out of its scope.
package faketask

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// Engine holds tasks in memory. Its programs, by the first word of the command:
// true, false, echo WORDS, cat, sleep SECONDS (which, being process 1, ignores
// every signal but SIGKILL), trap CODE (waits for SIGTERM, or SIGQUIT, and
// ends with CODE), and sh -c "exit N". Any other word is docker's 127.
type Engine struct {
	// Images is the store that its tasks need.
	Images *Images

	steps *steps
	wg    sync.WaitGroup // programs

	mu     sync.Mutex // guards the fields below
	tasks  map[string]*container_
	execs  map[string]*exec
	ports  map[string]string // bound, by proto/port
	nextIP byte
}

var (
	_ task.Runtime = (*Engine)(nil)
	_ task.Streams = (*Engine)(nil)
)

type container_ struct {
	spec    task.Spec
	attempt task.Attempt
	exits   []*dv1.Exit // of all lives
	p       *process
	placed  bool     // it has its place in the network
	first   int      // index in log where the last attempt begins
	log     []record // of every attempt
	wiring  task.Wiring
	gone    bool
	changed chan struct{} // closed when one of the above changes
}

// New returns an Engine without tasks or images.
func New() *Engine {
	s := &steps{}
	return &Engine{Images: newImages(s), steps: s, tasks: map[string]*container_{}, execs: map[string]*exec{}, ports: map[string]string{}}
}

// Close kills every program and waits for them.
func (e *Engine) Close() {
	e.mu.Lock()
	for _, t := range e.tasks {
		if t.p != nil {
			t.p.kill(137)
		}
	}
	for _, x := range e.execs {
		if x.p != nil {
			x.p.kill(137)
		}
	}
	e.mu.Unlock()
	e.wg.Wait()
}

func (e *Engine) Prepare(ctx context.Context, s task.Spec) error {
	if err := e.steps.take(ctx, "prepare", s.ID); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.Images.has(s.Digest) {
		return fmt.Errorf("preparing %s: %s: %w", s.Name, s.Digest, task.ErrNoImage)
	}
	if e.tasks[s.ID] == nil {
		e.tasks[s.ID] = &container_{spec: s, changed: make(chan struct{})}
	}
	return nil
}

// Wiring returns what a task was connected to last.
func (e *Engine) Wiring(id string) task.Wiring {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.tasks[id]; t != nil {
		return t.wiring
	}
	return task.Wiring{}
}

func (e *Engine) Rewire(ctx context.Context, id string, endpoints []*dv1.Endpoint) error {
	if err := e.steps.take(ctx, "rewire", id); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[id]
	if t == nil {
		return notFound(id)
	}
	if t.p != nil {
		t.wiring.Endpoints = endpoints
	}
	return nil
}

func (e *Engine) Start(ctx context.Context, id string, l life.Life, w *task.Wiring) (task.Attempt, error) {
	if err := e.steps.take(ctx, "start", id); err != nil {
		return task.Attempt{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[id]
	switch {
	case t == nil:
		return task.Attempt{}, notFound(id)
	case t.attempt.Life == l:
		return t.view(), nil
	case l.Before(t.attempt.Life):
		return task.Attempt{}, notFound(id)
	case t.p != nil:
		return task.Attempt{}, fmt.Errorf("starting attempt %s of %s: attempt %s runs", l, id, t.attempt.Life)
	}
	prog, err := program(command(t.spec.Create))
	if err != nil {
		return task.Attempt{}, err
	}
	ip, ports := t.attempt.IP, t.attempt.Ports
	e.nextIP++
	if !t.placed {
		if ports, err = e.bind(id, t.spec.Create.HostConfig); err != nil {
			return task.Attempt{}, err
		}
		ip, t.placed = fmt.Sprintf("10.0.0.%d", e.nextIP), true
	}
	var last *dv1.Exit
	if k := len(t.exits); k > 0 && t.exits[k-1].Attempt == l.Attempt {
		last = t.exits[k-1]
	}
	t.attempt = task.Attempt{Life: l, Before: last, Pid: 1000 + int(e.nextIP), Started: time.Now(), IP: ip,
		Gateway: "10.0.0.1", MAC: "02:00:00:00:00:01", PrefixLen: 24, Ports: ports}
	t.first, t.wiring = len(t.log), task.Wiring{}
	if w != nil {
		t.wiring = *w
	}
	p := newProcess(t.spec.Create.Config != nil && t.spec.Create.OpenStdin)
	t.p = p
	t.change()
	e.wg.Go(func() {
		code := prog(p, func(kind byte, b []byte) { e.write(t, kind, b) })
		e.mu.Lock()
		defer e.mu.Unlock()
		x := &dv1.Exit{Attempt: l.Attempt, Restarts: l.Restarts, Code: int32(p.ended(code)), At: time.Now().UnixNano(),
			Started: t.attempt.Started.UnixNano(), LogEnd: uint64(len(t.log))}
		t.attempt.Exit, t.exits = x, append(t.exits, x)
		t.p = nil
		t.change()
	})
	return t.view(), nil
}

func (t *container_) view() task.Attempt {
	a := t.attempt
	if a.Exit != nil {
		a.Exit = proto.CloneOf(a.Exit)
	}
	return a
}

// change must be called with the engine's mu held.
func (t *container_) change() {
	close(t.changed)
	t.changed = make(chan struct{})
}

func (e *Engine) bind(id string, h *container.HostConfig) (out []*dv1.Port, err error) {
	if h == nil {
		return nil, nil
	}
	for cp, bs := range h.PortBindings {
		for _, b := range bs {
			n, _ := strconv.Atoi(b.HostPort)
			if n == 0 {
				n = 49153 + len(e.ports)
			}
			k := fmt.Sprintf("%s/%d", cp.Proto(), n)
			if o := e.ports[k]; o != "" && o != id {
				e.unbind(id)
				return nil, &task.StartError{Code: 125, Message: fmt.Sprintf("Bind for 0.0.0.0:%d failed: port is already allocated", n)}
			}
			e.ports[k] = id
			out = append(out, &dv1.Port{Proto: string(cp.Proto()), Host: uint32(n), Container: uint32(cp.Num())})
		}
	}
	return out, nil
}

func (e *Engine) unbind(id string) {
	maps.DeleteFunc(e.ports, func(_, o string) bool { return o == id })
}

func (e *Engine) Wait(ctx context.Context, id string, l life.Life) (*dv1.Exit, error) {
	for {
		e.mu.Lock()
		t := e.tasks[id]
		if t == nil {
			e.mu.Unlock()
			return nil, notFound(id)
		}
		i := slices.IndexFunc(t.exits, func(x *dv1.Exit) bool { return life.Of(x) == l })
		var x *dv1.Exit
		if i >= 0 {
			x = proto.CloneOf(t.exits[i])
		}
		later, changed := l.Before(t.attempt.Life), t.changed
		e.mu.Unlock()
		if x != nil {
			return x, nil
		}
		if later {
			return nil, notFound(id)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (e *Engine) Signal(ctx context.Context, id, sig string) error {
	if err := e.steps.take(ctx, "signal "+sig, id); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[id]
	switch {
	case t == nil:
		return notFound(id)
	case t.p == nil:
		return fmt.Errorf("signalling %s: %w", id, task.ErrNotRunning)
	}
	return t.p.signal(sig)
}

func (e *Engine) Release(ctx context.Context, id string) error {
	if err := e.steps.take(ctx, "release", id); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.tasks[id]; t != nil {
		if t.p != nil {
			return fmt.Errorf("releasing %s: it runs", id)
		}
		t.placed = false
	}
	e.unbind(id)
	return nil
}

func (e *Engine) Remove(ctx context.Context, id string) error {
	if err := e.steps.take(ctx, "remove", id); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.tasks[id]; t != nil {
		if t.p != nil {
			t.p.kill(137)
		}
		delete(e.tasks, id)
		t.gone = true
		t.change()
	}
	e.unbind(id)
	return nil
}

func (e *Engine) List(ctx context.Context) ([]task.Found, error) {
	if err := e.steps.take(ctx, "list", ""); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []task.Found
	for _, id := range slices.Sorted(maps.Keys(e.tasks)) {
		t := e.tasks[id]
		out = append(out, task.Found{Spec: t.spec, Attempt: t.view(), Running: t.p != nil})
	}
	return out, nil
}

func notFound(id string) error { return fmt.Errorf("task %s: %w", id, task.ErrNotFound) }
