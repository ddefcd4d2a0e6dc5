package create

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/fields"
)

// What an image asks for, and its container runs without, is said at the create.
func TestImageWarnings(t *testing.T) {
	img := &dockerspec.DockerOCIImage{}
	img.Config.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD", "true"}}
	const health = "health checks are not available on this fleet yet"
	for _, c := range []struct {
		what string
		req  container.CreateRequest
		want []string
	}{
		{"nothing", container.CreateRequest{Config: &container.Config{}}, []string{health}},
		{"no check", container.CreateRequest{Config: &container.Config{Healthcheck: &container.HealthConfig{Test: []string{"NONE"}}}}, nil},
	} {
		if got := imageWarnings(&c.req, img); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestThePlatformOfACreate(t *testing.T) {
	img := &dv1.Image{Config: []byte(`{"os":"linux","architecture":"amd64"}`)}
	for want, words := range map[string]string{
		"": "", "linux/amd64": "", "linux": "", "linux/x86_64": "",
		"linux/arm64":   "image with reference web was found but its platform (linux/amd64) does not match the specified platform (linux/arm64)",
		"windows/amd64": "does not match", "a/b/c/d/e": "a/b/c/d/e",
	} {
		if err := checkPlatform(img, "web", want); (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", want, err, words)
		}
	}
	if err := checkPlatform(&dv1.Image{}, "web", "linux/arm64"); err != nil {
		t.Errorf("an image that does not say its platform: %v", err)
	}
}

// Clients make a container again out of what its inspect says: the label that says
// where it ran is not part of it.
func TestTheNodesLabelIsNotSentBack(t *testing.T) {
	b, req, err := decode([]byte(`{"Image":"busybox","labels":{"a":"b","io.drover.node":"web-1"},"FieldOfLaterDocker":{"x":1}}`))
	if err != nil || len(req.Labels) != 1 {
		t.Fatalf("%+v, %v", req, err)
	}
	var kept map[string]json.RawMessage
	if err := json.Unmarshal(b, &kept); err != nil || string(kept["Labels"]) != `{"a":"b"}` || kept["labels"] != nil || string(kept["FieldOfLaterDocker"]) != `{"x":1}` {
		t.Errorf("kept is %s, %v", b, err)
	}
	const plain = `{"Image":"busybox", "Labels":{"a":"b"}}`
	if b, _, err := decode([]byte(plain)); err != nil || string(b) != plain {
		t.Errorf("a body without is kept as %s, %v", b, err)
	}
}

// What is checked is what nodes decode, also of a body that had to be encoded again:
// that loses the order of its fields, and all but one of those with the same name.
func TestWhatIsCheckedIsWhatIsKept(t *testing.T) {
	const label = `"Labels":{"io.drover.node":"web-1"}`
	for _, twice := range []string{
		`"hostconfig":{"Init":true,"Annotations":{"a":"b"}},"HostConfig":{"Init":false,"Annotations":null}`,
		`"HostConfig":{"Init":true},"HostConfig":{"AutoRemove":true}`,
		`"labels":{"io.drover.node":"web-2","a":"b"}`,
	} {
		b, req, err := decode([]byte(`{"Image":"busybox",` + twice + "," + label + `}`))
		var kept container.CreateRequest
		if err != nil || json.Unmarshal(b, &kept) != nil || !reflect.DeepEqual(&kept, req) {
			t.Errorf("%s: %s is kept, %+v %+v is checked, %v", twice, b, req.Labels, req.HostConfig, err)
		}
	}
	var field *fields.Error
	_, _, err := Command(pulled(t, `{"config":{"Cmd":["sh"]}}`), Request{Body: []byte(`{"Image":"busybox","hostconfig":{"Init":true},"HostConfig":{"Init":false},` + label + `}`)})
	if !errors.As(err, &field) || field.Field != "HostConfig.Init" {
		t.Errorf("a field that is refused, hidden behind another: %v", err)
	}
}

func TestMergeOfImageAndRequest(t *testing.T) {
	img := dockerspec.DockerOCIImageConfig{}
	if err := json.Unmarshal([]byte(`{"Cmd":["serve"],"Entrypoint":["/run"],"Env":["A=1","B=2"],"WorkingDir":"/w","User":"u","StopSignal":"SIGINT","Labels":{"l":"image","m":"image"},
		"ExposedPorts":{"80/tcp":{}},"Healthcheck":{"Test":["CMD","ok"]}}`), &img); err != nil {
		t.Fatal(err)
	}
	for request, want := range map[string]string{
		`{}`:                              `/run serve [A=1 B=2] /w u SIGINT map[l:image m:image] 1 ok`,
		`{"Cmd":["x"]}`:                   `/run x [A=1 B=2] /w u SIGINT map[l:image m:image] 1 ok`,
		`{"Entrypoint":["e"]}`:            `e [A=1 B=2] /w u SIGINT map[l:image m:image] 1 ok`,
		`{"Entrypoint":[""],"Cmd":["x"]}`: `x [A=1 B=2] /w u SIGINT map[l:image m:image] 1 ok`,
		`{"Env":["A=9","C"],"WorkingDir":"/x","User":"v","StopSignal":"SIGHUP","Labels":{"l":"mine"},"ExposedPorts":{"81/udp":{}},"Healthcheck":{"Test":["NONE"]}}`: `/run serve [A=9 C B=2] /x v SIGHUP map[l:mine m:image] 2 NONE`,
	} {
		var c container.Config
		if err := json.Unmarshal([]byte(request), &c); err != nil {
			t.Fatal(err)
		}
		Merge(&c, &img)
		got := strings.Join(append(append([]string{}, c.Entrypoint...), c.Cmd...), " ")
		got += " " + strings.Join([]string{brackets(c.Env), c.WorkingDir, c.User, c.StopSignal, mapped(c.Labels)}, " ")
		got += " " + string(rune('0'+len(c.ExposedPorts))) + " " + c.Healthcheck.Test[len(c.Healthcheck.Test)-1]
		if got != want {
			t.Errorf("%s: %s\nwant %s", request, got, want)
		}
	}
}

func brackets(s []string) string { return "[" + strings.Join(s, " ") + "]" }

func mapped(m map[string]string) string { return "map[l:" + m["l"] + " m:" + m["m"] + "]" }

// pulled is a state that has one image.
func pulled(t *testing.T, config string) *state.Snapshot {
	t.Helper()
	txn := state.NewTxn(state.NewStore().Snapshot())
	for _, e := range []*dv1.Effect{
		{Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: digest, Config: []byte(config)}}},
		{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: "docker.io/library/busybox:latest", Digest: digest}}},
	} {
		if err := txn.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	return txn.View()
}

