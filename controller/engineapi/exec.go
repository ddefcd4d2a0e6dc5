package engineapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/fields"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
	"github.com/drover/drover/pkg/volumes"
)

// An exec's id consists of 16 random bytes and the first 16 of its task's id, so
// that any controller can find its node.
func newExecID(task []byte) string {
	b := make([]byte, 16, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(append(b, task[:16]...))
}

// execOwner returns the task that an exec belongs to, or nil.
func execOwner(snap *state.Snapshot, id string) *dv1.Task {
	if _, err := hex.DecodeString(id); err != nil || len(id) != 64 {
		return nil
	}
	if ts := snap.TasksByPrefix(id[32:]); len(ts) == 1 {
		return ts[0]
	}
	return nil
}

func (s *server) execTask(w http.ResponseWriter, r *http.Request) (string, *dv1.Task, error) {
	id := r.PathValue("id")
	snap, err := s.stateWith(w, r, func(snap *state.Snapshot) bool { return execOwner(snap, id) != nil })
	if err != nil {
		return "", nil, err
	}
	if t := execOwner(snap, id); t != nil {
		return id, t, nil
	}
	return "", nil, refuse(http.StatusNotFound, "No such exec instance: %s", id)
}

func (s *server) execCreate(w http.ResponseWriter, r *http.Request) error {
	var o container.ExecCreateRequest
	body, err := readBody(r, &o)
	if err != nil {
		return err
	}
	if _, err := fields.ExecCreate.Check(&o); err != nil {
		return err
	}
	if len(o.Cmd) == 0 {
		return refuse(http.StatusBadRequest, "No exec command specified")
	}
	snap, t, err := s.task(w, r)
	if err != nil {
		return err
	}
	if err := s.within(r, snap, t, s.shapeOf(snap, t).req.HostConfig); err != nil {
		return err
	}
	if o.Privileged {
		if err := s.within(r, snap, t, &container.HostConfig{Privileged: true}); err != nil {
			return err
		}
	}
	id := newExecID(t.Id)
	q := url.Values{"id": {id}}
	resp, err := s.agent(r, t.NodeId, http.MethodPost, "/v1/tasks/"+hexID(t)+"/exec?"+q.Encode(), body)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusConflict {
		_ = resp.Body.Close()
		return refuse(http.StatusConflict, "container %s is not running", hexID(t))
	}
	if resp.StatusCode >= 300 {
		return fromAgent(t.NodeId, resp)
	}
	_ = resp.Body.Close()
	return answer(w, http.StatusCreated, container.ExecCreateResponse{ID: id})
}

// within refuses access to the inside of a container that could be root on its host,
// unless the caller may be.
func (s *server) within(r *http.Request, snap *state.Snapshot, t *dv1.Task, h *container.HostConfig) error {
	if p, _ := pki.PrincipalFrom(r.Context()); !route.Admin.Has(p) {
		for _, m := range t.GetMounts() {
			if v := snap.Volume(m.VolumeId); volumes.Rootly(v.GetOptions()) {
				return refuse(http.StatusForbidden, "volume %s is refused: the role user may not be root on a host, as a container with it could be", v.Name)
			}
		}
		if field := command.Rootly(h); field != "" {
			return refuse(http.StatusForbidden, "HostConfig.%s is refused: the role user may not be root on a host, as a container with it could be", field)
		}
	}
	return nil
}

// execState is an agent's description of an exec.
type execState struct {
	ID       string
	TaskID   string
	Running  bool
	ExitCode *int
	Pid      int
	Options  container.ExecCreateRequest
}

func (s *server) execState(r *http.Request, id string, t *dv1.Task) (*execState, error) {
	resp, err := s.agent(r, t.NodeId, http.MethodGet, "/v1/exec/"+id+"?task="+hexID(t), nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusNotFound {
		_ = resp.Body.Close()
		return nil, refuse(http.StatusNotFound, "No such exec instance: %s", id)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fromAgent(t.NodeId, resp)
	}
	defer func() { _ = resp.Body.Close() }()
	st := &execState{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(st); err != nil {
		return nil, fmt.Errorf("reading an exec's state: %w", err)
	}
	return st, nil
}

func (s *server) execStart(w http.ResponseWriter, r *http.Request) error {
	var o container.ExecStartRequest
	if _, err := readBody(r, &o); err != nil {
		return err
	}
	if _, err := fields.ExecStart.Check(&o); err != nil {
		return err
	}
	id, t, err := s.execTask(w, r)
	if err != nil {
		return err
	}
	st, err := s.execState(r, id, t)
	if err != nil {
		return err
	}
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	inside := *s.shapeOf(snap, t).req.HostConfig
	inside.Privileged = inside.Privileged || st.Options.Privileged
	if err := s.within(r, snap, t, &inside); err != nil {
		return err
	}
	if st.Running || st.ExitCode != nil {
		return refuse(http.StatusConflict, "Error: Exec command %s has already run", id)
	}
	q := url.Values{"task": {hexID(t)}}
	if size := o.ConsoleSize; size != nil {
		q.Set("h", fmt.Sprint(size[0]))
		q.Set("w", fmt.Sprint(size[1]))
	}
	path := "/v1/exec/" + id + "/start?"
	if o.Detach {
		return s.relayed(w, r, t.NodeId, http.MethodPost, path+q.Encode(), nil, http.StatusOK)
	}
	q.Set("attach", "1")
	conn, err := s.upgrade(r.Context(), t.NodeId, path+q.Encode())
	var refused *apiError
	if errors.As(err, &refused) && refused.code == http.StatusBadRequest {
		// The user's error goes to the output; its exit code is in the inspect response.
		return s.hijack(w, r, stream{tty: st.Options.Tty}, func(context.Context, string) (*bulk.Conn, error) { return nil, &faulty{refused.msg} })
	}
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	var without []byte
	if !st.Options.AttachStdout {
		without = append(without, bulk.FrameStdout)
	}
	if !st.Options.AttachStderr {
		without = append(without, bulk.FrameStderr)
	}
	return s.hijack(w, r, stream{tty: st.Options.Tty, stdin: st.Options.AttachStdin, without: without, keys: st.Options.DetachKeys, node: t.NodeId, task: hexID(t)},
		func(context.Context, string) (*bulk.Conn, error) { return conn, nil })
}

func (s *server) execResize(w http.ResponseWriter, r *http.Request) error {
	id, t, err := s.execTask(w, r)
	if err != nil {
		return err
	}
	q, err := dimensions(r)
	if err != nil {
		return err
	}
	return s.relayed(w, r, t.NodeId, http.MethodPost, "/v1/exec/"+id+"/resize?task="+hexID(t)+"&"+q, nil, http.StatusOK)
}

func (s *server) execInspect(w http.ResponseWriter, r *http.Request) error {
	id, t, err := s.execTask(w, r)
	if err != nil {
		return err
	}
	st, err := s.execState(r, id, t)
	if err != nil {
		return err
	}
	o := st.Options
	c := &container.ExecProcessConfig{Tty: o.Tty, User: o.User, Privileged: &o.Privileged}
	if len(o.Cmd) > 0 {
		c.Entrypoint, c.Arguments = o.Cmd[0], o.Cmd[1:]
	}
	return answer(w, http.StatusOK, container.ExecInspectResponse{
		ID: id, Running: st.Running, ExitCode: st.ExitCode, ProcessConfig: c, OpenStdin: o.AttachStdin, OpenStdout: o.AttachStdout,
		OpenStderr: o.AttachStderr, ContainerID: hexID(t), Pid: st.Pid, DetachKeys: []byte(o.DetachKeys),
	})
}
