package fleetapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/timing"
)

// Member is a controller, as lists show it.
type Member struct {
	ID     string
	Name   string
	Addr   string
	Role   string // leader | voter | catching up | joining
	Joined int64  // Unix ns
}

// Node is a node, as lists show it.
type Node struct {
	ID           string
	Name         string
	Addr         string
	Subnet       string
	Labels       map[string]string
	Availability string // active | drain | removing
	Status       string // ready | suspect | down
	Silent       int64  `json:",omitempty"` // since, Unix ns
	Controller   string // its role as a controller, "" for an agent only
	Containers   int
	Running      int
	CPUs         float64
	Memory       int64
	Arch         string
	OS           string
	Kernel       string
	Versions     map[string]string
	Roles        map[string]string `json:",omitempty"`
	Joined       int64
	Revision     uint64
}

// TokenInfo is a token without its secret.
type TokenInfo struct {
	ID         string
	Role       string
	SocketRole string `json:",omitempty"`
	Created    int64
	Expires    int64 `json:",omitempty"`
	Revoked    bool
	Used       uint32
	Text       string `json:",omitempty"` // once, in the answer to its making
}

// DefaultTTL is how long a token is good if nothing is said. None is good for longer
// than a year: whoever finds one may join.
const (
	DefaultTTL = 24 * time.Hour
	maxTTL     = 365 * 24 * time.Hour
)

// NewToken asks for a token.
type NewToken struct {
	Role       string
	SocketRole string
	TTL        time.Duration
}

// UpdateNode changes a node.
type UpdateNode struct {
	Set          map[string]string
	Drop         []string
	Availability string
	Roles        map[string]string
}

const maxBody = 64 << 10

func (s *server) nodes(w http.ResponseWriter, r *http.Request) {
	snap, ok := s.state(w, r)
	if !ok {
		return
	}
	out := []Node{}
	seen, roles := s.o.Fleet.Observe(r.Context(), fleet.Query{}), s.roles()
	on := scheduler.Split(r.URL.Query().Get("on"))
	for n := range snap.Nodes() {
		fits, err := scheduler.Matches(n, on)
		if err != nil {
			refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		if fits {
			out = append(out, node(snap, seen, roles, n))
		}
	}
	slices.SortFunc(out, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	answer(w, http.StatusOK, out)
}

func (s *server) nodeOf(w http.ResponseWriter, r *http.Request) {
	snap, ok := s.state(w, r)
	if !ok {
		return
	}
	n := snap.NodeByName(r.PathValue("name"))
	if n == nil {
		refuse(w, http.StatusNotFound, "No such node: "+r.PathValue("name"))
		return
	}
	answer(w, http.StatusOK, node(snap, s.o.Fleet.Observe(r.Context(), fleet.Query{}), s.roles(), n))
}

// roles are what controllers are, by id.
func (s *server) roles() map[string]string {
	out := map[string]string{}
	for _, m := range s.o.Members() {
		out[m.ID] = m.Role
	}
	return out
}

func node(snap *state.Snapshot, seen *fleet.Observations, roles map[string]string, n *dv1.Node) Node {
	c := n.Capacity
	if c == nil {
		c = &dv1.Capacity{}
	}
	out := Node{ID: n.Id, Name: n.Name, Addr: n.Addr, Subnet: n.Subnet, Labels: n.Labels, Availability: wire.Word(n.Availability), Status: wire.Word(n.Liveness),
		CPUs: float64(c.NanoCpus) / 1e9, Memory: c.Memory, Arch: c.Arch, OS: c.OsName, Kernel: c.Kernel, Roles: n.Roles, Joined: n.Joined, Revision: n.Revision,
		Versions: map[string]string{"drover": c.Drover, "containerd": c.Containerd, "runc": c.Runc}}
	if since, silent := seen.Silent(n.Id); silent {
		out.Silent = since
		if out.Status == "ready" {
			out.Status = "suspect"
		}
	}
	use := snap.Use(n.Id)
	out.Containers, out.Running = use.All(), use.Running
	out.Controller = roles[n.Id]
	return out
}

func (s *server) updateNode(w http.ResponseWriter, r *http.Request) {
	var u UpdateNode
	if !read(w, r, &u) {
		return
	}
	availability, ok := map[string]dv1.Node_Availability{"": 0, "active": dv1.Node_ACTIVE, "drain": dv1.Node_DRAIN}[u.Availability]
	if !ok {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("a node's availability is active or drain, not %q", u.Availability))
		return
	}
	s.do(w, r, &dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: r.PathValue("name"), SetLabels: u.Set, DropLabels: u.Drop, Availability: availability, Roles: u.Roles}}})
}

