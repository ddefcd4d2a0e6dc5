package enginetest

import (
	"errors"
	"strings"
	"testing"

	"github.com/drover/drover/agent/task"
)

// Images runs the suite of task.Images; each test gets a subject of its own from open,
// and the last one removes the image.
func Images(t *testing.T, open func(t *testing.T) Subject) {
	play(t, open, []scene{
		{"an image that is nowhere is not pulled, and not listed", (*suite).pulledNowhere},
		{"an image that was removed is gone until it is pulled again", (*suite).pulled},
	})
}

func (s *suite) listed(digest string) bool {
	s.Helper()
	all, err := s.Images.List(s.ctx)
	s.ok(err)
	for _, i := range all {
		if i.Digest == digest && i.Size > 0 {
			return true
		}
	}
	return false
}

func (s *suite) pull(digest string) error {
	lines := 0
	i, err := s.Images.Pull(s.ctx, s.Image, digest, nil, func(task.Progress) { lines++ })
	if err == nil && (i.Digest != digest || i.Size == 0 || len(i.Config) == 0 || lines == 0) {
		s.Errorf("pulled %v with %d lines of progress", i, lines)
	}
	return err
}

func (s *suite) pulledNowhere() {
	nowhere := "sha256:" + strings.Repeat("0", 64)
	if err := s.pull(nowhere); err == nil {
		s.Error("it was pulled")
	}
	if s.listed(nowhere) {
		s.Error("it is listed")
	}
	s.ok(s.Images.Remove(s.ctx, nowhere))
}

func (s *suite) pulled() {
	for range 2 {
		s.ok(s.pull(s.Digest))
		if !s.listed(s.Digest) {
			s.Fatal("it was pulled, and is not listed")
		}
	}
	running := s.make(nil, "sleep", "1000")
	s.start(running, 1)
	for range 2 {
		s.ok(s.Images.Remove(s.ctx, s.Digest))
	}
	if s.listed(s.Digest) {
		s.Error("it was removed, and is listed")
	}
	if err := s.e.Prepare(s.ctx, s.spec(nil, "true")); !errors.Is(err, task.ErrNoImage) {
		s.Errorf("a task of an image that was removed: %v", err)
	}
	if f := s.found(running); f == nil || !f.Running {
		s.Error("a container went with its image")
	}
	s.ok(s.pull(s.Digest))
	s.make(nil, "true")
}
