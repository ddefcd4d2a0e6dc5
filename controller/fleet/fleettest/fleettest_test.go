package fleettest_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/engineapi"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/fleet/fleettest"
	"github.com/drover/drover/controller/fleetapi"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

var (
	_ engineapi.Fleet = (*fleettest.Fleet)(nil)
	_ fleetapi.Fleet  = (*fleettest.Fleet)(nil)
)

const (
	busybox = "docker.io/library/busybox:latest"
	digest  = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
)

func newFleet(t *testing.T) *fleettest.Fleet {
	f := fleettest.New(t, "web-1", "web-2")
	f.AddImage(&dv1.Image{Digest: digest, Config: []byte(`{"config":{"Cmd":["sh"]}}`)}, busybox)
	return f
}

// The Engine API on the fake: what was proposed is decided, shown and waited for.
func TestTheEngineAPIServesTheFake(t *testing.T) {
	f := newFleet(t)
	h := f.As(fleettest.Admin, engineapi.New(engineapi.Options{Fleet: f}))
	do := func(method, url, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, url, strings.NewReader(body)))
		return w
	}
	w := do("POST", "/containers/create?name=web", `{"Image":"busybox","Cmd":["true"]}`)
	var made container.CreateResponse
	if err := json.Unmarshal(w.Body.Bytes(), &made); w.Code != http.StatusCreated || err != nil {
		t.Fatalf("create: %d %s", w.Code, w.Body)
	}
	id, err := hex.DecodeString(made.ID)
	if err != nil {
		t.Fatal(err)
	}
	f.Run(id)
	f.Exit(id, 3)
	w = do("GET", "/containers/json?all=1", "")
	if !strings.Contains(w.Body.String(), `"Status":"Exited (3)`) {
		t.Errorf("list: %d %s", w.Code, w.Body)
	}
	if w = do("POST", "/containers/web/wait", ""); !strings.Contains(w.Body.String(), `"StatusCode":3`) {
		t.Errorf("wait: %d %s", w.Code, w.Body)
	}
	if w = do("POST", "/containers/none/start", ""); w.Code != http.StatusNotFound {
		t.Errorf("start of nothing: %d %s", w.Code, w.Body)
	}
	f.SetLeader(false)
	if w = do("POST", "/containers/web/start", ""); w.Code != http.StatusServiceUnavailable {
		t.Errorf("start without a leader: %d %s", w.Code, w.Body)
	}
}

func TestKeysAreAnsweredOnce(t *testing.T) {
	f := newFleet(t)
	task := f.Create("web", busybox, `{"Image":"busybox"}`)
	start := func(hash string) (*dv1.CommandResult, error) {
		return f.Propose(t.Context(), &dv1.Command{Principal: fleettest.Admin, Key: "k", Hash: []byte(hash), Of: &dv1.Command_Start{Start: &dv1.Start{TaskId: task.Id}}})
	}
	first, err := start("a")
	if err != nil || !first.Changed {
		t.Fatal(first, err)
	}
	again, err := start("a")
	if err != nil || again.Index != first.Index || f.Snapshot().Task(task.Id).Attempt != 1 {
		t.Errorf("asked again: %v, %v", again, err)
	}
	if _, err := start("b"); err == nil {
		t.Error("a key of another request was taken")
	}
}

func TestWhoWaitsSeesEachChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		task := f.Create("web", busybox, `{"Image":"busybox"}`)
		ended := make(chan error)
		go func() {
			ended <- f.WaitTask(t.Context(), hex.EncodeToString(task.Id), func(_ *dv1.Task, st *dv1.TaskStatus) bool { return st.GetPhase() == dv1.Phase_EXITED })
		}()
		f.Run(task.Id)
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("the wait ended before the task: %v", err)
		default:
		}
		f.Observed(&dv1.TaskStatus{Id: task.Id, Attempt: 1, Phase: dv1.Phase_EXITED})
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestAgentsAnswerCallsAndStreams(t *testing.T) {
	f := newFleet(t)
	f.HandleAgent("n1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/stream" {
			_, _ = io.Copy(w, r.Body)
			return
		}
		c, err := bulk.Hijack(w, r)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_ = c.WriteFrame(bulk.FrameStdout, []byte("hello"))
	}))
	c, err := f.Agent("n1")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Post("http://agent/v1/echo", "text/plain", strings.NewReader("said"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != "said" {
		t.Errorf("a call was answered %q", b)
	}
	s, err := bulk.Upgrade(t.Context(), c, "/v1/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if kind, b, err := s.Next(); kind != bulk.FrameStdout || !bytes.Equal(b, []byte("hello")) {
		t.Errorf("the stream's first frame is %d %q %v", kind, b, err)
	}
	other, err := f.Agent("n0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Get("http://agent/v1/echo"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a node without an agent: %v", err)
	}
	if _, err := f.Agent("none"); err == nil {
		t.Error("a node that is not there has a port")
	}
}

func TestObservationsAreOfTheMoment(t *testing.T) {
	f := newFleet(t)
	f.Silence("n1", fleettest.Start)
	f.Hold(digest, "n0", "n1")
	o := f.Observe(context.Background(), fleet.Query{Images: []string{digest}})
	f.Silence("n0", fleettest.Start)
	f.Hold(digest)
	if nodes := o.SilentNodes(); len(nodes) != 1 || nodes[0] != "n1" || len(o.Holders(digest)) != 2 {
		t.Errorf("silent %v, holders %v", nodes, o.Holders(digest))
	}
}
