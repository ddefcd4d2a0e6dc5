package engineapi

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/registry"
)

// freeWithin bounds how long an answer waits for nodes to free an image's content.
const freeWithin = 5 * time.Second

// findImage gives the digest that name (a reference, or a unique id prefix) stands for.
func findImage(snap *state.Snapshot, name string) (string, error) {
	shown := name
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		named = reference.TagNameOnly(named)
		shown = reference.FamiliarString(named)
		if t := snap.Tag(named.String()); t != nil {
			return t.Digest, nil
		}
		if d, ok := named.(reference.Digested); ok && snap.Image(d.Digest().String()) != nil {
			return d.Digest().String(), nil
		}
	}
	switch is := snap.ImagesByPrefix(name); {
	case name == "":
	case len(is) == 1:
		return is[0].Digest, nil
	case len(is) > 1:
		return "", refuse(http.StatusBadRequest, "multiple IDs found with provided prefix: %s", name)
	}
	return "", refuse(http.StatusNotFound, "No such image: %s", shown)
}

// credentials are the caller's, as X-Registry-Auth carries them.
func credentials(r *http.Request) (*registry.Credentials, error) {
	h := r.Header.Get("X-Registry-Auth")
	if h == "" {
		return nil, nil
	}
	b, err := base64.URLEncoding.DecodeString(h)
	if err != nil {
		b, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(h, "="))
	}
	var c struct{ Username, Password, IdentityToken, ServerAddress string }
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "invalid X-Registry-Auth header: %v", err)
	}
	if c.Username == "" && c.IdentityToken == "" {
		return nil, nil
	}
	return &registry.Credentials{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, ServerAddress: c.ServerAddress}, nil
}

// auth answers docker login: the registry is asked, nothing is kept.
func (s *server) auth(w http.ResponseWriter, r *http.Request) error {
	var c struct{ Username, Password, IdentityToken, ServerAddress string }
	if _, err := readBody(r, &c); err != nil {
		return err
	}
	err := s.Registry.Login(r.Context(), c.ServerAddress, &registry.Credentials{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken})
	switch {
	case errors.Is(err, registry.ErrUnauthorized):
		return refuse(http.StatusUnauthorized, "login attempt to %s failed: unauthorized: incorrect username or password", c.ServerAddress)
	case err != nil:
		return refuse(http.StatusInternalServerError, "%v", err)
	}
	return answer(w, http.StatusOK, map[string]string{"Status": "Login Succeeded", "IdentityToken": ""})
}

// pullError puts a registry's refusal into docker's words.
func pullError(named reference.Named, err error) error {
	name := reference.FamiliarName(named)
	var gone *registry.Unreachable
	switch {
	case errors.As(err, &gone):
		return refuse(http.StatusInternalServerError, "failed to resolve reference %q: %v", named.String(), gone)
	case errors.Is(err, registry.ErrUnauthorized):
		return refuse(http.StatusNotFound, "pull access denied for %s, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", name)
	case errors.Is(err, registry.ErrNotFound):
		return refuse(http.StatusNotFound, "manifest for %s not found: manifest unknown: manifest unknown", reference.FamiliarString(named))
	}
	return refuse(http.StatusInternalServerError, "%v", err)
}

