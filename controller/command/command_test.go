package command

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// fleet is a state that commands are decided on, one entry each.
type fleet struct {
	t     *testing.T
	store *state.Store
	index uint64
	batch *Batch
}

func newFleet(t *testing.T, pool string, nodes ...string) *fleet {
	f := &fleet{t: t, store: state.NewStore()}
	f.ok(&dv1.Command{Of: &dv1.Command_Init{Init: &dv1.Init{Cluster: &dv1.Cluster{Id: "fleet", Pool: pool},
		Identities: accesstest.Identities("fleet", "n0", "n1", "n2", "n3", "n4", "c", "d"), Controller: &dv1.Controller{Id: "n0", Name: "ctl", Addr: "10.0.0.1:7443"}}}})
	for i, n := range nodes {
		f.ok(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{Id: fmt.Sprint("n", i), Name: n, Capacity: &dv1.Capacity{Memory: 4 << 30, Arch: "amd64", Os: "linux"}}}}})
	}
	f.ok(&dv1.Command{Of: &dv1.Command_CommitImage{CommitImage: &dv1.CommitImage{Image: &dv1.Image{Digest: digest}, Refs: []string{"docker.io/library/alpine:latest"}}}})
	return f
}

const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// do decides a command and applies it as the log would; equal inputs must give
// equal bytes (determinism), and so must a batch that has decided all before.
func (f *fleet) do(c *dv1.Command) *dv1.CommandResult {
	f.t.Helper()
	snap := f.store.Snapshot()
	c = accesstest.Named(snap, c)
	before := snap.Hash()
	effects, res := Decide(state.NewTxn(snap), proto.CloneOf(c), f.now())
	again, _ := f.onBatch(snap).Decide(proto.CloneOf(c), f.now())
	if !proto.Equal(f.decided(effects), f.decided(again)) {
		f.t.Fatalf("%T was decided in two ways on one state", c.Of)
	}
	if snap.Hash() != before {
		f.t.Fatalf("deciding %T changed the state", c.Of)
	}
	if res.Error != nil {
		if len(effects) > 0 {
			f.t.Fatalf("%T was refused, with effects", c.Of)
		}
		return res
	}
	if err := f.batch.Apply(again...); err != nil {
		f.t.Fatal(err)
	}
	f.apply(c, effects)
	return res
}

// onBatch returns the batch that has decided all before, on the snapshot.
func (f *fleet) onBatch(snap *state.Snapshot) *Batch {
	if f.batch == nil {
		f.batch = NewBatch(state.NewTxn(snap))
	} else {
		f.batch.On(state.NewTxn(snap))
	}
	return f.batch
}

func (f *fleet) now() int64 { return 1000 + int64(f.index) }

func (f *fleet) decided(effects []*dv1.Effect) *dv1.Entry {
	return &dv1.Entry{Format: state.Format, Type: state.EntryEffects, Base: f.store.Snapshot().Index(), Time: f.now(), Effects: effects}
}

func (f *fleet) apply(c *dv1.Command, effects []*dv1.Effect) {
	f.t.Helper()
	b, err := proto.Marshal(f.decided(effects))
	if err != nil {
		f.t.Fatal(err)
	}
	f.index++
	if _, err := f.store.Apply(f.index, b); err != nil {
		f.t.Fatalf("applying %T: %v", c.Of, err)
	}
}

// fill applies a command that only makes the state large. do walks over the whole state
// for each command; fill doesn't, so that filling takes time in proportion to the state.
func (f *fleet) fill(c *dv1.Command) {
	f.t.Helper()
	snap := f.store.Snapshot()
	c = accesstest.Named(snap, c)
	effects, res := f.onBatch(snap).Decide(c, f.now())
	if res.Error != nil {
		f.t.Fatalf("%T: %s", c.Of, res.Error.Message)
	}
	if err := f.batch.Apply(effects...); err != nil {
		f.t.Fatal(err)
	}
	f.apply(c, effects)
}

func (f *fleet) ok(c *dv1.Command) *dv1.CommandResult {
	f.t.Helper()
	r := f.do(c)
	if r.Error != nil {
		f.t.Fatalf("%T: %s", c.Of, r.Error.Message)
	}
	return r
}

func (f *fleet) no(c *dv1.Command, kind dv1.Error_Kind, words string) {
	f.t.Helper()
	r := f.do(c)
	if r.Error == nil || r.Error.Kind != kind || !strings.Contains(r.Error.Message, words) {
		f.t.Errorf("%T: %v, want %s: %q", c.Of, r.Error, kind, words)
	}
}

