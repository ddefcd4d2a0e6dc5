package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/fleet/fleettest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/registry"
)

// world is a fleet whose nodes pull from a registry in memory.
type world struct {
	t    *testing.T
	f    *fleettest.Fleet
	i    *Images
	host string // the registry's

	mu    sync.Mutex // guards the fields below
	asked map[string][]bulk.PullRequest
	freed map[string][]string // digests by node
	odd   map[string]http.HandlerFunc
}

func newWorld(t *testing.T, nodes ...string) *world {
	t.Helper()
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	t.Cleanup(srv.Close)
	w := &world{t: t, f: fleettest.New(t, nodes...), host: strings.TrimPrefix(srv.URL, "http://"),
		asked: map[string][]bulk.PullRequest{}, freed: map[string][]string{}, odd: map[string]http.HandlerFunc{}}
	reg, err := registry.New([]registry.Mirror{{Name: w.host, Endpoint: srv.URL}})
	if err != nil {
		t.Fatal(err)
	}
	w.i = New(Options{Fleet: w.f, Registry: reg, Logger: slog.New(slog.DiscardHandler),
		Grant: func(node, digest string) ([]byte, error) { return []byte("grant " + node), nil }})
	for n := range nodes {
		w.node(fmt.Sprint("n", n))
	}
	return w
}

// node has a node answer as an agent does.
func (w *world) node(id string) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/images/pull", func(rw http.ResponseWriter, r *http.Request) {
		var req bulk.PullRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			w.t.Error(err)
		}
		w.mu.Lock()
		w.asked[id] = append(w.asked[id], req)
		odd := w.odd[id]
		w.mu.Unlock()
		if odd != nil {
			odd(rw, r)
			return
		}
		w.pulled(rw, req)
	})
	mux.HandleFunc("DELETE /v1/images/{digest}", func(_ http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.freed[id] = append(w.freed[id], r.PathValue("digest"))
	})
	w.f.HandleAgent(id, mux)
}

// pulled is an honest node's answer.
func (w *world) pulled(rw http.ResponseWriter, req bulk.PullRequest) {
	line(rw, bulk.PullLine{ID: "layer", Status: "Downloading", Current: 1, Total: 2})
	named, err := reference.ParseNormalizedNamed(req.Ref)
	if err != nil {
		w.t.Error(err)
		return
	}
	at, err := name.NewDigest(reference.TrimNamed(named).String()+"@"+req.Digest, name.Insecure)
	if err != nil {
		w.t.Error(err)
		return
	}
	img, err := remote.Image(at)
	if err != nil {
		line(rw, bulk.PullLine{Error: err.Error()})
		return
	}
	manifest, _ := img.RawManifest()
	config, _ := img.RawConfigFile()
	line(rw, bulk.PullLine{Image: w.image(req.Digest, config), Manifests: [][]byte{manifest}})
}

func (w *world) image(digest string, config []byte) []byte {
	b, err := protojson.Marshal(&dv1.Image{Digest: digest, Manifest: digest, Config: config, Size: 7})
	if err != nil {
		w.t.Error(err)
	}
	return b
}

func line(rw http.ResponseWriter, l bulk.PullLine) {
	b, _ := json.Marshal(l)
	_, _ = rw.Write(append(b, '\n'))
	_ = http.NewResponseController(rw).Flush()
}

// push puts a new image into the registry under a name, and returns its digest.
func (w *world) push(repo string) string {
	w.t.Helper()
	img, err := random.Image(64, 1)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.pushed(repo, img)
}

func (w *world) pushed(repo string, img v1.Image) string {
	w.t.Helper()
	ref, err := name.ParseReference(w.host+"/"+repo, name.Insecure)
	if err == nil {
		err = remote.Write(ref, img)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		w.t.Fatal(err)
	}
	return h.String()
}

// admin proposes in the name of the fleet's admin.
type admin struct{ *fleettest.Fleet }

func (a admin) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	c.Principal = fleettest.Admin
	return a.Fleet.Propose(ctx, c)
}

