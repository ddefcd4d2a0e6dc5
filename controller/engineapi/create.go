package engineapi

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/images"
	"github.com/drover/drover/controller/scheduler"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/fields"
)

// Labels with a meaning of ours: where to run (in), where it runs (out).
const (
	labelOn   = "io.drover.on"
	labelNode = "io.drover.node"
)

var nameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func validName(name string) error {
	if !nameRule.MatchString(name) {
		return refuse(http.StatusBadRequest, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	return nil
}

func (s *server) createContainer(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	var raw json.RawMessage
	sent, err := readBody(r, &raw)
	if err != nil {
		return err
	}
	body, req, err := decodeCreate(sent, apiVersion(r))
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(r.URL.Query().Get("name"), "/")
	if name != "" {
		if err := validName(name); err != nil {
			return err
		}
	}
	digest, err := images.Find(snap, req.Image)
	if err != nil {
		return err
	}
	img := images.Config(snap.Image(digest))
	merged := *req.Config
	mergeConfig(&merged, &img.Config)
	if len(merged.Entrypoint)+len(merged.Cmd) == 0 {
		return refuse(http.StatusBadRequest, "no command specified")
	}
	if err := platformOf(snap.Image(digest), req.Image, r.URL.Query().Get("platform"), apiVersion(r)); err != nil {
		return err
	}
	warnings, err := fields.CheckCreate(req)
	if err != nil {
		return err
	}
	if err := s.placeable(r, req); err != nil {
		return err
	}
	warnings = append(warnings, imageWarnings(req, &img)...)
	sum := sha256.Sum256(body)
	c := &dv1.CreateRun{
		RunId: random(), TaskIds: [][]byte{random()}, Name: name, NameCandidates: candidates(24), Contact: s.contact(r),
		AutoRemove: req.HostConfig != nil && req.HostConfig.AutoRemove,
		Spec:       &dv1.Spec{Id: sum[:], Body: body, Image: req.Image, Digest: digest},
	}
	c.On = append(scheduler.Split(req.Labels[labelOn]), scheduler.Split(r.Header.Get(wire.HeaderOn))...)
	res, err := s.propose(w, r, sent, &dv1.Command{Of: &dv1.Command_Create{Create: c}})
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, container.CreateResponse{ID: hexID(&dv1.Task{Id: res.TaskId}), Warnings: append(append([]string{}, warnings...), res.Warnings...)})
}

// platformOf refuses an image that is of another platform than a create asks for, in
// docker's words and with the status for which its command pulls the one it wants.
func platformOf(i *dv1.Image, name, want string, version int) error {
	if want == "" || version < 41 {
		return nil
	}
	p, err := platforms.Parse(want)
	if err != nil {
		return refuse(http.StatusBadRequest, "%v", err)
	}
	c := images.Config(i)
	have := platforms.Normalize(ocispec.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant})
	if c.OS == "" || platforms.NewMatcher(p).Match(have) {
		return nil
	}
	return refuse(http.StatusNotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)", name, platforms.FormatAll(have), platforms.FormatAll(p))
}

// imageWarnings name what the image asks for and its container runs without.
func imageWarnings(req *container.CreateRequest, img *dockerspec.DockerOCIImage) (warnings []string) {
	if v := fields.Uncovered(req, img.Config.Volumes); len(v) > 0 {
		warnings = append(warnings, fmt.Sprintf("the image's volumes (%s) are not available on this fleet yet: what is written there goes with the container", strings.Join(v, ", ")))
	}
	if h := img.Config.Healthcheck; req.Healthcheck == nil && h != nil && len(h.Test) > 0 && h.Test[0] != "NONE" {
		warnings = append(warnings, "health checks are not available on this fleet yet")
	}
	return warnings
}

// placeable refuses a bind of a folder that is one node's, if nothing says whose.
func (s *server) placeable(r *http.Request, req *container.CreateRequest) error {
	h := req.HostConfig
	if h == nil || s.contact(r) != "" || req.Labels[labelOn] != "" || r.Header.Get(wire.HeaderOn) != "" {
		return nil
	}
	var sources []string
	for _, b := range h.Binds {
		src, _, _ := strings.Cut(b, ":")
		sources = append(sources, src)
	}
	for _, m := range h.Mounts {
		if m.Type == mount.TypeBind {
			sources = append(sources, m.Source)
		}
	}
	for _, src := range sources {
		if command.Pins(src) {
			return refuse(http.StatusBadRequest, "bind source %s: say which node has it (label %s=node==NAME)", src, labelOn)
		}
	}
	return nil
}

// decodeCreate checks a create body as docker does. The body comes back as it
// was sent, less the label that we add to what we show: clients that recreate
// a container from its inspect send it along.
func decodeCreate(b []byte, version int) ([]byte, *container.CreateRequest, error) {
	req := &container.CreateRequest{}
	if err := decode(b, req); err != nil {
		return nil, nil, err
	}
	var older struct{ MacAddress string }
	if err := decode(b, &older); err != nil {
		return nil, nil, err
	}
	if older.MacAddress != "" && version < 52 {
		return nil, nil, refuse(http.StatusNotImplemented, "MacAddress: chosen MAC addresses are not available on this fleet yet")
	}
	if req.Config == nil {
		return nil, nil, refuse(http.StatusBadRequest, "config cannot be empty in order to create a container")
	}
	if req.Image == "" {
		return nil, nil, refuse(http.StatusBadRequest, "invalid reference format: no image specified")
	}
	if _, has := req.Labels[labelNode]; !has {
		return b, req, nil
	}
	delete(req.Labels, labelNode)
	fields := map[string]json.RawMessage{}
	if err := decode(b, &fields); err != nil {
		return nil, nil, err
	}
	labels, err := json.Marshal(req.Labels)
	if err != nil {
		return nil, nil, err
	}
	for k := range fields {
		if strings.EqualFold(k, "Labels") {
			delete(fields, k)
		}
	}
	fields["Labels"] = labels
	b, err = json.Marshal(fields)
	return b, req, err
}

func random() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return b
}

func candidates(n int) []string {
	out := make([]string, 0, n)
	for _, b := range [][]byte{random(), random()} {
		for i := 0; i+1 < len(b) && len(out) < n; i += 2 {
			c := adjectives[int(b[i])%len(adjectives)] + "_" + surnames[int(b[i+1])%len(surnames)]
			if slices.Contains(out, c) {
				c += string('0' + b[i]%10)
			}
			out = append(out, c)
		}
	}
	return out
}

var adjectives = strings.Fields(`able agile amber ample bold brave breezy bright brisk calm candid cheery clever cosmic crisp daring deft eager early earnest exact fair famous fleet fond frank fresh gentle gifted glad golden grand happy hardy honest humble jolly keen kind lively lucid lucky mellow merry mighty modest neat nimble noble placid polite proud quick quiet rapid ready robust serene sharp silent sincere sleek snappy solid spry steady stoic sunny swift tidy vivid warm wise witty zesty`)
var surnames = strings.Fields(`abel backus bohr boole borg cantor cerf church codd cray curie darwin dijkstra engelbart erdos euler faraday fermat fermi feynman floyd franklin galois gauss germain godel goodall haken hamilton hamming hilbert hoare hopper huffman hypatia jacquard kahn kalman kepler kernighan knuth kolmogorov lamport lamarr lampson lovelace markov maxwell mccarthy meitner mendel milner mirzakhani napier nash naur newell newton noether pascal perlman poincare postel ramanujan raymond ritchie shannon stallman sutherland tarjan tesla thompson turing volta wilkes wirth wozniak`)
