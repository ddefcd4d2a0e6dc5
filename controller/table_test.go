package controller

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/drover/drover/controller/access"
	"github.com/drover/drover/controller/admission"
	"github.com/drover/drover/controller/engineapi"
	"github.com/drover/drover/controller/fleetapi"
	"github.com/drover/drover/controller/peer"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
)

var update = flag.Bool("update", false, "write the table of who may do what anew: testdata/access.txt and docs/security.md")

// Kinds of callers: the columns. What a listener's columns mean where a caller is named
// beside its connection is said in docs/security.md.
var callers = []string{"none", "wrong CA", "expired", "revoked", "node", "controller", "user", "admin"}

// Answers of a listener: its cells.
const (
	refused = "refused" // the TLS handshake
	in      = "in"      // the request came to its handler
	never   = "·"       // there is no such caller
)

// asking is how a caller comes to a listener.
type asking struct {
	files  *pki.Files
	first  string // sent before the first request
	header http.Header
}

// listener is one protocol on the port.
type listener struct {
	name, alpn string
	h2         bool
	routes     []route.Route
	by         map[string]asking
}

var segment = regexp.MustCompile(`\{[a-z]+(\.\.\.)?\}`)

// Every route of every listener of a controller is asked by every kind of caller, and
// every command decided for each. The routes and commands are those that there are:
// a new one changes the table, which is to be looked at and written with -update.
func TestWhoMayDoWhat(t *testing.T) {
	noLeaks(t)
	now := time.Now()
	h := newHost(t, foundedBefore(3*pki.LeafLife))
	h.renew()
	h.up()
	foreign, err := pki.NewAuthority(h.cluster(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	known := func(f *pki.Files, role string, revoked bool) *pki.Files {
		h.propose(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: f.Principal.URI, Roles: []string{role}, Revoked: revoked}}}})
		return f
	}
	who := func(kind, id, role string, revoked bool) *pki.Files {
		return known(h.identity(kind, id), role, revoked)
	}
	// As the authority issues it; its year is over.
	expired := func(kind, id string) *pki.Files {
		f := h.identityOf(h.ca, kind, id, now.Add(-2*pki.LeafLife))
		if leaf := f.Cert.Leaf; leaf.NotBefore.Before(h.ca.Cert.NotBefore) || !leaf.NotAfter.Before(now) {
			t.Fatalf("%s was valid from %s to %s, its authority since %s", f.Principal.URI, leaf.NotBefore, leaf.NotAfter, h.ca.Cert.NotBefore)
		}
		return f
	}
	node, controller := h.files(identity.AgentPKI(h.data)), h.files(identity.ControllerPKI(h.data))
	people := func(kind, role string) map[string]asking {
		all := map[string]asking{
			"none":     {},
			"wrong CA": {files: h.identityOf(foreign, kind, "mallory", now)},
			"expired":  {files: known(expired(kind, "expired-"+kind), role, false)},
			"revoked":  {files: who(kind, "revoked-"+kind, role, true)},
			"node":     {files: node}, "controller": {files: controller},
		}
		return all
	}
	user, admin := who(pki.KindUser, "u", pki.KindUser, false), who(pki.KindUser, "ad", pki.RoleAdmin, false)
	h.propose(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{Id: node.Principal.ID, Name: "a", Addr: "127.0.0.1:1", Capacity: &dv1.Capacity{NanoCpus: 4e9, Memory: 8 << 30}}}}})
	h.propose(&dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: node.Principal.ID, Roles: map[string]string{"7": pki.KindUser, "0": pki.RoleAdmin}}}})

	api := slices.Concat(engineapi.Routes[:len(engineapi.Routes)-1], fleetapi.Routes[:len(fleetapi.Routes)-1])
	with := func(m map[string]asking) map[string]asking {
		m["user"], m["admin"] = asking{files: user}, asking{files: admin}
		return m
	}
	proxied := func(f *pki.Files, uid int) asking { return asking{files: f, first: fmt.Sprintf("{\"UID\":%d}\n", uid)} }
	sockets := people(pki.KindNode, pki.KindNode)
	for k, a := range sockets {
		sockets[k] = proxied(a.files, 0)
	}
	// Expired ones come with all that their listener's callers may do.
	sockets["expired"] = proxied(expired(pki.KindNode, node.Principal.ID), 0)
	sockets["node"], sockets["user"], sockets["admin"] = proxied(node, 8), proxied(node, 7), proxied(node, 0)
	behalf := func(uri string) asking {
		return asking{files: controller, header: http.Header{"Drover-Principal": {uri}}}
	}
	passed := with(people(pki.KindController, pki.KindController))
	for k, a := range passed {
		if a.files != nil && k != "wrong CA" && k != "expired" {
			passed[k] = behalf(a.files.Principal.URI)
		}
	}
	passed["expired"] = asking{files: passed["expired"].files, header: http.Header{"Drover-Principal": {admin.Principal.URI}}}
	gone := who(pki.KindUser, "gone", pki.RoleAdmin, true)
	passed["controller"], passed["revoked"] = behalf(who(pki.KindController, "other", pki.KindController, false).Principal.URI), behalf(gone.Principal.URI)
	listeners := []listener{
		{"API", "http/1.1", false, api, with(people(pki.KindUser, pki.RoleAdmin))},
		{"socket proxy", wire.ALPNSocket, false, api, sockets},
		{"join", wire.ALPNJoin, false, admission.Routes, with(people(pki.KindUser, pki.RoleAdmin))},
		{"session", wire.ALPNSession, true, []route.Route{peer.SessionRoute}, with(people(pki.KindNode, pki.KindNode))},
		{"raft", wire.ALPNRaft, true, nil, with(people(pki.KindController, pki.KindController))},
		{"peer", wire.ALPNPeer, true, peer.Routes, with(people(pki.KindController, pki.KindController))},
		{"relay", wire.ALPNRelay, true, slices.Concat(api, []route.Route{peer.SessionRoute}), passed},
	}
	rows := map[string][]row{}
	var order []string
	for _, l := range listeners {
		order = append(order, l.name)
		if l.routes == nil {
			cells := map[string]string{}
			for caller, a := range l.by {
				cells[caller] = in
				if c, err := h.dialAs(a.files, l.alpn); err != nil {
					cells[caller] = refused
				} else {
					_ = c.Close()
				}
			}
			rows[l.name] = append(rows[l.name], row{"a connection", cells})
			continue
		}
		for _, r := range l.routes {
			cells := map[string]string{}
			for caller, a := range l.by {
				cells[caller] = h.asks(l, r, a)
			}
			rows[l.name] = append(rows[l.name], row{r.String(), cells})
		}
	}
	order = append(order, "commands")
	rows["commands"] = h.commandRows(map[string]*pki.Files{
		"wrong CA": nil, "expired": nil, "revoked": gone, "node": node, "controller": controller, "user": user, "admin": admin,
	})
	compare(t, "testdata/access.txt", whole(order, rows))
	const doc = "../docs/security.md"
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), "<!-- generated: controller, TestWhoMayDoWhat -->\n")
	_, after, ok2 := strings.Cut(rest, "<!-- end -->\n")
	if !ok || !ok2 {
		t.Fatal("docs/security.md has no place for the table")
	}
	compare(t, doc, before+"<!-- generated: controller, TestWhoMayDoWhat -->\n"+short(order, rows)+"<!-- end -->\n"+after)
}

