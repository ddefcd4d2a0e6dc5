// Package core is the fleet as the Engine API sees it: the replicated state,
// what agents observe, their bulk ports and the events of both. It decides
// nothing; that is left to consensus, and sessions to dispatch.
package core

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/dispatch"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Bounds of what is kept: events for since, and removed tasks' last statuses
// for those who wait for their end.
const (
	Kept     = 1024
	KeptGone = 1024
)

// Log is what core needs of consensus.
type Log interface {
	dispatch.Log
	WaitIndex(ctx context.Context, index uint64) (*state.Snapshot, error)
}

// Core implements engineapi.Fleet.
type Core struct {
	Log     Log
	Hub     *dispatch.Hub
	Dial    func(n *dv1.Node) (*http.Client, error) // the client of a node's bulk port; it keeps connections
	contact string

	mu      sync.Mutex
	waiters map[string]map[chan struct{}]bool
	seen    map[string]*dv1.Task
	tags    map[string]string // digest by reference
	ring    []*dv1.Event
	subs    map[chan struct{}]bool
	last    uint64 // number of the newest event
	gone    map[string]*buried
	order   []string // of gone, oldest first
}

// buried is what is known of a removed task.
type buried struct {
	last *dv1.TaskStatus
	task *dv1.Task
}

// New makes a Core on the host of node contact ("" for none). Log, Hub and
// Dial are to be set before it is used.
func New(contact string) *Core {
	return &Core{contact: contact, waiters: map[string]map[chan struct{}]bool{},
		seen: map[string]*dv1.Task{}, tags: map[string]string{}, subs: map[chan struct{}]bool{}, gone: map[string]*buried{}}
}

// Seed tells which tasks and tags are known already, so that they make no events:
// at the start, and where a snapshot took the place of entries. Who waits looks again.
func (c *Core) Seed(s *state.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.seen)
	clear(c.tags)
	for t := range s.Tasks() {
		c.seen[hex.EncodeToString(t.Id)] = t
	}
	for t := range s.Tags() {
		c.tags[t.Ref] = t.Digest
	}
	for id := range c.waiters {
		c.wake(id)
	}
}

// Committed is called in order, after the state shows what effects did: who
// hears of an event finds it in the state. It never blocks.
func (c *Core) Committed(effects []*dv1.Effect, at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range effects {
		switch of := e.Of.(type) {
		case *dv1.Effect_Task:
			id := hex.EncodeToString(of.Task.Id)
			old := c.seen[id]
			c.seen[id] = of.Task
			c.changes(old, of.Task, at)
			c.wake(id)
		case *dv1.Effect_Ended:
			id := hex.EncodeToString(of.Ended.Id)
			old := c.seen[id]
			c.seen[id] = of.Ended
			c.changes(old, of.Ended, at)
		case *dv1.Effect_DeleteTask:
			id := hex.EncodeToString(of.DeleteTask)
			if old := c.seen[id]; old != nil {
				c.event(old, "destroy", at)
				c.bury(id, old)
			}
			delete(c.seen, id)
			c.wake(id)
		case *dv1.Effect_Image:
			c.image("pull", of.Image.Digest, shownRef(of.Image), at)
		case *dv1.Effect_Tag:
			c.tags[of.Tag.Ref] = of.Tag.Digest
			c.image("tag", of.Tag.Digest, of.Tag.Ref, at)
		case *dv1.Effect_DeleteTag:
			c.image("untag", c.tags[of.DeleteTag], of.DeleteTag, at)
			delete(c.tags, of.DeleteTag)
		case *dv1.Effect_DeleteImage:
			c.image("delete", of.DeleteImage, of.DeleteImage, at)
		}
	}
}

func shownRef(i *dv1.Image) string {
	if len(i.RepoDigests) > 0 {
		return i.RepoDigests[0]
	}
	return i.Digest
}

// image makes an image's event, with mu held: one without a task.
func (c *Core) image(action, digest, ref string, at int64) {
	c.publish(&dv1.Event{Action: action, TimeNano: at, Attributes: map[string]string{"id": digest, "name": ref}})
}

// changes makes the events between two versions of a task, with mu held.
func (c *Core) changes(old, t *dv1.Task, at int64) {
	if old == nil {
		c.event(t, "create", at)
		old = &dv1.Task{Name: t.Name}
	}
	if old.Name != t.Name {
		c.event(t, "rename", at, "oldName", "/"+old.Name)
	}
	if t.Started != 0 && (old.Started == 0 || old.Attempt != t.Attempt) {
		c.event(t, "start", at)
	}
	if t.Exit != nil && (old.Exit == nil || old.Exit.Attempt < t.Exit.Attempt) {
		c.event(t, "die", at, "exitCode", strconv.Itoa(int(t.Exit.Code)))
	}
}

// bury keeps what was seen last of a removed task, with mu held: its exit is
// nowhere else, and agents tell it no more once they removed the container.
func (c *Core) bury(id string, t *dv1.Task) {
	st := c.Hub.Observed(id)
	if st == nil {
		st = &dv1.TaskStatus{Id: t.Id, Attempt: t.Attempt, Started: t.Started, Exit: t.Exit}
	} else if t.Exit != nil && st.Exit.GetAttempt() < t.Exit.Attempt {
		st = proto.CloneOf(st)
		st.Exit = t.Exit
	}
	c.gone[id] = &buried{st, t}
	c.order = append(c.order, id)
	if len(c.order) > KeptGone {
		delete(c.gone, c.order[0])
		c.order = c.order[1:]
	}
}