func (s *server) createImage(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if q.Get("fromSrc") != "" {
		return refuse(http.StatusNotImplemented, "importing images is not available on this fleet yet")
	}
	from, tag := q.Get("fromImage"), q.Get("tag")
	if tag != "" {
		if strings.Contains(tag, ":") {
			from += "@" + tag
		} else {
			from += ":" + tag
		}
	}
	named, err := reference.ParseNormalizedNamed(from)
	if err != nil {
		return refuse(http.StatusBadRequest, "invalid reference format: %s", from)
	}
	named = reference.TagNameOnly(named)
	if p := q.Get("platform"); p != "" && !strings.HasPrefix(p, "linux") {
		return refuse(http.StatusBadRequest, "platform %s does not run here", p)
	}
	auth, err := credentials(r)
	if err != nil {
		return err
	}
	desc, err := s.Registry.Resolve(r.Context(), named.String(), auth)
	if err != nil {
		return pullError(named, err)
	}
	digest := desc.Digest.String()
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	seen := s.Fleet.Observe(r.Context(), fleet.Query{Images: []string{digest}})
	node, err := puller(snap, seen, digest, s.contact(r), scheduler.Split(r.Header.Get(wire.HeaderOn)))
	if err != nil {
		return err
	}
	newer := true
	if t := snap.Tag(named.String()); t != nil && t.Digest == digest && slices.Contains(seen.Holders(digest), node) {
		newer = false
	}
	at, err := reference.WithDigest(reference.TrimNamed(named), desc.Digest)
	if err != nil {
		return fmt.Errorf("naming %s by its digest: %w", named, err)
	}
	req := bulk.PullRequest{Ref: named.String(), Digest: digest, Public: s.Registry.Public(r.Context(), at.String(), auth)}
	if s.Grant != nil {
		if req.Grant, err = s.Grant(node, digest); err != nil {
			return err
		}
	}
	for _, h := range seen.Holders(digest) {
		if n := snap.Node(h); n != nil && h != node {
			req.Holders = append(req.Holders, n.Addr)
		}
	}
	if auth != nil {
		req.Username, req.Password, req.IdentityToken, req.AuthServer = auth.Username, auth.Password, auth.IdentityToken, auth.ServerAddress
	}
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encoding a pull: %w", err)
	}
	resp, err := s.agent(r, node, http.MethodPost, "/v1/images/pull", body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fromAgent(node, resp)
	}
	defer func() { _ = resp.Body.Close() }()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	p := &progress{out: flusher{w, http.NewResponseController(w)}}
	id := ""
	if t, ok := named.(reference.Tagged); ok {
		id = t.Tag()
	} else if d, ok := named.(reference.Digested); ok {
		id = d.Digest().String()
	}
	p.say(message{Status: "Pulling from " + reference.Path(named), ID: id})
	img, err := p.relay(resp.Body, digest)
	if err == nil {
		img.Public = req.Public
		err = s.commitImage(w, r, named, img)
	}
	if err != nil {
		p.fail(err)
		return nil
	}
	p.say(message{Status: "Digest: " + digest})
	status := "Image is up to date for "
	if newer {
		status = "Downloaded newer image for "
	}
	p.say(message{Status: "Status: " + status + reference.FamiliarString(named)})
	return nil
}

func (s *server) commitImage(w http.ResponseWriter, r *http.Request, named reference.Named, img *dv1.Image) error {
	c := &dv1.CommitImage{Image: img}
	if d, err := reference.ParseNormalizedNamed(reference.TrimNamed(named).String() + "@" + img.Digest); err == nil {
		img.RepoDigests = []string{d.String()}
	}
	if _, ok := named.(reference.Tagged); ok {
		c.Refs = []string{named.String()}
	}
	_, err := s.propose(discardHeader{w}, r, nil, &dv1.Command{Of: &dv1.Command_CommitImage{CommitImage: c}})
	return err
}

// discardHeader is an answer that has begun.
type discardHeader struct{ http.ResponseWriter }

func (discardHeader) Header() http.Header { return http.Header{} }

// puller chooses where a pull's content goes: where it is, the contact, or any
// node that answers.
func puller(snap *state.Snapshot, seen *fleet.Observations, digest, contact string, on []string) (string, error) {
	if len(on) > 0 {
		for n := range snap.Nodes() {
			fits, err := scheduler.Matches(n, on)
			if err != nil {
				return "", refuse(http.StatusBadRequest, "%v", err)
			}
			if _, quiet := seen.Silent(n.Id); fits && !quiet {
				return n.Id, nil
			}
		}
		return "", refuse(http.StatusServiceUnavailable, "no node answers that is %s", strings.Join(on, " and "))
	}
	if _, quiet := seen.Silent(contact); contact != "" && !quiet && snap.Node(contact) != nil {
		return contact, nil
	}
	for _, h := range seen.Holders(digest) {
		if _, quiet := seen.Silent(h); !quiet {
			return h, nil
		}
	}
	for n := range snap.Nodes() {
		if _, quiet := seen.Silent(n.Id); !quiet {
			return n.Id, nil
		}
	}
	return "", refuse(http.StatusServiceUnavailable, "no node answers that could hold the image")
}