// asks makes one request and says how it was answered.
func (h *host) asks(l listener, r route.Route, a asking) string {
	h.t.Helper()
	rt, done := h.over(a.files, l.alpn, a.first, l.h2)
	defer done()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	scheme := "http"
	if l.h2 {
		scheme = "https"
	}
	// Nothing that there is: what is let in fails for want of it.
	req, err := http.NewRequestWithContext(ctx, cmp.Or(r.Method, http.MethodGet), scheme+"://drover"+segment.ReplaceAllString(r.Pattern, "nothing"), http.NoBody)
	if err != nil {
		h.t.Fatal(err)
	}
	for k, v := range a.header {
		req.Header[k] = v
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			h.t.Errorf("%s: %s is not answered", l.name, r)
		}
		return refused
	}
	_ = resp.Body.Close()
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusMisdirectedRequest && resp.Header.Get(wire.HeaderRemoved) != "":
		return strconv.Itoa(code)
	case code == http.StatusServiceUnavailable && r.Pattern == "/volumes/{name}" && r.Method == http.MethodPut: // Swarm's, as docker without it
	case code == http.StatusServiceUnavailable, code == http.StatusMisdirectedRequest:
		h.t.Errorf("%s: %s is answered with %s", l.name, r, resp.Status)
	}
	return in
}

