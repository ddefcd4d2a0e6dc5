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

// withPeer names who connects to the socket as a user of this host.
func (c *controller) withPeer(path string) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, conn net.Conn) context.Context {
		p, err := unixsock.Peer(path, conn)
		return context.WithValue(withConn(ctx, conn), peerKey{}, peerResult{p.At(c.files.Principal), err})
	}
}
