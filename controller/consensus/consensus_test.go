package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// layer is raft over plain TCP.
type layer struct{ net.Listener }

func (layer) Dial(a raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(a), timeout)
}

// member is an opened Node whose Run is going.
type member struct {
	*Node
	cancel context.CancelFunc
	ended  chan error
}

func start(t *testing.T, o Options) *member {
	t.Helper()
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{Node: n, cancel: cancel, ended: make(chan error, 1)}
	go func() { m.ended <- n.Run(ctx) }()
	t.Cleanup(func() { m.kill(t) })
	return m
}

// kill ends Run and then the node; twice is once.
func (m *member) kill(t *testing.T) {
	t.Helper()
	m.cancel()
	err, ok := <-m.ended
	if ok {
		close(m.ended)
	}
	var fatal *state.FatalError
	if err != nil && !errors.As(err, &fatal) {
		t.Errorf("Run: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// until waits for a change after which cond holds.
func until(t *testing.T, what string, n *Node, cond func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		ch := n.Changed()
		if cond() {
			return
		}
		select {
		case <-ch:
		case <-limit:
			t.Fatalf("%s: not within 20s", what)
		}
	}
}

func logger(t *testing.T) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func single(t *testing.T, dir string, options ...func(*Options)) *member {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{ID: "c1", Dir: dir, Addr: raft.ServerAddress(l.Addr().String()), Layer: layer{l}, Logger: logger(t), Version: "test"}
	for _, f := range options {
		f(&o)
	}
	m := start(t, o)
	if !m.HasState() {
		if err := m.Bootstrap([]raft.Server{{ID: "c1", Address: o.Addr}}); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *member) do(t *testing.T, c *dv1.Command) *dv1.CommandResult {
	t.Helper()
	r, err := m.Propose(t.Context(), accesstest.Named(m.Snapshot(), c))
	if err != nil {
		t.Fatalf("%T: %v", c.Of, err)
	}
	if r.Error != nil {
		t.Fatalf("%T was refused: %s", c.Of, r.Error.Message)
	}
	return r
}

func id(of string) []byte { return fmt.Appendf(nil, "%-32s", of)[:32] }

const admin = "spiffe://fleet/user/admin"

const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

var (
	initCluster = &dv1.Command{Principal: "spiffe://fleet/controller/c1", Of: &dv1.Command_Init{Init: &dv1.Init{
		Cluster:    &dv1.Cluster{Id: "fleet", Pool: "10.210.0.0/16"},
		Identities: accesstest.Identities("fleet", "n1"),
		Sealed:     []*dv1.Sealed{{Name: "ca-key", Blob: []byte{1}}},
	}}}
	registerNode = &dv1.Command{Principal: "spiffe://fleet/node/n1", Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{
		Id: "n1", Name: "web-1", Capacity: &dv1.Capacity{Memory: 1 << 30, Arch: "amd64", Os: "linux"},
	}}}}
	commitImage = &dv1.Command{Principal: admin, Of: &dv1.Command_CommitImage{CommitImage: &dv1.CommitImage{Image: &dv1.Image{Digest: digest}, Refs: []string{"alpine"}}}}
)

func createRun(name string) *dv1.Command {
	return &dv1.Command{Principal: admin, Of: &dv1.Command_Create{Create: &dv1.CreateRun{RunId: id("run-" + name), TaskIds: [][]byte{id(name)}, Name: name,
		Spec: &dv1.Spec{Body: []byte(`{"Image":"alpine"}`), Image: "alpine"}}}}
}

func startTask(name string) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_Start{Start: &dv1.Start{TaskId: id(name)}}}
}

func report(r *dv1.TaskReport) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_Report{Report: &dv1.Report{NodeId: "n1", Tasks: []*dv1.TaskReport{r}}}}
}

// prepare makes what every create needs.
func (m *member) prepare(t *testing.T) {
	t.Helper()
	until(t, "leading", m.Node, m.Ready)
	m.do(t, initCluster)
	m.do(t, registerNode)
	m.do(t, commitImage)
}