func id(of string) []byte { return fmt.Appendf(nil, "%-32s", of)[:32] }

func create(name, body string, on ...string) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_Create{Create: &dv1.CreateRun{RunId: id("r-" + name), TaskIds: [][]byte{id(name)}, Name: name, On: on, Contact: "n0",
		AutoRemove: strings.HasPrefix(name, "rm"), Spec: &dv1.Spec{Body: []byte(body), Image: "alpine"}}}}
}

func start(name string) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_Start{Start: &dv1.Start{TaskId: id(name)}}}
}

func (f *fleet) report(node string, r *dv1.TaskReport) {
	f.t.Helper()
	f.ok(&dv1.Command{Of: &dv1.Command_Report{Report: &dv1.Report{NodeId: node, Tasks: []*dv1.TaskReport{r}}}})
}

func TestNamesAndPortsAreTakenOnce(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a", "b")
	const web = `{"Image":"alpine","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}}`
	nodes := map[string]bool{}
	for _, n := range []string{"one", "two"} {
		nodes[f.ok(create(n, web)).NodeId] = true
		f.ok(start(n))
	}
	if len(nodes) != 2 {
		t.Errorf("two that want one port are on %v", nodes)
	}
	same := create("other", web)
	same.GetCreate().Name = "one"
	f.no(same, dv1.Error_NAME_TAKEN, "already in use")
	f.ok(create("three", web))
	f.no(start("three"), dv1.Error_PORT_TAKEN, "port is already allocated on 2 of 2 nodes: a (by one), b (by two)")
	f.ok(create("rm", web))
	if r := f.ok(start("rm")); r.Attempt != 1 || r.NodeId == "" {
		t.Errorf("a start that fails at once: %v", r)
	}
	if e := f.store.Snapshot().Ended(id("rm")); f.store.Snapshot().TaskByName("rm") != nil || !strings.Contains(e.GetFailed(), "port is already allocated") || state.Live(e) || len(e.Ports) > 0 {
		t.Errorf("what removes itself ended as %v", e)
	}
	f.ok(&dv1.Command{Of: &dv1.Command_Stop{Stop: &dv1.Stop{TaskId: id("one"), Timeout: -2}}})
	f.report("n0", &dv1.TaskReport{TaskId: id("one"), Attempt: 1, Started: 5, Exit: &dv1.Exit{Attempt: 1, Code: 3}})
	if n := f.store.Snapshot().Task(id("three")).NodeId; n == "n0" {
		f.ok(start("three"))
	}
}

// A container that has no network of its own publishes nothing, so it keeps no port
// from those that do.
func TestPortsOfTheHostsNetworkAreNotHeld(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a")
	const ports = `"PortBindings":{"80/tcp":[{"HostPort":"8080"}]},"PublishAllPorts":true}`
	for name, body := range map[string]string{
		"host": `{"Image":"alpine","ExposedPorts":{"81/tcp":{}},"HostConfig":{"NetworkMode":"host",` + ports + `}`,
		"none": `{"Image":"alpine","HostConfig":{"NetworkMode":"none",` + ports + `}`, "off": `{"Image":"alpine","NetworkDisabled":true,"HostConfig":{` + ports + `}`,
		"bridge": `{"Image":"alpine","HostConfig":{` + ports + `}`,
	} {
		f.ok(create(name, body))
		f.ok(start(name))
		if held := f.store.Snapshot().Task(id(name)).Ports; (len(held) > 0) != (name == "bridge") {
			t.Errorf("%s holds %v", name, held)
		}
	}
}

