package engineapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/images"
	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/registry"
)

// credentials returns the caller's credentials from X-Registry-Auth.
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

// auth serves docker login: it asks the registry, and stores nothing.
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

func (s *server) createImage(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	from, tag := q.Get("fromImage"), q.Get("tag")
	switch {
	case strings.Contains(tag, ":"):
		from += "@" + tag
	case tag != "":
		from += ":" + tag
	}
	auth, err := credentials(r)
	if err != nil {
		return err
	}
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	p := &progress{w: w}
	pulled, err := s.images.Pull(r.Context(), s.as(discardHeader{w}, r), snap, images.PullRequest{
		Ref: from, Platform: q.Get("platform"), Credentials: auth, Contact: s.contact(r), On: scheduler.Split(r.Header.Get(wire.HeaderOn)),
	}, p)
	switch {
	case err != nil && !p.begun:
		return err
	case err != nil:
		p.say(message{Error: err.Error(), ErrorDetail: &errorDetail{err.Error()}})
		return nil
	}
	p.say(message{Status: "Digest: " + pulled.Digest})
	status := "Image is up to date for "
	if pulled.Newer {
		status = "Downloaded newer image for "
	}
	p.say(message{Status: "Status: " + status + reference.FamiliarString(pulled.Ref)})
	return nil
}

// discardHeader ignores the status, since the response has begun.
type discardHeader struct{ http.ResponseWriter }

func (discardHeader) Header() http.Header { return http.Header{} }

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

// progress is the response to a pull. It begins once a node pulls: until then a
// refusal can have a status.
type progress struct {
	w     http.ResponseWriter
	begun bool
}

// Transferring implements images.Sink.
func (p *progress) Transferring(ref reference.Named, _ string) {
	p.begun = true
	p.w.Header().Set("Content-Type", "application/json")
	p.w.WriteHeader(http.StatusOK)
	id := ""
	if d, ok := ref.(reference.Digested); ok {
		id = d.Digest().String()
	} else if t, ok := ref.(reference.Tagged); ok {
		id = t.Tag()
	}
	p.say(message{Status: "Pulling from " + reference.Path(ref), ID: id})
}

// Progress implements images.Sink.
func (p *progress) Progress(l images.Progress) {
	p.say(message{Status: l.Status, ID: l.ID, ProgressDetail: &progressDetail{l.Current, l.Total}})
}

func (p *progress) say(m message) {
	if b, err := json.Marshal(m); err == nil {
		_, _ = flusher{p.w, http.NewResponseController(p.w)}.Write(append(b, '\r', '\n')) // a client that is gone needs no progress
	}
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

func imageSummary(snap *state.Snapshot, i *dv1.Image) image.Summary {
	return image.Summary{
		ID: i.Digest, Containers: int64(snap.TaskCountOfImage(i.Digest)), Created: createdAt(i), Labels: images.Config(i).Config.Labels, RepoTags: familiarAll(snap.TagsOf(i.Digest)),
		RepoDigests: familiarAll(i.RepoDigests), SharedSize: -1, Size: i.Size,
	}
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
			d, err := images.Find(snap, v)
			if err != nil {
				return err
			}
			created[k] = createdAt(snap.Image(d))
		}
	}
	before, err := until(f["until"], time.Now())
	if err != nil {
		return err
	}
	out := []image.Summary{}
	for i := range snap.Images() {
		tags := familiarAll(snap.TagsOf(i.Digest))
		c := images.Config(i)
		at := createdAt(i)
		switch {
		case !f.any("dangling", func(v string) bool { return (v == "true" || v == "1") == (len(tags) == 0) }),
			!f.all("label", hasLabel(c.Config.Labels)),
			!f.any("reference", func(p string) bool { return slices.ContainsFunc(tags, func(t string) bool { return refMatches(p, t) }) }),
			len(f["before"]) > 0 && at >= created["before"], len(f["since"]) > 0 && at <= created["since"],
			len(f["until"]) > 0 && time.Unix(at, 0).UnixNano() >= before:
			continue
		}
		out = append(out, imageSummary(snap, i))
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

// until returns the earliest of some moments, in Unix ns: as moment reads them, or as
// durations before now.
func until(values []string, now time.Time) (int64, error) {
	first := int64(math.MaxInt64)
	for _, v := range values {
		at, err := moment(v)
		if ago, is := time.ParseDuration(v); is == nil {
			at, err = now.Add(-ago).UnixNano(), nil
		}
		if err != nil {
			return 0, err
		}
		first = min(first, at)
	}
	return first, nil
}

func createdAt(i *dv1.Image) int64 {
	if c := images.Config(i); c.Created != nil {
		return c.Created.Unix()
	}
	return i.GetPulled() / 1e9
}

// refMatches implements docker's reference patterns: globs, with or without tag.
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
	digest, err := images.Find(snap, r.PathValue("name"))
	if err != nil {
		return err
	}
	i := snap.Image(digest)
	if i == nil {
		return refuse(http.StatusNotFound, "No such image: %s", r.PathValue("name"))
	}
	c := images.Config(i)
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
	target := r.URL.Query().Get("repo")
	if t := r.URL.Query().Get("tag"); t != "" {
		target += ":" + t
	}
	if err := s.images.Tag(r.Context(), s.as(w, r), snap, r.PathValue("name"), target); err != nil {
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
	if _, err := images.Find(snap, name); err != nil && s.before(r, snap) == nil {
		return err
	}
	removed, err := s.images.Remove(r.Context(), s.as(w, r), name, boolean(r.URL.Query(), "force"))
	if err != nil {
		return err
	}
	out := []image.DeleteResponse{}
	for _, u := range removed.Untagged {
		out = append(out, image.DeleteResponse{Untagged: u})
	}
	for _, d := range removed.Deleted {
		out = append(out, image.DeleteResponse{Deleted: d})
	}
	return answer(w, http.StatusOK, out)
}
