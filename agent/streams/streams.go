// Package streams serves an agent's own port: attach, logs, exec, signals, pulls and
// probes, as specified by pkg/bulk. What they do to containers is up to task.Streams;
// who may call was decided by the connection.
package streams

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/life"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
)

// maxBody bounds a request's body: an exec's environment, a pull's credentials.
const maxBody = 1 << 20

// pullQuiet is the interval at which a pull reports progress.
const pullQuiet = 100 * time.Millisecond

// Options of Handler. Probe checks whether another node answers. Peers serves other
// nodes, which may use nothing else here; nil refuses them. Pull is called with what is
// to be pulled, and Reading when a reader of a task's output arrives; both may be nil.
type Options struct {
	Log     *slog.Logger
	Files   task.Files // of the node's tasks; nil: of none
	Probe   func(ctx context.Context, node, addr string) error
	Peers   http.Handler
	Calls   Calls
	Pull    func(bulk.PullRequest)
	Reading func(taskID string) Reader
	Volumes Volumes // nil: the node has none
	// Peer returns a client of the node at an address, which shows a grant, and Granted
	// what another node was granted to read.
	Peer    func(addr string, grant []byte) *http.Client
	Granted func(*http.Request) (string, error)
	Network Network
}

// Network is the node's network, as controllers ask about it.
type Network interface {
	Check(ctx context.Context) (bulk.NetworkCheck, error)
	Ways(ctx context.Context) ([]bulk.Way, error)
}

// Images is the node's image store, as used by controllers.
type Images interface {
	task.Puller
	Remove(ctx context.Context, digest string) error
	// Manifest returns a manifest or index that was pulled.
	Manifest(ctx context.Context, digest string) ([]byte, error)
}

// Reader is notified about a reader of a task's output: which life's output it reads,
// and when it left, with the output to its end or without.
type Reader interface {
	Of(l life.Life)
	Left(end bool)
}

// Calls durably records calls that must not be made twice: First reports whether a call
// is new, Undo forgets one that failed.
type Calls interface {
	First(key string) (bool, error)
	Undo(key string) error
}

// handler is a method of server.
type handler func(*server, http.ResponseWriter, *http.Request)

func on(method, pattern string, who route.Who, body int64, h handler) route.Handled[handler] {
	return route.Handled[handler]{Route: route.Route{Method: method, Pattern: pattern, At: route.Here, Who: who, Body: route.Bounded(body)}, Handle: h}
}

// streamed is a row whose body has no limit, for controllers.
func streamed(method, pattern string, h handler) route.Handled[handler] {
	return route.Handled[handler]{Route: route.Route{Method: method, Pattern: pattern, At: route.Here, Who: route.Controller, Body: route.Streamed(0)}, Handle: h}
}

