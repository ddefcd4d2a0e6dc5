// Package create checks docker's create request, and builds a command from it. It
// decides nothing: what it checks against the fleet may have changed when the leader
// decides, which checks again. Pure, except for random ids and names.
package create

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/images"
	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/fields"
	"github.com/drover/drover/pkg/volumes"
)

// drover's labels: where to run (in), where it runs (out).
const (
	LabelOn   = volumes.LabelOn
	LabelNode = "io.drover.node"
)

// MaxBody bounds docker's JSON, in bytes: a create must fit into one log entry.
const MaxBody = 192 << 10

// nameTries is how many random names are tried if none was requested.
const nameTries = 24

// Request is docker's create request, of the newest API version, and where to run.
type Request struct {
	Body     []byte // docker's JSON
	Name     string // "": one is generated
	Platform string // os/arch/variant, "" for any
	Mode     dv1.Run_Mode
	On       []string // constraints, beside those of the label
	MAC      string   // of the endpoint in its main network, as older clients ask for it
	Contact  string   // id of the node that the client believes it talks to, "" for none
}

// Error refuses a request, in docker's words where it has some.
type Error struct {
	Kind    dv1.Error_Kind
	Message string
}

func (e *Error) Error() string { return e.Message }

func refuse(kind dv1.Error_Kind, format string, args ...any) error {
	return &Error{kind, fmt.Sprintf(format, args...)}
}

// Command checks r against a state, and returns the command to propose, with new ids
// and names, and warnings for the client. Its error is an *Error, or a *fields.Error
// for a field of the body.
func Command(snap *state.Snapshot, r Request) (c *dv1.CreateRun, warnings []string, err error) {
	if len(r.Body) > MaxBody {
		return nil, nil, refuse(dv1.Error_INVALID, "the request's body is larger than %d bytes", MaxBody)
	}
	body, req, err := remembered(r.Body)
	if err != nil {
		return nil, nil, err
	}
	name := strings.TrimPrefix(r.Name, "/")
	if name != "" {
		if err := checkName(name); err != nil {
			return nil, nil, err
		}
	}
	digest, e := command.FindImage(snap, req.Image)
	if e != nil {
		return nil, nil, &Error{e.Kind, e.Message}
	}
	image := snap.Image(digest)
	img := images.Config(image)
	merged := *req.Config
	Merge(&merged, &img.Config)
	if len(merged.Entrypoint)+len(merged.Cmd) == 0 {
		return nil, nil, refuse(dv1.Error_INVALID, "no command specified")
	}
	if err := checkPlatform(image, req.Image, r.Platform); err != nil {
		return nil, nil, err
	}
	warnings, err = fields.CheckCreate(req)
	if err != nil {
		return nil, nil, err
	}
	if body, req, err = joined(snap, body, req); err != nil {
		return nil, nil, err
	}
	on := append(scheduler.Split(req.Labels[LabelOn]), r.On...)
	if r.Mode == dv1.Run_ONE && r.Contact == "" && len(on) == 0 {
		if err := placeable(req.HostConfig); err != nil {
			return nil, nil, err
		}
	}
	endpoints, err := Endpoints(snap, req)
	if err == nil && r.MAC != "" {
		err = setMAC(snap, req, endpoints, r.MAC)
	}
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(body)
	c = &dv1.CreateRun{
		RunId: random(), Mode: r.Mode, Name: name, NameCandidates: names(nameTries), Contact: r.Contact, On: on,
		Endpoints: endpoints, AutoRemove: req.HostConfig != nil && req.HostConfig.AutoRemove,
		Spec: &dv1.Spec{Id: sum[:], Body: body, Image: req.Image, Digest: digest},
	}
	if r.Mode == dv1.Run_ONE {
		c.TaskIds = [][]byte{random()}
	}
	return c, append(warnings, imageWarnings(req, &img)...), nil
}

var nameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// checkName refuses invalid container names.
func checkName(name string) error {
	if !nameRule.MatchString(name) {
		return refuse(dv1.Error_INVALID, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	return nil
}

// checkPlatform reports an image of another platform as missing: docker's CLI then
// pulls the right one.
func checkPlatform(i *dv1.Image, name, want string) error {
	if want == "" {
		return nil
	}
	p, err := platforms.Parse(want)
	if err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	c := images.Config(i)
	have := platforms.Normalize(ocispec.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant})
	if c.OS == "" || platforms.NewMatcher(p).Match(have) {
		return nil
	}
	return refuse(dv1.Error_NO_IMAGE, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)", name, platforms.FormatAll(have), platforms.FormatAll(p))
}

// imageWarnings lists what the image asks for and its container does without.
func imageWarnings(req *container.CreateRequest, img *dockerspec.DockerOCIImage) (warnings []string) {
	if h := img.Config.Healthcheck; req.Healthcheck == nil && h != nil && len(h.Test) > 0 && h.Test[0] != "NONE" {
		warnings = append(warnings, "health checks are not available on this fleet yet")
	}
	return warnings
}

// placeable refuses binds of one node's folders if nothing says which node.
func placeable(h *container.HostConfig) error {
	if h == nil {
		return nil
	}
	var sources []string
	for _, b := range h.Binds {
		if src, _, _ := strings.Cut(b, ":"); strings.HasPrefix(src, "/") && src != b { // else it is a volume
			sources = append(sources, src)
		}
	}
	for _, m := range h.Mounts {
		if m.Type == mount.TypeBind {
			sources = append(sources, m.Source)
		}
	}
	for _, src := range sources {
		if command.Pins(src) {
			return refuse(dv1.Error_INVALID, "bind source %s: say which node has it (label %s=node==NAME)", src, LabelOn)
		}
	}
	return nil
}

// decode checks the form of a body as docker does. The body is returned unchanged
// but for the label that drover adds to its output: clients that recreate a
// container from its inspect response send it back.
func decode(b []byte) ([]byte, *container.CreateRequest, error) {
	req := &container.CreateRequest{}
	if err := unmarshal(b, req); err != nil {
		return nil, nil, err
	}
	if req.Config == nil {
		return nil, nil, refuse(dv1.Error_INVALID, "config cannot be empty in order to create a container")
	}
	if req.Image == "" {
		return nil, nil, refuse(dv1.Error_INVALID, "invalid reference format: no image specified")
	}
	if _, has := req.Labels[LabelNode]; !has {
		return b, req, nil
	}
	delete(req.Labels, LabelNode)
	b, err := replaced(b, req.Labels, "Labels")
	if err != nil {
		return nil, nil, err
	}
	return decode(b) // what nodes will read: a field that was there twice may mean something else now
}

// replaced returns JSON with another value of the field at a path. Docker does not care
// for the case of its fields, which may hide another one.
func replaced(b []byte, value any, path ...string) ([]byte, error) {
	if len(path) == 0 {
		return json.Marshal(value)
	}
	fields := map[string]json.RawMessage{}
	if err := unmarshal(b, &fields); err != nil {
		return nil, err
	}
	var was json.RawMessage
	for k, v := range fields {
		if strings.EqualFold(k, path[0]) {
			was = v
			delete(fields, k)
		}
	}
	b, err := replaced(was, value, path[1:]...)
	if err != nil {
		return nil, err
	}
	fields[path[0]] = b
	return json.Marshal(fields)
}

func unmarshal(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return refuse(dv1.Error_INVALID, "invalid JSON: %v", err)
	}
	if d.More() {
		return refuse(dv1.Error_INVALID, "unexpected content after JSON")
	}
	return nil
}

func random() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return b
}