// commandRows asks for each command, about the caller itself where it is about somebody.
func (h *host) commandRows(by map[string]*pki.Files) (out []row) {
	h.t.Helper()
	snap := h.c.node.Load().Snapshot()
	cluster := snap.Cluster().GetId()
	other := pki.URI(cluster, pki.KindNode, "another")
	fields := (&dv1.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("of").Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		cells := map[string]string{}
		for caller, files := range by {
			uri, id := "", ""
			if files != nil {
				uri, id = files.Principal.URI, files.Principal.ID
			}
			cells[caller] = verdict(allowed(snap, uri, about(f, id)))
			if caller == "node" && cells[caller] == in {
				if got := verdict(allowed(snap, uri, about(f, "another"))); got == in {
					h.t.Errorf("a node may have %s decided about another one", f.Name())
				}
				if got := verdict(allowed(snap, other, about(f, id))); got == in {
					h.t.Errorf("a node that nobody knows may have %s decided", f.Name())
				}
			}
		}
		if f.Name() == "join" {
			if err := allowed(snap, pki.TokenURI("t"), about(f, "t")); err != nil {
				h.t.Errorf("a join is not decided for its own token: %v", err)
			}
			if allowed(snap, pki.TokenURI("t"), about(f, "another")) == nil {
				h.t.Error("a join is decided for another token")
			}
		}
		cells["none"] = verdict(allowed(snap, "", about(f, "")))
		cells["wrong CA"], cells["expired"] = never, never // a command has its caller's name, no certificate
		out = append(out, row{string(f.Name()), cells})
	}
	return out
}

func allowed(s *state.Snapshot, uri string, c *dv1.Command) error {
	_, err := access.Allowed(s, uri, access.Command(c))
	return err
}

func verdict(err error) string {
	if err != nil {
		return "403"
	}
	return in
}

// about is the command of a field, about one of id where it is about somebody.
func about(f protoreflect.FieldDescriptor, id string) *dv1.Command {
	c := &dv1.Command{}
	m := c.ProtoReflect()
	m.Set(f, m.NewField(f))
	switch of := c.Of.(type) {
	case *dv1.Command_RegisterNode:
		of.RegisterNode.Node = &dv1.Node{Id: id}
	case *dv1.Command_Report:
		of.Report.NodeId = id
	case *dv1.Command_AckTombstones:
		of.AckTombstones.NodeId = id
	case *dv1.Command_LeftNetworks:
		of.LeftNetworks.NodeId = id
	case *dv1.Command_PutController:
		of.PutController.Controller = &dv1.Controller{Id: id}
	case *dv1.Command_Join:
		of.Join.TokenId = id
	}
	return proto.CloneOf(c)
}

type row struct {
	what  string
	cells map[string]string
}

func (r row) line() string {
	var out []string
	for _, c := range callers {
		out = append(out, cmp.Or(r.cells[c], never))
	}
	return strings.Join(out, " | ")
}

// whole is the table of all routes.
func whole(order []string, rows map[string][]row) string {
	var b bytes.Buffer
	for _, l := range order {
		fmt.Fprintf(&b, "%s: %s\n", l, strings.Join(callers, " | "))
		for _, r := range rows[l] {
			fmt.Fprintf(&b, "\t%-50s %s\n", r.what, r.line())
		}
	}
	return b.String()
}

// short is the table with routes that are answered alike in one row.
func short(order []string, rows map[string][]row) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| listener | %s |\n|%s\n", strings.Join(callers, " | "), strings.Repeat(" --- |", len(callers)+1))
	for _, l := range order {
		alike := map[string][]string{}
		for _, r := range rows[l] {
			alike[r.line()] = append(alike[r.line()], r.what)
		}
		lines := slices.SortedFunc(maps.Keys(alike), func(a, b string) int {
			return cmp.Or(cmp.Compare(len(alike[b]), len(alike[a])), strings.Compare(a, b))
		})
		for _, line := range lines {
			what := fmt.Sprintf("%d others", len(alike[line]))
			switch n := len(alike[line]); {
			case n <= 12:
				what = "`" + strings.Join(alike[line], "`, `") + "`"
			case len(lines) == 1:
				what = "all"
			}
			fmt.Fprintf(&b, "| **%s**: %s | %s |\n", l, what, line)
		}
	}
	return b.String()
}

func compare(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) == want {
		return
	}
	has, is := strings.Split(string(got), "\n"), strings.Split(want, "\n")
	for i := range max(len(has), len(is)) {
		if i >= len(has) || i >= len(is) || has[i] != is[i] {
			t.Fatalf("who may do what is not as %s says, from line %d:\n%s\nnow:\n%s\n(go test ./controller -run TestWhoMayDoWhat -update)", file, i+1,
				strings.Join(has[min(i, len(has)):min(i+3, len(has))], "\n"), strings.Join(is[min(i, len(is)):min(i+3, len(is))], "\n"))
		}
	}
}