// Rule 5: drover's own ports are nobody else's, by name and at once.
func TestDroversOwnPortsAreNotPublished(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a", "b")
	publish := func(ports string) string {
		return `{"Image":"alpine","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"` + ports + `"}]}}}`
	}
	f.ok(create("early", publish("7443")))
	reserve := func(node string, ports ...uint32) {
		n := proto.CloneOf(f.store.Snapshot().Node(node))
		n.ReservedPorts = ports
		f.ok(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: n}}})
	}
	for _, n := range []string{"n0", "n1"} {
		reserve(n, 7443, 7444, 7946, 5000)
	}
	f.no(start("early"), dv1.Error_PORT_TAKEN, "Bind for 0.0.0.0:7443 failed: port 7443 is reserved for drover")
	f.no(create("late", publish("7946")), dv1.Error_UNAVAILABLE, "0 of 2 nodes fit: 2 reserve port 7946 for drover")
	udp := strings.Replace(publish("7946"), "tcp", "udp", 1)
	f.no(create("udp", udp), dv1.Error_UNAVAILABLE, "2 reserve port 7946 for drover")
	one := strings.Replace(publish("5000"), `{"HostPort"`, `{"HostIp":"127.0.0.1","HostPort"`, 1)
	f.no(create("loopback", one), dv1.Error_UNAVAILABLE, "2 reserve port 5000 for drover")
	f.ok(create("range", publish("7443-7446")))
	f.ok(start("range"))
	if got := f.store.Snapshot().Task(id("range")).Ports[0].Host; got != 7445 {
		t.Errorf("of 7443-7446 it has %d", got)
	}
	f.no(create("narrow", publish("7443-7444")), dv1.Error_UNAVAILABLE, "reserve port 7444 for drover")
	reserve("n1", 7943) // another configuration
	if r := f.ok(create("fits", publish("7946"))); r.NodeId != "n1" {
		t.Errorf("it is on %s, where the port is reserved", r.NodeId)
	}
	f.ok(start("fits"))
	many := proto.CloneOf(f.store.Snapshot().Node("n0"))
	many.ReservedPorts = make([]uint32, 1000)
	f.no(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: many}}}, dv1.Error_INVALID, "reserves 1000 ports")
}

// Rule 6: what has a bind stays where its path is, or says why it can't.
func TestDataPins(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a", "b")
	const bind = `{"Image":"alpine","HostConfig":{"Binds":["/srv:/srv"]}}`
	for i := range 5 { // a is the fuller one, and still the only one
		if r := f.ok(create(fmt.Sprint("pinned", i), bind)); r.NodeId != "n0" {
			t.Fatalf("a bind of the contact's went to %s", r.NodeId)
		}
	}
	if r := f.ok(create("clock", `{"Image":"alpine","HostConfig":{"Binds":["/etc/localtime:/etc/localtime:ro"]}}`)); r.NodeId != "n1" {
		t.Errorf("a path that is everywhere pinned to %s", r.NodeId)
	}
	f.ok(&dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "a", Availability: dv1.Node_DRAIN}}})
	f.no(create("pinned", bind), dv1.Error_UNAVAILABLE, "0 of 2 nodes fit: 1 drained, 1 lack the bind's source")
	if r := f.ok(create("named", bind, "node==b")); r.NodeId != "n1" { // who names a node knows whose folder it is
		t.Errorf("a bind on the node that was named went to %s", r.NodeId)
	}
	f.no(create("anywhere", bind, "node==*"), dv1.Error_UNAVAILABLE, "1 lack the bind's source")
	if r := f.ok(create("free", `{"Image":"alpine"}`)); r.NodeId != "n1" {
		t.Errorf("with a drained it went to %s", r.NodeId)
	}
}

func TestARoleIsAUsers(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a")
	grant := func(uid string) *dv1.Command {
		return &dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "a", Roles: map[string]string{uid: "user"}}}}
	}
	f.ok(grant("0"))
	for _, uid := range []string{"-3", "", "root", "4294967296"} {
		f.no(grant(uid), dv1.Error_INVALID, "is not a uid")
	}
}

// An auto-removed task's end stays known, wherever it is asked for, and old or
// foreign reports change nothing.
func TestReports(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a", "b")
	node := f.ok(create("rm-me", `{"Image":"alpine"}`)).NodeId
	f.ok(start("rm-me"))
	other := map[string]string{"n0": "n1", "n1": "n0"}[node]
	f.report(other, &dv1.TaskReport{TaskId: id("rm-me"), Attempt: 1, Exit: &dv1.Exit{Attempt: 1, Code: 1}})
	f.report(node, &dv1.TaskReport{TaskId: id("rm-me"), Attempt: 7, Exit: &dv1.Exit{Attempt: 7, Code: 1}})
	if x := f.store.Snapshot().Task(id("rm-me")).GetExit(); x != nil {
		t.Fatalf("a stranger's report was taken: %v", x)
	}
	f.report(node, &dv1.TaskReport{TaskId: id("rm-me"), Attempt: 1, Started: 5, Exit: &dv1.Exit{Attempt: 1, Code: 42}})
	s := f.store.Snapshot()
	if s.Task(id("rm-me")) != nil || s.TaskByName("rm-me") != nil {
		t.Error("it is still there")
	}
	if e := s.Ended(id("rm-me")); e.GetExit().GetCode() != 42 {
		t.Errorf("how it ended is %v", e)
	}
	n := 0
	for range s.Tombstones(node) {
		n++
	}
	if n != 1 {
		t.Errorf("%d tombstones tell its agent", n)
	}
	f.ok(&dv1.Command{Of: &dv1.Command_AckTombstones{AckTombstones: &dv1.AckTombstones{NodeId: other, TaskIds: [][]byte{id("rm-me")}}}})
	for range f.store.Snapshot().Tombstones(node) {
		n--
	}
	if n != 0 {
		t.Error("another node's acknowledgement was taken")
	}
}

