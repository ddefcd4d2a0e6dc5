package moves

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/drover/drover/controller/fleet/fleettest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

var copied = []byte(strings.Repeat("c", 32))

// moving is a fleet with volume data on node n0, and a mover.
type moving struct {
	*fleettest.Fleet
	t *testing.T
	m *Mover
	v *dv1.Volume
	// The answers to a leader's commands fail with these, in turn.
	mu   sync.Mutex
	fail []error
}

func (f *moving) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	if c.GetEndMove() != nil {
		f.mu.Lock()
		var err error
		if len(f.fail) > 0 {
			err, f.fail = f.fail[0], f.fail[1:]
		}
		f.mu.Unlock()
		if errors.Is(err, errUnanswered) {
			_, _ = f.Fleet.Propose(ctx, c)
		}
		if err != nil {
			return nil, err
		}
	}
	return f.Fleet.Propose(ctx, c)
}

var errUnanswered = errors.New("no answer")

func newMoving(t *testing.T) *moving {
	t.Helper()
	f := &moving{Fleet: fleettest.New(t, "a", "b"), t: t}
	id := []byte(strings.Repeat("v", 32))
	f.v = &dv1.Volume{Id: id, Name: "data", Driver: "local", Home: "n0"}
	f.Apply(&dv1.Effect{Of: &dv1.Effect_Volume{Volume: f.v}}, &dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: "spiffe://fleet/controller/c1", Roles: []string{"controller"}}}})
	f.m = New(Options{Fleet: f, Self: "spiffe://fleet/controller/c1", Snapshot: f.Snapshot, Logger: slog.New(slog.DiscardHandler),
		Grant: func(node, what string) ([]byte, error) { return []byte(node + " may read " + what), nil }})
	return f
}

func (f *moving) begin() (*dv1.CommandResult, error) {
	res, err := f.Propose(f.t.Context(), &dv1.Command{Principal: fleettest.Admin, Of: &dv1.Command_MoveVolume{MoveVolume: &dv1.MoveVolume{VolumeId: f.v.Id, To: "n1", CopyId: copied}}})
	if err == nil && res.Error != nil {
		err = errors.New(res.Error.Message)
	}
	return res, err
}

// says is a node that answers with lines.
func (f *moving) says(lines ...string) {
	f.HandleAgent("n1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var got bulk.VolumeFetch
		want := bulk.VolumeFetch{ID: hex.EncodeToString(f.v.Id), Addr: "a:7444", Grant: []byte("n1 may read volume:" + hex.EncodeToString(f.v.Id))}
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || fmt.Sprint(got) != fmt.Sprint(want) || r.URL.Path != "/v1/volumes/"+hex.EncodeToString(copied)+"/fetch" {
			f.t.Errorf("asked for was %s %+v, %v", r.URL.Path, got, err)
		}
		_, _ = io.WriteString(w, strings.Join(lines, "\n"))
	}))
}

// is what became of the volume: the node with its data, those that remove some, and whether it is
// still being moved.
func (f *moving) is() string {
	snap := f.Snapshot()
	v := snap.VolumeByName("data")
	out := "on " + v.GetHome()
	if v.Moving != nil {
		out += ", moving"
	}
	for tomb := range snap.Tombstones("") {
		what := "the data"
		if string(tomb.VolumeId) == string(copied) {
			what = "the copy"
		}
		out += ", " + tomb.NodeId + " removes " + what
	}
	return out
}

const (
	stayed = "on n0, n1 removes the copy"
	moved  = "on n1, n0 removes the data"
)

func TestAMoveEndsOneWayOrTheOther(t *testing.T) {
	for what, c := range map[string]struct {
		lines    []string
		err      string // "": none
		want     string
		progress string
	}{
		"it is copied":        {[]string{`{"Written":1,"Total":3}`, `{"Written":3,"Total":3}`, `{"Done":true}`}, "", moved, "1/3 3/3 "},
		"it fails":            {[]string{`{"Written":1,"Total":3}`, `{"Error":"not enough room"}`}, "from node a to node b: not enough room", stayed, "1/3 "},
		"the node dies":       {[]string{`{"Written":1,"Total":3}`}, "unexpected EOF", stayed, "1/3 "},
		"the node says odd":   {[]string{`{"Written":`}, "its answer", stayed, ""},
		"a line without end":  {[]string{`{"Error":"` + strings.Repeat("x", maxLine) + `"}`}, "token too long", stayed, ""},
		"the node is nowhere": {nil, "refused", stayed, ""},
	} {
		f := newMoving(t)
		if c.lines != nil {
			f.says(c.lines...)
		}
		ctx := t.Context()
		if c.lines == nil { // who is not there is asked again for a while
			over, cancel := context.WithCancel(ctx)
			cancel()
			ctx, c.err = over, "context canceled"
		}
		var progress strings.Builder
		err := f.m.Move(ctx, f.v.Id, copied, f.begin, func(written, total int64) { fmt.Fprintf(&progress, "%d/%d ", written, total) })
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v", what, err)
		}
		if got := f.is(); got != c.want || progress.String() != c.progress {
			t.Errorf("%s: it is %s after %s", what, got, &progress)
		}
	}
}

