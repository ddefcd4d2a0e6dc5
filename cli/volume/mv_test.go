package volume

import (
	"context"
	"errors"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/drover/drover/cli/clitest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

// volumes is a fleet in which moves go by their volume's name.
type volumes struct {
	dv1connect.UnimplementedVolumesHandler
	asked string
}

func (v *volumes) Move(_ context.Context, r *connect.Request[dv1.MoveVolumeRequest], out *connect.ServerStream[dv1.MoveVolumeResponse]) error {
	v.asked = r.Msg.Volume + " to " + r.Msg.Node
	if r.Msg.Volume == "used" {
		return connect.NewError(connect.CodeAborted, errors.New("move used: volume is in use - [abc]"))
	}
	for n := int64(1); n <= 2; n++ {
		if err := out.Send(&dv1.MoveVolumeResponse{Written: n << 20, Total: 2 << 20, FromNode: "a", ToNode: "c"}); err != nil {
			return err
		}
	}
	if r.Msg.Volume == "cut" {
		return nil
	}
	return out.Send(&dv1.MoveVolumeResponse{Done: true})
}

func TestMv(t *testing.T) {
	v := &volumes{}
	_, h := dv1connect.NewVolumesHandler(v)
	s := clitest.Serve(t, h)
	for _, c := range []struct{ volume, out, err string }{
		{"data", "data\n", ""},
		{"used", "", "volume is in use - [abc]"},
		{"cut", "", "drover volume inspect shows where its data is"},
	} {
		cmd := MvCommand(s)
		var out, talk strings.Builder
		cmd.SetOut(&out)
		cmd.SetErr(&talk)
		cmd.SetArgs([]string{c.volume, "c"})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.ExecuteContext(t.Context())
		if out.String() != c.out || talk.String() != "" || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %q, %v", c.volume, out.String(), talk.String(), err)
		}
		if v.asked != c.volume+" to c" {
			t.Errorf("asked for was %q", v.asked)
		}
	}
}

// moved is a move that has these messages.
type moved struct {
	all []*dv1.MoveVolumeResponse
	at  int
}

func (m *moved) Receive() bool                { m.at++; return m.at <= len(m.all) }
func (m *moved) Msg() *dv1.MoveVolumeResponse { return m.all[m.at-1] }
func (m *moved) Err() error                   { return nil }

func TestProgressIsOneLineOfATerminal(t *testing.T) {
	var b strings.Builder
	m := &moved{all: []*dv1.MoveVolumeResponse{{Written: 1e6, Total: 2e6, FromNode: "a", ToNode: "c"}, {Written: 2e6, Total: 2e6, FromNode: "a", ToNode: "c"}, {Done: true}}}
	if err := follow(m, &b, "data", true); err != nil {
		t.Error(err)
	}
	if want := "\r\x1b[Kdata: a to c: 1MB of 2MB\r\x1b[Kdata: a to c: 2MB of 2MB\n"; b.String() != want {
		t.Errorf("%q", b.String())
	}
}
