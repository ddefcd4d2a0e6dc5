package fleetapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
)

// inParts answers a removal in parts, and then that there is no such node.
type inParts struct {
	Fleet
	left []uint32
	keys []string
}

func (f *inParts) Propose(_ context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	f.keys = append(f.keys, c.Key)
	n := len(f.keys)
	if n > len(f.left) {
		return &dv1.CommandResult{Error: &dv1.Error{Kind: dv1.Error_NOT_FOUND, Message: "No such node: n1"}}, nil
	}
	return &dv1.CommandResult{NodeId: "n1", Name: "a", Left: f.left[n-1], Changed: true, Index: uint64(n)}, nil
}

// A removal of several entries is answered after the last, each under a key of its
// own that a repeated request has too; the leader may have made the last one.
func TestARemovalIsAnsweredWhenAllOfItIsDone(t *testing.T) {
	for _, c := range []struct {
		left []uint32
		keys []string
	}{
		{[]uint32{0}, []string{"fleet-k"}},
		{[]uint32{9, 5, 0}, []string{"fleet-k", "fleet-k/1", "fleet-k/2"}},
		{[]uint32{9, 5}, []string{"fleet-k", "fleet-k/1", "fleet-k/2"}},
	} {
		f := &inParts{left: c.left}
		s := &server{o: Options{Fleet: f}}
		r := httptest.NewRequest(http.MethodDelete, Prefix+"nodes/a?force=1", nil)
		r.Header.Set(wire.HeaderKey, "k")
		w := httptest.NewRecorder()
		s.removeNode(w, r.WithContext(pki.WithPrincipal(r.Context(), pki.Principal{Kind: pki.KindUser})))
		if w.Code != http.StatusOK || !slices.Equal(f.keys, c.keys) {
			t.Errorf("in parts of which %v is left: %d %s, keys %v", c.left, w.Code, w.Body, f.keys)
		}
	}
}
