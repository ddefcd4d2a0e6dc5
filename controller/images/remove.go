package images

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/drover/drover/controller/fleet"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// freeWithin bounds how long a removal waits for nodes to free an image's content.
const freeWithin = 5 * time.Second

// Removed is the result of a removal.
type Removed struct {
	Untagged []string // names, as users write them
	Deleted  []string // digests
}

// Remove removes a name from an image, or all of its names if name is an id, and
// with the last one the image. When it returns, the nodes that hold its content have
// freed it, except those that don't answer: they are told when they report it again.
func (i *Images) Remove(ctx context.Context, by Proposer, name string, force bool) (*Removed, error) {
	res, err := by.Propose(ctx, &dv1.Command{Of: &dv1.Command_Untag{Untag: &dv1.Untag{Ref: name, Force: force}}})
	if err == nil {
		err = decided(res)
	}
	if err != nil {
		return nil, err
	}
	for _, digest := range res.Deleted {
		i.free(ctx, digest)
	}
	return &Removed{Untagged: res.Untagged, Deleted: res.Deleted}, nil
}

func (i *Images) free(ctx context.Context, digest string) {
	ctx, cancel := context.WithTimeout(ctx, freeWithin)
	defer cancel()
	var wg sync.WaitGroup
	for _, node := range i.o.Fleet.Observe(ctx, fleet.Query{Images: []string{digest}}).Holders(digest) {
		wg.Go(func() {
			if err := i.freeOn(ctx, node, digest); err != nil {
				i.o.Logger.Warn("freeing an image's content failed", "node", node, "image", digest, "err", err)
			}
		})
	}
	wg.Wait()
}

func (i *Images) freeOn(ctx context.Context, node, digest string) error {
	resp, err := fleet.Ask(ctx, i.o.Fleet, node, http.MethodDelete, "/v1/images/"+digest, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 300 {
		return refusal(node, resp)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be reused
	return nil
}

// refusal returns a node's unsuccessful response as an error.
func refusal(node string, resp *http.Response) error {
	msg, kind := fleet.Refusal(resp), dv1.Error_INTERNAL
	switch resp.StatusCode {
	case http.StatusNotFound:
		kind = dv1.Error_NOT_FOUND
	case http.StatusBadRequest:
		kind = dv1.Error_INVALID
	case http.StatusConflict:
		kind = dv1.Error_CONFLICT
	case http.StatusServiceUnavailable:
		kind = dv1.Error_UNAVAILABLE
	}
	if msg == "" {
		msg = fmt.Sprintf("node %s answered %s", node, resp.Status)
	}
	return &Error{kind, msg}
}
