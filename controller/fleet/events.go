package fleet

import (
	"context"
	"encoding/hex"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// Limits on the stored events, which are kept for readers that ask for past ones.
const (
	MaxEvents     = 1024
	maxEventBytes = 4 << 20
)

// events is a ring of the newest events, with its readers.
type events struct {
	ring  []*dv1.Event
	bytes int
	last  uint64 // number of the newest
	subs  map[chan struct{}]bool
}

// publish is called with Local.mu held.
func (e *events) publish(ev *dv1.Event) {
	e.last++
	e.ring = append(e.ring, ev)
	e.bytes += proto.Size(ev)
	for len(e.ring) > MaxEvents || len(e.ring) > 1 && e.bytes > maxEventBytes {
		e.bytes -= proto.Size(e.ring[0])
		e.ring = e.ring[1:]
	}
	for s := range e.subs {
		poke(s)
	}
}

// first returns the number of the oldest stored event.
func (e *events) first() uint64 { return e.last - uint64(len(e.ring)) + 1 }

// Events delivers events from now on, after the stored ones since since (Unix ns, 0:
// none). A reader that falls too far behind misses the oldest; it never slows a
// commit. The channel is closed when ctx is done.
func (l *Local) Events(ctx context.Context, since int64) <-chan *dv1.Event {
	out := make(chan *dv1.Event)
	w := make(chan struct{}, 1)
	l.mu.Lock()
	next := l.events.last + 1
	if since != 0 {
		next = l.events.first()
	}
	l.events.subs[w] = true
	l.mu.Unlock()
	go func() { // owned by ctx: the reader reads until the channel is closed
		defer close(out)
		defer func() {
			l.mu.Lock()
			delete(l.events.subs, w)
			l.mu.Unlock()
		}()
		for {
			l.mu.Lock()
			first := l.events.first()
			next = max(next, first)
			batch := append([]*dv1.Event(nil), l.events.ring[next-first:]...)
			next = l.events.last + 1
			l.mu.Unlock()
			for _, e := range batch {
				if e.TimeNano < since {
					continue
				}
				select {
				case out <- e:
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

// Seed loads a state without creating events: at startup, and when a snapshot
// replaced entries. It wakes all waits for tasks.
func (l *Local) Seed(s *state.Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.known)
	clear(l.tags)
	clear(l.networks)
	for t := range s.Tasks() {
		l.known[hex.EncodeToString(t.Id)] = t
	}
	clear(l.volumes)
	for v := range s.Volumes() {
		l.volumes[string(v.Id)] = v
	}
	for t := range s.Tags() {
		l.tags[t.Ref] = t.Digest
	}
	for n := range s.Networks() {
		l.networks[string(n.Id)] = n
	}
	for id := range l.waiters {
		l.wake(id)
	}
}

// Committed is called in the log's order, once the state has the effects, so that
// readers of an event find it in the state. It never blocks.
func (l *Local) Committed(effects []*dv1.Effect, at int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range effects {
		switch of := e.Of.(type) {
		case *dv1.Effect_Task:
			l.changed(of.Task, at)
			l.wake(hex.EncodeToString(of.Task.Id))
		case *dv1.Effect_Ended:
			l.changed(of.Ended, at)
		case *dv1.Effect_DeleteTask:
			id := hex.EncodeToString(of.DeleteTask)
			if old := l.known[id]; old != nil {
				l.taskEvent(old, "destroy", at)
				l.retire(id, old)
			}
			delete(l.known, id)
			l.wake(id)
		case *dv1.Effect_Endpoint:
			if t := l.known[hex.EncodeToString(of.Endpoint.TaskId)]; t != nil && state.Running(t) {
				l.endpointEvent(of.Endpoint, at)
			}
		case *dv1.Effect_DeleteEndpoint: // who waits for its address waits for its task
			l.wake(hex.EncodeToString(of.DeleteEndpoint[:min(len(of.DeleteEndpoint), 32)]))
		case *dv1.Effect_Network:
			l.networkChanged(of.Network, at)
		case *dv1.Effect_DeleteNetwork:
			if old := l.networks[string(of.DeleteNetwork)]; old != nil && !old.Removing {
				l.networkEvent(old, "destroy", at)
			}
			delete(l.networks, string(of.DeleteNetwork))
		case *dv1.Effect_Image:
			l.imageEvent("pull", of.Image.Digest, nameOf(of.Image), at)
		case *dv1.Effect_Tag:
			l.tags[of.Tag.Ref] = of.Tag.Digest
			l.imageEvent("tag", of.Tag.Digest, of.Tag.Ref, at)
		case *dv1.Effect_DeleteTag:
			l.imageEvent("untag", l.tags[of.DeleteTag], of.DeleteTag, at)
			delete(l.tags, of.DeleteTag)
		case *dv1.Effect_Volume:
			if l.volumes[string(of.Volume.Id)] == nil {
				l.volumeEvent(of.Volume, "create", at)
			}
			l.volumes[string(of.Volume.Id)] = of.Volume
		case *dv1.Effect_DeleteVolume:
			if v := l.volumes[string(of.DeleteVolume)]; v != nil {
				l.volumeEvent(v, "destroy", at)
			}
			delete(l.volumes, string(of.DeleteVolume))
		case *dv1.Effect_DeleteImage:
			l.imageEvent("delete", of.DeleteImage, of.DeleteImage, at)
		}
	}
}

func nameOf(i *dv1.Image) string {
	if len(i.RepoDigests) > 0 {
		return i.RepoDigests[0]
	}
	return i.Digest
}

// changed creates the events between the known version of a task and t, with mu
// held.
func (l *Local) changed(t *dv1.Task, at int64) {
	id := hex.EncodeToString(t.Id)
	old := l.known[id]
	l.known[id] = t
	if old == nil {
		l.taskEvent(t, "create", at)
		old = &dv1.Task{Name: t.Name}
	}
	if old.Name != t.Name {
		l.taskEvent(t, "rename", at, "oldName", "/"+old.Name)
	}
	if !state.Running(old) && state.Running(t) {
		l.endpointEvents(t, at, "connect")
	}
	if t.Started != 0 && (old.Started == 0 || life.Of(old) != life.Of(t)) {
		l.taskEvent(t, "start", at)
		if old.Restarting {
			l.taskEvent(t, "restart", at)
		}
	}
	died := life.Of(old.Exit).Before(life.Of(t.Exit))
	if died {
		l.taskEvent(t, "die", at, "exitCode", strconv.Itoa(int(t.Exit.Code)))
	}
	if state.Running(old) && !state.Running(t) {
		l.endpointEvents(t, at, "disconnect")
	}
	// It was told to: by a stop, or for an attempt that follows.
	if died && (state.Live(old) && old.Desired == dv1.Desired_STOPPED || t.Exit.Attempt < t.Attempt) {
		l.taskEvent(t, "stop", at)
	}
}

// endpointEvents creates an event for each network of a task, with mu held.
func (l *Local) endpointEvents(t *dv1.Task, at int64, action string) {
	snap := l.o.Log.Snapshot()
	for e := range snap.EndpointsOfTask(t.Id) {
		if n := snap.Network(e.NetworkId); n != nil {
			l.networkEvent(n, action, at, "container", hex.EncodeToString(t.Id))
		}
	}
}

// endpointEvent creates the event of a running task that was connected, or has to leave,
// with mu held.
func (l *Local) endpointEvent(e *dv1.Endpoint, at int64) {
	action := "connect"
	if e.Leaving {
		action = "disconnect"
	}
	if n := l.o.Log.Snapshot().Network(e.NetworkId); n != nil {
		l.networkEvent(n, action, at, "container", hex.EncodeToString(e.TaskId))
	}
}

// taskEvent is called with mu held.
func (l *Local) taskEvent(t *dv1.Task, action string, at int64, kv ...string) {
	a := map[string]string{"name": t.Name}
	for i := 0; i+1 < len(kv); i += 2 {
		a[kv[i]] = kv[i+1]
	}
	l.events.publish(&dv1.Event{TaskId: t.Id, Action: action, TimeNano: at, Attributes: a})
}

// volumeEvent is called with mu held.
func (l *Local) volumeEvent(v *dv1.Volume, action string, at int64) {
	l.events.publish(&dv1.Event{Volume: v.Name, NodeId: v.Home, Action: action, TimeNano: at, Attributes: map[string]string{"driver": v.Driver}})
}

// Pruned publishes that somebody pruned a type of objects ("volume"), and how many bytes
// that freed. Only this controller's readers learn it.
func (l *Local) Pruned(what string, reclaimed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events.publish(&dv1.Event{Pruned: what, Action: "prune", TimeNano: time.Now().UnixNano(), Attributes: map[string]string{"reclaimed": strconv.FormatUint(reclaimed, 10)}})
}

// imageEvent is called with mu held. An image's event has no task.
func (l *Local) imageEvent(action, digest, ref string, at int64) {
	l.events.publish(&dv1.Event{Action: action, TimeNano: at, Attributes: map[string]string{"id": digest, "name": ref}})
}

// networkChanged creates the events of a network that is made, or removed, with mu held.
func (l *Local) networkChanged(n *dv1.Network, at int64) {
	old := l.networks[string(n.Id)]
	l.networks[string(n.Id)] = n
	switch {
	case old == nil:
		l.networkEvent(n, "create", at)
	case n.Removing && !old.Removing:
		l.networkEvent(n, "destroy", at)
	}
}

// networkEvent is called with mu held.
func (l *Local) networkEvent(n *dv1.Network, action string, at int64, kv ...string) {
	a := map[string]string{"name": n.Name, "type": n.Driver}
	for i := 0; i+1 < len(kv); i += 2 {
		a[kv[i]] = kv[i+1]
	}
	l.events.publish(&dv1.Event{NetworkId: n.Id, Action: action, TimeNano: at, Attributes: a})
}

// Reported publishes an agent's event, unless its kind is created from the log.
func (l *Local) Reported(e *dv1.Event) {
	switch {
	case len(e.NetworkId) > 0, e.Pruned != "": // not an agent's
		return
	case e.Volume != "":
		if e.Action != "mount" && e.Action != "unmount" {
			return
		}
	case slices.Contains(logged, e.Action):
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events.publish(e)
}

// logged are a task's events that are created from the log.
var logged = []string{"create", "start", "die", "stop", "restart", "destroy", "rename"}