func TestOneMemberKeepsEverythingOnDisk(t *testing.T) {
	dir := t.TempDir()
	var seen []uint64
	m := single(t, dir, func(o *Options) {
		o.OnCommit = func(_ []*dv1.Effect, index uint64) { seen = append(seen, index) }
	})
	m.prepare(t)
	made := m.do(t, createRun("web"))
	if got := m.Snapshot().Task(made.TaskId); got.GetNodeId() != "n1" || got.Revision != made.Index {
		t.Fatalf("the task is on %q with revision %d, answered %d", got.GetNodeId(), got.GetRevision(), made.Index)
	}
	if r := m.do(t, startTask("web")); !r.Changed || r.Attempt != 1 {
		t.Fatalf("start: %v", r)
	}
	if r := m.do(t, startTask("web")); r.Changed {
		t.Fatalf("second start: %v", r)
	}
	m.do(t, report(&dv1.TaskReport{TaskId: id("web"), Attempt: 1, Started: 42}))
	m.do(t, report(&dv1.TaskReport{TaskId: id("web"), Attempt: 1, Exit: &dv1.Exit{Code: 3, At: 43}}))
	m.do(t, createRun("gone"))
	last := m.do(t, &dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: id("gone")}}})
	want := m.Snapshot().Hash()

	// A power cut: what the files hold while the member is up.
	cut := t.TempDir()
	if err := os.CopyFS(cut, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := m.Raft().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	withSnapshot := t.TempDir()
	if err := os.CopyFS(withSnapshot, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	m.kill(t)
	for i := 1; i < len(seen); i++ {
		if seen[i] <= seen[i-1] {
			t.Fatalf("OnCommit saw indexes %v", seen)
		}
	}
	for where, d := range map[string]string{"closed": dir, "cut": cut, "cut behind a snapshot": withSnapshot} {
		t.Run(where, func(t *testing.T) {
			m := single(t, d)
			if !m.HasState() {
				t.Fatal("HasState is false")
			}
			until(t, "leading", m.Node, m.Ready)
			s := m.Snapshot()
			if s.Hash() != want {
				t.Fatalf("another state than before, at index %d instead of %d", s.Index(), last.Index)
			}
			if task := s.TaskByName("web"); task.GetExit().GetCode() != 3 || task.Started != 42 || task.Desired != dv1.Desired_STOPPED {
				t.Fatalf("web is %v", task)
			}
			if err := m.Bootstrap([]raft.Server{{ID: "c1", Address: "x"}}); err == nil {
				t.Fatal("bootstrapped twice")
			}
			if r := m.do(t, startTask("web")); r.Attempt != 2 || r.Index <= last.Index {
				t.Fatalf("start: %v", r)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	m := single(t, t.TempDir())
	m.prepare(t)
	c := createRun("web")
	c.Key = "k1"
	first := m.do(t, c)
	// The repetition has other ids, as a receiver mints them, but the same client's bytes.
	hashed := createRun("api")
	hashed.Key, hashed.Hash = "k2", []byte("bytes")
	second := m.do(t, hashed)
	again := createRun("api")
	again.GetCreate().RunId, again.GetCreate().TaskIds = id("other run"), [][]byte{id("other")}
	again.Key, again.Hash = "k2", []byte("bytes")
	for what, r := range map[string][2]*dv1.CommandResult{"k1": {first, m.do(t, c)}, "k2": {second, m.do(t, again)}} {
		if !proto.Equal(r[0], r[1]) {
			t.Errorf("%s: answered %v, then %v", what, r[0], r[1])
		}
	}
	other := createRun("another")
	other.Key = "k1"
	if _, err := m.Propose(t.Context(), accesstest.Named(m.Snapshot(), other)); !errors.Is(err, ErrKeyReused) {
		t.Errorf("another request with the key: %v", err)
	}
	if m.Snapshot().TaskByName("another") != nil {
		t.Error("it was done nevertheless")
	}
	// A refusal isn't kept: repeated when the reason is gone, it is decided anew.
	taken := createRun("web")
	taken.Key, taken.GetCreate().RunId, taken.GetCreate().TaskIds = "k3", id("run"), [][]byte{id("later")}
	if r, err := m.Propose(t.Context(), accesstest.Named(m.Snapshot(), taken)); err != nil || r.GetError().GetKind() != dv1.Error_NAME_TAKEN {
		t.Fatalf("taken name: %v, %v", r, err)
	}
	m.do(t, &dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: id("web")}}})
	if r := m.do(t, taken); !bytes.Equal(r.TaskId, id("later")) {
		t.Errorf("after the name was free: %v", r)
	}
	if n := len(m.requests) + len(m.reports); n != 0 {
		t.Errorf("%d commands are still queued", n)
	}
}

func TestForgedBaseIsRefused(t *testing.T) {
	m := single(t, t.TempDir())
	m.prepare(t)
	before := m.Snapshot()
	for _, base := range []uint64{0, before.Index() - 1, before.Index() + 1} {
		b, _ := proto.Marshal(&dv1.Entry{Format: 1, Type: 1, MinVersion: 1, Base: base,
			Effects: []*dv1.Effect{{Of: &dv1.Effect_DeleteNode{DeleteNode: "n1"}}}})
		f := m.Raft().Apply(b, time.Second)
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		if err, _ := f.Response().(error); !errors.Is(err, state.ErrBase) {
			t.Errorf("base %d at version %d: %v", base, before.Index(), err)
		}
	}
	if m.Snapshot().Hash() != before.Hash() {
		t.Fatal("a refused entry changed the state")
	}
	m.do(t, createRun("after"))
}

func TestUnknownEntryHaltsTheMember(t *testing.T) {
	for what, e := range map[string]*dv1.Entry{
		"type":    {Format: 1, Type: 9, MinVersion: 1},
		"format":  {Format: 2, Type: 1, MinVersion: 1},
		"version": {Format: 1, Type: 1, MinVersion: state.FeatureLevel + 1},
		"effect":  {Format: 1, Type: 1, MinVersion: 1, Effects: []*dv1.Effect{{}}},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			m := single(t, dir)
			m.prepare(t)
			before := m.Snapshot()
			e.Base = before.Index()
			b, _ := proto.Marshal(e)
			var fatal *state.FatalError
			f := m.Raft().Apply(b, time.Second)
			if err := f.Error(); err != nil {
				t.Fatal(err)
			}
			if err, _ := f.Response().(error); !errors.As(err, &fatal) {
				t.Fatalf("applied: %v", err)
			}
			if err := <-m.ended; !errors.As(err, &fatal) {
				t.Fatalf("Run: %v", err)
			}
			close(m.ended)
			if _, err := m.Propose(t.Context(), accesstest.Named(m.Snapshot(), createRun("after"))); err == nil {
				t.Error("a halted member decided a command")
			}
			if _, err := m.WaitIndex(t.Context(), before.Index()+9); !errors.As(err, &fatal) {
				t.Errorf("WaitIndex: %v", err)
			}
			if err := m.Raft().Snapshot().Error(); err == nil {
				t.Error("a halted member wrote a snapshot, which drops the entry")
			}
			if m.Snapshot().Hash() != before.Hash() {
				t.Error("it changed the state")
			}
			m.kill(t)
			again := single(t, dir)
			if err := <-again.ended; !errors.As(err, &fatal) {
				t.Errorf("Run after a restart: %v", err)
			}
			close(again.ended)
		})
	}
}

