package images

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover/drover/agent/task"
)

// progressEvery is how often downloads are checked.
const progressEvery = 100 * time.Millisecond

// layer is one layer of a pull.
type layer struct {
	desc   ocispec.Descriptor
	status string
}

// watcher reports a pull's layers in docker's words.
type watcher struct {
	c      *client.Client
	report func(task.Progress) // called with mu held, so that lines are ordered

	mu     sync.Mutex // guards the fields below
	layers map[digest.Digest]*layer
	order  []*layer
	refs   map[string]bool // containerd's ingest references of this pull
}

func (w *watcher) wrap(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		w.mu.Lock()
		if w.refs == nil {
			w.refs = map[string]bool{}
		}
		w.refs[remotes.MakeRefKey(ctx, d)] = true
		w.mu.Unlock()
		children, err := h.Handle(ctx, d)
		for _, c := range children {
			if images.IsLayerType(c.MediaType) {
				w.add(ctx, c)
			}
		}
		return children, err
	})
}

// abortWithin bounds the wait for content that another pull is writing.
const abortWithin = 2 * time.Second

// abort discards unfinished downloads. What another pull is writing stays.
func (w *watcher) abort(ctx context.Context) {
	w.mu.Lock()
	refs := slices.Sorted(maps.Keys(w.refs))
	w.mu.Unlock()
	cs := w.c.ContentStore()
	for _, ref := range refs {
		if _, err := cs.Status(ctx, ref); err != nil {
			continue
		}
		// The attempt that ended may be about to release it. Nobody else writes while we
		// hold the writer.
		soon, enough := context.WithTimeout(ctx, abortWithin)
		wr, err := content.OpenWriter(soon, cs, content.WithRef(ref))
		if err != nil {
			enough()
			continue
		}
		_ = cs.Abort(ctx, ref)
		_ = wr.Close()
		enough()
	}
}

func (w *watcher) add(ctx context.Context, d ocispec.Descriptor) {
	status := "Pulling fs layer"
	if _, err := w.c.ContentStore().Info(ctx, d.Digest); err == nil {
		status = "Already exists"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.layers[d.Digest] != nil {
		return
	}
	l := &layer{desc: d, status: status}
	w.layers[d.Digest] = l
	w.order = append(w.order, l)
	w.report(task.Progress{ID: shortDigest(d.Digest.String()), Status: status})
}

// run checks the downloads until its result is called, which takes whether the pull
// succeeded.
func (w *watcher) run(ctx context.Context) func(ok bool) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(progressEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				w.look(ctx)
			case <-quit:
				return
			}
		}
	}()
	return func(ok bool) {
		close(quit)
		<-done
		if !ok {
			return
		}
		for _, l := range w.order {
			switch l.status {
			case "Already exists", "Pull complete":
				continue
			case "Download complete":
			default:
				w.to(l, "Download complete", 0, 0)
			}
			w.to(l, "Pull complete", 0, 0)
		}
	}
}

func (w *watcher) look(ctx context.Context) {
	w.mu.Lock()
	order := append([]*layer(nil), w.order...)
	w.mu.Unlock()
	cs := w.c.ContentStore()
	for _, l := range order {
		if l.status != "Pulling fs layer" && l.status != "Downloading" {
			continue
		}
		if s, err := cs.Status(ctx, remotes.MakeRefKey(ctx, l.desc)); err == nil {
			w.to(l, "Downloading", s.Offset, l.desc.Size)
		} else if _, err := cs.Info(ctx, l.desc.Digest); err == nil {
			w.to(l, "Download complete", 0, 0)
		}
	}
}

func (w *watcher) to(l *layer, status string, cur, total int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l.status = status
	w.report(task.Progress{ID: shortDigest(l.desc.Digest.String()), Status: status, Current: cur, Total: total})
}

func shortDigest(d string) string {
	if _, err := digest.Parse(d); err == nil {
		d = digest.Digest(d).Encoded()
	}
	return d[:min(12, len(d))]
}
