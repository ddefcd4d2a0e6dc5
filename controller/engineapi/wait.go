package engineapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/encoding/protojson"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/life"
)

// Timing of a wait without a leader: after the first, the node itself is asked, and
// after the second its answer is sufficient.
const (
	withoutLeader = time.Second
	uncommitted   = 2 * time.Second
)

// unrecorded is the warning when only the node's answer is available.
const unrecorded = "the controllers have no leader: the exit code is the node's own, and is recorded later"

// warned is a response with a warning for drover's client.
type warned struct {
	container.WaitResponse
	Warning string
}

// wait sends its header at once: clients start the container only after they have
// it.
func (s *server) wait(w http.ResponseWriter, r *http.Request) error {
	snap, t, err := s.task(w, r)
	if err != nil && snap != nil {
		if t = ended(snap, r.PathValue("id")); t != nil {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	x, err := newWaiting(r, t)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	alone, direct := s.alone(r, t, x.pending)
	err = s.Fleet.WaitTask(alone, hexID(t), x.over)
	if e := direct(); e != nil && err != nil && r.Context().Err() == nil {
		return encode(w, warned{container.WaitResponse{StatusCode: int64(e.Code)}, unrecorded})
	}
	x.observed(s.observed(r.Context(), t))
	return encode(w, x.response(err))
}

// waiting is what a wait knows about its task's exit.
type waiting struct {
	cond   container.WaitCondition
	first  life.Life // the newest when the wait began
	before life.Life // the last one that had ended by then, or failed to start
	last   *dv1.Exit // of the newest life that is known to have ended
	failed string    // why the newest life did not begin, "" if it did

	mu     sync.Mutex // guards newest
	newest life.Life
}

func newWaiting(r *http.Request, t *dv1.Task) (*waiting, error) {
	now := life.Of(t)
	x := &waiting{cond: container.WaitCondition(r.URL.Query().Get("condition")), first: now, before: life.Of(t.Exit), last: t.Exit, newest: now}
	switch x.cond {
	case "":
		x.cond = container.WaitConditionNotRunning
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return nil, refuse(http.StatusBadRequest, "invalid condition: %q", x.cond)
	}
	if t.Failed != "" {
		x.before = now
	}
	after, err := strconv.ParseUint(r.Header.Get(wire.HeaderAfter), 10, 64)
	if err == nil && t.Revision > after && t.Attempt > 0 && !x.before.Before(now) {
		x.cond = container.WaitConditionNotRunning // the awaited exit has already happened
	}
	return x, nil
}

// pending returns the life whose end would end the wait, false if none has begun.
func (x *waiting) pending() (life.Life, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.newest, x.before.Before(x.newest)
}

// over records what is known of the task (nil: it is removed), and reports whether
// the wait is over.
func (x *waiting) over(t *dv1.Task, st *dv1.TaskStatus) bool {
	x.exited(st.GetExit())
	if t == nil {
		return true
	}
	x.exited(t.Exit)
	x.failed = t.Failed
	x.mu.Lock()
	x.newest = life.Of(t)
	x.mu.Unlock()
	switch x.cond {
	case container.WaitConditionRemoved:
		return false
	case container.WaitConditionNextExit:
		return x.before.Before(life.Of(t.Exit)) || x.failed != "" && x.before.Before(life.Of(t))
	}
	// As with docker, it is over at the end of what ran, also if that is begun anew.
	return !life.Of(t.Exit).Before(x.first) || x.failed != ""
}

func (x *waiting) exited(e *dv1.Exit) {
	if e != nil && !life.Of(e).Before(life.Of(x.last)) {
		x.last = e
	}
}

// observed adds the node's latest report on a task that was removed along with its
// exit.
func (x *waiting) observed(st *dv1.TaskStatus) {
	x.exited(st.GetExit())
	if x.failed == "" && st.GetPhase() == dv1.Phase_FAILED && life.Of(x.last).Before(life.Of(st)) {
		x.failed = st.Why
	}
}

// response returns the response to a wait that ended with err.
func (x *waiting) response(err error) container.WaitResponse {
	res := container.WaitResponse{StatusCode: int64(x.last.GetCode())}
	switch {
	case err != nil:
		res.Error = &container.WaitExitError{Message: err.Error()}
	case x.last == nil && x.failed == "" && x.cond != container.WaitConditionNotRunning:
		return container.WaitResponse{StatusCode: 125, Error: &container.WaitExitError{Message: "the container is gone, and how it ended is not known here"}}
	case x.failed != "" && !x.before.Before(life.Of(x.last)):
		res.StatusCode = int64(failedCode(x.failed))
	}
	return res
}

// alone returns a context that ends once the task's node has reported the exit of the
// pending life, and no leader recorded it in time. exit returns that exit, and stops
// asking.
func (s *server) alone(r *http.Request, t *dv1.Task, pending func() (life.Life, bool)) (ctx context.Context, exit func() *dv1.Exit) {
	ctx, cancel := context.WithCancel(r.Context())
	asking, stop := context.WithCancel(r.Context())
	var x *dv1.Exit
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s.leaderless(asking, withoutLeader) == nil {
			l, ok := pending()
			if !ok { // nobody starts it without a leader
				s.leader(asking)
				continue
			}
			e := s.askExit(asking, t, l)
			if e == nil {
				select { // a node that does not answer is retried
				case <-time.After(reachEvery):
				case <-asking.Done():
				}
				continue
			}
			if s.leaderless(asking, uncommitted) == nil {
				x = e
				cancel()
				return
			}
		}
	}()
	return ctx, func() *dv1.Exit { stop(); <-done; cancel(); return x }
}

// leaderless blocks until no leader has been known for d.
func (s *server) leaderless(ctx context.Context, d time.Duration) error {
	var enough <-chan time.Time
	for {
		known, changed := s.Fleet.Leader()
		switch {
		case known:
			enough = nil
		case enough == nil:
			t := time.NewTimer(d)
			defer t.Stop()
			enough = t.C
		}
		select {
		case <-changed:
		case <-enough:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leader blocks until a leader is known.
func (s *server) leader(ctx context.Context) {
	for {
		known, changed := s.Fleet.Leader()
		if known {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// askExit waits for a while for the node's own record of a life's exit.
func (s *server) askExit(ctx context.Context, t *dv1.Task, l life.Life) *dv1.Exit {
	c, err := s.Fleet.Agent(t.NodeId)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://agent/v1/tasks/%s/wait?attempt=%d&restarts=%d", hexID(t), l.Attempt, l.Restarts), nil)
	if err != nil {
		return nil
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	x := &dv1.Exit{}
	if err != nil || resp.StatusCode != http.StatusOK || protojson.Unmarshal(b, x) != nil || life.Of(x) != l {
		return nil
	}
	return x
}
