package state

import (
	"cmp"
	"fmt"
	"iter"
	"strconv"
	"strings"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// PublishedPort is a port that a running task has on all addresses of its node.
type PublishedPort struct {
	Proto string
	Port  uint32
}

// String returns the port as docker writes it: 80/tcp.
func (p PublishedPort) String() string { return fmt.Sprintf("%d/%s", p.Port, p.Proto) }

// ParsePublishedPort is the inverse of String.
func ParsePublishedPort(s string) (p PublishedPort) {
	port, proto, _ := strings.Cut(s, "/")
	n, _ := strconv.ParseUint(port, 10, 16)
	return PublishedPort{proto, uint32(n)}
}

// PublishedBy returns the ports that a task has on all addresses of its node, in the order
// of its ports. Those of single addresses, and of tasks that do not run, don't count.
func PublishedBy(t *dv1.Task) (out []PublishedPort) {
	if t == nil || !Running(t) {
		return nil
	}
	for _, p := range t.Ports {
		if p.Host != 0 && (p.Ip == "" || p.Ip == "0.0.0.0") {
			out = append(out, PublishedPort{p.Proto, p.Host})
		}
	}
	return out
}

// Door returns the task to whom other nodes lead a port: the one that has run for longest
// of those who published it, on nodes that are not down. It returns nil if there is none.
func (s *Snapshot) Door(p PublishedPort) (first *dv1.Task) {
	for t := range s.Publishers(p) {
		if s.Node(t.GetNodeId()).GetLiveness() == dv1.Node_DOWN {
			continue
		}
		if first == nil || cmp.Or(cmp.Compare(t.Started, first.Started), cmp.Compare(string(t.Id), string(first.Id))) < 0 {
			first = t
		}
	}
	return first
}

// Publishers yields the running tasks that have a port on all addresses of their nodes.
func (s *Snapshot) Publishers(p PublishedPort) iter.Seq[*dv1.Task] {
	return func(yield func(*dv1.Task) bool) {
		for key := range tasks.in(s).total.(*usage).byPort.from(p.String() + sep) {
			if !yield(tasks.get(s, key[len(p.String()+sep):])) {
				return
			}
		}
	}
}

// PublishedPorts yields the ports of all running tasks, each once, in the order of their
// text.
func (s *Snapshot) PublishedPorts() iter.Seq[PublishedPort] {
	return func(yield func(PublishedPort) bool) {
		last := ""
		for key := range tasks.in(s).total.(*usage).byPort.from("") {
			port, _, _ := strings.Cut(key, sep)
			if port != last && !yield(ParsePublishedPort(port)) {
				return
			}
			last = port
		}
	}
}
