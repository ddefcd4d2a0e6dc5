package fleetapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
)

func (f *served) runs() dv1connect.RunsClient {
	return dv1connect.NewRunsClient(http.DefaultClient, f.url)
}

const digest = "sha256:0000000000000000000000000000000000000000000000000000000000000001"

func anImage() []*dv1.Effect {
	return []*dv1.Effect{
		{Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: digest, Config: []byte(`{"os":"linux","architecture":"amd64","config":{"Cmd":["sh"],"Healthcheck":{"Test":["CMD","true"]}}}`)}}},
		{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: "docker.io/library/busybox:latest", Digest: digest}}},
	}
}

var runID = []byte(strings.Repeat("r", 32))

// filling is a fleet whose run is filled by one slot each time that a later state is
// asked for.
type filling struct {
	*fake
	t      *testing.T
	slots  int
	leasts []uint64
	fails  error // of a read after the first one
}

func (f *filling) State(ctx context.Context, least uint64) (*state.Snapshot, error) {
	if f.leasts = append(f.leasts, least); len(f.proposed) > 0 {
		if f.fails != nil {
			return nil, f.fails
		}
		made := 0
		for range f.snap.TasksOfRun(runID) {
			made++
		}
		slot := uint32(made + 1)
		f.put(f.t, &dv1.Effect{Of: &dv1.Effect_Run{Run: &dv1.Run{Id: runID, Name: "job", SpecId: []byte("s"), Filling: int(slot) < f.slots}}},
			&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: state.TaskID(runID, slot, 1), RunId: runID, SpecId: []byte("s"), Slot: slot, Name: fmt.Sprintf("job-%d", slot), NodeId: fmt.Sprintf("n%d", slot)}}})
	}
	return f.fake.State(ctx, least)
}

func serveFilling(t *testing.T, slots int) (*served, *filling) {
	t.Helper()
	var fill *filling
	f := serve(t, func(o *Options) {
		fill = &filling{fake: o.Fleet.(*fake), t: t, slots: slots}
		o.Fleet = fill
	})
	f.put(t, append(anImage(), aNode(1), aNode(2), &dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: []byte("s"), Digest: digest}}})...)
	f.answers = []*dv1.CommandResult{{Index: 5, RunId: runID, Name: "job", Left: 2, Warnings: []string{"be careful"},
		Placed: []*dv1.Placed{{TaskId: []byte("x")}}, Rejected: []*dv1.Rejected{{Nodes: 3, Why: "drained"}, {Nodes: 1, Why: "lack 2 GiB memory"}}}}
	return f, fill
}

func aRun(change ...func(*dv1.CreateRunRequest)) *dv1.CreateRunRequest {
	r := &dv1.CreateRunRequest{Body: []byte(`{"Image":"busybox","HostConfig":{"Binds":["/srv:/srv"],"AutoRemove":true}}`), Name: "job", Mode: dv1.Run_EACH, On: []string{"zone==a"}}
	for _, c := range change {
		c(r)
	}
	return r
}

// A run is proposed as docker's create would be, for its caller and under its key.
func TestARunIsProposedForItsCaller(t *testing.T) {
	f, _ := serveFilling(t, 1)
	f.who = user
	const span = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	r := req(aRun())
	r.Header().Set(wire.HeaderKey, "k")
	r.Header().Set("traceparent", span)
	if _, err := f.runs().Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	p := f.last()
	if p.Principal != user.URI || p.Key != "fleet-k" || len(p.Hash) == 0 || p.Traceparent != span {
		t.Errorf("proposed is %v", p)
	}
	c := p.GetCreate()
	if len(c.RunId) != 32 || len(c.NameCandidates) == 0 || len(c.Spec.GetId()) != 32 || string(c.Spec.GetBody()) != string(aRun().Body) || c.Spec.GetDigest() != digest {
		t.Errorf("the run is %v", c)
	}
	c.RunId, c.NameCandidates, c.Spec = nil, nil, nil
	if want := (&dv1.CreateRun{Name: "job", Mode: dv1.Run_EACH, On: []string{"zone==a"}, AutoRemove: true}); !proto.Equal(c, want) {
		t.Errorf("the run is %v, want %v", c, want)
	}
}

