package engineapi

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// quiet is a fleet whose only node is silent.
type quiet struct {
	Fleet
	t *dv1.Task
}

func (quiet) Observe(context.Context, fleet.Query) *fleet.Observations {
	return &fleet.Observations{Silence: map[string]int64{"n1": time.Now().Add(-time.Minute).UnixNano()}}
}
func (q quiet) WaitTask(_ context.Context, _ string, done func(*dv1.Task, *dv1.TaskStatus) bool) error {
	if !done(q.t, nil) {
		return errors.New("it would wait")
	}
	return nil
}

// A retried start, whose first response was lost, reports the result of the first one,
// whether the node answers by now or not.
func TestAStartThatWasMadeNeedsNoNode(t *testing.T) {
	snap := state.NewStore().Snapshot()
	txn := state.NewTxn(snap)
	if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n1", Name: "far"}}}); err != nil {
		t.Fatal(err)
	}
	snap = txn.View()
	for what, c := range map[string]struct {
		task    *dv1.Task
		attempt int32
		want    int
	}{
		"runs":            {&dv1.Task{Attempt: 1, Started: 5}, 1, http.StatusNoContent},
		"ended":           {&dv1.Task{Attempt: 1, Exit: &dv1.Exit{Attempt: 1}}, 1, http.StatusNoContent},
		"failed":          {&dv1.Task{Attempt: 1, Failed: "no room"}, 1, http.StatusInternalServerError},
		"not begun":       {&dv1.Task{Attempt: 1}, 1, http.StatusServiceUnavailable},
		"an attempt more": {&dv1.Task{Attempt: 1, Started: 5, Exit: &dv1.Exit{Attempt: 1}}, 2, http.StatusServiceUnavailable},
	} {
		c.task.NodeId, c.task.Name = "n1", "web"
		s := &server{Options: Options{Fleet: quiet{t: c.task}}}
		w := httptest.NewRecorder()
		err := s.started(w, httptest.NewRequest(http.MethodPost, "/", nil), snap, c.task, 0, c.attempt, "start")
		got := w.Code
		if e := (*apiError)(nil); errors.As(err, &e) {
			got = e.code
		}
		if got != c.want || c.want == http.StatusServiceUnavailable && !strings.Contains(err.Error(), "node far, silent for 1m") {
			t.Errorf("%s: %d %v, want %d", what, got, err, c.want)
		}
	}
}
