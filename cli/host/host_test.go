package host

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/clitest"
	"github.com/drover/drover/cli/supervisor"
	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/config"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/pki/pkitest"
	"github.com/drover/drover/pkg/testenv"
)

// TestMain is also the processes of a host, which say in its run directory that they run.
func TestMain(m *testing.M) {
	if i := slices.Index(os.Args, "--run-dir"); i > 0 {
		ctx, stop := signal.NotifyContext(context.Background(), supervisor.Signals...)
		defer stop()
		if f, err := os.OpenFile(filepath.Join(os.Args[i+1], "ran"), os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString(os.Args[1] + "\n")
		}
		<-ctx.Done()
		return
	}
	os.Exit(m.Run())
}

// The recovery key is on the disk of a host until it was shown, and never after that.
func TestTheRecoveryKeyIsShownOnce(t *testing.T) {
	run := t.TempDir()
	c := &config.Config{RunDir: run, NodeName: "web-1", Advertise: "10.0.0.1"}
	key := bootstrap.RecoveryKeyFile(run)
	if err := os.MkdirAll(filepath.Dir(key), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte("drover-recovery-abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"up-first.txt", "up-again.txt"} {
		var out bytes.Buffer
		printNextSteps(&out, c)
		clitest.Golden(t, name, strings.ReplaceAll(out.String(), run, "/tmp/run"))
		if _, err := os.Stat(key); !os.IsNotExist(err) {
			t.Errorf("%s: the key is still on the disk: %v", name, err)
		}
	}
	var out bytes.Buffer
	printNextSteps(&out, &config.Config{RunDir: "/run/drover", NodeName: "web-1", Advertise: "10.0.0.1"})
	clitest.Golden(t, "up-default.txt", out.String())
}

// What a command that changes the host says before it changes anything.
func TestCommandsThatRefuse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is what they ask for first")
	}
	data := t.TempDir()
	run, err := os.MkdirTemp("", "du") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	t.Setenv("DROVER_DATA_DIR", data)
	t.Setenv("DROVER_RUN_DIR", run)
	t.Setenv("DROVER_NODE_NAME", "web-1")
	t.Setenv("DROVER_TOKEN", "")
	var out bytes.Buffer
	for _, c := range []struct {
		cmd  *cobra.Command
		args string
	}{
		{joinCommand(), ""},
		{joinCommand(), "10.0.0.1"},
		{joinCommand(), "10.0.0.1 --token drover1-a-b-c"},
		{joinCommand(), "10.0.0.1 --token x --log-level loud"},
		{upCommand(), "now"},
		{recoverCommand(), ""},
		{recoverCommand(), "--yes"},
		{snapshotCommand(), ""},
		{agentCommand("test"), ""},
	} {
		var said bytes.Buffer
		c.cmd.SetOut(&said)
		c.cmd.SetErr(&said)
		c.cmd.SilenceErrors, c.cmd.SilenceUsage = true, true
		c.cmd.SetArgs(strings.Fields(c.args))
		err := c.cmd.ExecuteContext(t.Context())
		if err == nil {
			t.Fatalf("%s %s: it did something", c.cmd.Name(), c.args)
		}
		_, _ = out.WriteString("$ drover " + c.cmd.Name() + " " + c.args + "\n" + said.String() + "error: " + strings.SplitN(err.Error(), "\n", 2)[0] + "\n")
	}
	clitest.Golden(t, "refusals.txt", strings.NewReplacer(data, "/tmp/data", run, "/tmp/run").Replace(out.String()))
	if identity.IsMember(data) || identity.HasController(data) {
		t.Error("the host is in a fleet now")
	}
}

// plain hides TLS from net/http, which does not serve protocols that it doesn't know.
type plain struct{ net.Listener }

func (l plain) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return struct{ net.Conn }{c}, err
}