// table lists pkg/bulk's paths, for controllers, and what other nodes may read.
var table = route.Table[handler]{
	on(http.MethodPost, "/v1/tasks/{id}/attach", route.Controller, 0, (*server).attach),
	on(http.MethodGet, "/v1/tasks/{id}/logs", route.Controller, 0, (*server).logs),
	on(http.MethodGet, "/v1/tasks/{id}/wait", route.Controller, 0, (*server).wait),
	on(http.MethodPost, "/v1/tasks/{id}/kill", route.Controller, 0, (*server).kill),
	on(http.MethodPost, "/v1/tasks/{id}/resize", route.Controller, 0, (*server).resize),
	on(http.MethodGet, "/v1/tasks/{id}/top", route.Controller, 0, (*server).top),
	on(http.MethodGet, "/v1/tasks/{id}/stats", route.Controller, 0, (*server).stats),
	on(http.MethodGet, "/v1/tasks/{id}/archive", route.Controller, 0, files((*server).readPath)),
	streamed(http.MethodPut, "/v1/tasks/{id}/archive", files((*server).writePath)),
	on(http.MethodGet, "/v1/tasks/{id}/export", route.Controller, 0, files((*server).export)),
	on(http.MethodGet, "/v1/tasks/{id}/changes", route.Controller, 0, files((*server).changes)),
	on(http.MethodPost, "/v1/tasks/{id}/exec", route.Controller, maxBody, (*server).execCreate),
	on(http.MethodPost, "/v1/exec/{id}/start", route.Controller, 0, (*server).execStart),
	on(http.MethodPost, "/v1/exec/{id}/resize", route.Controller, 0, (*server).execResize),
	on(http.MethodGet, "/v1/exec/{id}", route.Controller, 0, (*server).execInspect),
	on(http.MethodPost, "/v1/images/pull", route.Controller, maxBody, (*server).pull),
	on(http.MethodDelete, "/v1/images/{digest}", route.Controller, 0, (*server).removeImage),
	on(http.MethodPost, "/v1/volumes/sizes", route.Controller, maxIDs, (*server).volumeSizes),
	on(http.MethodPost, "/v1/volumes/{id}/fetch", route.Controller, maxBody, (*server).fetchVolume),
	on(http.MethodGet, "/v1/network/check", route.Controller, 0, (*server).checkNetwork),
	on(http.MethodGet, "/v1/network/ways", route.Controller, 0, (*server).ways),
	on(http.MethodGet, "/v1/probe", route.Controller, 0, (*server).answerProbe),

	on(http.MethodGet, "/v2/{name...}/manifests/{reference}", route.Node, 0, (*server).content),
	on(http.MethodGet, "/v2/{name...}/blobs/{digest}", route.Node, 0, (*server).content),
	on(http.MethodGet, "/v1/volumes/{id}/files", route.Node, 0, (*server).volumeFiles),
}

// Routes lists what Handler serves.
var Routes = table.Routes()

// Handler serves Routes on the node's tasks and images. The caller is in the request's
// context.
func Handler(tasks task.Streams, images Images, o Options) http.Handler {
	s := &server{tasks: tasks, images: images, files: o.Files, log: o.Log, pulling: o.Pull, calls: o.Calls, reading: o.Reading, volumes: o.Volumes, peer: o.Peer, granted: o.Granted, network: o.Network, probe: o.Probe, peers: o.Peers}
	if s.reading == nil {
		s.reading = func(string) Reader { return &task.Reader{} }
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := pki.PrincipalFrom(r.Context())
		p.Roles = []string{p.Kind} // the port lets in members only, which are what their certificates say
		h, values, ok := table.Match(r.Method, r.URL.Path)
		switch {
		case !route.Members.Has(p):
			refuse(w, &bulk.StatusError{Code: http.StatusForbidden, Message: "only controllers and nodes of this fleet may do something here"})
			return
		case !ok:
			refuse(w, &bulk.StatusError{Code: http.StatusNotFound, Message: r.Method + " " + r.URL.Path + " is not known here"})
			return
		case !h.Who.Has(p):
			refuse(w, &bulk.StatusError{Code: http.StatusForbidden, Message: fmt.Sprintf("%s is a %s, which may not do this here", p.URI, p.Kind)})
			return
		}
		route.SetValues(r, values)
		r.Body = h.Body.Limit(w, r.Body)
		h.Handle(s, w, r)
	})
}

type server struct {
	tasks   task.Streams
	images  Images
	files   task.Files
	log     *slog.Logger
	pulling func(bulk.PullRequest)
	calls   Calls
	reading func(string) Reader
	probe   func(ctx context.Context, node, addr string) error
	peers   http.Handler
	volumes Volumes
	peer    func(addr string, grant []byte) *http.Client
	granted func(*http.Request) (string, error)
	network Network
}

