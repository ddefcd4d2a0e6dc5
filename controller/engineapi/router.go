// Package engineapi translates Docker's Engine API into commands on, and queries of,
// the fleet. It holds no state: deciding is left to the proposer, running containers
// to the agents, authentication to the listeners.
package engineapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/images"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/fields"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/registry"
	"github.com/drover/drover/pkg/route"
)

// API versions that are served, and the docker engine version that they match.
const (
	MinVersion    = "1.24"
	MaxVersion    = "1.56"
	EngineVersion = "29.7.2"
)

// maxBody bounds a request's body.
const maxBody = create.MaxBody

// Options configures New. Fleet and Registry are required.
type Options struct {
	Fleet    Fleet
	Registry *registry.Registry
	Logger   *slog.Logger // nil: none
	Tracer   trace.Tracer // nil: none
	Version  string       // of drover
	// Grant lets a node read an image's content from others; nil grants nothing.
	Grant func(node, digest string) ([]byte, error)
}

type server struct {
	Options
	images *images.Images
	shapes shapes
}

// handler writes a response or returns an error, which is sent as docker's JSON.
type handler func(s *server, w http.ResponseWriter, r *http.Request) error

// on returns a row of the table, for users.
func on(method, pattern string, at route.Place, h handler) route.Handled[handler] {
	return route.Handled[handler]{Route: route.Route{Method: method, Pattern: pattern, At: at, Who: route.User, Body: route.Bounded(maxBody)}, Handle: h}
}

// uploaded returns a row whose body passes through to a node, however long it is.
func uploaded(method, pattern string, h handler) route.Handled[handler] {
	return route.Handled[handler]{Route: route.Route{Method: method, Pattern: pattern, At: route.Stream, Who: route.User, Body: route.Streamed(0)}, Handle: h}
}

// table is the whole API, at paths without a version. Image names contain slashes;
// the last row matches everything else.
var table = route.Table[handler]{
	on("GET", "/_ping", route.Here, (*server).ping),
	on("GET", "/version", route.Here, (*server).version),
	on("GET", "/info", route.Leader, (*server).info),
	on("GET", "/events", route.Leader, (*server).events),
	on("POST", "/auth", route.Leader, (*server).auth),
	on("GET", "/plugins", route.Leader, (*server).plugins),
	on("POST", "/build/prune", route.Leader, (*server).buildPrune),
	on("POST", "/build/cancel", route.Leader, (*server).buildPrune),

	on("GET", "/containers/json", route.Leader, (*server).listContainers),
	on("POST", "/containers/create", route.Leader, (*server).createContainer),
	on("GET", "/containers/{id}/json", route.Leader, (*server).inspectContainer),
	on("POST", "/containers/{id}/start", route.Leader, (*server).start),
	on("POST", "/containers/{id}/stop", route.Leader, (*server).stop),
	on("POST", "/containers/{id}/restart", route.Leader, (*server).restart),
	on("POST", "/containers/{id}/rename", route.Leader, (*server).rename),
	on("DELETE", "/containers/{id}", route.Leader, (*server).remove),
	on("POST", "/containers/{id}/attach", route.Stream, (*server).attach),
	on("GET", "/containers/{id}/logs", route.Stream, (*server).logs),
	on("POST", "/containers/{id}/wait", route.Stream, (*server).wait),
	on("POST", "/containers/{id}/kill", route.Stream, (*server).kill),
	on("POST", "/containers/{id}/resize", route.Stream, (*server).resizeContainer),
	on("GET", "/containers/{id}/top", route.Stream, (*server).top),
	on("GET", "/containers/{id}/stats", route.Stream, (*server).stats),
	on("GET", "/containers/{id}/archive", route.Stream, (*server).readPath),
	uploaded("PUT", "/containers/{id}/archive", (*server).writePath),
	on("GET", "/containers/{id}/export", route.Stream, (*server).export),
	on("GET", "/containers/{id}/changes", route.Stream, (*server).changes),
	on("POST", "/containers/{id}/exec", route.Stream, (*server).execCreate),
	on("POST", "/exec/{id}/start", route.Stream, (*server).execStart),
	on("POST", "/exec/{id}/resize", route.Stream, (*server).execResize),
	on("GET", "/exec/{id}/json", route.Stream, (*server).execInspect),

	on("GET", "/images/json", route.Leader, (*server).listImages),
	on("POST", "/images/create", route.Stream, (*server).createImage),
	on("GET", "/images/{name...}/json", route.Leader, (*server).inspectImage),
	on("POST", "/images/{name...}/tag", route.Leader, (*server).tagImage),
	on("DELETE", "/images/{name...}", route.Leader, (*server).deleteImage),

	on("GET", "/volumes", route.Leader, (*server).listVolumes),
	on("POST", "/volumes/create", route.Leader, (*server).createVolume),
	on("POST", "/volumes/prune", route.Leader, (*server).pruneVolumes),
	on("GET", "/volumes/{name}", route.Leader, (*server).inspectVolume),
	on("PUT", "/volumes/{name}", route.Leader, (*server).updateVolume),
	on("DELETE", "/volumes/{name}", route.Leader, (*server).removeVolume),
	on("GET", "/system/df", route.Leader, (*server).diskUsage),
	on("GET", "/networks", route.Leader, (*server).listNetworks),
	on("GET", "/networks/{id}", route.Leader, (*server).inspectNetwork),
	on("POST", "/networks/create", route.Leader, (*server).createNetwork),
	on("POST", "/networks/prune", route.Leader, (*server).pruneNetworks),
	on("POST", "/networks/{id}/connect", route.Leader, (*server).connectNetwork),
	on("POST", "/networks/{id}/disconnect", route.Leader, (*server).disconnectNetwork),
	on("DELETE", "/networks/{id}", route.Leader, (*server).removeNetwork),

	on("", "/", route.Here, (*server).notYet),
}

