package images

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/distribution/reference"
	godigest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/registry"
)

// PullRequest asks for an image from its registry.
type PullRequest struct {
	Ref         string // as users write it; the tag defaults to latest
	Platform    string // "": any node's
	Credentials *registry.Credentials
	Contact     string   // the node that the caller believes it talks to, "" for none
	On          []string // constraints on the node; see scheduler.Matches
}

// Sink receives a pull's progress. It is called by one goroutine, and may block the
// pull.
type Sink interface {
	// Transferring is called once, first: a node is fetching the content.
	Transferring(ref reference.Named, node string)
	Progress(Progress)
}

// Progress is the progress of one layer.
type Progress struct {
	ID, Status     string
	Current, Total int64 // bytes
}

// Pulled is the result of a pull.
type Pulled struct {
	Ref    reference.Named
	Digest string
	Node   string // has the content
	Newer  bool   // some of it was missing before
}

// Pull resolves a reference, has a node fetch the content, and commits its tag. If
// that node is lost meanwhile, another one takes over. Nodes are trusted only by
// digest; see verified. snap has the nodes.
func (i *Images) Pull(ctx context.Context, by Proposer, snap *state.Snapshot, req PullRequest, to Sink) (*Pulled, error) {
	named, err := reference.ParseNormalizedNamed(req.Ref)
	if err != nil {
		return nil, refuse(dv1.Error_INVALID, "invalid reference format: %s", req.Ref)
	}
	named = reference.TagNameOnly(named)
	fits, err := where(snap, req)
	if err != nil {
		return nil, err
	}
	desc, err := i.o.Registry.Resolve(ctx, named.String(), req.Credentials)
	if err != nil {
		return nil, resolveError(named, err)
	}
	t := &transfer{Images: i, named: named, desc: desc.Digest, req: req, to: to}
	at, err := reference.WithDigest(reference.TrimNamed(named), desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("naming %s by its digest: %w", named, err)
	}
	t.public = i.o.Registry.Public(ctx, at.String(), req.Credentials)
	img, node, newer, err := t.anywhere(ctx, snap, fits)
	if err != nil {
		return nil, err
	}
	if err := commit(ctx, by, named, img); err != nil {
		return nil, err
	}
	return &Pulled{Ref: named, Digest: img.Digest, Node: node, Newer: newer}, nil
}

func commit(ctx context.Context, by Proposer, named reference.Named, img *dv1.Image) error {
	c := &dv1.CommitImage{Image: img}
	img.RepoDigests = []string{reference.TrimNamed(named).String() + "@" + img.Digest}
	if _, ok := named.(reference.Digested); !ok { // a digest makes a tag meaningless
		c.Refs = []string{named.String()}
	}
	res, err := by.Propose(ctx, &dv1.Command{Of: &dv1.Command_CommitImage{CommitImage: c}})
	if err != nil {
		return err
	}
	return decided(res)
}

// resolveError converts a registry's refusal into docker's words.
func resolveError(named reference.Named, err error) error {
	var lost *registry.UnreachableError
	switch {
	case errors.As(err, &lost):
		return refuse(dv1.Error_INTERNAL, "failed to resolve reference %q: %v", named.String(), lost)
	case errors.Is(err, registry.ErrUnauthorized):
		return refuse(dv1.Error_NOT_FOUND, "pull access denied for %s, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", reference.FamiliarName(named))
	case errors.Is(err, registry.ErrNotFound):
		return refuse(dv1.Error_NOT_FOUND, "manifest for %s not found: manifest unknown: manifest unknown", reference.FamiliarString(named))
	}
	return err
}

// transfer moves one pull's content to a node.
type transfer struct {
	*Images
	named  reference.Named
	desc   godigest.Digest
	public bool // anybody may pull it
	req    PullRequest
	to     Sink
	began  bool
}

// errLost: the node failed; another one may succeed.
var errLost = errors.New("the node that pulls broke off")

// anywhere tries one node after another, until one has the image or refuses.
func (t *transfer) anywhere(ctx context.Context, snap *state.Snapshot, fits fits) (img *dv1.Image, node string, newer bool, err error) {
	digest := t.desc.String()
	for tried := []string{}; ; tried = append(tried, node) {
		seen := t.o.Fleet.Observe(ctx, fleet.Query{Images: []string{digest}})
		next, unplaced := place(snap, seen, digest, t.req, fits, tried)
		if unplaced != nil {
			if err == nil {
				err = unplaced
			}
			return nil, "", false, err
		}
		node = next
		tag := snap.Tag(t.named.String())
		newer = tag == nil || tag.Digest != digest || !slices.Contains(seen.Holders(digest), node)
		img, err = t.on(ctx, snap, node, seen.Holders(digest))
		if !errors.Is(err, errLost) && !fleet.Unanswered(err) || ctx.Err() != nil {
			return img, node, newer, err
		}
		t.o.Logger.Warn("lost a node while it pulled", "node", node, "image", t.named.String(), "err", err)
	}
}

// on makes a node fetch the content, from its holders or from the registry.
func (t *transfer) on(ctx context.Context, snap *state.Snapshot, node string, holders []string) (*dv1.Image, error) {
	req := bulk.PullRequest{Ref: t.named.String(), Digest: t.desc.String(), Public: t.public}
	if t.o.Grant != nil {
		var err error
		if req.Grant, err = t.o.Grant(node, req.Digest); err != nil {
			return nil, err
		}
	}
	for _, h := range holders {
		if n := snap.Node(h); n != nil && h != node {
			req.Holders = append(req.Holders, n.Addr)
		}
	}
	if c := t.req.Credentials; c != nil {
		req.Username, req.Password, req.IdentityToken, req.AuthServer = c.Username, c.Password, c.IdentityToken, c.ServerAddress
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encoding a pull: %w", err)
	}
	resp, err := fleet.Ask(ctx, t.o.Fleet, node, http.MethodPost, "/v1/images/pull", body)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(node, resp)
	}
	if !t.began {
		t.began = true
		t.to.Transferring(t.named, node)
	}
	img, err := t.follow(resp.Body)
	if err != nil {
		return nil, err
	}
	img.Public = t.public
	return img, nil
}

// maxLine bounds a line of a node's response: the last one has manifests and
// configuration.
const maxLine = 16 << 20

// follow forwards a node's progress until the image arrives.
func (t *transfer) follow(r io.Reader) (*dv1.Image, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		var l bulk.PullLine
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("reading a pull's progress: %w", err)
		}
		switch {
		case l.Error != "":
			return nil, errors.New(l.Error)
		case l.Image != nil:
			img := &dv1.Image{}
			if err := protojson.Unmarshal(l.Image, img); err != nil {
				return nil, fmt.Errorf("reading a pull's image: %w", err)
			}
			return verified(t.desc.String(), img, l.Manifests)
		}
		t.to.Progress(Progress{ID: l.ID, Status: l.Status, Current: l.Current, Total: l.Total})
	}
	if err := sc.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, fmt.Errorf("reading a pull's progress: %w", err)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
	return nil, errLost
}
