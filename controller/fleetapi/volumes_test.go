package fleetapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

func TestMove(t *testing.T) {
	var failed error
	f := serve(t, func(o *Options) {
		o.Move = func(ctx context.Context, volume, copied []byte, begin func() (*dv1.CommandResult, error), progress func(written, total int64)) error {
			if _, err := begin(); err != nil {
				return err
			}
			progress(1, 3)
			return failed
		}
	})
	f.put(t, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n1", Name: "a"}}}, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n2", Name: "b"}}},
		&dv1.Effect{Of: &dv1.Effect_Volume{Volume: &dv1.Volume{Id: []byte("v"), Name: "data", Home: "n1"}}})
	for _, c := range []struct {
		volume, node string
		answer       *dv1.CommandResult
		failed       error
		want, err    string
	}{
		{"data", "b", &dv1.CommandResult{}, nil, "a to b: 1/3 done:false, a to b: 1/3 done:true, ", ""},
		{"data", "b", &dv1.CommandResult{}, errors.New("no room"), "a to b: 1/3 done:false, ", "unavailable: no room: the move is given up"},
		{"data", "b", &dv1.CommandResult{Error: &dv1.Error{Kind: dv1.Error_CONFLICT, Message: "it is in use"}}, nil, "", "it is in use"},
		{"none", "b", nil, nil, "", "not_found: get none: no such volume"},
		{"data", "c", nil, nil, "", "not_found: No such node: c"},
	} {
		if failed = c.failed; c.answer != nil {
			f.answers = append(make([]*dv1.CommandResult, len(f.proposed)), c.answer)
		}
		moving, err := dv1connect.NewVolumesClient(http.DefaultClient, f.url).Move(t.Context(), connect.NewRequest(&dv1.MoveVolumeRequest{Volume: c.volume, Node: c.node}))
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for moving.Receive() {
			m := moving.Msg()
			fmt.Fprintf(&got, "%s to %s: %d/%d done:%v, ", m.FromNode, m.ToNode, m.Written, m.Total, m.Done)
		}
		err = moving.Err()
		if got.String() != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s to %s: %q, %v", c.volume, c.node, &got, err)
		}
		_ = moving.Close()
		if c.answer != nil {
			if m := f.last().GetMoveVolume(); string(m.VolumeId) != "v" || m.To != "n2" || len(m.CopyId) != 32 || f.last().Principal != admin.URI {
				t.Errorf("proposed was %v", f.last())
			}
		}
	}
}