// message is a line of docker's progress stream.
type message struct {
	Status         string          `json:"status,omitempty"`
	Progress       string          `json:"progress,omitempty"`
	ProgressDetail *progressDetail `json:"progressDetail,omitempty"`
	ID             string          `json:"id,omitempty"`
	Error          string          `json:"error,omitempty"`
	ErrorDetail    *errorDetail    `json:"errorDetail,omitempty"`
}

type progressDetail struct {
	Current int64 `json:"current,omitempty"`
	Total   int64 `json:"total,omitempty"`
}

type errorDetail struct {
	Message string `json:"message"`
}

// maxPullLine bounds a line of an agent's: the last has manifests and configuration.
const maxPullLine = 16 << 20

type progress struct{ out io.Writer }

func (p *progress) say(m message) {
	if b, err := json.Marshal(m); err == nil {
		_, _ = p.out.Write(append(b, '\r', '\n')) // who left needs no progress
	}
}

func (p *progress) fail(err error) {
	p.say(message{Error: err.Error(), ErrorDetail: &errorDetail{err.Error()}})
}

// relay passes an agent's lines on until the image comes, and checks that it is
// what the digest names.
func (p *progress) relay(r io.Reader, digest string) (*dv1.Image, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxPullLine)
	for sc.Scan() {
		var l bulk.PullLine
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("reading a pull's progress: %w", err)
		}
		switch {
		case l.Error != "":
			return nil, errors.New(l.Error)
		case l.Image != nil:
			img := &dv1.Image{}
			if err := protojson.Unmarshal(l.Image, img); err != nil {
				return nil, fmt.Errorf("reading a pull's image: %w", err)
			}
			return verified(digest, img, l.Manifests)
		}
		p.say(message{Status: l.Status, ID: l.ID, ProgressDetail: &progressDetail{l.Current, l.Total}})
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("the node that pulls broke off: %w", err)
	}
	return nil, errors.New("the node that pulls broke off")
}

func familiar(ref string) string {
	if n, err := reference.ParseNormalizedNamed(ref); err == nil {
		return reference.FamiliarString(n)
	}
	return ref
}

func familiarAll(refs []string) []string {
	out := []string{}
	for _, r := range refs {
		out = append(out, familiar(r))
	}
	slices.Sort(out)
	return out
}

func (s *server) listImages(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	f, err := parseFilters(r, "before", "dangling", "label", "reference", "since", "until")
	if err != nil {
		return err
	}
	if old := r.URL.Query().Get("filter"); old != "" { // before 1.41
		f["reference"] = append(f["reference"], old)
	}
	created := map[string]int64{}
	for _, k := range []string{"before", "since"} {
		for _, v := range f[k] {
			d, err := findImage(snap, v)
			if err != nil {
				return err
			}
			created[k] = createdAt(snap.Image(d))
		}
	}
	users := map[string]int64{}
	for t := range snap.Tasks() {
		if spec := snap.Spec(t.SpecId); spec != nil {
			users[spec.Digest]++
		}
	}
	out := []image.Summary{}
	for i := range snap.Images() {
		tags := familiarAll(snap.TagsOf(i.Digest))
		c := imageConfig(i)
		at := createdAt(i)
		switch {
		case !f.any("dangling", func(v string) bool { return (v == "true" || v == "1") == (len(tags) == 0) }),
			!f.all("label", hasLabel(c.Config.Labels)),
			!f.any("reference", func(p string) bool { return slices.ContainsFunc(tags, func(t string) bool { return refMatches(p, t) }) }),
			len(f["before"]) > 0 && at >= created["before"], len(f["since"]) > 0 && at <= created["since"]:
			continue
		}
		out = append(out, image.Summary{
			ID: i.Digest, Containers: users[i.Digest], Created: at, Labels: c.Config.Labels, RepoTags: tags,
			RepoDigests: familiarAll(i.RepoDigests), SharedSize: -1, Size: i.Size,
		})
	}
	slices.SortFunc(out, func(a, b image.Summary) int {
		if a.Created != b.Created {
			return int(min(1, max(-1, b.Created-a.Created)))
		}
		return strings.Compare(strings.Join(a.RepoTags, " ")+a.ID, strings.Join(b.RepoTags, " ")+b.ID)
	})
	missing(w, s.Fleet.Observe(r.Context(), fleet.Query{}))
	return answer(w, http.StatusOK, out)
}

