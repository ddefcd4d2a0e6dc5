package trace

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/drover/drover/cli/clitest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

type traces struct {
	dv1connect.UnimplementedTracesHandler
	late bool // spans still come
	gets int
}

func (f *traces) List(_ context.Context, r *connect.Request[dv1.ListTracesRequest]) (*connect.Response[dv1.ListTracesResponse], error) {
	all := []*dv1.TraceSummary{
		{Id: strings.Repeat("1f", 16), Name: "drover run", Start: clitest.At(3 * time.Second), Duration: 412e6, Spans: 31},
		{Id: strings.Repeat("2e", 16), Name: "engineapi POST /containers/create", Start: clitest.At(2 * time.Hour), Duration: 12345, Spans: 2, Error: "No such image: " + strings.Repeat("x", 60) + "\nand more"},
	}
	return connect.NewResponse(&dv1.ListTracesResponse{Traces: all[:min(int(r.Msg.PageSize), 2)]}), nil
}

func (f *traces) Get(_ context.Context, r *connect.Request[dv1.GetTraceRequest]) (*connect.Response[dv1.GetTraceResponse], error) {
	f.gets++
	start := clitest.At(time.Minute)
	if f.late {
		start = clitest.At(700 * time.Millisecond)
	}
	t := &dv1.Trace{Id: strings.Repeat("1f", 16), Spans: []*dv1.Span{
		{Id: "1", Name: "drover run", Service: "drover", Host: "a", Start: start, End: start + 400e6},
		{Id: "2", Parent: "1", Name: "engineapi POST /containers/create", Service: "controller", Host: "a", Start: start + 10e6, End: start + 60e6},
		{Id: "3", Parent: "2", Name: "raft propose", Service: "controller", Host: "b", Start: start + 20e6, End: start + 50e6},
		{Id: "4", Parent: "1", Name: "task start", Service: "agent", Host: "c", Start: start + 100e6, End: start + 380e6, Error: "executable file not found", Attributes: map[string]string{"task": "web"}},
		{Id: "5", Parent: "lost", Name: "orphan", Service: "agent", Host: "c", Start: start + 399e6, End: start + 399e6},
	}}
	switch {
	case r.Msg.Id == "empty":
		t.Spans = nil
	case r.Msg.Id == "one":
		t.Spans = t.Spans[:1]
	case r.Msg.Id != "last" && r.Msg.Id != t.Id:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such trace: "+r.Msg.Id+" (controllers keep the last 2000)"))
	}
	return connect.NewResponse(&dv1.GetTraceResponse{Trace: t}), nil
}

func TestWhatPeopleRead(t *testing.T) {
	for name, args := range map[string]string{
		"list.txt": "", "list-one.txt": "-n 1", "last.txt": "last", "last.json": "last --json", "missing.txt": "ffff", "empty.txt": "empty", "one.txt": "one",
	} {
		f := &traces{}
		mux := http.NewServeMux()
		mux.Handle(dv1connect.NewTracesHandler(f))
		s := clitest.Serve(t, mux)
		clitest.Golden(t, name, clitest.Run(t, s, Command(s), strings.Fields(args)...))
	}
}

// A trace that has only just ended is asked for again, when all of its spans are there.
func TestLateSpansAreWaitedFor(t *testing.T) {
	f := &traces{late: true}
	mux := http.NewServeMux()
	mux.Handle(dv1connect.NewTracesHandler(f))
	s := clitest.Serve(t, mux)
	if out := clitest.Run(t, s, Command(s), "last"); f.gets != 2 || !strings.Contains(out, "raft propose") {
		t.Errorf("asked %d times:\n%s", f.gets, out)
	}
}