// Routes are the API's routes; the last one matches everything else.
var Routes = table.Routes()

// API is the Engine API. Requests need an identity with the role admin or user in
// their context. It is safe for concurrent use.
type API struct{ s *server }

// New returns an API.
func New(o Options) *API {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	s := &server{Options: o, images: images.New(images.Options{Fleet: o.Fleet, Registry: o.Registry, Logger: o.Logger, Grant: o.Grant})}
	s.shapes.last.Max = maxShapes
	return &API{s}
}

// Match implements route.API; there is a handler for every request.
func (a *API) Match(r *http.Request) (route.Route, http.Handler) {
	c := &routed{server: a.s, path: r.URL.Path}
	if m := versioned.FindStringSubmatch(r.URL.Path); m != nil {
		c.major, c.minor, c.path = m[1], m[2], m[3]
	}
	c.Handled, c.values, _ = table.Match(r.Method, c.path)
	return c.Route, c
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, h := a.Match(r)
	h.ServeHTTP(w, r)
}

var versioned = regexp.MustCompile(`^/v([0-9]+)\.([0-9]+)(/.*)$`)

type versionKey struct{}

// routed is a request with its route.
type routed struct {
	*server
	route.Handled[handler]
	major, minor string // of the version in its path, "" if none
	path         string // without the version
	values       map[string]string
}

