package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
)

func dialTLS(ctx context.Context, conf *tls.Config, addr string) (net.Conn, error) {
	c, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("reaching %s: %w", addr, err)
	}
	return c, nil
}
