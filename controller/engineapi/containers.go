package engineapi

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/life"
	"github.com/drover/drover/pkg/pki"
)

// find looks a container up as docker does: full id, name, unique id prefix.
func find(snap *state.Snapshot, ref string) (*dv1.Task, error) {
	if id, err := hex.DecodeString(ref); err == nil && len(id) == 32 {
		if t := snap.Task(id); t != nil {
			return t, nil
		}
	}
	if t := snap.TaskByName(strings.TrimPrefix(ref, "/")); t != nil {
		return t, nil
	}
	if ref != "" && strings.Trim(strings.ToLower(ref), "0123456789abcdef") == "" {
		switch ts := snap.TasksByPrefix(ref); {
		case len(ts) == 1:
			return ts[0], nil
		case len(ts) > 1:
			return nil, refuse(http.StatusBadRequest, "multiple IDs found with provided prefix: %s", ref)
		}
	}
	return nil, refuse(http.StatusNotFound, "No such container: %s", ref)
}

func (s *server) task(w http.ResponseWriter, r *http.Request) (*state.Snapshot, *dv1.Task, error) {
	ref := r.PathValue("id")
	snap, err := s.stateWith(w, r, func(snap *state.Snapshot) bool {
		_, err := find(snap, ref)
		return err == nil || ended(snap, ref) != nil
	})
	if err != nil {
		return nil, nil, err
	}
	t, err := find(snap, ref)
	return snap, t, err
}

func hexID(t *dv1.Task) string { return hex.EncodeToString(t.Id) }

func (s *server) start(w http.ResponseWriter, r *http.Request) error {
	snap, t, err := s.task(w, r)
	if err != nil {
		if snap != nil && s.before(r, snap) != nil && ended(snap, r.PathValue("id")).GetFailed() != "" {
			return refuse(http.StatusInternalServerError, "%s", ended(snap, r.PathValue("id")).Failed)
		}
		return s.doneBefore(w, r, snap, err)
	}
	s.freed(r.Context(), snap, t)
	res, err := s.propose(w, r, nil, &dv1.Command{Of: &dv1.Command_Start{Start: &dv1.Start{TaskId: t.Id}}})
	if err != nil {
		return err
	}
	if !res.Changed {
		return &apiError{http.StatusNotModified, ""}
	}
	return s.started(w, r, snap, t, res.Index, res.Attempt, "start")
}