func TestJoins(t *testing.T) {
	f := newFleet(t, "10.210.0.0/23", "a")
	hash := []byte("0123456789abcdef0123456789abcdef")
	token := func(id, role string, expires int64) {
		f.ok(&dv1.Command{Of: &dv1.Command_PutToken{PutToken: &dv1.PutToken{Token: &dv1.Token{Id: id, Hash: hash, Role: role, Expires: expires, SocketRole: "user"}}}})
	}
	token("agents", TokenAgent, 0)
	token("old", TokenAgent, 1)
	token("gone", TokenAgent, 0)
	token("ctl", TokenController, 0)
	f.ok(&dv1.Command{Of: &dv1.Command_RevokeToken{RevokeToken: &dv1.RevokeToken{Id: "gone"}}})
	join := func(token, node string, c *dv1.Controller, h []byte) *dv1.Command {
		return &dv1.Command{Of: &dv1.Command_Join{Join: &dv1.Join{TokenId: token, SecretHash: h, Node: &dv1.Node{Id: "id-" + node, Name: node}, Controller: c,
			Identities: []*dv1.Identity{{Uri: "spiffe://fleet/node/id-" + node, Roles: []string{"node"}}}}}}
	}
	f.no(join("nobody", "b", nil, hash), dv1.Error_FORBIDDEN, "not one of this fleet's")
	f.no(join("agents", "b", nil, []byte("another secret, of 32 bytes too.")), dv1.Error_FORBIDDEN, "not one of this fleet's")
	f.no(join("old", "b", nil, hash), dv1.Error_FORBIDDEN, "expired")
	f.no(join("gone", "b", nil, hash), dv1.Error_FORBIDDEN, "revoked")
	f.no(join("agents", "b", &dv1.Controller{Id: "id-b"}, hash), dv1.Error_AGENTS_ONLY, "admits agents only")
	f.no(join("agents", "a", nil, hash), dv1.Error_CONFLICT, `node name "a" is taken`)
	f.ok(join("agents", "b", nil, hash))
	if n := f.store.Snapshot().NodeByName("b"); n.Subnet != "10.210.1.0/24" || n.Roles["0"] != "user" {
		t.Errorf("b is %v", n)
	}
	f.no(join("ctl", "c", &dv1.Controller{Id: "id-c"}, hash), dv1.Error_UNAVAILABLE, "no node's subnet is left in 10.210.0.0/23")
	f.no(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "b"}}}, dv1.Error_CONFLICT, "is up")
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "b", Force: true}}})
	if i := f.store.Snapshot().Identity("spiffe://fleet/node/id-b"); !i.GetRevoked() {
		t.Error("a removed node's identity is good")
	}
	f.no(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{Id: "id-b", Name: "b"}}}}, dv1.Error_FORBIDDEN, "revoked")
	f.ok(join("ctl", "c", &dv1.Controller{Id: "id-c", Name: "c", Addr: "10.0.0.3:7443"}, hash))
	f.no(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "c", Force: true}}}, dv1.Error_CONFLICT, "is a controller too")
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: "c"}}})
	f.no(&dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: "ctl"}}}, dv1.Error_CONFLICT, "only controller")
}

