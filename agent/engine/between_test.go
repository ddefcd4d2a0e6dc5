package engine_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// moment is a point in a call to containerd: before it is passed on, or after
// containerd answered and before the engine hears it.
type moment struct {
	method string
	after  bool
}

// between is a proxy of containerd's socket. at is called at each moment; its
// error is what the engine gets.
func (w *world) between(t *testing.T, at func(moment) error) (socket string) {
	t.Helper()
	socket = filepath.Join(w.run, "p")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	target := "unix:" + w.socket
	s := grpc.NewServer(grpc.ForceServerCodec(asItIs{}), grpc.UnknownServiceHandler(func(_ any, in grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(in)
		return pass(in, target, method, at)
	}))
	done := make(chan struct{})
	go func() { _ = s.Serve(l); close(done) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return socket
}

// pass hands on one call, over a connection of its own: containerd may have been
// started anew since the last one.
func pass(in grpc.ServerStream, target, method string, at func(moment) error) error {
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	var first []byte
	if err := in.RecvMsg(&first); err != nil {
		return err
	}
	if err := at(moment{method, false}); err != nil {
		return err
	}
	c, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	md, _ := metadata.FromIncomingContext(ctx)
	out, err := c.NewStream(metadata.NewOutgoingContext(ctx, md), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodec(asItIs{}))
	if err != nil {
		return err
	}
	if err := out.SendMsg(&first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	go func() {
		for {
			var b []byte
			if in.RecvMsg(&b) != nil {
				_ = out.CloseSend()
				return
			}
			if out.SendMsg(&b) != nil {
				return
			}
		}
	}()
	for {
		var b []byte
		if err := out.RecvMsg(&b); err != nil {
			in.SetTrailer(out.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := at(moment{method, true}); err != nil {
			return err
		}
		if err := in.SendMsg(&b); err != nil {
			return err
		}
	}
}

// asItIs is the codec of messages that nobody looks into.
type asItIs struct{}

func (asItIs) Name() string { return "proto" }

func (asItIs) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (asItIs) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), b...)
	return nil
}

var errGone = status.Error(codes.Unavailable, "error reading from server: EOF")