// admission answers each join with the next of these codes, and keeps what was asked. It
// calls asks, if there is one, at each.
func admission(t *testing.T, asks func(), codes ...int) (o identity.JoinOptions, asked *[]join.Request) {
	t.Helper()
	ca := pkitest.Authority(t, "c")
	f := pkitest.Files(t, ca, "c", pki.KindController, "1")
	cert := f.Cert
	cert.Certificate = append(slices.Clone(cert.Certificate), ca.Cert.Raw)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{wire.ALPNJoin}})
	if err != nil {
		t.Fatal(err)
	}
	asked = &[]join.Request{}
	srv := &http.Server{ReadHeaderTimeout: time.Second, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req join.Request
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		*asked = append(*asked, req)
		if asks != nil {
			asks()
		}
		wire.Refuse(w, codes[min(len(*asked), len(codes))-1], "its words")
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(plain{l}) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	token, err := pki.NewToken(pki.Pin(ca.Cert.Raw))
	if err != nil {
		t.Fatal(err)
	}
	return identity.JoinOptions{DataDir: t.TempDir(), Token: token, Addr: l.Addr().String(), NodeName: "b", Agent: "127.0.0.1:1", Controller: "127.0.0.1:2", Now: time.Now()}, asked
}

// A host asks for what its token may allow, again where nobody could decide, and never
// again where somebody refused.
func TestAJoinIsRepeatedOnlyWhereItMaySucceed(t *testing.T) {
	for name, c := range map[string]struct {
		codes []int
		as    string // what was asked for: c, a controller, or a, an agent only
	}{
		"refused":                        {[]int{403}, "c"},
		"refused for good":               {[]int{409}, "c"},
		"agents only, which are refused": {[]int{join.AgentsOnly, 403}, "ca"},
		"agents only, for agents, too":   {[]int{join.AgentsOnly}, "ca"},
		"no leader, then refused":        {[]int{503, join.AgentsOnly, 403}, "cca"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, asked := admission(t, nil, c.codes...)
			err := enter(t.Context(), o)
			var as string
			for _, r := range *asked {
				as += map[bool]string{true: "c", false: "a"}[r.Controller != ""]
			}
			if as != c.as || err == nil || err.Error() != "joining at "+o.Addr+": its words" {
				t.Errorf("asked as %s: %v", as, err)
			}
			if identity.IsMember(o.DataDir) {
				t.Error("the host is in a fleet now")
			}
		})
	}
	t.Run("no leader, and no more time", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o, asked := admission(t, func() { time.AfterFunc(50*time.Millisecond, cancel) }, 503)
		if err := enter(ctx, o); err == nil || !strings.Contains(err.Error(), "joining at") || len(*asked) != 1 {
			t.Errorf("asked %d times: %v", len(*asked), err)
		}
	})
	t.Run("of a fleet already", func(t *testing.T) {
		o, asked := admission(t, nil, 403)
		if err := os.MkdirAll(identity.BootstrapDir(o.DataDir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := enter(t.Context(), o); err == nil || !strings.Contains(err.Error(), "in a fleet already") || len(*asked) > 0 {
			t.Errorf("asked %d times: %v", len(*asked), err)
		}
	})
}

// Clients of a host without a controller get no identity, which only the controller's
// admin has.
func TestHintsNameAnIdentityOnlyWhereThereIsOne(t *testing.T) {
	c := &config.Config{RunDir: filepath.Join(t.TempDir(), "run"), DataDir: t.TempDir()}
	for _, want := range []client.Hints{
		{Node: "n1", Controllers: []string{"a:1", "b:2"}},
		{Node: "n1", Controllers: []string{"a:1", "b:2"}, Identity: identity.AdminPKI(c.DataDir)},
	} {
		if want.Identity != "" {
			dir := identity.ControllerPKI(c.DataDir)
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "cert.pem"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if err := hint(c, want.Node, want.Controllers); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(c.RunDir, client.HintsFile))
		var got client.Hints
		if err = errors.Join(err, json.Unmarshal(b, &got)); err != nil || got.Node != want.Node || got.Identity != want.Identity || !slices.Equal(got.Controllers, want.Controllers) {
			t.Errorf("%s: %v, want %+v", b, err, want)
		}
	}
}

// A failed start shows what was logged since, and no more than fits a screen.
func TestTheEndOfALogIsOfThisStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "up.log")
	before, since := "old\n", " new line\nnewer\n"
	if err := os.WriteFile(file, []byte(before+since), 0o600); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(t.TempDir(), "long.log")
	if err := os.WriteFile(long, []byte(strings.Repeat("x", 5000)+"end\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file string
		from int64
		want string
	}{
		{file, int64(len(before)), "new line\nnewer"}, {file, 0, "old\n new line\nnewer"}, {file, 17, "er"}, {file, 20, ""},
		{file, 21, "old\n new line\nnewer"}, // it was rotated meanwhile
		{long, 0, strings.Repeat("x", 1996) + "end"}, {file + ".not", 0, ""},
	} {
		if got := tailOf(c.file, c.from); got != c.want {
			t.Errorf("from %d: %q, want %q", c.from, got, c.want)
		}
	}
}

