package session

import (
	"strings"
	"sync"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Bounds of what an agent sends. A message is small enough not to delay the next beat on
// a slow link, and far below what a controller accepts.
const (
	maxMessage    = 64 << 10 // bytes; a larger item is sent alone
	maxRemoved    = 1024     // tombstones in one message
	maxEvents     = 1024     // queued while no controller answers; the oldest are dropped
	maxEventBytes = 1 << 20  // of those
	maxEvent      = 16 << 10 // of one; a longer one is shortened
	maxText       = 4 << 10  // of one text in a shortened event, and of a reason
)

// Outbox queues what the agent has to report. What arrives while a message is being sent
// is merged into the next one: only the last status of a task is kept, and events keep
// their order. The zero value is ready. Safe for concurrent use.
type Outbox struct {
	mu        sync.Mutex // guards the fields below
	order     []string
	tasks     map[string]*dv1.TaskStatus
	images    map[string]*dv1.ImageStatus
	gone      map[string]struct{}
	events    []*dv1.Event
	bytes     int // of events
	dropped   int // events dropped since losses was last called
	shortened int
	acked     uint64
	remove    map[string][]byte
	left      map[string]*dv1.EndpointKey
	ready     chan struct{}
}

// Status reports a task.
func (o *Outbox) Status(s *dv1.TaskStatus) {
	s = shortStatus(s)
	o.change(func() {
		k := string(s.GetId())
		if o.tasks == nil {
			o.tasks = map[string]*dv1.TaskStatus{}
		}
		if _, ok := o.tasks[k]; !ok {
			o.order = append(o.order, k)
		}
		o.tasks[k] = s
	})
}

// Image reports that an image is now on this node.
func (o *Outbox) Image(i *dv1.ImageStatus) {
	o.change(func() {
		if o.images == nil {
			o.images = map[string]*dv1.ImageStatus{}
		}
		o.images[i.GetDigest()] = i
		delete(o.gone, i.GetDigest())
	})
}

// ImageGone reports that an image is no longer on this node.
func (o *Outbox) ImageGone(digest string) {
	o.change(func() {
		if o.gone == nil {
			o.gone = map[string]struct{}{}
		}
		o.gone[digest] = struct{}{}
		delete(o.images, digest)
	})
}

// Event reports something that only the agent sees.
func (o *Outbox) Event(h *dv1.Event) {
	short := shortEvent(h)
	o.change(func() {
		if short != h {
			o.shortened++
		}
		o.events = append(o.events, short)
		o.bytes += proto.Size(short)
		o.bound()
	})
}

// bound drops the oldest events when there are too many. It must be called with mu held.
func (o *Outbox) bound() {
	for len(o.events) > maxEvents || o.bytes > maxEventBytes {
		o.bytes -= proto.Size(o.events[0])
		o.events[0] = nil
		o.events = o.events[1:]
		o.dropped++
	}
}

// losses returns how many events were shortened, and how many dropped, since the last
// call.
func (o *Outbox) losses() (shortened, dropped int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	shortened, dropped = o.shortened, o.dropped
	o.shortened, o.dropped = 0, 0
	return shortened, dropped
}

// Ack acknowledges that the sync at index is stored. Nobody waits for that: it goes
// instead of the next beat, or along with tombstones.
func (o *Outbox) Ack(index uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.acked = max(o.acked, index)
}

// Removed acknowledges a tombstone.
func (o *Outbox) Removed(id []byte) {
	o.change(func() {
		if o.remove == nil {
			o.remove = map[string][]byte{}
		}
		o.remove[string(id)] = id
	})
}

// Left acknowledges that a task that stays is no longer in a network.
func (o *Outbox) Left(task, network []byte) {
	o.change(func() { o.leave(&dv1.EndpointKey{TaskId: task, NetworkId: network}) })
}

// leave must be called with mu held.
func (o *Outbox) leave(k *dv1.EndpointKey) {
	if o.left == nil {
		o.left = map[string]*dv1.EndpointKey{}
	}
	o.left[string(k.GetTaskId())+string(k.GetNetworkId())] = k
}

func (o *Outbox) change(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
	if o.ready != nil {
		close(o.ready)
		o.ready = nil
	}
}

// take returns as much of the queue as fits a message, or, if it is empty, a channel
// that is closed when something is queued.
func (o *Outbox) take() ([]*dv1.FromAgent, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []*dv1.FromAgent
	if obs := o.observation(); obs != nil {
		out = append(out, &dv1.FromAgent{Of: &dv1.FromAgent_Observation{Observation: obs}})
	}
	if len(o.remove)+len(o.left) > 0 {
		a := &dv1.Acks{Index: o.acked}
		for k, id := range o.remove {
			if len(a.Removed) == maxRemoved {
				break
			}
			a.Removed = append(a.Removed, id)
			delete(o.remove, k)
		}
		for k, e := range o.left {
			if len(a.Left) == maxRemoved/2 { // each has two ids
				break
			}
			a.Left = append(a.Left, e)
			delete(o.left, k)
		}
		o.acked = 0
		out = append(out, &dv1.FromAgent{Of: &dv1.FromAgent_Acks{Acks: a}})
	}
	if len(out) > 0 {
		return out, nil
	}
	if o.ready == nil {
		o.ready = make(chan struct{})
	}
	return nil, o.ready
}

// beat is what is said when it is time for a sign of life.
func (o *Outbox) beat(seq int64) *dv1.FromAgent {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.acked == 0 {
		return &dv1.FromAgent{Of: &dv1.FromAgent_Beat{Beat: &dv1.Beat{Seq: seq}}}
	}
	a := &dv1.Acks{Index: o.acked}
	o.acked = 0
	return &dv1.FromAgent{Of: &dv1.FromAgent_Acks{Acks: a}}
}

// observation takes up to maxMessage of what was observed, nil if there is
// nothing. It is called with mu held.
func (o *Outbox) observation() *dv1.Observation {
	const framing = 8 // tag and length of an item, at most
	obs, size := &dv1.Observation{}, 0
	fits := func(n int) bool {
		if n += framing; size > 0 && size+n > maxMessage {
			return false
		}
		size += n
		return true
	}
	for len(o.order) > 0 && fits(proto.Size(o.tasks[o.order[0]])) {
		obs.Tasks = append(obs.Tasks, o.tasks[o.order[0]])
		delete(o.tasks, o.order[0])
		o.order = o.order[1:]
	}
	for d, i := range o.images {
		if !fits(proto.Size(i)) {
			break
		}
		obs.Images = append(obs.Images, i)
		delete(o.images, d)
	}
	for d := range o.gone {
		if !fits(len(d)) {
			break
		}
		obs.ImagesGone = append(obs.ImagesGone, d)
		delete(o.gone, d)
	}
	for len(o.events) > 0 && fits(proto.Size(o.events[0])) {
		o.bytes -= proto.Size(o.events[0])
		obs.Events = append(obs.Events, o.events[0])
		o.events = o.events[1:]
	}
	if size == 0 {
		return nil
	}
	return obs
}

// putBack queues again what could not be sent, unless something newer is queued.
func (o *Outbox) putBack(msgs []*dv1.FromAgent) {
	for _, m := range msgs {
		obs := m.GetObservation()
		o.change(func() {
			if o.tasks == nil {
				o.tasks = map[string]*dv1.TaskStatus{}
			}
			for _, s := range obs.GetTasks() {
				if _, newer := o.tasks[string(s.GetId())]; !newer {
					o.tasks[string(s.GetId())] = s
					o.order = append(o.order, string(s.GetId()))
				}
			}
			for _, e := range obs.GetEvents() {
				o.bytes += proto.Size(e)
			}
			o.events = append(append([]*dv1.Event(nil), obs.GetEvents()...), o.events...)
			o.bound()
			o.acked = max(o.acked, m.GetAcks().GetIndex())
			for _, id := range m.GetAcks().GetRemoved() {
				if o.remove == nil {
					o.remove = map[string][]byte{}
				}
				o.remove[string(id)] = id
			}
			for _, k := range m.GetAcks().GetLeft() {
				o.leave(k)
			}
		})
	}
}

// chunks splits an inventory into messages: the first one is full if the inventory is,
// and the others add to it.
func chunks(inventory *dv1.Observation) []*dv1.Observation {
	var o Outbox
	for _, s := range inventory.GetTasks() {
		o.Status(s)
	}
	for _, i := range inventory.GetImages() {
		o.Image(i)
	}
	var out []*dv1.Observation
	for next := o.observation(); next != nil; next = o.observation() {
		out = append(out, next)
	}
	if len(out) == 0 {
		out = append(out, &dv1.Observation{})
	}
	out[0].Full = inventory.GetFull()
	return out
}

// shortStatus bounds the reasons of a status. It copies what it changes.
func shortStatus(s *dv1.TaskStatus) *dv1.TaskStatus {
	why, reason := text(s.GetWhy()), text(s.GetExit().GetReason())
	if why == s.GetWhy() && reason == s.GetExit().GetReason() {
		return s
	}
	s = proto.CloneOf(s)
	s.Why = why
	if s.Exit != nil {
		s.Exit.Reason = reason
	}
	return s
}

// shortEvent bounds an event. It copies what it changes.
func shortEvent(h *dv1.Event) *dv1.Event {
	if proto.Size(h) <= maxEvent && sendable(h) {
		return h
	}
	h = proto.CloneOf(h)
	h.Action = text(h.Action)
	for k, v := range h.Attributes {
		h.Attributes[k] = text(v)
	}
	if proto.Size(h) > maxEvent || !sendable(h) {
		h.Attributes = nil
	}
	return h
}

// sendable reports whether protobuf can encode an event's texts.
func sendable(h *dv1.Event) bool {
	for k, v := range h.GetAttributes() {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return false
		}
	}
	return utf8.ValidString(h.GetAction())
}

// text bounds a text of any origin, and makes it valid UTF-8: protobuf refuses a whole
// message for one text that isn't.
func text(s string) string {
	if len(s) > maxText {
		n := maxText
		for n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n] + " …"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
