// Package resolverapi is what an agent and its node's resolver say to each other over a
// unix socket: the agent sends updates, of which the resolver acknowledges each one. The
// resolver keeps what it was told in memory, so that names are answered while there is
// no agent.
package resolverapi

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
)

// Address is where a container finds the resolver, on port 53.
const Address = "127.0.0.11"

// Update changes what a resolver knows.
type Update struct {
	Number uint64
	// Full means that what the update does not name is gone. It says which node this is.
	Full bool   `json:",omitempty"`
	Node string `json:",omitempty"`

	// Applied in this order. A network goes with all of its names.
	NetworksGone []string  `json:",omitempty"` // ids
	Networks     []Network `json:",omitempty"`
	Names        []Name    `json:",omitempty"`

	Sandboxes     []Sandbox `json:",omitempty"`
	SandboxesGone []string  `json:",omitempty"` // ids
	Quit          bool      `json:",omitempty"` // end: another resolver answers now
}

// Network is a network of the fleet.
type Network struct {
	ID   string
	Name string
}

// Name is a task's endpoint in a network.
type Name struct {
	Network string
	Task    string
	Node    string
	IPs     []netip.Addr
	Names   []string // the first is the one that its addresses resolve to
	Running bool     // only then it is answered. Of a task of this node, whether it has a sandbox counts instead
	Gone    bool     `json:",omitempty"` // forget the endpoint
}

// Sandbox is a container's network namespace in which the resolver listens.
type Sandbox struct {
	ID       string // of the container, and of its task
	Netns    string // path
	Networks []Endpoint
	// Servers are asked for what no network knows, from within the namespace. If there are
	// none, it is those of the host, from the host's network namespace.
	Servers []netip.Addr `json:",omitempty"`
	// Outside means that a network of the container leads out of the fleet. Without one the
	// host's servers are not asked.
	Outside bool
	// NdotsSet means that the user or the host chose ndots: names without a dot are not
	// asked for outside.
	NdotsSet bool `json:",omitempty"`
}

// Endpoint is a sandbox's place in a network. Networks are asked in order.
type Endpoint struct {
	Network string
	Links   map[string]string `json:",omitempty"` // names that only this container has for others
}

// Ack answers an update. An error of one sandbox leaves the others served.
type Ack struct {
	Number uint64
	Errors map[string]string `json:",omitempty"` // by sandbox
}

// Conn reads and writes messages. Reading and writing may be concurrent.
type Conn struct {
	in  *json.Decoder
	out *json.Encoder
}

// NewConn returns a Conn over c.
func NewConn(c io.ReadWriter) *Conn { return &Conn{json.NewDecoder(c), json.NewEncoder(c)} }

// Write writes an *Update or an *Ack.
func (c *Conn) Write(m any) error {
	if err := c.out.Encode(m); err != nil {
		return fmt.Errorf("writing to the other end: %w", err)
	}
	return nil
}

// Read reads an *Update or an *Ack.
func (c *Conn) Read(m any) error {
	if err := c.in.Decode(m); err != nil {
		return fmt.Errorf("reading from the other end: %w", err)
	}
	return nil
}