// lines is what a pull tells.
type lines struct {
	node string
	got  []Progress
	each func()
}

func (l *lines) Transferring(ref reference.Named, node string) { l.node += node }
func (l *lines) Progress(p Progress) {
	if l.got = append(l.got, p); l.each != nil {
		l.each()
	}
}

func (w *world) pull(req PullRequest) (*Pulled, *lines, error) {
	l := &lines{}
	if req.Ref != "" && !strings.Contains(req.Ref, "/") {
		req.Ref = w.host + "/" + req.Ref
	}
	p, err := w.i.Pull(w.t.Context(), admin{w.f}, w.f.Snapshot(), req, l)
	return p, l, err
}

func (w *world) tag(repo string) string {
	return w.f.Snapshot().Tag(w.host + "/" + repo).GetDigest()
}

// refused checks an error's kind and words.
func refused(t *testing.T, what string, err error, kind dv1.Error_Kind, words string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Kind != kind || !strings.Contains(e.Message, words) {
		t.Errorf("%s: %v (%v), want %v: %q", what, err, e, kind, words)
	}
}

func TestPull(t *testing.T) {
	w := newWorld(t, "a", "b")
	digest := w.push("web:1")
	p, l, err := w.pull(PullRequest{Ref: "web:1", Contact: "n1"})
	if err != nil || p.Node != "n1" || p.Digest != digest || !p.Newer || p.Ref.String() != w.host+"/web:1" {
		t.Fatalf("a pull is %+v, %v", p, err)
	}
	if l.node != "n1" || len(l.got) != 1 || l.got[0] != (Progress{ID: "layer", Status: "Downloading", Current: 1, Total: 2}) {
		t.Errorf("it told %+v", l)
	}
	if req := w.asked["n1"][0]; req.Digest != digest || !req.Public || string(req.Grant) != "grant n1" || len(req.Holders) > 0 {
		t.Errorf("the node was asked %+v", req)
	}
	img := w.f.Snapshot().Image(digest)
	if w.tag("web:1") != digest || !img.Public || img.Size != 7 || len(img.RepoDigests) != 1 || img.RepoDigests[0] != w.host+"/web@"+digest {
		t.Errorf("it is committed as %v with the tag %s", img, w.tag("web:1"))
	}

	w.f.Hold(digest, "n1")
	if p, _, err := w.pull(PullRequest{Ref: "web:1", Contact: "n1"}); err != nil || p.Newer {
		t.Errorf("once more: %+v, %v", p, err)
	}
	if p, _, err := w.pull(PullRequest{Ref: "web:1", On: []string{"node==a"}, Credentials: &registry.Credentials{Username: "u", Password: "p", ServerAddress: "elsewhere"}}); err != nil || p.Node != "n0" || !p.Newer {
		t.Errorf("to another node: %+v, %v", p, err)
	}
	if req := w.asked["n0"][0]; len(req.Holders) != 1 || req.Holders[0] != "b:7444" || req.Username != "u" || req.AuthServer != "elsewhere" {
		t.Errorf("the other node was asked %+v", req)
	}
	if p, _, err := w.pull(PullRequest{Ref: "web@" + digest}); err != nil || p.Node != "n1" {
		t.Errorf("by digest, without a contact: %+v, %v; want the node that holds it", p, err)
	}
	if n := len(w.f.Snapshot().TagsOf(digest)); n != 1 {
		t.Errorf("a pull by digest made a tag: there are %d", n)
	}
	if _, _, err := w.pull(PullRequest{Ref: "web:1@" + digest}); err != nil || len(w.f.Snapshot().TagsOf(digest)) != 1 {
		t.Errorf("by tag and digest: %v, tags %v", err, w.f.Snapshot().TagsOf(digest))
	}
}