func (s *server) removeNode(w http.ResponseWriter, r *http.Request) {
	c := &dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: r.PathValue("name"), Force: r.URL.Query().Get("force") != ""}}}
	res, ok := s.propose(w, r, c)
	if !ok {
		return
	}
	// A node with many tasks takes several entries. The leader goes on by itself
	// when this caller, or controller, is gone.
	for left, part := res.Left, 1; left > 0; part++ {
		next := &dv1.Command{Principal: c.Principal, Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: res.NodeId}}}
		if c.Key != "" {
			next.Key = fmt.Sprint(c.Key, "/", part)
		}
		more, err := s.o.Fleet.Propose(r.Context(), next)
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, fmt.Sprintf("node %s is being removed, which goes on: %v", res.Name, err))
			return
		}
		if e := more.GetError(); e != nil && e.Kind != dv1.Error_NOT_FOUND {
			refuse(w, http.StatusServiceUnavailable, fmt.Sprintf("node %s is being removed, which goes on: %s", res.Name, e.Message))
			return
		}
		left = more.Left
		w.Header().Set(wire.HeaderIndex, fmt.Sprint(more.Index))
	}
	answer(w, http.StatusOK, map[string]any{"Name": res.Name, "ID": res.NodeId, "Changed": res.Changed})
}

func (s *server) controllers(w http.ResponseWriter, _ *http.Request) {
	out := s.o.Members()
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	answer(w, http.StatusOK, out)
}

func (s *server) removeController(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	err := s.o.Remove(r.Context(), name, func() {
		s.do(w, r, &dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: name}}})
	})
	if err != nil {
		refuse(w, http.StatusConflict, err.Error())
	}
}

// Timing is raft's timing of the fleet: lan, wan or numbers, with the numbers.
type Timing struct{ Timing, Numbers string }

func (s *server) timing(w http.ResponseWriter, r *http.Request) {
	snap, ok := s.state(w, r)
	if !ok {
		return
	}
	t := timing.FromProto(snap.Cluster().GetTiming())
	answer(w, http.StatusOK, Timing{cmp.Or(t.Profile(), t.String()), t.String()})
}

func (s *server) setTiming(w http.ResponseWriter, r *http.Request) {
	var to Timing
	if !read(w, r, &to) {
		return
	}
	if to.Timing == "" {
		refuse(w, http.StatusBadRequest, "the new timing is not named")
		return
	}
	t, err := timing.Parse(to.Timing)
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	s.do(w, r, &dv1.Command{Of: &dv1.Command_SetTiming{SetTiming: &dv1.SetTiming{Timing: t.Proto()}}})
}

func (s *server) tokens(w http.ResponseWriter, r *http.Request) {
	snap, ok := s.state(w, r)
	if !ok {
		return
	}
	out := []TokenInfo{}
	for t := range snap.Tokens() {
		out = append(out, info(t))
	}
	slices.SortFunc(out, func(a, b TokenInfo) int { return int(min(1, max(-1, a.Created-b.Created))) })
	answer(w, http.StatusOK, out)
}

func info(t *dv1.Token) TokenInfo {
	return TokenInfo{ID: t.Id, Role: t.Role, SocketRole: t.SocketRole, Created: t.Created, Expires: t.Expires, Revoked: t.Revoked, Used: t.Used}
}

