package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/drover/drover/agent/session"
	"github.com/drover/drover/pkg/unixsock"
)

const readyPath = "/ready"

func statusSocket(runDir string) string { return filepath.Join(runDir, "agent.sock") }

// ErrNoSession reports that the agent is ready, but has no session with a controller.
var ErrNoSession = errors.New("this host's agent has no session")

// Ready asks the agent that uses runDir whether its host takes part in the fleet:
// containerd answers, the session is open, and its first sync was applied. The error
// says what is missing; it is ErrNoSession if nothing is missing on this host.
func Ready(ctx context.Context, runDir string) error {
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", statusSocket(runDir))
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+readyPath, nil)
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("the agent does not answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	why, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return fmt.Errorf("the agent does not answer: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusBadGateway:
		return fmt.Errorf("%w: %s", ErrNoSession, strings.TrimSpace(string(why)))
	}
	return errors.New(strings.TrimSpace(string(why)))
}

// serveStatus answers Ready until ctx ends.
func serveStatus(ctx context.Context, runDir string, daemon <-chan struct{}, s *session.Status) error {
	l, err := unixsock.Listen(ctx, statusSocket(runDir))
	if err != nil {
		return err
	}
	m := http.NewServeMux()
	m.HandleFunc("GET "+readyPath, func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-daemon:
		default:
			http.Error(w, "containerd does not answer yet", http.StatusServiceUnavailable)
			return
		}
		if err := s.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	})
	srv := &http.Server{Handler: m, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second, MaxHeaderBytes: 4096}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	return ended(ctx, "the socket "+statusSocket(runDir), srv.Serve(l))
}