func TestPullsThatAreRefused(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.push("web:1")
	for _, c := range []struct {
		what  string
		req   PullRequest
		kind  dv1.Error_Kind
		words string
	}{
		{"no name", PullRequest{}, dv1.Error_INVALID, "invalid reference format"},
		{"capitals", PullRequest{Ref: "WEB"}, dv1.Error_INVALID, "invalid reference format"},
		{"a tag that is not there", PullRequest{Ref: "web:2"}, dv1.Error_NOT_FOUND, "/web:2 not found: manifest unknown"},
		{"a repository that is not there", PullRequest{Ref: "nothing"}, dv1.Error_NOT_FOUND, "/nothing:latest not found"},
		{"a registry that is not there", PullRequest{Ref: "127.0.0.1:1/web:1"}, dv1.Error_INTERNAL, `failed to resolve reference "127.0.0.1:1/web:1"`},
		{"no such platform", PullRequest{Ref: "web:1", Platform: "a/b/c/d"}, dv1.Error_INVALID, "a/b/c/d"},
		{"Windows", PullRequest{Ref: "web:1", Platform: "windows/amd64"}, dv1.Error_INVALID, "platform windows/amd64 does not run on any node of this fleet"},
		{"another architecture", PullRequest{Ref: "web:1", Platform: "linux/arm64/v8"}, dv1.Error_INVALID, "does not run on any node"},
		{"nowhere", PullRequest{Ref: "web:1", On: []string{"zone==x"}}, dv1.Error_UNAVAILABLE, "no node answers that is zone==x"},
		{"nonsense", PullRequest{Ref: "web:1", On: []string{"zone"}}, dv1.Error_INVALID, "zone"},
	} {
		_, l, err := w.pull(c.req)
		refused(t, c.what, err, c.kind, c.words)
		if l.node != "" || len(w.asked) > 0 {
			t.Errorf("%s: it began on %s, %v", c.what, l.node, w.asked)
		}
	}
	w.f.Silence("n0", time.Now())
	w.f.Silence("n1", time.Now())
	_, _, err := w.pull(PullRequest{Ref: "web:1", Contact: "n0"})
	refused(t, "nobody answers", err, dv1.Error_UNAVAILABLE, "no node answers that could hold the image")
	if w.f.Snapshot().Tag(w.host+"/web:1") != nil {
		t.Error("a pull that was refused made a tag")
	}
	w.f.Silence("n1", time.Time{})
	if p, _, err := w.pull(PullRequest{Ref: "web:1", Contact: "n0", Platform: "linux/amd64"}); err != nil || p.Node != "n1" {
		t.Errorf("where the contact is silent: %+v, %v", p, err)
	}
}

// A registry that wants to know who asks is named as docker names it.
func TestAPrivateRegistryIsDenied(t *testing.T) {
	w := newWorld(t, "a")
	private := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("WWW-Authenticate", `Basic realm="private"`)
		rw.WriteHeader(http.StatusUnauthorized)
	}))
	defer private.Close()
	_, _, err := w.pull(PullRequest{Ref: strings.TrimPrefix(private.URL, "http://") + "/web:1"})
	refused(t, "a private registry", err, dv1.Error_NOT_FOUND, "pull access denied for 127.0.0.1:")
}

func TestAnotherNodeGoesOnWhereOneIsLost(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	digest := w.push("web:1")
	w.odd["n1"] = func(rw http.ResponseWriter, _ *http.Request) {
		line(rw, bulk.PullLine{ID: "layer", Status: "Downloading"})
		panic(http.ErrAbortHandler)
	}
	w.f.HandleAgent("n0", nil) // refuses connections
	p, l, err := w.pull(PullRequest{Ref: "web:1", Contact: "n1"})
	if err != nil || p.Node != "n2" || w.tag("web:1") != digest {
		t.Fatalf("two nodes of three are lost: %+v, %v", p, err)
	}
	if l.node != "n1" || len(l.got) != 2 {
		t.Errorf("it told %+v, want one beginning and both nodes' progress", l)
	}
	w.odd["n2"] = w.odd["n1"]
	if _, _, err := w.pull(PullRequest{Ref: "web:1", Contact: "n1"}); err == nil || !strings.Contains(err.Error(), "the node that pulls broke off") && !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("all of them are lost: %v", err)
	}
	if _, _, err := w.pull(PullRequest{Ref: "web:1", On: []string{"node==c"}}); !errors.Is(err, errLost) {
		t.Errorf("the only one that was asked for is lost: %v", err)
	}
}

