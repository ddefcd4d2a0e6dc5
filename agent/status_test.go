package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/drover/drover/agent/session"
)

func TestAHostIsReadyOnceContainerdAndItsSessionAre(t *testing.T) {
	run, err := os.MkdirTemp("", "dr") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	want := func(words string) {
		t.Helper()
		if err := Ready(t.Context(), run); err == nil || !strings.Contains(err.Error(), words) {
			t.Fatalf("ready: %v, want %q", err, words)
		}
	}
	want("the agent does not answer")
	ctx, cancel := context.WithCancel(t.Context())
	daemon, served := make(chan struct{}), make(chan error, 1)
	go func() { served <- serveStatus(ctx, run, daemon, &session.Status{}) }()
	for Ready(t.Context(), run) != nil && strings.Contains(Ready(t.Context(), run).Error(), "does not answer:") {
		select {
		case err := <-served:
			t.Fatal(err)
		default:
		}
	}
	want("containerd does not answer yet")
	close(daemon)
	want("no session")
	if err := Ready(t.Context(), run); !errors.Is(err, ErrNoSession) {
		t.Errorf("%v is not ErrNoSession", err)
	}
	cancel()
	<-served
	want("the agent does not answer")
}
