package controller

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/testenv"
	"github.com/drover/drover/pkg/unixsock"
)

func TestWhoIsThereDecidesWhatIsAnswered(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.up()
	admin := h.files(identity.AdminPKI(h.data))
	if r := h.local("GET", "/_ping", ""); r.code != 200 || r.body != "OK" {
		t.Fatalf("over the socket: %v", r)
	}
	for _, protos := range [][]string{nil, {"http/1.1"}, {"h2", "http/1.1"}} { // docker offers none
		if r := h.remote(admin, "/_ping", protos...); r.code != 200 || r.body != "OK" {
			t.Fatalf("the admin with %v: %v", protos, r)
		}
		for _, path := range []string{"/_ping", "/version", "/drover.v1.Traces/List", "/v1/traces", "/"} {
			if r := h.remote(nil, path, protos...); r.code != 401 || !strings.HasPrefix(r.body, `{"message":"`) {
				t.Fatalf("nobody at %s with %v: %v", path, protos, r)
			}
		}
	}
	if r := h.remote(h.identity(pki.KindUser, "stranger"), "/_ping"); r.code != 403 || !strings.Contains(r.body, "not known") {
		t.Fatalf("an identity that was never committed: %v", r)
	}
	if r := h.remote(h.files(identity.AgentPKI(h.data)), "/_ping"); r.code != 403 || !strings.Contains(r.body, "role") {
		t.Fatalf("a node at the engine's API: %v", r)
	}
	h.propose(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{
		Uri: admin.Principal.URI, Roles: []string{pki.RoleAdmin}, Revoked: true}}}})
	if r := h.remote(admin, "/_ping"); r.code != 403 || !strings.Contains(r.body, "revoked") {
		t.Fatalf("a revoked identity: %v", r)
	}
	other := newHost(t)
	// Its certificate isn't asked for here, so that a TLS client sends none, or it is refused.
	if r := h.remote(other.identity(pki.KindUser, "admin"), "/_ping"); r.err == nil && r.code != 401 {
		t.Fatalf("another cluster's admin was answered: %v", r)
	}
	if r := h.remote(nil, "/_ping", "drover-raft/1"); r.err == nil {
		t.Fatalf("raft's protocol without an identity: %v", r)
	}
}