// fading is a fleet whose node falls silent once it was looked at.
type fading struct {
	*fleettest.Fleet
	node string
}

func (f fading) Observe(ctx context.Context, q fleet.Query) *fleet.Observations {
	defer f.Silence(f.node, time.Now())
	return f.Fleet.Observe(ctx, q)
}

func TestAnotherNodeGoesOnWhereOneFallsSilentBeforeItIsAsked(t *testing.T) {
	w := newWorld(t, "a", "b")
	digest := w.push("web:1")
	w.i.o.Fleet = fading{w.f, "n0"}
	if p, l, err := w.pull(PullRequest{Ref: "web:1", Contact: "n0"}); err != nil || p.Node != "n1" || l.node != "n1" || w.tag("web:1") != digest {
		t.Errorf("%+v, %v", p, err)
	}
}

// What a node says went wrong ends a pull: another one would say the same.
func TestANodesWordEndsAPull(t *testing.T) {
	for what, c := range map[string]struct {
		says  func(w *world, rw http.ResponseWriter)
		words string
	}{
		"it refuses": {func(_ *world, rw http.ResponseWriter) {
			http.Error(rw, `{"message":"no room"}`, http.StatusInsufficientStorage)
		}, "no room"},
		"it refuses wordlessly": {func(_ *world, rw http.ResponseWriter) { rw.WriteHeader(http.StatusBadGateway) }, "node n0 answered 502 Bad Gateway"},
		"it fails":              {func(_ *world, rw http.ResponseWriter) { line(rw, bulk.PullLine{Error: "disk full"}) }, "disk full"},
		"junk":                  {func(_ *world, rw http.ResponseWriter) { _, _ = io.WriteString(rw, "{junk\n") }, "reading a pull's progress"},
		"a junk image":          {func(_ *world, rw http.ResponseWriter) { line(rw, bulk.PullLine{Image: []byte("{")}) }, "reading a pull's image"},
		"a line without an end": {func(_ *world, rw http.ResponseWriter) { _, _ = rw.Write(make([]byte, maxLine+1)) }, "token too long"},
		"a lie": {func(w *world, rw http.ResponseWriter) {
			line(rw, bulk.PullLine{Image: w.image("sha256:"+strings.Repeat("1", 64), []byte("{}"))})
		}, "says it has sha256:1111"},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			w.push("web:1")
			w.odd["n0"] = func(rw http.ResponseWriter, _ *http.Request) { c.says(w, rw) }
			_, _, err := w.pull(PullRequest{Ref: "web:1", Contact: "n0"})
			if err == nil || !strings.Contains(err.Error(), c.words) || w.tag("web:1") != "" || len(w.asked["n1"]) > 0 {
				t.Errorf("%v, a tag %q, the other node asked %d times; want %q", err, w.tag("web:1"), len(w.asked["n1"]), c.words)
			}
		})
	}
}

func TestWhoLeavesEndsAPull(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.push("web:1")
	ctx, cancel := context.WithCancel(t.Context())
	w.odd["n0"] = func(rw http.ResponseWriter, r *http.Request) {
		line(rw, bulk.PullLine{ID: "layer"})
		<-r.Context().Done()
	}
	_, err := w.i.Pull(ctx, admin{w.f}, w.f.Snapshot(), PullRequest{Ref: w.host + "/web:1", Contact: "n0"}, &lines{each: cancel})
	if err == nil || len(w.asked["n1"]) > 0 {
		t.Errorf("%v, another node was asked %d times", err, len(w.asked["n1"]))
	}
}