// Everything is sealed anew at once, or nothing is: no value stays with a key that
// somebody took along, and no controller is left without the new one.
func TestADataKeyIsReplacedWhole(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a")
	sealed := func(key string, names ...string) (out []*dv1.Sealed) {
		for _, n := range names {
			out = append(out, &dv1.Sealed{Name: n, DataKey: key, Blob: []byte(key), Recipient: []byte("r")})
		}
		return out
	}
	put := func(s *dv1.Sealed) *dv1.Command {
		return &dv1.Command{Of: &dv1.Command_PutSealed{PutSealed: &dv1.PutSealed{Sealed: s}}}
	}
	f.enter(&dv1.Controller{Id: "c1", Name: "c1", Addr: "c1"})
	for _, s := range sealed("k1", "ca-key", "data-key/k1/c1", "data-key/k1/n0", "data-key/k1/removed", "recovery", "secret") {
		f.ok(put(s))
	}
	rotate := func(from string, s []*dv1.Sealed) *dv1.Command {
		return &dv1.Command{Of: &dv1.Command_RotateDataKey{RotateDataKey: &dv1.RotateDataKey{From: from, Sealed: s}}}
	}
	all := []string{"ca-key", "data-key/k2/c1", "data-key/k2/n0", "recovery", "secret"}
	f.no(rotate("k0", sealed("k2", all...)), dv1.Error_STALE_KEY, "is k1, not")
	f.no(rotate("k1", sealed("k1", all...)), dv1.Error_INVALID, "new data key")
	f.no(rotate("k1", sealed("k2", all[1:]...)), dv1.Error_INVALID, "new data key")
	for i := range all[1:] {
		f.no(rotate("k1", sealed("k2", append(slices.Clone(all[:i+1]), all[i+2:]...)...)), dv1.Error_STALE_KEY, "would be left")
	}
	f.no(rotate("k1", sealed("k2", append(slices.Clone(all), "data-key/k2/removed")...)), dv1.Error_STALE_KEY, "not a sealed value")
	f.no(rotate("k1", append(sealed("k2", all[:4]...), sealed("k1", "secret")...)), dv1.Error_STALE_KEY, "not sealed with data key k2")
	f.ok(rotate("k1", sealed("k2", all...)))
	var names []string
	for s := range f.store.Snapshot().SealedAll() {
		names = append(names, s.Name)
		if s.DataKey != "k2" {
			t.Errorf("%s is sealed with %s", s.Name, s.DataKey)
		}
	}
	if !slices.Equal(names, all) {
		t.Errorf("there is %v, want %v", names, all)
	}
	f.no(put(sealed("k1", "late")[0]), dv1.Error_STALE_KEY, "current one is k2")
	f.ok(put(sealed("k2", "late")[0]))
}

// A removed node's tasks go without tombstones that nobody would acknowledge, and
// the state survives its own snapshot byte by byte.
func TestSnapshotsHoldAll(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a", "b")
	f.ok(create("one", `{"Image":"alpine"}`, "node==b"))
	f.ok(create("two", `{"Image":"alpine"}`, "node==a"))
	f.ok(create("rm-me", `{"Image":"alpine"}`, "node==a"))
	f.ok(start("rm-me"))
	f.report("n0", &dv1.TaskReport{TaskId: id("rm-me"), Attempt: 1, Started: 5, Exit: &dv1.Exit{Attempt: 1}})
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "b", Force: true}}})
	s := f.store.Snapshot()
	if s.TaskByName("one") != nil {
		t.Error("a removed node's task is still there")
	}
	for tomb := range s.Tombstones("n1") {
		t.Errorf("a tombstone waits for nobody: %v", tomb)
	}
	var b strings.Builder
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	again := state.NewStore()
	if err := again.Restore(strings.NewReader(b.String())); err != nil {
		t.Fatal(err)
	}
	if again.Snapshot().Hash() != s.Hash() || again.Snapshot().Ended(id("rm-me")) == nil {
		t.Error("a snapshot is not what was written")
	}
	if err := state.NewStore().Restore(strings.NewReader(b.String()[:b.Len()-40])); err == nil {
		t.Error("a snapshot that was cut off was taken")
	}
}