// The socket is for root and for its group, also where its mode would let others in.
func TestSocketAsksTheKernelWhoIsThere(t *testing.T) {
	testenv.Root(t)
	noLeaks(t)
	h := newHost(t)
	h.up()
	sock := unixsock.File(h.rundir)
	if st, err := os.Stat(sock); err != nil || st.Mode().Perm() != 0o660 {
		t.Fatalf("the socket's mode: %v %v", st.Mode(), err)
	}
	if err := os.Chmod(filepath.Dir(h.rundir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(sock, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(sock, 0, 4242); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		uid, gid int
		groups   []uint32
		want     int
	}{{65534, 65534, nil, 403}, {65534, 65534, []uint32{7, 8}, 403}, {65534, 4242, nil, 200}, {65534, 65534, []uint32{7, 4242}, 200}} {
		if code, body := pingAs(t, sock, c.uid, c.gid, c.groups); code != c.want || code == 403 && !strings.Contains(body, "uid 65534 may not use") {
			t.Errorf("uid %d, gid %d, groups %v: %d %s", c.uid, c.gid, c.groups, code, body)
		}
	}
}

// pingAs connects from a thread with other credentials, which then ends.
func pingAs(t *testing.T, sock string, uid, gid int, groups []uint32) (code int, body string) {
	t.Helper()
	type result struct {
		c   net.Conn
		err error
	}
	got := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		var first *uint32
		if len(groups) > 0 {
			first = &groups[0]
		}
		if err := setCredentials(uid, gid, first, len(groups)); err != nil {
			got <- result{nil, err}
			return
		}
		c, err := net.Dial("unix", sock)
		got <- result{c, err}
	}()
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer func() { _ = r.c.Close() }()
	if _, err := io.WriteString(r.c, "GET /_ping HTTP/1.1\r\nHost: drover\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(r.c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func image(h *host) {
	h.t.Helper()
	h.propose(&dv1.Command{Of: &dv1.Command_CommitImage{CommitImage: &dv1.CommitImage{
		Image: &dv1.Image{Digest: "sha256:" + strings.Repeat("a", 64), Config: []byte(`{}`)}, Refs: []string{"busybox"}}}})
}

func (h *host) create(name, body string) string {
	h.t.Helper()
	r := h.local("POST", "/v1.44/containers/create?name="+name, body)
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(r.body), &made); err != nil || r.code != 201 {
		h.t.Fatalf("create: %v", r)
	}
	return made.ID
}

func raw(h *host, id string) []byte {
	h.t.Helper()
	b, err := hex.DecodeString(id)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// One run through every room: create, start, wait for the exit of a container
// that is removed in the same moment, by an agent with a session and a port.
func TestARunGoesThroughARealSession(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.up()
	files := h.files(identity.AgentPKI(h.data))
	logs := http.NewServeMux()
	logs.HandleFunc("GET /v1/tasks/{id}/logs", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		_, _ = w.Write([]byte("\x01\x00\x00\x00\x00\x00\x00\x03hi\n"))
	})
	a, err := h.open(files, 1, h.bulkPort(files, logs))
	if err != nil {
		t.Fatal(err)
	}
	if a.subnet != "10.210.0.0/24" {
		t.Fatalf("subnet %q", a.subnet)
	}
	if s := a.sync(); !s.GetFull() {
		t.Fatalf("the first sync is not full: %v", s)
	}
	image(h)
	id := h.create("x", `{"Image":"busybox","Cmd":["true"],"HostConfig":{"AutoRemove":true}}`)
	s := a.sync()
	if len(s.GetTasks()) != 1 || s.Tasks[0].GetTask().GetDesired() != dv1.Desired_CREATED || len(s.Specs) != 1 || !bytes.Contains(s.Specs[0].GetBody(), []byte("busybox")) {
		t.Fatalf("after create: %v", s)
	}
	waited, started := make(chan response, 1), make(chan response, 1)
	go func() { waited <- h.local("POST", "/containers/x/wait?condition=removed", "") }()
	go func() { started <- h.local("POST", "/containers/x/start", "") }()
	if s = a.sync(); s.Tasks[0].GetTask().GetDesired() != dv1.Desired_RUNNING || s.Tasks[0].GetTask().GetAttempt() != 1 {
		t.Fatalf("after start: %v", s)
	}
	now := time.Now().UnixNano()
	a.status(&dv1.TaskStatus{Id: raw(h, id), Attempt: 1, Phase: dv1.Phase_ACTIVE, Started: now})
	if r := <-started; r.code != 204 {
		t.Fatalf("start: %v", r)
	}
	if r := h.local("GET", "/containers/x/logs?stdout=1", ""); r.code != 200 || !strings.HasSuffix(r.body, "hi\n") {
		t.Fatalf("logs through the agent's own port: %v", r)
	}
	a.status(&dv1.TaskStatus{Id: raw(h, id), Attempt: 1, Phase: dv1.Phase_EXITED, Started: now, Exit: &dv1.Exit{Attempt: 1, Code: 7, At: now + 1}})
	// The agent is done with it before anybody could look.
	s = a.sync()
	for len(s.GetTombstones()) == 0 {
		s = a.sync()
	}
	a.status(&dv1.TaskStatus{Id: raw(h, id), Gone: true})
	a.send(&dv1.FromAgent{Of: &dv1.FromAgent_Acks{Acks: &dv1.Acks{Index: s.GetIndex(), Removed: [][]byte{raw(h, id)}}}})
	if r := <-waited; r.code != 200 || !strings.Contains(r.body, `"StatusCode":7`) {
		t.Fatalf("wait: %v", r)
	}
	h.create("x", `{"Image":"busybox","Cmd":["true"]}`) // the name is free
}

func TestOnlyTheClustersOwnNodesGetSessions(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.up()
	if _, err := h.open(h.identity(pki.KindNode, "stranger"), 1, ""); err == nil {
		t.Fatal("a node that was never committed has a session")
	}
	if _, err := h.open(h.files(identity.AdminPKI(h.data)), 1, ""); err == nil {
		t.Fatal("a user has a session")
	}
	files := h.files(identity.AgentPKI(h.data))
	a, err := h.open(files, 1, "")
	if err != nil {
		t.Fatal(err)
	}
	h.propose(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{
		Uri: files.Principal.URI, Roles: []string{pki.KindNode}, Revoked: true}}}})
	for begun := time.Now(); ; {
		if _, err := a.stream.Receive(); err != nil {
			break
		}
		if time.Since(begun) > 2*time.Second {
			t.Fatal("a revoked node still has its session")
		}
	}
	if _, err := h.open(files, 2, ""); err == nil {
		t.Fatal("a revoked node has a new session")
	}
}