// started waits until the attempt, which the entry with that index made, is running, has
// run, or has failed to start.
func (s *server) started(w http.ResponseWriter, r *http.Request, snap *state.Snapshot, t *dv1.Task, index uint64, attempt int32, verb string) error {
	first := life.First(attempt)
	begun := func(t *dv1.Task) bool {
		return t.Started != 0 || first.Before(life.Of(t)) || !life.Of(t.Exit).Before(first)
	}
	// A later life that does not begin is no failure of this start.
	failed := func(t *dv1.Task, st *dv1.TaskStatus) string {
		switch {
		case life.Of(t) == first && t.GetFailed() != "":
			return t.Failed
		case life.Of(st) == first && st.GetPhase() == dv1.Phase_FAILED:
			return st.Why
		}
		return ""
	}
	// An earlier request may have started it: then there is nothing to wait for.
	if t.Attempt < attempt || !begun(t) && t.Failed == "" {
		if err := s.answering(r.Context(), snap, t, verb); err != nil {
			return err
		}
	}
	why, gone := "", false
	err := s.Fleet.WaitTask(r.Context(), hexID(t), func(t *dv1.Task, st *dv1.TaskStatus) bool {
		if gone = t == nil; gone || t.Attempt > attempt {
			return true
		}
		why = failed(t, st)
		return why != "" || t.Attempt == attempt && begun(t)
	})
	if err != nil {
		return fmt.Errorf("waiting for container %s: %w", t.Name, err)
	}
	if why == "" { // an auto-removed task may be removed before its failure was seen
		var last *dv1.Task
		if gone {
			now, _, err := s.Fleet.Find(r.Context(), index, nil)
			if err != nil {
				return fmt.Errorf("reading how container %s started: %w", t.Name, err)
			}
			last = ended(now, hexID(t))
		}
		why = failed(last, s.observed(r.Context(), t))
	}
	if why != "" {
		code := http.StatusInternalServerError
		for _, users := range []string{"executable file not found", "no such file or directory", "permission denied", "is a directory"} {
			if strings.Contains(why, users) {
				code = http.StatusBadRequest
			}
		}
		return refuse(code, "%s", why)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) answering(ctx context.Context, snap *state.Snapshot, t *dv1.Task, verb string) error {
	if since, is := s.silent(ctx, t.NodeId); is {
		node := t.NodeId
		if n := snap.Node(node); n != nil {
			node = n.Name
		}
		return refuse(http.StatusServiceUnavailable, "recorded: node %s, silent for %s, will %s %s when it answers", node, since, verb, t.Name)
	}
	return nil
}

// grace parses t and signal; -2 stands for the container's configuration.
func grace(q url.Values) (int32, error) {
	v := q.Get("t")
	if v == "" {
		return -2, nil
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < -1 {
		return 0, refuse(http.StatusBadRequest, "invalid timeout %q", v)
	}
	return int32(n), nil
}

func (s *server) stop(w http.ResponseWriter, r *http.Request) error {
	snap, t, err := s.task(w, r)
	if err != nil {
		return s.doneBefore(w, r, snap, err)
	}
	timeout, err := grace(r.URL.Query())
	if err != nil {
		return err
	}
	res, err := s.propose(w, r, nil, &dv1.Command{Of: &dv1.Command_Stop{Stop: &dv1.Stop{TaskId: t.Id, Timeout: timeout, Signal: r.URL.Query().Get("signal")}}})
	if err != nil {
		return err
	}
	if !res.Changed {
		return &apiError{http.StatusNotModified, ""}
	}
	if err := s.answering(r.Context(), snap, t, "stop"); err != nil {
		return err
	}
	attempt := max(res.Attempt, t.Attempt)
	over := func(t *dv1.Task) bool { return t.Attempt > attempt || t.Attempt == attempt && !state.Live(t) }
	if err := s.until(r, t, over); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// until blocks until a task has ended, as over has it, or is removed.
func (s *server) until(r *http.Request, t *dv1.Task, over func(*dv1.Task) bool) error {
	err := s.Fleet.WaitTask(r.Context(), hexID(t), func(t *dv1.Task, _ *dv1.TaskStatus) bool { return t == nil || over(t) })
	if err != nil {
		return fmt.Errorf("waiting for the end of container %s: %w", t.Name, err)
	}
	return nil
}

func (s *server) restart(w http.ResponseWriter, r *http.Request) error {
	snap, t, err := s.task(w, r)
	if err != nil {
		return s.doneBefore(w, r, snap, err)
	}
	timeout, err := grace(r.URL.Query())
	if err != nil {
		return err
	}
	res, err := s.propose(w, r, nil, &dv1.Command{Of: &dv1.Command_Restart{Restart: &dv1.Restart{
		TaskId: t.Id, Attempt: t.Attempt + 1, Timeout: timeout, Signal: r.URL.Query().Get("signal")}}})
	if err != nil {
		return err
	}
	// If it is repeated, t has the attempt that it asked for already.
	return s.started(w, r, snap, t, res.Index, cmp.Or(res.Attempt, t.Attempt+1), "restart")
}

// killedWithin bounds how long a kill waits for being recorded as manual.
const killedWithin = time.Second

func (s *server) kill(w http.ResponseWriter, r *http.Request) error {
	snap, t, err := s.task(w, r)
	if err != nil {
		return err
	}
	sig := strings.ToUpper(r.URL.Query().Get("signal"))
	if sig == "" {
		sig = "SIGKILL"
	}
	if !state.Running(t) {
		return refuse(http.StatusConflict, "cannot kill container: %s: container %s is not running", r.PathValue("id"), hexID(t))
	}
	q := url.Values{"signal": {sig}, "key": {r.Header.Get(wire.HeaderKey)}, "attempt": {strconv.Itoa(int(t.Attempt))}}
	resp, err := s.agent(r, t.NodeId, http.MethodPost, "/v1/tasks/"+hexID(t)+"/kill?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusConflict {
		_ = resp.Body.Close()
		return refuse(http.StatusConflict, "cannot kill container: %s: container %s is not running", r.PathValue("id"), hexID(t))
	}
	if resp.StatusCode >= 300 {
		return fromAgent(t.NodeId, resp)
	}
	_ = resp.Body.Close()
	bare := strings.TrimPrefix(sig, "SIG")
	stop := "TERM"
	if c := s.shapeOf(snap, t).req.Config; c.StopSignal != "" {
		stop = strings.TrimPrefix(strings.ToUpper(c.StopSignal), "SIG")
	}
	deadly := bare == "KILL" || bare == "9"
	if deadly || bare == stop {
		// Afterwards, and without the caller's key: a signal needs no quorum.
		ctx, cancel := context.WithTimeout(r.Context(), killedWithin)
		defer cancel()
		p, _ := pki.PrincipalFrom(r.Context())
		_, err := s.Fleet.Propose(ctx, &dv1.Command{Principal: p.URI, Of: &dv1.Command_Killed{Killed: &dv1.Killed{TaskId: t.Id, Attempt: t.Attempt}}})
		if err != nil {
			s.Logger.Warn("recording a manual kill failed", "task", hexID(t), "err", err)
		}
	}
	if known, _ := s.Fleet.Leader(); deadly && known {
		killed := life.Of(t)
		over := func(t *dv1.Task) bool {
			return t.Attempt > killed.Attempt || t.Failed != "" || !life.Of(t.Exit).Before(killed)
		}
		if err := s.until(r, t, over); err != nil {
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) rename(w http.ResponseWriter, r *http.Request) error {
	_, t, err := s.task(w, r)
	if err != nil {
		return err
	}
	rename := &dv1.Rename{TaskId: t.Id, Name: r.URL.Query().Get("name")}
	if _, err := s.propose(w, r, nil, &dv1.Command{Of: &dv1.Command_Rename{Rename: rename}}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) remove(w http.ResponseWriter, r *http.Request) error {
	snap, t, err := s.task(w, r)
	if err != nil {
		return s.doneBefore(w, r, snap, err)
	}
	q := r.URL.Query()
	_, err = s.propose(w, r, nil, &dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: t.Id, Force: boolean(q, "force"), Volumes: boolean(q, "v")}}})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// doneBefore answers the retry of a request that removed its container: it was done
// by this very request, whose response was lost.
func (s *server) doneBefore(w http.ResponseWriter, r *http.Request, snap *state.Snapshot, err error) error {
	if snap == nil || s.before(r, snap) == nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// ended finds an auto-removed task, for callers that need its exit.
func ended(snap *state.Snapshot, ref string) *dv1.Task {
	if id, err := hex.DecodeString(ref); err == nil && len(id) == 32 {
		return snap.Ended(id)
	}
	return nil
}

// agent sends a request to a node; the caller closes the response's body.
func (s *server) agent(r *http.Request, node, method, path string, body []byte) (*http.Response, error) {
	resp, err := fleet.Ask(r.Context(), s.Fleet, node, method, path, body)
	return resp, s.named(r.Context(), err)
}

// named replaces a node's id with its name in an error about it.
func (s *server) named(ctx context.Context, err error) error {
	var silent *fleet.SilentError
	var unreachable *fleet.UnreachableError
	switch {
	case errors.As(err, &silent):
		return &fleet.SilentError{Node: s.nodeName(ctx, silent.Node), For: silent.For}
	case errors.As(err, &unreachable):
		return &fleet.UnreachableError{Node: s.nodeName(ctx, unreachable.Node), Err: unreachable.Err}
	}
	return err
}

// nodeName returns a node's name for display.
func (s *server) nodeName(ctx context.Context, id string) string {
	snap, _, err := s.Fleet.Find(ctx, 0, nil)
	if err != nil {
		return id
	}
	if n := snap.Node(id); n != nil {
		return n.Name
	}
	return id
}