const digest = "sha256:0000000000000000000000000000000000000000000000000000000000000001"

func TestWhatARequestBecomes(t *testing.T) {
	snap := pulled(t, `{"os":"linux","architecture":"amd64","config":{"Cmd":["sh"],"Healthcheck":{"Test":["CMD","true"]}}}`)
	const bind = `{"Image":"busybox","HostConfig":{"Binds":["/srv:/srv"]}}`
	const mounted = `{"Image":"busybox","HostConfig":{"Mounts":[{"Type":"bind","Source":"/srv","Target":"/srv"}]}}`
	const labelled = `{"Image":"busybox","Labels":{"io.drover.on":"a==b, c!=d"}}`
	for _, c := range []struct {
		name string
		r    Request
		want *dv1.CreateRun // beside what is drawn and the spec; nil: kind and words
		kind dv1.Error_Kind
		says string
	}{
		{"one", Request{Name: "/web", Contact: "n1", Body: []byte(`{"Image":"busybox","HostConfig":{"AutoRemove":true}}`)}, &dv1.CreateRun{Name: "web", Contact: "n1", AutoRemove: true}, 0, ""},
		{"one for each node", Request{Name: "web", Mode: dv1.Run_EACH, Body: []byte(bind)}, &dv1.CreateRun{Name: "web", Mode: dv1.Run_EACH}, 0, ""},
		{"constraints", Request{On: []string{"e==f"}, Body: []byte(labelled)}, &dv1.CreateRun{On: []string{"a==b", "c!=d", "e==f"}}, 0, ""},
		{"a bind on a node", Request{On: []string{"node==a"}, Body: []byte(bind)}, &dv1.CreateRun{On: []string{"node==a"}}, 0, ""},
		{"a bind at the contact", Request{Contact: "n1", Body: []byte(bind)}, &dv1.CreateRun{Contact: "n1"}, 0, ""},
		{"a bind anywhere", Request{Body: []byte(bind)}, nil, dv1.Error_INVALID, "bind source /srv: say which node has it (label io.drover.on=node==NAME)"},
		{"a volume anywhere", Request{Body: []byte(`{"Image":"busybox","HostConfig":{"Binds":["data:/srv","/other"]}}`)}, &dv1.CreateRun{}, 0, ""},
		{"a mount anywhere", Request{Body: []byte(mounted)}, nil, dv1.Error_INVALID, "bind source /srv"},
		{"its platform", Request{Platform: "linux/amd64", Body: []byte(`{"Image":"busybox"}`)}, &dv1.CreateRun{}, 0, ""},
		{"another platform", Request{Platform: "linux/arm64", Body: []byte(`{"Image":"busybox"}`)}, nil, dv1.Error_NO_IMAGE, "does not match"},
		{"no platform", Request{Platform: "a/b/c/d", Body: []byte(`{"Image":"busybox"}`)}, nil, dv1.Error_INVALID, "a/b/c/d"},
		{"no image", Request{Body: []byte(`{"Image":"nope"}`)}, nil, dv1.Error_NO_IMAGE, "No such image"},
		{"no name", Request{Name: "-x", Body: []byte(`{"Image":"busybox"}`)}, nil, dv1.Error_INVALID, "Invalid container name (-x)"},
		{"no command", Request{Body: []byte(`{"Image":"busybox","Entrypoint":[""]}`)}, nil, dv1.Error_INVALID, "no command specified"},
		{"nothing", Request{}, nil, dv1.Error_INVALID, "invalid JSON: EOF"},
		{"no config", Request{Body: []byte(`{}`)}, nil, dv1.Error_INVALID, "config cannot be empty"},
		{"nothing to run", Request{Body: []byte(`{"Cmd":["x"]}`)}, nil, dv1.Error_INVALID, "no image specified"},
		{"two", Request{Body: []byte(`{"Image":"busybox"}{}`)}, nil, dv1.Error_INVALID, "after JSON"},
		{"too long", Request{Body: []byte(`{"Image":"busybox","Cmd":["` + strings.Repeat("x", MaxBody) + `"]}`)}, nil, dv1.Error_INVALID, "larger than 196608 bytes"},
	} {
		cmd, warnings, err := Command(snap, c.r)
		if c.want == nil {
			var e *Error
			if !errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(e.Message, c.says) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "health") {
			t.Errorf("%s: %q %v", c.name, warnings, err)
			continue
		}
		sum := sha256.Sum256(c.r.Body)
		spec := &dv1.Spec{Id: sum[:], Body: c.r.Body, Image: "busybox", Digest: digest}
		if !proto.Equal(cmd.Spec, spec) || len(cmd.RunId) != 32 || len(cmd.NameCandidates) != nameTries || (len(cmd.TaskIds) == 1) != (c.r.Mode == dv1.Run_ONE) {
			t.Errorf("%s: %v", c.name, cmd)
		}
		cmd.Spec, cmd.RunId, cmd.NameCandidates, cmd.TaskIds = nil, nil, nil, nil
		if !proto.Equal(cmd, c.want) {
			t.Errorf("%s: %v, want %v", c.name, cmd, c.want)
		}
	}
}