func (s *server) answerProbe(w http.ResponseWriter, r *http.Request) {
	if addr := r.URL.Query().Get("addr"); addr != "" {
		if err := s.probe(r.Context(), r.URL.Query().Get("node"), addr); err != nil {
			refuse(w, &bulk.StatusError{Code: http.StatusBadGateway, Message: err.Error()})
			return
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

// content is what other nodes pull from this one.
func (s *server) content(w http.ResponseWriter, r *http.Request) {
	if s.peers == nil {
		refuse(w, &bulk.StatusError{Code: http.StatusForbidden, Message: "this node has nothing for other nodes"})
		return
	}
	s.peers.ServeHTTP(w, r)
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	q, read := r.URL.Query(), false
	from, err := position(q.Get("from"))
	if err != nil {
		refuse(w, err)
		return
	}
	reader := s.reading(r.PathValue("id"))
	defer func() { reader.Left(read) }()
	st, err := s.tasks.Attach(r.Context(), r.PathValue("id"), task.AttachOptions{
		Stdin: flag(q.Get("stdin")), Stdout: flag(q.Get("stdout")), Stderr: flag(q.Get("stderr")),
		FromStart: flag(q.Get("logs")), Stream: flag(q.Get("stream")), From: from,
	})
	if err != nil {
		refuse(w, err)
		return
	}
	read = s.relay(w, r, st, reader)
}

// relay connects an engine's stream with the caller's until either ends, and reports
// whether the caller has read the end. The end of stdin is relayed as a half-close; a
// caller that is gone ends the stream.
func (s *server) relay(w http.ResponseWriter, r *http.Request, st task.Stream, reader Reader) (read bool) {
	c, err := bulk.Hijack(w, r)
	if err != nil {
		_ = st.Close()
		refuse(w, err)
		return false
	}
	var up sync.WaitGroup
	defer up.Wait()
	defer func() { _, _ = c.Close(), st.Close() }() // which also unblocks the goroutine that copies stdin
	stop := context.AfterFunc(c.Context(), func() { _ = st.Close() })
	defer stop()
	up.Go(func() {
		if _, err := io.Copy(st, c); err == nil {
			_ = st.CloseWrite()
		}
		_, _ = io.Copy(io.Discard, c) // unread stdin must not block the caller
	})
	for fr := bulk.NewFrameReader(st); ; {
		kind, p, err := fr.Next()
		switch {
		case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			_ = c.WriteFrame(bulk.FrameExit, nil) // an end without an exit is valid too
			return false
		case err != nil:
			if c.Context().Err() == nil {
				_ = c.WriteFrame(bulk.FrameError, []byte(err.Error()))
			}
			return false
		}
		if p, err := task.DecodeLogPosition(p); kind == bulk.FramePos && err == nil {
			reader.Of(p.Life)
		}
		if c.WriteFrame(kind, p) != nil {
			return false
		}
		if kind == bulk.FrameExit {
			break
		}
	}
	return c.WaitAcknowledged()
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	tail := -1
	if t := q.Get("tail"); t != "" && t != "all" {
		n, err := strconv.Atoi(t)
		if err != nil {
			n = -1 // docker treats what isn't a number as all
		}
		tail = n
	}
	since, err := nanos(q.Get("since"))
	if err != nil {
		refuse(w, err)
		return
	}
	until, err := nanos(q.Get("until"))
	if err != nil {
		refuse(w, err)
		return
	}
	from, err := position(q.Get("from"))
	if err != nil {
		refuse(w, err)
		return
	}
	defer s.reading(r.PathValue("id")).Left(false) // such readers don't report how far they got
	lr, err := s.tasks.Logs(r.Context(), r.PathValue("id"), task.LogOptions{
		Stdout: flag(q.Get("stdout")), Stderr: flag(q.Get("stderr")), Follow: flag(q.Get("follow")),
		Timestamps: flag(q.Get("timestamps")), Since: since, Until: until, Tail: tail, From: from,
	})
	if err != nil {
		refuse(w, err)
		return
	}
	defer func() { _ = lr.Close() }()
	stop := context.AfterFunc(r.Context(), func() { _ = lr.Close() })
	defer stop()
	out := flushing{w, http.NewResponseController(w)}
	w.WriteHeader(http.StatusOK)
	_ = out.rc.Flush()
	if _, err := io.CopyBuffer(out, struct{ io.Reader }{lr}, make([]byte, bulk.MaxFrame)); err != nil && r.Context().Err() == nil {
		_ = bulk.WriteFrame(out, bulk.FrameError, []byte(err.Error()))
	}
}

func (s *server) wait(w http.ResponseWriter, r *http.Request) {
	l, err := lifeOf(r)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	x, err := s.tasks.Wait(r.Context(), r.PathValue("id"), l)
	if err != nil {
		refuse(w, err)
		return
	}
	b, err := protojson.Marshal(x)
	if err != nil {
		refuse(w, err)
		return
	}
	_, _ = w.Write(b)
}

// lifeOf returns the life that a request names. Controllers that do not count restarts
// ask for the first one.
func lifeOf(r *http.Request) (life.Life, error) {
	q := r.URL.Query()
	n, err := strconv.ParseInt(q.Get("attempt"), 10, 32)
	if err != nil {
		return life.Life{}, badRequest("attempt: %v", err)
	}
	l := life.First(int32(n))
	if v := q.Get("restarts"); v != "" {
		if n, err = strconv.ParseInt(v, 10, 32); err != nil {
			return l, badRequest("restarts: %v", err)
		}
		l.Restarts = int32(n)
	}
	return l, nil
}

func (s *server) kill(w http.ResponseWriter, r *http.Request) {
	id, q := r.PathValue("id"), r.URL.Query()
	key := ""
	if k := q.Get("key"); k != "" {
		// Recorded before it is sent: a signal that is lost with the agent is not sent
		// again, since the caller's next one has another key.
		key = id + "/" + q.Get("attempt") + "/" + k
		first, err := s.calls.First(key)
		if err != nil {
			refuse(w, err)
			return
		}
		if !first {
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	if err := s.tasks.Signal(r.Context(), id, q.Get("signal")); err != nil {
		if key != "" {
			err = errors.Join(err, s.calls.Undo(key)) // a retry fails again
		}
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) resize(w http.ResponseWriter, r *http.Request) {
	width, height, err := size(r)
	if err == nil {
		err = s.tasks.Resize(r.Context(), r.PathValue("id"), width, height)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) execCreate(w http.ResponseWriter, r *http.Request) {
	var o container.ExecCreateRequest
	if err := decode(r, &o); err != nil {
		refuse(w, err)
		return
	}
	id, eid := r.PathValue("id"), r.URL.Query().Get("id")
	if eid == "" {
		refuse(w, badRequest("id of the exec is missing"))
		return
	}
	if err := s.tasks.ExecCreate(r.Context(), id, eid, o); err != nil {
		refuse(w, err)
		return
	}
	writeJSON(w, http.StatusCreated, map[string]string{"Id": eid})
}

// taskOf returns the task that a caller says an exec belongs to; "" is any.
func taskOf(r *http.Request) string { return r.URL.Query().Get("task") }

func (s *server) execStart(w http.ResponseWriter, r *http.Request) {
	width, height, err := size(r)
	if err != nil {
		refuse(w, err)
		return
	}
	attach := flag(r.URL.Query().Get("attach"))
	st, err := s.tasks.ExecStart(r.Context(), taskOf(r), r.PathValue("id"), attach, width, height)
	if err != nil {
		refuse(w, err)
		return
	}
	if !attach {
		if st != nil {
			_ = st.Close()
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	s.relay(w, r, st, &task.Reader{})
}

func (s *server) execResize(w http.ResponseWriter, r *http.Request) {
	width, height, err := size(r)
	if err == nil {
		err = s.tasks.ExecResize(r.Context(), taskOf(r), r.PathValue("id"), width, height)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) execInspect(w http.ResponseWriter, r *http.Request) {
	st, err := s.tasks.ExecInspect(r.Context(), taskOf(r), r.PathValue("id"))
	if err != nil {
		refuse(w, err)
		return
	}
	writeJSON(w, http.StatusOK, st)
}

func (s *server) pull(w http.ResponseWriter, r *http.Request) {
	var p bulk.PullRequest
	if err := decode(r, &p); err != nil {
		refuse(w, err)
		return
	}
	if s.pulling != nil {
		s.pulling(p)
	}
	var auth *task.Credentials
	if p.Username != "" || p.IdentityToken != "" {
		auth = &task.Credentials{Username: p.Username, Password: p.Password, IdentityToken: p.IdentityToken, ServerAddress: p.AuthServer}
	}
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	var mu sync.Mutex // orders lines; guards last
	last := map[string]task.Progress{}
	at := map[string]time.Time{}
	enc := json.NewEncoder(w)
	say := func(l bulk.PullLine) {
		_ = enc.Encode(l)
		_ = rc.Flush()
	}
	img, err := s.images.Pull(r.Context(), p.Ref, p.Digest, auth, func(g task.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if last[g.ID].Status == g.Status && (last[g.ID] == g || time.Since(at[g.ID]) < pullQuiet) {
			return
		}
		last[g.ID], at[g.ID] = g, time.Now()
		say(bulk.PullLine{ID: g.ID, Status: g.Status, Current: g.Current, Total: g.Total})
	})
	mu.Lock()
	defer mu.Unlock()
	if err != nil {
		say(bulk.PullLine{Error: err.Error()})
		return
	}
	b, err := protojson.Marshal(img)
	var manifests [][]byte
	if err == nil {
		manifests, err = s.manifests(r.Context(), img)
	}
	if err != nil {
		say(bulk.PullLine{Error: err.Error()})
		return
	}
	say(bulk.PullLine{Image: b, Manifests: manifests})
}

// manifests returns the proof that an image is what its digest names.
func (s *server) manifests(ctx context.Context, img *dv1.Image) (out [][]byte, err error) {
	for _, d := range slices.Compact([]string{img.Digest, img.Manifest}) {
		b, err := s.images.Manifest(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("reading manifest %s: %w", d, err)
		}
		out = append(out, b)
	}
	return out, nil
}

func (s *server) removeImage(w http.ResponseWriter, r *http.Request) {
	if err := s.images.Remove(r.Context(), r.PathValue("digest")); err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

type flushing struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}

func flag(s string) bool { return s == "1" || s == "true" || s == "True" }

func size(r *http.Request) (width, height uint32, err error) {
	q := r.URL.Query()
	for _, x := range []struct {
		name string
		to   *uint32
	}{{"w", &width}, {"h", &height}} {
		if v := q.Get(x.name); v != "" {
			n, err := strconv.ParseUint(v, 10, 16)
			if err != nil {
				return 0, 0, badRequest("%s: %v", x.name, err)
			}
			*x.to = uint32(n)
		}
	}
	return width, height, nil
}

// nanos parses a time in Unix nanoseconds; "" is none.
func nanos(s string) (time.Time, error) {
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, badRequest("time: %v", err)
	}
	return time.Unix(0, n), nil
}

// position parses where a stream is to be resumed; "" is nowhere.
func position(s string) (*task.LogPosition, error) {
	if s == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil, badRequest("from: %v", err)
	}
	p, err := task.DecodeLogPosition(b)
	if err != nil {
		return nil, badRequest("from: %v", err)
	}
	return &p, nil
}

func decode(r *http.Request, to any) error {
	b, err := io.ReadAll(r.Body)
	var long *http.MaxBytesError
	if errors.As(err, &long) {
		return &bulk.StatusError{Code: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("the request is over %d bytes", long.Limit)}
	}
	if err != nil {
		return badRequest("reading the request: %v", err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return badRequest("reading the request: %v", err)
	}
	return nil
}

func badRequest(format string, args ...any) error {
	return &bulk.StatusError{Code: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

// refuse answers with an error; it is too late for that once a stream began.
func refuse(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	var se *bulk.StatusError
	var start *task.StartError
	var file *task.FileError
	switch {
	case errors.As(err, &file) && file.Missing:
		code = http.StatusNotFound
	case errors.As(err, &file):
		code = http.StatusBadRequest
	case errors.As(err, &se):
		code = se.Code
	case errors.As(err, &start):
		code = http.StatusBadRequest
	case errors.Is(err, task.ErrNotFound), errors.Is(err, task.ErrNoImage):
		code = http.StatusNotFound
	case errors.Is(err, task.ErrNotRunning):
		code = http.StatusConflict
	}
	writeJSON(w, code, map[string]string{"message": err.Error()})
}