// version returns the minor version that the request uses.
func (c *routed) version() (int, error) {
	if c.major == "" {
		return minor(MaxVersion), nil
	}
	asked := c.major + "." + c.minor
	n, err := strconv.Atoi(c.minor)
	switch {
	case c.major != "1" && c.major != "0" || err != nil || n > minor(MaxVersion) && c.major == "1":
		return 0, refuse(http.StatusBadRequest, "client version %s is too new. Maximum supported API version is %s", asked, MaxVersion)
	case c.major == "0" || n < minor(MinVersion):
		return 0, refuse(http.StatusBadRequest, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", asked, MinVersion)
	}
	return n, nil
}

// ServeHTTP handles what all requests have in common: headers, version, identity,
// trace.
func (c *routed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Api-Version", MaxVersion)
	h.Set("Ostype", "linux")
	h.Set("Server", "Docker/"+EngineVersion+" (linux)")
	version, err := c.version()
	if err != nil {
		c.fail(w, r, err)
		return
	}
	p, ok := pki.PrincipalFrom(r.Context())
	switch {
	case !ok:
		c.fail(w, r, refuse(http.StatusUnauthorized, "%s", pki.ErrNoPrincipal))
		return
	case !c.Who.Has(p):
		c.fail(w, r, refuse(http.StatusForbidden, "%s has no role that allows this", p.URI))
		return
	}
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := c.Tracer.Start(ctx, "engineapi "+r.Method+" "+c.Pattern, trace.WithSpanKind(trace.SpanKindServer))
	span.SetAttributes(attribute.String("principal", p.URI))
	defer span.End()
	if sc := span.SpanContext(); sc.IsValid() {
		h.Set(wire.HeaderTrace, sc.TraceID().String())
	}
	r = r.WithContext(context.WithValue(ctx, versionKey{}, version))
	if c.major != "" { // the route doesn't depend on the version
		u := *r.URL
		u.Path, u.RawPath = c.path, ""
		r.URL = &u
	}
	route.SetValues(r, c.values)
	r.Body = c.Body.Limit(w, r.Body)
	warnings, err := fields.CheckQuery(c.String(), r.URL.Query())
	for _, said := range warnings {
		h.Add(wire.HeaderWarning, said)
	}
	if err == nil {
		err = c.Handle(c.server, w, r)
	}
	if err != nil {
		c.fail(w, r, err)
	}
}

// contact returns the node that the client believes it talks to, or "".
func (s *server) contact(r *http.Request) string {
	if c := r.Header.Get(wire.HeaderContact); c != "" {
		return c
	}
	return s.Fleet.Contact()
}

// before returns the result of an earlier request with the same key, or nil.
func (s *server) before(r *http.Request, snap *state.Snapshot) *dv1.CommandResult {
	k := r.Header.Get(wire.HeaderKey)
	if k == "" {
		return nil
	}
	res := snap.Result(k)
	if sum := requestSum(r, nil); res == nil || !bytes.Equal(res.Hash, sum) {
		return nil
	}
	return res.Result
}

// requestSum hashes the request and the caller's account: keys are per caller.
func requestSum(r *http.Request, body []byte) []byte {
	p, _ := pki.PrincipalFrom(r.Context())
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %s %s\n%s", pki.Account(p.URI), r.Method, r.URL.RequestURI(), body))
	return sum[:]
}

func minor(v string) int {
	_, m, _ := strings.Cut(v, ".")
	n, _ := strconv.Atoi(m)
	return n
}

// apiVersion returns the minor version that the request uses.
func apiVersion(r *http.Request) int {
	v, _ := r.Context().Value(versionKey{}).(int)
	return v
}

// state returns a state at least as new as the client has seen.
func (s *server) state(w http.ResponseWriter, r *http.Request) (*state.Snapshot, error) {
	return s.stateWith(w, r, nil)
}

// stateWith is state for callers that need something to exist: before it is reported
// missing, a leader is waited for.
func (s *server) stateWith(w http.ResponseWriter, r *http.Request, enough func(*state.Snapshot) bool) (*state.Snapshot, error) {
	var least uint64
	if v := r.Header.Get(wire.HeaderIndex); v != "" {
		var err error
		if least, err = strconv.ParseUint(v, 10, 64); err != nil {
			return nil, refuse(http.StatusBadRequest, "header %s: %q is not a raft index", wire.HeaderIndex, v)
		}
	}
	snap, fresh, err := s.Fleet.Find(r.Context(), least, enough)
	if err != nil {
		return nil, refuse(http.StatusServiceUnavailable, "reading the fleet's state: %v", err)
	}
	if !fresh {
		w.Header().Set(wire.HeaderStale, "1")
	}
	w.Header().Set(wire.HeaderIndex, strconv.FormatUint(snap.Index(), 10))
	return snap, nil
}

// propose has a command decided in the caller's name. body is what the client sent,
// so that its key can't be reused for another request.
func (s *server) propose(w http.ResponseWriter, r *http.Request, body []byte, c *dv1.Command) (*dv1.CommandResult, error) {
	if p, ok := pki.PrincipalFrom(r.Context()); ok {
		c.Principal = p.URI
	}
	if c.Key = r.Header.Get(wire.HeaderKey); c.Key != "" {
		c.Hash = requestSum(r, body)
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(r.Context(), carrier)
	c.Traceparent = carrier["traceparent"]
	res, err := s.Fleet.Propose(r.Context(), c)
	if err != nil {
		return nil, fmt.Errorf("recording the request: %w", err)
	}
	w.Header().Set(wire.HeaderIndex, strconv.FormatUint(res.Index, 10))
	if res.Error != nil {
		return nil, decided(res.Error)
	}
	return res, nil
}

// as returns a proposer that acts in the caller's name.
func (s *server) as(w http.ResponseWriter, r *http.Request) images.Proposer { return caller{s, w, r} }

type caller struct {
	s *server
	w http.ResponseWriter
	r *http.Request
}

// Propose implements images.Proposer.
func (c caller) Propose(ctx context.Context, cmd *dv1.Command) (*dv1.CommandResult, error) {
	return c.s.propose(c.w, c.r.WithContext(ctx), nil, cmd)
}

// maxAhead bounds what is allocated for a body because its length was announced.
const maxAhead = 64 << 10

// readBody takes a bounded JSON body into v, nil for one that is decoded later, and
// returns its bytes.
func readBody(r *http.Request, v any) ([]byte, error) {
	var read bytes.Buffer
	read.Grow(int(min(max(r.ContentLength, 0), maxAhead)) + bytes.MinRead)
	_, err := read.ReadFrom(r.Body)
	b := read.Bytes()
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, refuse(http.StatusRequestEntityTooLarge, "request body is larger than %d bytes", over.Limit)
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "reading the request body: %v", err)
	case len(b) == 0:
		return nil, nil
	}
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if mt, _, err := mime.ParseMediaType(ct); err != nil || mt != "application/json" {
			return nil, refuse(http.StatusBadRequest, "unsupported Content-Type header (%s): must be 'application/json'", ct)
		}
	}
	if v == nil {
		return b, nil
	}
	return b, decode(b, v)
}

func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return refuse(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	if d.More() {
		return refuse(http.StatusBadRequest, "unexpected content after JSON")
	}
	return nil
}

func answer(w http.ResponseWriter, code int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n')) // it fails only if the client is gone
	return nil
}

// boolean parses a query parameter as docker does: anything but these is true.
func boolean(q url.Values, name string) bool {
	switch strings.ToLower(strings.TrimSpace(q.Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}
