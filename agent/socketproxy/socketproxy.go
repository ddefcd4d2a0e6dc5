// Package socketproxy is the socket of a host without a controller: it proxies
// connections to a controller unchanged, with the uid of the client. What a client may
// do is decided there.
package socketproxy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/dial"
	"github.com/drover/drover/pkg/limit"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/unixsock"
)

// Options of Run. TLS is pki.PeerClientTLS for wire.ALPNSocket; Controllers returns
// host:port of each, the preferred one first.
type Options struct {
	Path        string
	Controllers func() []string
	TLS         *tls.Config
	Conns       *pki.Conns // cuts those to a removed controller; may be nil
	Log         *slog.Logger
}

// Bounds of concurrent clients, each of which costs a connection to a controller. One
// user can't take the places of all others.
const (
	maxConns = 4096
	maxOfUID = 1024
)

// Run serves the socket until ctx ends.
func Run(ctx context.Context, o Options) error {
	l, err := unixsock.Listen(ctx, o.Path)
	if err != nil {
		return err
	}
	return o.serve(ctx, l)
}

func (o Options) serve(ctx context.Context, l net.Listener) error {
	var all sync.WaitGroup
	defer all.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	slots := make(chan struct{}, maxConns)
	share := limit.NewShare(maxOfUID)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if again(err) { // a temporary error must not end the agent
			o.Log.Warn("a client can't be accepted yet", "err", err)
			select {
			case <-time.After(acceptAgain):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("accepting on %s: %w", o.Path, err)
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			o.pass(ctx, c, share)
		})
	}
}

// acceptAgain is the delay after an error for which again returns true.
const acceptAgain = 50 * time.Millisecond

// again reports whether accepting failed for lack of resources that are freed in time:
// file descriptors, memory.
func again(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (o Options) pass(ctx context.Context, c net.Conn, share *limit.Share) {
	defer func() { _ = c.Close() }()
	p, err := unixsock.Peer(o.Path, c)
	if err != nil {
		refuse(c, http.StatusForbidden, err.Error())
		return
	}
	release, ok := share.Take(p.ID)
	if !ok {
		refuse(c, http.StatusServiceUnavailable, fmt.Sprintf("uid %s has %d connections open through this host already", p.ID, maxOfUID))
		return
	}
	defer release()
	uid, _ := strconv.Atoi(p.ID)
	t, err := o.reach(ctx)
	if err != nil {
		o.Log.Warn("no controller answers", "err", err)
		refuse(c, http.StatusServiceUnavailable, "no controller of the fleet answers: "+err.Error())
		return
	}
	defer func() { _ = t.Close() }()
	if o.Conns != nil {
		leave, err := o.Conns.Enter(t)
		if err != nil {
			refuse(c, http.StatusServiceUnavailable, err.Error())
			return
		}
		defer leave()
	}
	stop := context.AfterFunc(ctx, func() { _, _ = c.Close(), t.NetConn().Close() })
	defer stop()
	hello, err := json.Marshal(wire.SocketHello{UID: uid})
	if err != nil {
		return
	}
	if _, err := t.Write(append(hello, '\n')); err != nil {
		refuse(c, http.StatusServiceUnavailable, err.Error())
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.Copy(t, c)
		if err == nil {
			_ = t.CloseWrite()
		}
	}()
	_, _ = io.Copy(c, t) // a client that left needs no answer
	_, _ = c.Close(), t.NetConn().Close()
	<-done
}

// Patience is how long a client waits for a controller to answer, as do clients of a
// controller's own host while it restarts.
const Patience = 5 * time.Second

// pause is the delay between two attempts.
const pause = 50 * time.Millisecond

func (o Options) reach(ctx context.Context) (*tls.Conn, error) {
	for end := time.Now().Add(Patience); ; {
		t, err := dial.First(ctx, o.TLS, o.Controllers())
		if err == nil || ctx.Err() != nil || time.Now().After(end) {
			return t, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// refuse answers a request that can't be proxied.
func refuse(c net.Conn, code int, msg string) {
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = c.Read(make([]byte, 4096)) // the request, or the client would not read the answer
	body, _ := json.Marshal(map[string]string{"message": msg})
	_, _ = fmt.Fprintf(c, "HTTP/1.1 %d Refused\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", code, len(body), body)
}