func TestAMoveThatIsRefused(t *testing.T) {
	f := newMoving(t)
	if err := f.m.Move(t.Context(), f.v.Id, copied, func() (*dv1.CommandResult, error) { return nil, errors.New("in use") }, nil); err == nil || err.Error() != "in use" {
		t.Errorf("%v", err)
	}
	if got := f.is(); got != "on n0" {
		t.Errorf("it is %s", got)
	}
}

// A caller that goes while it is copied leaves the volume as it was.
func TestACallerThatGoes(t *testing.T) {
	f := newMoving(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.HandleAgent("n1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"Written":1,"Total":3}`+"\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done() // the node hears of it
	}))
	if err := f.m.Move(ctx, f.v.Id, copied, f.begin, func(int64, int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if got := f.is(); got != stayed {
		t.Errorf("it is %s", got)
	}
}

// leads runs a term until f returns.
func (f *moving) leads(do func()) {
	ctx, cancel := context.WithCancel(f.t.Context())
	var term sync.WaitGroup
	term.Go(func() {
		if err := f.m.Run(ctx); err != nil {
			f.t.Error(err)
		}
	})
	do()
	cancel()
	term.Wait()
}

// eventually blocks until the volume is what it should be; each entry may have made it so.
func (f *moving) eventually(want string) {
	f.t.Helper()
	for {
		index := f.Snapshot().Index()
		if f.is() == want {
			return
		}
		if _, err := f.State(f.t.Context(), index+1); err != nil {
			f.t.Fatalf("it is %s, want %s: %v", f.is(), want, err)
		}
	}
}

// An entry whose answer is lost counts.
func TestAnEndWithoutAnAnswer(t *testing.T) {
	f := newMoving(t)
	f.says(`{"Done":true}`)
	f.fail = []error{errUnanswered}
	if err := f.m.Move(t.Context(), f.v.Id, copied, f.begin, nil); err != nil || f.is() != moved {
		t.Errorf("%v: it is %s", err, f.is())
	}
}

// Nobody drives what a former leader began, or one whose end failed.
func TestALeaderGivesUpWhatNobodyDrives(t *testing.T) {
	f := newMoving(t)
	if _, err := f.begin(); err != nil {
		t.Fatal(err)
	}
	f.fail = []error{errors.New("no leader")} // it is tried again
	f.leads(func() { f.eventually(stayed) })

	f = newMoving(t)
	f.says(`{"Done":true}`)
	gone := errors.New("no leader")
	f.fail = []error{gone, gone}
	f.leads(func() {
		if err := f.m.Move(t.Context(), f.v.Id, copied, f.begin, nil); !errors.Is(err, gone) {
			t.Errorf("%v", err)
		}
		f.eventually(stayed)
	})
}

// What this controller drives is left alone by its own term, and another leader's by it.
func TestALeaderLeavesWhatItDrives(t *testing.T) {
	f := newMoving(t)
	asked, answer := make(chan struct{}), make(chan struct{})
	f.HandleAgent("n1", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-answer
		_, _ = io.WriteString(w, `{"Done":true}`)
	}))
	done := make(chan error)
	f.leads(func() {
		go func() { done <- f.m.Move(t.Context(), f.v.Id, copied, f.begin, nil) }()
		<-asked
		f.m.Committed([]*dv1.Effect{{Of: &dv1.Effect_Volume{Volume: f.Snapshot().VolumeByName("data")}}})
		if err := f.m.giveUp(t.Context()); err != nil || f.is() != "on n0, moving" {
			t.Errorf("%v: it is %s", err, f.is())
		}
		close(answer)
		if err := <-done; err != nil || f.is() != moved {
			t.Errorf("%v: it is %s", err, f.is())
		}
	})
	// Another one leads meanwhile: what it gave up is not what was copied.
	f = newMoving(t)
	f.HandleAgent("n1", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := New(f.m.o).giveUp(t.Context()); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, `{"Done":true}`)
	}))
	if err := f.m.Move(t.Context(), f.v.Id, copied, f.begin, nil); err == nil || !strings.Contains(err.Error(), "the move was given up") || f.is() != stayed {
		t.Errorf("%v: it is %s", err, f.is())
	}
}
