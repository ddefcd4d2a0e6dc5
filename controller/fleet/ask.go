package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"time"
)

// Nodes is the part of a fleet that Ask uses.
type Nodes interface {
	// Observe returns which nodes are silent.
	Observe(ctx context.Context, q Query) *Observations
	// Agent returns an HTTP client of a node's bulk port, which dials on first use.
	Agent(nodeID string) (*http.Client, error)
}

// SilentError means that a node was not asked, because it is silent.
type SilentError struct {
	Node string
	For  time.Duration
}

func (e *SilentError) Error() string {
	return fmt.Sprintf("node %s has not answered for %s; the container is there and may still be running", e.Node, e.For.Round(time.Second))
}

// UnreachableError means that a node was asked and did not answer. Whether it did
// what it was asked is unknown.
type UnreachableError struct {
	Node string
	Err  error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("node %s does not answer: %v", e.Node, e.Err)
}
func (e *UnreachableError) Unwrap() error { return e.Err }

// Unanswered reports whether an error means that a node doesn't answer.
func Unanswered(err error) bool {
	var silent *SilentError
	var unreachable *UnreachableError
	return errors.As(err, &silent) || errors.As(err, &unreachable)
}

const (
	// restartWithin bounds how long a node that refuses connections is retried: its
	// agent is being restarted.
	restartWithin = 2 * time.Second
	restartEvery  = 100 * time.Millisecond
)

// Ask sends a request to a node's bulk port; body is JSON, or nil. The caller closes
// the response's body, whatever its status. Errors are ctx's, a *SilentError or an
// *UnreachableError.
func Ask(ctx context.Context, f Nodes, node, method, path string, body []byte) (*http.Response, error) {
	return patiently(ctx, func() (*http.Response, error) {
		kind := ""
		if body != nil {
			kind = "application/json"
		}
		return ask(ctx, f, node, method, path, kind, bytes.NewReader(body))
	})
}

// Send is Ask with a body that is passed on as it is read. It may still be read when Send
// has returned, if the node answered before its end.
func Send(ctx context.Context, f Nodes, node, method, path, kind string, body io.Reader) (*http.Response, error) {
	return patiently(ctx, func() (*http.Response, error) { // what was refused has read nothing
		return ask(ctx, f, node, method, path, kind, struct{ io.Reader }{body})
	})
}

// patiently retries while a node's agent is being restarted.
func patiently(ctx context.Context, ask func() (*http.Response, error)) (*http.Response, error) {
	for end := time.Now().Add(restartWithin); ; {
		resp, err := ask()
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(end) {
			return resp, err
		}
		select {
		case <-time.After(restartEvery):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func ask(ctx context.Context, f Nodes, node, method, path, kind string, body io.Reader) (*http.Response, error) {
	if since, silent := f.Observe(ctx, Query{}).Silent(node); silent {
		return nil, &SilentError{node, time.Since(time.Unix(0, since))}
	}
	c, err := f.Agent(node)
	if err != nil {
		return nil, &UnreachableError{node, err}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, fmt.Errorf("asking node %s: %w", node, err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.Do(req)
	switch {
	case err == nil:
		return resp, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, &UnreachableError{node, err}
}

// Refusal returns the error message of a node's response, "" if it has none.
func Refusal(resp *http.Response) string {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var m struct {
		Message string `json:"message"`
	}
	_ = json.Unmarshal(b, &m) // otherwise there is no message
	return m.Message
}