func (s *server) newToken(w http.ResponseWriter, r *http.Request) {
	var n NewToken
	if !read(w, r, &n) {
		return
	}
	t, err := pki.NewToken(s.o.Pin())
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	if n.TTL == 0 {
		n.TTL = DefaultTTL
	}
	if n.TTL < 0 || n.TTL > maxTTL {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("a token is good for some time, of %s at most, not for %s", maxTTL, n.TTL))
		return
	}
	now := time.Now()
	m := &dv1.Token{Id: t.ID, Hash: t.Hash(), Role: n.Role, SocketRole: n.SocketRole, Created: now.UnixNano(), Expires: now.Add(n.TTL).UnixNano()}
	// A token can't be asked for again under the same key: its text is nowhere.
	r.Header.Del(wire.HeaderKey)
	if _, ok := s.propose(w, r, &dv1.Command{Of: &dv1.Command_PutToken{PutToken: &dv1.PutToken{Token: m}}}); ok {
		i := info(m)
		i.Text = t.String()
		answer(w, http.StatusCreated, i)
	}
}

func (s *server) revokeToken(w http.ResponseWriter, r *http.Request) {
	s.do(w, r, &dv1.Command{Of: &dv1.Command_RevokeToken{RevokeToken: &dv1.RevokeToken{Id: r.PathValue("id")}}})
}

// tag answers a node's mirror: which digest a reference names. A node learns only of
// what it needs: of public images, and of those that its tasks have.
func (s *server) tag(w http.ResponseWriter, r *http.Request) {
	snap, ok := s.state(w, r)
	if !ok {
		return
	}
	t := snap.Tag(r.URL.Query().Get("ref"))
	if t == nil {
		refuse(w, http.StatusNotFound, "No such image: "+r.URL.Query().Get("ref"))
		return
	}
	out := tagged{Digest: t.Digest, Public: snap.Image(t.Digest).GetPublic()}
	if p, _ := pki.PrincipalFrom(r.Context()); p.Kind == pki.KindNode {
		if !out.Public && !needs(snap, p.ID, t.Digest) {
			refuse(w, http.StatusForbidden, r.URL.Query().Get("ref")+" is a private image: its registry gives it to who has the credential")
			return
		}
		if s.o.Grant != nil {
			var err error
			if out.Grant, err = s.o.Grant(p.ID, t.Digest); err != nil {
				refuse(w, http.StatusInternalServerError, err.Error())
				return
			}
		}
	}
	for _, id := range s.o.Fleet.Observe(r.Context(), fleet.Query{Images: []string{t.Digest}}).Holders(t.Digest) {
		if n := snap.Node(id); n != nil {
			out.Holders = append(out.Holders, n.Addr)
		}
	}
	answer(w, http.StatusOK, out)
}

type tagged struct {
	Digest  string
	Holders []string
	Public  bool
	Grant   []byte `json:",omitempty"`
}

func needs(snap *state.Snapshot, node, digest string) bool {
	for t := range snap.TasksOfImage(digest) {
		if t.NodeId == node {
			return true
		}
	}
	return false
}

func (s *server) state(w http.ResponseWriter, r *http.Request) (*state.Snapshot, bool) {
	snap, err := s.o.Fleet.State(r.Context(), 0)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err.Error())
		return nil, false
	}
	return snap, true
}

func (s *server) do(w http.ResponseWriter, r *http.Request, c *dv1.Command) {
	if res, ok := s.propose(w, r, c); ok {
		answer(w, http.StatusOK, map[string]any{"Name": res.Name, "ID": res.NodeId, "Changed": res.Changed})
	}
}

func (s *server) propose(w http.ResponseWriter, r *http.Request, c *dv1.Command) (*dv1.CommandResult, bool) {
	p, _ := pki.PrincipalFrom(r.Context())
	c.Principal = p.URI
	if c.Key = r.Header.Get(wire.HeaderKey); c.Key != "" {
		c.Key = "fleet-" + c.Key
	}
	res, err := s.o.Fleet.Propose(r.Context(), c)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err.Error())
		return nil, false
	}
	w.Header().Set(wire.HeaderIndex, fmt.Sprint(res.Index))
	if e := res.GetError(); e != nil {
		refuse(w, wire.Status(e.Kind), e.Message)
		return nil, false
	}
	return res, true
}

func read(w http.ResponseWriter, r *http.Request, v any) bool {
	b, err := io.ReadAll(r.Body)
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "reading the request: "+err.Error())
	}
	return err == nil
}