// A field that can't be had is refused by its name, as over docker's API.
func TestAFieldIsRefusedByItsName(t *testing.T) {
	var field *fields.Error
	if _, _, err := Command(pulled(t, `{"config":{"Cmd":["sh"]}}`), Request{Body: []byte(`{"Image":"busybox","HostConfig":{"Init":true}}`)}); !errors.As(err, &field) || field.Field != "HostConfig.Init" {
		t.Errorf("%v", err)
	}
}

func TestDrawnNamesAreDifferentNames(t *testing.T) {
	all := names(nameTries)
	slices.Sort(all)
	if len(slices.Compact(slices.Clone(all))) != nameTries {
		t.Errorf("some are twice: %q", all)
	}
	for _, n := range all {
		if err := checkName(n); err != nil {
			t.Error(err)
		}
	}
}

// A container whose network is shared may be renamed: its id is kept, as in docker.
func TestASharedNetworkIsNamedById(t *testing.T) {
	txn := state.NewTxn(pulled(t, `{"config":{"Cmd":["sh"]}}`))
	id := []byte(strings.Repeat("\xab", 32))
	if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: id, Name: "app", NodeId: "n"}}}); err != nil {
		t.Fatal(err)
	}
	full := strings.Repeat("ab", 32)
	for ref, want := range map[string]string{"app": full, "/app": full, "abab": full, full: full, "nobody": "nobody"} {
		c, _, err := Command(txn.View(), Request{Body: []byte(`{"Image":"busybox","hostconfig":{"networkMode":"container:` + ref + `","Memory":9000000},"FieldOfLaterDocker":1}`)})
		if err != nil {
			t.Fatal(err)
		}
		var req container.CreateRequest
		var kept map[string]any
		if err := json.Unmarshal(c.Spec.Body, &req); err != nil || json.Unmarshal(c.Spec.Body, &kept) != nil {
			t.Fatal(err)
		}
		if got := req.HostConfig.NetworkMode.ConnectedContainer(); got != want || req.HostConfig.Memory != 9000000 || kept["FieldOfLaterDocker"] == nil || strings.Count(strings.ToLower(string(c.Spec.Body)), "networkmode") != 1 {
			t.Errorf("%s is kept as %s", ref, c.Spec.Body)
		}
	}
}