func TestTwoPullsOfOneImageAtOnce(t *testing.T) {
	w := newWorld(t, "a", "b")
	digest := w.push("web:1")
	var both, done sync.WaitGroup
	both.Add(2)
	for _, node := range []string{"n0", "n1"} {
		w.odd[node] = func(rw http.ResponseWriter, _ *http.Request) {
			both.Done()
			both.Wait()
			w.pulled(rw, bulk.PullRequest{Ref: w.host + "/web:1", Digest: digest})
		}
	}
	for _, node := range []string{"n0", "n1"} {
		done.Go(func() {
			p, err := w.i.Pull(t.Context(), admin{w.f}, w.f.Snapshot(), PullRequest{Ref: w.host + "/web:1", Contact: node}, &lines{})
			if err != nil || p.Digest != digest || p.Node != node {
				t.Errorf("on %s: %+v, %v", node, p, err)
			}
		})
	}
	done.Wait()
	if w.tag("web:1") != digest || len(w.f.Snapshot().Image(digest).RepoDigests) != 1 {
		t.Errorf("committed is %v", w.f.Snapshot().Image(digest))
	}
}

// A pull is of what its reference named when it began, also if the registry's tag
// moves meanwhile: nobody gets parts of two images.
func TestATagMovesWhileItIsPulled(t *testing.T) {
	w := newWorld(t, "a")
	first := w.push("web:1")
	var second string
	l := &lines{each: func() {
		if second == "" {
			second = w.push("web:1")
		}
	}}
	p, err := w.i.Pull(t.Context(), admin{w.f}, w.f.Snapshot(), PullRequest{Ref: w.host + "/web:1"}, l)
	if err != nil || p.Digest != first || w.tag("web:1") != first {
		t.Fatalf("the first: %+v, %v; the tag is %s", p, err, w.tag("web:1"))
	}
	if p, _, err := w.pull(PullRequest{Ref: "web:1"}); err != nil || p.Digest != second || !p.Newer || w.tag("web:1") != second {
		t.Errorf("the next: %+v, %v", p, err)
	}
	if w.f.Snapshot().Image(first) == nil {
		t.Error("the first image is gone with its tag")
	}
}

func TestWithoutALeaderAPullEndsInItsError(t *testing.T) {
	w := newWorld(t, "a")
	w.push("web:1")
	w.f.SetLeader(false)
	if _, l, err := w.pull(PullRequest{Ref: "web:1"}); err == nil || errors.As(err, new(*Error)) || l.node != "n0" {
		t.Errorf("%v after %+v", err, l)
	}
}

func TestFind(t *testing.T) {
	f := fleettest.New(t, "a")
	id := func(c string, n int) string { return "sha256:" + strings.Repeat(c, n) + strings.Repeat("0", 64-n) }
	one, two := id("a", 5), id("a", 6)
	f.AddImage(&dv1.Image{Digest: one}, "docker.io/library/alpine:latest", "reg:5000/x/y:1")
	f.AddImage(&dv1.Image{Digest: two}, "docker.io/library/aaaaaa:latest")
	snap := f.Snapshot()
	for name, want := range map[string]string{
		"alpine": one, "alpine:latest": one, "docker.io/library/alpine": one, "reg:5000/x/y:1": one, one: one, one[7:]: one, "aaaaa0": one,
		"alpine@" + one: one, "other@" + two: two, "aaaaaa": two, // a name before an id
	} {
		if got, err := Find(snap, name); err != nil || got != want {
			t.Errorf("%s is %s, %v; want %s", name, got, err, want)
		}
	}
	for name, words := range map[string]string{
		"": "No such image: ", "alpine:2": "No such image: alpine:2", "ALPINE": "No such image: ALPINE", "bbb": "No such image: bbb:latest",
		"alpine@sha256:" + strings.Repeat("9", 64): "No such image: alpine@sha256:999",
	} {
		_, err := Find(snap, name)
		refused(t, name, err, dv1.Error_NO_IMAGE, words)
	}
	_, err := Find(snap, "aaaa")
	refused(t, "an ambiguous id", err, dv1.Error_INVALID, "multiple IDs found with provided prefix: aaaa")
}