func (c *Core) event(t *dv1.Task, action string, at int64, kv ...string) {
	a := map[string]string{"name": t.Name}
	for i := 0; i+1 < len(kv); i += 2 {
		a[kv[i]] = kv[i+1]
	}
	c.publish(&dv1.Event{TaskId: t.Id, Action: action, TimeNano: at, Attributes: a})
}

// publish is called with mu held.
func (c *Core) publish(h *dv1.Event) {
	c.last++
	c.ring = append(c.ring, h)
	if len(c.ring) > Kept {
		c.ring = c.ring[1:]
	}
	for s := range c.subs {
		poke(s)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (c *Core) wake(id string) {
	for w := range c.waiters[id] {
		poke(w)
	}
}

// Status is dispatch's OnStatus.
func (c *Core) Status(taskID string) {
	st := c.Hub.Observed(taskID)
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.gone[taskID]; b != nil && st != nil {
		if x := st.Exit; x != nil && b.last.Exit.GetAttempt() < x.Attempt && b.task.Exit.GetAttempt() < x.Attempt {
			c.event(b.task, "die", x.At, "exitCode", strconv.Itoa(int(x.Code))) // removed by force: the log never told
		}
		b.last = st
	}
	c.wake(taskID)
}

// Happened is dispatch's OnEvent. What the log tells too comes from there.
func (c *Core) Happened(h *dv1.Event) {
	switch h.Action {
	case "create", "start", "die", "destroy", "rename":
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.publish(h)
}

// Propose implements engineapi.Fleet.
func (c *Core) Propose(ctx context.Context, cmd *dv1.Command) (*dv1.CommandResult, error) {
	return c.Log.Propose(ctx, cmd)
}

// State implements engineapi.Fleet.
func (c *Core) State(ctx context.Context, minIndex uint64) (*state.Snapshot, error) {
	if minIndex == 0 {
		return c.Log.Snapshot(), nil
	}
	return c.Log.WaitIndex(ctx, minIndex)
}

// Find implements engineapi.Fleet: who asks here asks the leader.
func (c *Core) Find(ctx context.Context, minIndex uint64, _ func(*state.Snapshot) bool) (*state.Snapshot, bool, error) {
	snap, err := c.State(ctx, minIndex)
	return snap, true, err
}

// Observed implements engineapi.Fleet. Of a removed task it is the last status.
func (c *Core) Observed(taskID string) *dv1.TaskStatus {
	if st := c.Hub.Observed(taskID); st != nil {
		return st
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.gone[taskID]; b != nil {
		return b.last
	}
	if id, err := hex.DecodeString(taskID); err == nil {
		if t := c.Log.Snapshot().Ended(id); t != nil {
			return &dv1.TaskStatus{Id: t.Id, Attempt: t.Attempt, Started: t.Started, Exit: t.Exit, Phase: dv1.Phase_EXITED, Why: t.Failed}
		}
	}
	return nil
}

// Holders implements engineapi.Fleet.
func (c *Core) Holders(digest string) []string { return c.Hub.Holders(digest) }

// Silent implements engineapi.Fleet.
func (c *Core) Silent() map[string]int64 { return c.Hub.Silent() }

// Leaderless implements engineapi.Fleet: who asks here asks the leader.
func (c *Core) Leaderless() bool { return false }

// Contact implements engineapi.Fleet.
func (c *Core) Contact() string { return c.contact }

// WaitTask implements engineapi.Fleet. It subscribes before it looks.
func (c *Core) WaitTask(ctx context.Context, taskID string, done func(*dv1.Task, *dv1.TaskStatus) bool) error {
	id, err := hex.DecodeString(taskID)
	if err != nil {
		return fmt.Errorf("waiting for task %q: %w", taskID, err)
	}
	w := make(chan struct{}, 1)
	c.mu.Lock()
	if c.waiters[taskID] == nil {
		c.waiters[taskID] = map[chan struct{}]bool{}
	}
	c.waiters[taskID][w] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiters[taskID], w)
		if len(c.waiters[taskID]) == 0 {
			delete(c.waiters, taskID)
		}
	}()
	for !done(c.Log.Snapshot().Task(id), c.Observed(taskID)) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w:
		}
	}
	return nil
}

// Agent implements engineapi.Fleet.
func (c *Core) Agent(nodeID string) (*http.Client, error) {
	n := c.Log.Snapshot().Node(nodeID)
	if n == nil || n.Addr == "" {
		return nil, fmt.Errorf("node %s has no address", nodeID)
	}
	return c.Dial(n)
}

// Events implements engineapi.Fleet. A reader slower than Kept events misses
// the oldest; it never slows a commit. The channel closes when ctx ends.
func (c *Core) Events(ctx context.Context, since int64) <-chan *dv1.Event {
	out := make(chan *dv1.Event)
	w := make(chan struct{}, 1)
	c.mu.Lock()
	next := c.last + 1
	if since != 0 {
		next = c.last - uint64(len(c.ring)) + 1
	}
	c.subs[w] = true
	c.mu.Unlock()
	go func() {
		defer close(out)
		defer func() {
			c.mu.Lock()
			delete(c.subs, w)
			c.mu.Unlock()
		}()
		for {
			c.mu.Lock()
			first := c.last - uint64(len(c.ring)) + 1
			next = max(next, first)
			batch := append([]*dv1.Event(nil), c.ring[next-first:]...)
			next = c.last + 1
			c.mu.Unlock()
			for _, h := range batch {
				if h.TimeNano < since {
					continue
				}
				select {
				case out <- h:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-w:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
