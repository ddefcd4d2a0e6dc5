package session

import (
	"sync"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// maxEvents bounds what waits while no controller answers: the oldest go first.
const maxEvents = 1024

// Outbox gathers what the agent has to say. While a message is under way, what
// comes is joined into the next: of a task the last status counts, and events
// keep their order. The zero value is ready. Safe for concurrent use.
type Outbox struct {
	mu     sync.Mutex // guards the fields below
	order  []string
	tasks  map[string]*dv1.TaskStatus
	images map[string]*dv1.ImageStatus
	gone   map[string]struct{}
	events []*dv1.Happening
	acked  uint64
	remove map[string][]byte
	ready  chan struct{}
}

// Status reports a task.
func (o *Outbox) Status(s *dv1.TaskStatus) {
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

// Image reports that an image is here now.
func (o *Outbox) Image(i *dv1.ImageStatus) {
	o.change(func() {
		if o.images == nil {
			o.images = map[string]*dv1.ImageStatus{}
		}
		o.images[i.GetDigest()] = i
		delete(o.gone, i.GetDigest())
	})
}

// ImageGone reports that an image is here no more.
func (o *Outbox) ImageGone(digest string) {
	o.change(func() {
		if o.gone == nil {
			o.gone = map[string]struct{}{}
		}
		o.gone[digest] = struct{}{}
		delete(o.images, digest)
	})
}

// Event reports something that only the agent knows of.
func (o *Outbox) Event(h *dv1.Happening) {
	o.change(func() {
		o.events = append(o.events, h)
		if n := len(o.events) - maxEvents; n > 0 {
			o.events = o.events[n:]
		}
	})
}

// Ack says that the sync at index is in the store.
func (o *Outbox) Ack(index uint64) { o.change(func() { o.acked = max(o.acked, index) }) }

// Removed says that a tombstone is done.
func (o *Outbox) Removed(id []byte) {
	o.change(func() {
		if o.remove == nil {
			o.remove = map[string][]byte{}
		}
		o.remove[string(id)] = id
	})
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

// take gives what there is, or a channel that is closed when there is something.
func (o *Outbox) take() ([]*dv1.FromAgent, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []*dv1.FromAgent
	if len(o.order)+len(o.images)+len(o.gone)+len(o.events) > 0 {
		obs := &dv1.Observation{Events: o.events}
		for _, k := range o.order {
			obs.Tasks = append(obs.Tasks, o.tasks[k])
		}
		for _, i := range o.images {
			obs.Images = append(obs.Images, i)
		}
		for d := range o.gone {
			obs.ImagesGone = append(obs.ImagesGone, d)
		}
		o.order, o.tasks, o.images, o.gone, o.events = nil, nil, nil, nil, nil
		out = append(out, &dv1.FromAgent{Of: &dv1.FromAgent_Observation{Observation: obs}})
	}
	if o.acked > 0 || len(o.remove) > 0 {
		a := &dv1.Acks{Index: o.acked}
		for _, id := range o.remove {
			a.Removed = append(a.Removed, id)
		}
		o.acked, o.remove = 0, nil
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