// Commands that are about many tasks take what fits an entry and say what is left,
// and never more, whatever a node says of a task.
func TestLargeCommandsGoOnInFurtherEntries(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a", "b")
	const tasks = 300
	var reports []*dv1.TaskReport
	for i := range tasks {
		name := fmt.Sprint("rm-", i)
		f.fill(create(name, `{"Image":"alpine"}`, "node==b"))
		f.fill(start(name))
		r := &dv1.TaskReport{TaskId: id(name), Attempt: 1, Started: 5, Exit: &dv1.Exit{Attempt: 1, Code: int32(i)}}
		if i == 0 {
			r.Exit.Reason = strings.Repeat("ä", 1<<20)
		}
		reports = append(reports, r)
	}
	size := func(c *dv1.Command) (n int) {
		effects, _ := Decide(state.NewTxn(f.store.Snapshot()), c, 1)
		for _, e := range effects {
			n += proto.Size(e)
		}
		return n
	}
	parts := func(c *dv1.Command, next func(left uint32) *dv1.Command) {
		t.Helper()
		n := 1
		for ; ; n++ {
			if at := size(c); at > budget {
				t.Fatalf("%T takes %d bytes of an entry", c.Of, at)
			}
			left := f.ok(c).Left
			if left == 0 {
				break
			}
			c = next(left)
		}
		if n == 1 {
			t.Fatalf("%T was no large command", c.Of)
		}
	}
	report := func(r ...*dv1.TaskReport) *dv1.Command {
		return &dv1.Command{Of: &dv1.Command_Report{Report: &dv1.Report{NodeId: "n1", Tasks: r}}}
	}
	parts(report(reports...), func(left uint32) *dv1.Command { return report(reports[tasks-left:]...) })
	for i := range tasks {
		if x := f.store.Snapshot().Ended(id(fmt.Sprint("rm-", i))).GetExit(); x.GetCode() != int32(i) || len(x.Reason) > maxReason {
			t.Fatalf("task %d ended with %v", i, x.GetCode())
		}
	}
	for i := range 1000 {
		f.fill(create(fmt.Sprint("t-", i), `{"Image":"alpine"}`, "node==b"))
	}
	rm := &dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "b", Force: true}}}
	parts(rm, func(uint32) *dv1.Command {
		f.no(&dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "b", Availability: dv1.Node_ACTIVE}}}, dv1.Error_CONFLICT, "is being removed")
		f.no(create("late", `{"Image":"alpine"}`, "node==b"), dv1.Error_UNAVAILABLE, "drained")
		return &dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "n1"}}}
	})
	s := f.store.Snapshot()
	if s.Node("n1") != nil {
		t.Error("the node stayed")
	}
	for x := range s.Tasks() {
		t.Errorf("task %s stayed", x.Name)
	}
	for x := range s.Tombstones("n1") {
		t.Errorf("a tombstone waits for nobody: %v", x)
	}
}

// enter makes a controller, as a join does.
func (f *fleet) enter(c *dv1.Controller) {
	f.t.Helper()
	hash := []byte("0123456789abcdef0123456789abcdef")
	if f.store.Snapshot().Token("enter") == nil {
		f.ok(&dv1.Command{Of: &dv1.Command_PutToken{PutToken: &dv1.PutToken{Token: &dv1.Token{Id: "enter", Hash: hash, Role: TokenController}}}})
	}
	f.ok(&dv1.Command{Of: &dv1.Command_Join{Join: &dv1.Join{TokenId: "enter", SecretHash: hash, Node: &dv1.Node{Id: c.Id, Name: c.Name}, Controller: c}}})
}

// A controller says where it is now; what it isn't said to be it stays.
func TestAControllerMoves(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a")
	f.enter(&dv1.Controller{Id: "c1", Name: "c", Addr: "10.0.0.2:7443"})
	move := func(id, addr string) *dv1.Command {
		return &dv1.Command{Of: &dv1.Command_PutController{PutController: &dv1.PutController{Controller: &dv1.Controller{Id: id, Addr: addr}}}}
	}
	f.ok(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: "spiffe://fleet/controller/c2", Roles: []string{"controller"}}}}})
	f.no(move("c2", "10.0.0.3:7443"), dv1.Error_NOT_FOUND, "No such controller")
	f.no(move("c1", "10.0.0.1:7443"), dv1.Error_CONFLICT, "controller ctl is at")
	f.no(move("c1", ""), dv1.Error_INVALID, "needs an address")
	f.ok(move("c1", "10.0.0.3:7443"))
	if c := f.store.Snapshot().Controller("c1"); c.Addr != "10.0.0.3:7443" || c.Name != "c" || c.Joined == 0 {
		t.Errorf("it is %v", c)
	}
}

// Two restarts that both saw the same attempt are one.
func TestARestartIsOfAnAttempt(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a")
	f.ok(create("web", `{"Image":"alpine"}`))
	f.ok(&dv1.Command{Of: &dv1.Command_Start{Start: &dv1.Start{TaskId: id("web")}}})
	for _, want := range []bool{true, false} {
		r := f.ok(&dv1.Command{Of: &dv1.Command_Restart{Restart: &dv1.Restart{TaskId: id("web"), Attempt: 2}}})
		if r.Attempt != 2 || r.Changed != want {
			t.Errorf("restart to attempt 2: %v", r)
		}
	}
	if r := f.ok(&dv1.Command{Of: &dv1.Command_Restart{Restart: &dv1.Restart{TaskId: id("web"), Attempt: 3}}}); r.Attempt != 3 {
		t.Errorf("the next restart: %v", r)
	}
}