func TestARestartKeepsStateAndEndsHijackedConnections(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.up()
	if n := strings.Count(h.stdout.String(), "recovery key: DROVER-RECOVERY-"); n != 1 {
		t.Fatalf("the first start shows the recovery key %d times: %q", n, h.stdout)
	}
	if _, err := h.open(h.files(identity.AgentPKI(h.data)), 1, ""); err != nil {
		t.Fatal(err)
	}
	image(h)
	id := h.create("kept", `{"Image":"busybox","Cmd":["true"]}`)

	c, err := net.Dial("unix", unixsock.File(h.rundir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "POST /containers/kept/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: drover\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "101") {
		t.Fatalf("attach: %q %v", line, err)
	}
	stopped := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, c); close(stopped) }()
	h.down()
	<-stopped
	if _, err := os.Stat(unixsock.File(h.rundir)); err == nil {
		t.Fatal("the socket is still there")
	}

	h.up()
	if out := h.stdout.String(); out != "" {
		t.Fatalf("the second start says %q", out)
	}
	snap := h.c.node.Load().Snapshot()
	if k := snap.TaskByName("kept"); k == nil || hex.EncodeToString(k.GetId()) != id || snap.Node(h.nodeID()).GetSubnet() != "10.210.0.0/24" {
		t.Fatalf("after the restart: %v %v", k, snap.Node(h.nodeID()))
	}
	a, err := h.open(h.files(identity.AgentPKI(h.data)), 2, "")
	if err != nil {
		t.Fatal(err)
	}
	if s := a.sync(); !s.GetFull() || len(s.GetTasks()) != 1 {
		t.Fatalf("the agent is told %v", s)
	}
	if r := h.local("GET", "/events?since=1&until=2", ""); strings.Contains(r.body, "kept") {
		t.Fatalf("events of a former life: %v", r)
	}
}

func TestASecondControllerIsRefusedAndADeadOnesSocketReplaced(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	if err := os.MkdirAll(h.rundir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: unixsock.File(h.rundir)})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	h.up()
	if err := Run(t.Context(), Config{DataDir: h.data, RunDir: h.rundir}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("a second controller: %v", err)
	}
	if r := h.local("GET", "/_ping", ""); r.code != 200 {
		t.Fatalf("after the second controller: %v", r)
	}
	h.down()
	if err := os.WriteFile(unixsock.File(h.rundir), []byte("notes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), Config{DataDir: h.data, RunDir: h.rundir, Listen: "127.0.0.1:0"}); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Fatalf("with a file in the socket's place: %v", err)
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	noLeaks(t)
	for want, cfg := range map[string]Config{
		"DataDir is required":    {},
		"RunDir is required":     {DataDir: "/x"},
		"no controller's ident":  {DataDir: t.TempDir(), RunDir: "/x"},
		"Advertise is required":  {DataDir: newHost(t).data, RunDir: t.TempDir(), Listen: "0.0.0.0:0"},
		"choose a shorter run-d": {DataDir: newHost(t).data, RunDir: "/" + strings.Repeat("x", 120), Listen: "127.0.0.1:0"},
	} {
		if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

// Before the log is ready, whoever may ask is asked to wait.