func TestTagAndRemove(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	digest := w.push("web:1")
	if _, _, err := w.pull(PullRequest{Ref: "web:1"}); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := w.i.Tag(ctx, admin{w.f}, w.f.Snapshot(), w.host+"/web:1", "mine"); err != nil || w.f.Snapshot().Tag("docker.io/library/mine:latest").GetDigest() != digest {
		t.Fatalf("tagging: %v", err)
	}
	refused(t, "tagging nothing", w.i.Tag(ctx, admin{w.f}, w.f.Snapshot(), "nothing", "x"), dv1.Error_NO_IMAGE, "No such image: nothing:latest")
	refused(t, "a bad name", w.i.Tag(ctx, admin{w.f}, w.f.Snapshot(), "mine", "X"), dv1.Error_INVALID, "invalid reference format: X")
	refused(t, "a digest", w.i.Tag(ctx, admin{w.f}, w.f.Snapshot(), "mine", "x@"+digest), dv1.Error_INVALID, "digest reference")

	w.f.Hold(digest, "n0", "n1", "n2")
	w.f.Silence("n2", time.Now())
	got, err := w.i.Remove(ctx, admin{w.f}, w.host+"/web:1", false)
	if err != nil || len(got.Untagged) != 1 || len(got.Deleted) > 0 || len(w.freed) > 0 {
		t.Errorf("the first name: %+v, %v, freed %v", got, err, w.freed)
	}
	got, err = w.i.Remove(ctx, admin{w.f}, "mine", false)
	if err != nil || len(got.Untagged) != 1 || got.Untagged[0] != "mine:latest" || len(got.Deleted) != 1 || got.Deleted[0] != digest {
		t.Errorf("the last name: %+v, %v", got, err)
	}
	if len(w.freed["n0"]) != 1 || w.freed["n1"][0] != digest || len(w.freed["n2"]) > 0 {
		t.Errorf("freed is %v, want it on both that answer", w.freed)
	}
	_, err = w.i.Remove(ctx, admin{w.f}, "mine", false)
	refused(t, "once more", err, dv1.Error_NO_IMAGE, "No such image: mine:latest")
}

func TestAnImageInUseIsNotRemoved(t *testing.T) {
	w := newWorld(t, "a")
	digest := w.push("web:1")
	if _, _, err := w.pull(PullRequest{Ref: "web:1"}); err != nil {
		t.Fatal(err)
	}
	task := w.f.Create("user", w.host+"/web:1", `{"Image":"web"}`)
	w.f.Run(task.Id)
	_, err := w.i.Remove(t.Context(), admin{w.f}, digest, true)
	refused(t, "of a running container", err, dv1.Error_CONFLICT, "cannot be forced")
}

func TestConfig(t *testing.T) {
	if c := Config(&dv1.Image{Config: []byte(`{"architecture":"arm64","config":{"Cmd":["x"]}}`)}); c.Architecture != "arm64" || len(c.Config.Cmd) != 1 {
		t.Errorf("a configuration is %+v", c)
	}
	if c := Config(&dv1.Image{Config: []byte(`junk`)}); c.Architecture != "" {
		t.Errorf("junk is %+v", c)
	}
	if c := Config(nil); c.Architecture != "" {
		t.Errorf("no image is %+v", c)
	}
}

func TestConfigIsOfTheBytesThatAnImageHas(t *testing.T) {
	for range 2 { // decoded, and remembered
		for _, c := range []struct {
			config string
			user   string
		}{{`{"config":{"User":"a"}}`, "a"}, {`{"config":{"User":"b"}}`, "b"}, {`{`, ""}, {``, ""}} {
			if got := Config(&dv1.Image{Digest: "sha256:same", Config: []byte(c.config)}); got.Config.User != c.user {
				t.Errorf("of %q the user is %q, want %q", c.config, got.Config.User, c.user)
			}
		}
	}
	if got := Config(nil); got.Config.User != "" || got.OS != "" {
		t.Errorf("no image has the configuration %+v", got)
	}
}