// A process of this host gets its directories and names.
func TestAProcessGetsItsHostsNames(t *testing.T) {
	c := &config.Config{RunDir: t.TempDir(), DataDir: t.TempDir(), NodeName: "web-1", Advertise: "10.0.0.1", LogLevel: "debug"}
	child, err := self("agent", c, "/etc/x.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"agent", "--data-dir", c.DataDir, "--run-dir", c.RunDir, "--node-name", "web-1", "--advertise", "10.0.0.1", "--log-level", "debug", "--config", "/etc/x.yaml"}
	if !slices.Equal(child.Args[1:], want) {
		t.Errorf("it is called with %q", child.Args)
	}
}

// A host runs its processes where there is no room for its supervisor. One that was told to
// end does not become one.
func TestAHostWithoutRoomForItsSupervisor(t *testing.T) {
	testenv.Root(t) // the payload is there
	data := t.TempDir()
	run, err := os.MkdirTemp("", "du") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	c, err := config.Load("", map[string]string{"data-dir": data, "run-dir": run, "node-name": "web-1", "advertise": "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(data, "bin"), nil, 0o600), syscall.Mkfifo(filepath.Join(run, "ran"), 0o600)); err != nil {
		t.Fatal(err)
	}
	ran, err := os.OpenFile(filepath.Join(run, "ran"), os.O_RDWR, 0) // so that it has no end
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := &cobra.Command{}
	cmd.SetContext(ctx)
	over := make(chan error, 1)
	go func() {
		over <- supervise(cmd, c, "")
		_ = ran.Close()
	}()
	var verbs []string
	for in := bufio.NewScanner(ran); len(verbs) < 3 && in.Scan(); {
		verbs = append(verbs, in.Text())
	}
	cancel()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	if slices.Sort(verbs); !slices.Equal(verbs, []string{"agent", "controller", "up"}) {
		t.Errorf("it ran %q", verbs)
	}
	if err := os.Remove(filepath.Join(data, "bin")); err != nil {
		t.Fatal(err)
	}
	if err := supervise(cmd, c, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("told to end, it goes on: %v", err)
	}
}

// What ended is not waited for, and what never comes is said.
func TestWaitingForAHostEnds(t *testing.T) {
	c := &config.Config{RunDir: t.TempDir(), DataDir: t.TempDir(), NodeName: "web-1"}
	ended := make(chan error, 1)
	ended <- errors.New("exit status 1")
	if err := waitReady(t.Context(), c, ended, 0); err == nil || !strings.HasPrefix(err.Error(), "drover did not come up: exit status 1") {
		t.Errorf("it ended: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := waitReady(ctx, c, nil, 0); err == nil || !strings.HasPrefix(err.Error(), "drover did not come up within 2m0s: ") || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it never comes: %v", err)
	}
}
