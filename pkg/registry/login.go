package registry

import (
	"context"
	"fmt"
	"net/http"
	"strings"
)

// Login checks c against a registry. It returns nil, ErrUnauthorized or
// *UnreachableError. server is as docker sends it: a host or a URL; "" is Docker Hub.
func (r *Registry) Login(ctx context.Context, server string, c *Credentials) error {
	name := server
	if _, rest, ok := strings.Cut(name, "://"); ok {
		name = rest
	}
	name, _, _ = strings.Cut(name, "/")
	if name == "" {
		name = dockerHub
	}
	name = canonical(name)
	mine := *c
	mine.ServerAddress = name
	hosts, err := r.Hosts(&mine)(name)
	if err != nil {
		return fmt.Errorf("logging in to %s: %w", name, err)
	}
	h := hosts[len(hosts)-1]
	url := h.Scheme + "://" + h.Host + h.Path + "/"
	for try := range 2 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return fmt.Errorf("logging in to %s: %w", name, err)
		}
		if err := h.Authorizer.Authorize(ctx, req); err != nil {
			return fmt.Errorf("logging in to %s: %w: %w", name, ErrUnauthorized, err)
		}
		resp, err := h.Client.Do(req)
		if err != nil {
			return &UnreachableError{Host: name, Err: err}
		}
		_ = resp.Body.Close()
		switch {
		case resp.StatusCode == http.StatusUnauthorized && try == 0:
			if err := h.Authorizer.AddResponses(ctx, []*http.Response{resp}); err != nil {
				return fmt.Errorf("logging in to %s: %w: %w", name, ErrUnauthorized, err)
			}
		case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
			return fmt.Errorf("logging in to %s: %w", name, ErrUnauthorized)
		case resp.StatusCode >= 300:
			return &UnreachableError{Host: name, Err: fmt.Errorf("it answered %s", resp.Status)}
		default:
			return nil
		}
	}
	return fmt.Errorf("logging in to %s: %w", name, ErrUnauthorized)
}