func TestAfterRunNobodyWaits(t *testing.T) {
	m := single(t, t.TempDir())
	until(t, "leading", m.Node, m.Ready)
	m.cancel()
	if err := <-m.ended; err != nil {
		t.Fatal(err)
	}
	close(m.ended)
	if _, err := m.Propose(t.Context(), initCluster); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Propose: %v", err)
	}
	if m.Ready() {
		t.Error("Ready without Run")
	}
}

func TestTooBigForOneEntry(t *testing.T) {
	m := single(t, t.TempDir())
	m.prepare(t)
	c := createRun("big")
	c.GetCreate().Spec.Body = fmt.Appendf(nil, `{"Image":"alpine","Hostname":"%s"}`, strings.Repeat("x", maxEntry))
	r, err := m.Propose(t.Context(), accesstest.Named(m.Snapshot(), c))
	if err != nil || r.GetError().GetKind() != dv1.Error_INVALID {
		t.Errorf("answered %v, %v", r, err)
	}
	m.do(t, createRun("small"))
}

func TestOpenRefusesWhatItCantUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, tr := raft.NewInmemTransport("a")
	for what, o := range map[string]Options{
		"no id": {Dir: t.TempDir(), Transport: tr}, "no dir": {ID: "a", Transport: tr}, "no layer": {ID: "a", Dir: t.TempDir()},
		"dir is a file": {ID: "a", Dir: file, Transport: tr},
	} {
		if _, err := Open(o); err == nil {
			t.Errorf("%s: opened", what)
		}
	}
}