func createdAt(i *dv1.Image) int64 {
	if c := imageConfig(i); c.Created != nil {
		return c.Created.Unix()
	}
	return i.GetPulled() / 1e9
}

// refMatches is docker's pattern of a reference: with or without tag, globs.
func refMatches(pattern, ref string) bool {
	if ok, _ := path.Match(pattern, ref); ok {
		return true
	}
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return false
	}
	ok, _ := path.Match(pattern, reference.FamiliarName(n))
	return ok
}

func (s *server) inspectImage(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	digest, err := findImage(snap, r.PathValue("name"))
	if err != nil {
		return err
	}
	i := snap.Image(digest)
	if i == nil {
		return refuse(http.StatusNotFound, "No such image: %s", r.PathValue("name"))
	}
	c := imageConfig(i)
	out := image.InspectResponse{
		ID: digest, RepoTags: familiarAll(snap.TagsOf(digest)), RepoDigests: familiarAll(i.RepoDigests), Author: c.Author,
		Config: &c.Config, Architecture: c.Architecture, Variant: c.Variant, Os: c.OS, OsVersion: c.OSVersion, Size: i.Size,
		RootFS: image.RootFS{Type: "layers", Layers: i.Layers},
	}
	if c.Created != nil {
		out.Created = c.Created.UTC().Format(time.RFC3339Nano)
	}
	out.Metadata.LastTagTime = time.Unix(0, i.Pulled)
	return answer(w, http.StatusOK, out)
}

func (s *server) tagImage(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	digest, err := findImage(snap, r.PathValue("name"))
	if err != nil {
		return err
	}
	ref := r.URL.Query().Get("repo")
	if t := r.URL.Query().Get("tag"); t != "" {
		ref += ":" + t
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return refuse(http.StatusBadRequest, "invalid reference format: %s", ref)
	}
	if _, err := s.propose(w, r, nil, &dv1.Command{Of: &dv1.Command_PutTag{PutTag: &dv1.PutTag{
		Ref: reference.TagNameOnly(named).String(), Source: digest}}}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (s *server) deleteImage(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	name := r.PathValue("name")
	res := s.before(r, snap)
	if _, err := findImage(snap, name); err != nil && res == nil {
		return err
	}
	res, err = s.propose(w, r, nil, &dv1.Command{Of: &dv1.Command_Untag{Untag: &dv1.Untag{Ref: name, Force: boolean(r.URL.Query(), "force")}}})
	if err != nil {
		return err
	}
	out := []image.DeleteResponse{}
	for _, u := range res.Untagged {
		out = append(out, image.DeleteResponse{Untagged: u})
	}
	for _, d := range res.Deleted {
		s.free(r, d)
		out = append(out, image.DeleteResponse{Deleted: d})
	}
	return answer(w, http.StatusOK, out)
}

// free has the nodes that hold an image's content give it up. One that does not
// answer is told when it says again that it holds it.
func (s *server) free(r *http.Request, digest string) {
	ctx, cancel := context.WithTimeout(r.Context(), freeWithin)
	defer cancel()
	r = r.WithContext(ctx)
	var wg sync.WaitGroup
	for _, node := range s.Fleet.Observe(ctx, fleet.Query{Images: []string{digest}}).Holders(digest) {
		wg.Go(func() {
			resp, err := s.agent(r, node, http.MethodDelete, "/v1/images/"+digest, nil)
			if err == nil && resp.StatusCode >= 300 {
				err = fromAgent(node, resp)
			} else if err == nil {
				_ = resp.Body.Close()
			}
			if err != nil {
				s.Logger.Warn("an image's content was not freed", "node", node, "image", digest, "error", err)
			}
		})
	}
	wg.Wait()
}
