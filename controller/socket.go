package controller

import (
	"context"
	"net"

	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/unixsock"
)

type peerKey struct{}

// peerResult is what the kernel said of a connection.
type peerResult struct {
	principal pki.Principal
	err       error
}

func withPeer(path string) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, c net.Conn) context.Context {
		p, err := unixsock.Peer(path, c)
		return context.WithValue(withConn(ctx, c), peerKey{}, peerResult{p, err})
	}
}