// A damaged snapshot must stop the start, not be taken for an empty fleet.
func TestDamagedSnapshotIsNotPassedOver(t *testing.T) {
	dir := t.TempDir()
	m := single(t, dir)
	m.prepare(t)
	if err := m.Raft().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	m.kill(t)
	files, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if err != nil || len(files) != 1 {
		t.Fatalf("snapshots: %v, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := Open(Options{ID: "c1", Dir: dir, Addr: "x", Layer: layer{l}}); err == nil {
		n.Close()
		t.Fatal("opened")
	}
	// The failed Open let go of everything: the log can be opened again.
	if err := os.WriteFile(files[0], func() []byte { b[len(b)/2] ^= 1; return b }(), 0o600); err != nil {
		t.Fatal(err)
	}
	again := single(t, dir)
	until(t, "leading", again.Node, again.Ready)
}

var _ io.Closer = (*Node)(nil)

// What can't be decided costs its own request, not the leader, whom its repetition
// would follow.
func TestACommandThatPanicsIsRefused(t *testing.T) {
	var log bytes.Buffer
	m := single(t, t.TempDir(), func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	m.prepare(t)
	bad := &dv1.Command{Principal: admin, Key: "bad", Of: &dv1.Command_Create{}}
	for range 2 {
		if r, err := m.Propose(t.Context(), bad); err == nil || errors.Is(err, ErrRetry) || errors.Is(err, ErrNotLeader) {
			t.Errorf("answered %v, %v", r, err)
		}
	}
	m.do(t, createRun("after"))
	m.kill(t)
	if s := log.String(); !strings.Contains(s, "Command_Create") || !strings.Contains(s, "command.(*decision).create") {
		t.Errorf("the log does not tell where: %s", s)
	}
}

// A member that is elected again has not applied yet what another leader committed
// meanwhile.
func TestReadyIsOfATerm(t *testing.T) {
	m := single(t, t.TempDir())
	until(t, "leading", m.Node, m.Ready)
	if _, err := m.Verify(); err != nil {
		t.Fatal(err)
	}
	m.ready.Store(m.Term() - 1)
	if m.Ready() {
		t.Error("it is ready by an earlier term")
	}
	if _, err := m.Verify(); !errors.Is(err, ErrNotLeader) {
		t.Errorf("it vouches for the state: %v", err)
	}
}

func TestAKeyIsOfBoundedLengthAndItsCallers(t *testing.T) {
	m := single(t, t.TempDir())
	m.prepare(t)
	c := createRun("long")
	c.Key = strings.Repeat("k", MaxKey+1)
	if r, err := m.Propose(t.Context(), c); err != nil || r.GetError().GetKind() != dv1.Error_INVALID {
		t.Errorf("a long key: %v, %v", r, err)
	}
	by := func(principal string) *dv1.Command {
		c := createRun("web")
		c.Key, c.Principal, c.Traceparent = "k", principal, "of "+principal
		return c
	}
	first := m.do(t, by("spiffe://fleet/controller/c1/uid/0"))
	if r := m.do(t, by("spiffe://fleet/user/admin-c1")); r.Index != first.Index {
		t.Errorf("the same admin by another way: %v", r)
	}
	for _, other := range []string{"spiffe://fleet/controller/c1/uid/1000", "spiffe://fleet/user/eve", "spiffe://fleet/node/n1/uid/0"} {
		if r, err := m.Propose(t.Context(), by(other)); !errors.Is(err, ErrKeyReused) {
			t.Errorf("%s is given %v, %v", other, r, err)
		}
	}
}

// A leader whose clock is absurd does not take the state's time along.
func TestAClockThatIsNotBelievedDoesNotCount(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	believe := false
	m := single(t, t.TempDir(), func(o *Options) {
		o.Clock = func() time.Time { return now }
		o.Believe = func() bool { return believe }
	})
	m.prepare(t)
	at := func(name string) time.Time {
		t.Helper()
		m.do(t, createRun(name))
		return time.Unix(0, m.Snapshot().TaskByName(name).Created).UTC()
	}
	now = now.Add(MaxAhead)
	if got := at("an-hour-later"); !got.Equal(now) {
		t.Errorf("an hour later it is %v", got)
	}
	was := now
	now = now.AddDate(72, 0, 0)
	if got := at("in-2099"); got.Before(was) || got.Sub(was) > time.Minute {
		t.Errorf("with a clock in 2099 it is %v", got)
	}
	now = was.Add(MaxAhead / 2)
	if got := at("mended"); !got.Equal(now) {
		t.Errorf("with a clock that was set it is %v", got)
	}
	now, believe = was.AddDate(0, 0, 3), true
	if got := at("after-three-days"); !got.Equal(now) {
		t.Errorf("three days later, as the others say, it is %v", got)
	}
}