// The answer has every task of the run, of however many entries, and each wait is for
// a state that is later than the one before.
func TestARunIsAnsweredWhenItIsFilled(t *testing.T) {
	for slots := 1; slots < 4; slots++ {
		f, fill := serveFilling(t, slots)
		resp, err := f.runs().Create(t.Context(), req(aRun()))
		if err != nil {
			t.Fatal(err)
		}
		m := resp.Msg
		if len(m.Tasks) != slots || m.Id != hex.EncodeToString(runID) || m.Name != "job" || fmt.Sprint(m.Warnings) != "[health checks are not available on this fleet yet be careful]" {
			t.Errorf("of %d slots: %v", slots, m)
		}
		for i, task := range m.Tasks {
			name := []string{"h001", "h002", "n3"}[i] // the last one's node is gone
			want := &dv1.RunTask{Id: hex.EncodeToString(state.TaskID(runID, uint32(i+1), 1)), Name: fmt.Sprintf("job-%d", i+1), NodeId: fmt.Sprintf("n%d", i+1), NodeName: name}
			if !proto.Equal(task, want) {
				t.Errorf("slot %d: %v, want %v", i+1, task, want)
			}
		}
		if len(m.PassedOver) != 2 || m.PassedOver[0].Nodes != 3 || m.PassedOver[0].Why != "drained" || m.PassedOver[1].Nodes != 1 {
			t.Errorf("passed over are %v", m.PassedOver)
		}
		if len(fill.leasts) != slots+1 || fill.leasts[1] != 5 {
			t.Errorf("of %d slots: read at %v", slots, fill.leasts)
		}
		for i := 2; i < len(fill.leasts); i++ {
			if fill.leasts[i] != f.snap.Index()+1 {
				t.Errorf("read at %v, want later than %d", fill.leasts, f.snap.Index())
			}
		}
		if resp.Header().Get(wire.HeaderIndex) == "" {
			t.Error("the answer has no index")
		}
	}
}

func TestRunsThatAreRefused(t *testing.T) {
	body := func(b string) func(*dv1.CreateRunRequest) {
		return func(r *dv1.CreateRunRequest) { r.Body = []byte(b) }
	}
	for _, c := range []struct {
		name   string
		change func(*dv1.CreateRunRequest)
		kind   dv1.Error_Kind
		says   string
	}{
		{"docker's own", func(r *dv1.CreateRunRequest) { r.Mode = dv1.Run_ONE }, dv1.Error_INVALID, "mode ONE"},
		{"of a later build", func(r *dv1.CreateRunRequest) { r.Mode = 7 }, dv1.Error_INVALID, "mode 7"},
		{"no body", body(""), dv1.Error_INVALID, "invalid JSON"},
		{"no image", body(`{"Image":"nope"}`), dv1.Error_NO_IMAGE, "No such image"},
		{"another platform", func(r *dv1.CreateRunRequest) { r.Platform = "linux/arm64" }, dv1.Error_NO_IMAGE, "does not match"},
		{"a field", body(`{"Image":"busybox","HostConfig":{"Init":true}}`), dv1.Error_INVALID, "HostConfig.Init"},
		{"a name", func(r *dv1.CreateRunRequest) { r.Name = "a b" }, dv1.Error_INVALID, "Invalid container name"},
		{"too long", body(`"` + strings.Repeat("x", create.MaxBody) + `"`), dv1.Error_INVALID, "larger than"},
	} {
		f, _ := serveFilling(t, 1)
		_, err := f.runs().Create(t.Context(), req(aRun(c.change)))
		if wire.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.says) || len(f.proposed) > 0 {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	f, _ := serveFilling(t, 1)
	f.answers = []*dv1.CommandResult{{Error: &dv1.Error{Kind: dv1.Error_FORBIDDEN, Message: "not root"}}}
	if _, err := f.runs().Create(t.Context(), req(aRun())); wire.KindOf(err) != dv1.Error_FORBIDDEN {
		t.Errorf("decided: %v", err)
	}
	f, fill := serveFilling(t, 1)
	fill.fails = fmt.Errorf("reading: %w", fleet.ErrNoLeader)
	_, err := f.runs().Create(t.Context(), req(aRun()))
	var e *connect.Error
	if !errors.As(err, &e) || e.Code() != connect.CodeUnavailable || e.Meta().Get("Retry-After") != "1" {
		t.Errorf("without a leader: %v", err)
	}
	f, _ = serveFilling(t, 1)
	for _, who := range []pki.Principal{node1, {}} {
		f.who = who
		if _, err := f.runs().Create(t.Context(), req(aRun())); err == nil || len(f.proposed) > 0 {
			t.Errorf("%q makes a run: %v", who.URI, err)
		}
	}
}

// The longest request of docker's API is taken in both forms of this one.
func TestALongRunIsTaken(t *testing.T) {
	const start, end = `{"Image":"busybox","Cmd":["`, `"]}`
	long := []byte(start + strings.Repeat("x", create.MaxBody-len(start)-len(end)) + end)
	for _, o := range [][]connect.ClientOption{nil, {connect.WithProtoJSON()}} {
		f, _ := serveFilling(t, 1)
		if _, err := dv1connect.NewRunsClient(http.DefaultClient, f.url, o...).Create(t.Context(), req(aRun(func(r *dv1.CreateRunRequest) { r.Body = long }))); err != nil {
			t.Error(err)
		}
	}
	f, _ := serveFilling(t, 1)
	b, err := json.Marshal(map[string]any{"body": strings.Repeat("x", maxRun)})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(f.url+dv1connect.RunsCreateProcedure, "application/json", strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests { // connect's status of what is too long
		t.Errorf("what is longer: %s", resp.Status)
	}
}
