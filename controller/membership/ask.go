package membership

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/peer"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
)

// answer is another controller's response.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

// ask sends a request to a controller of which only the address is known.
func (p *Place) ask(ctx context.Context, addr, method, path string, body []byte) (*answer, error) {
	config := pki.PeerClientTLS(p.o.Files, wire.ALPNPeer, pki.All(pki.Kinds(pki.KindController), p.o.NotRevoked))
	tr := &http2.Transport{DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
		return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return &answer{resp.StatusCode, resp.Header, b}, err
}

// propose has the leader decide a command: this controller, or one that it knows.
func (p *Place) propose(ctx context.Context, cmd *dv1.Command) error {
	ctx, cancel := context.WithTimeout(ctx, placeWithin)
	defer cancel()
	res, err := p.o.Log.Propose(ctx, cmd)
	if !errors.Is(err, consensus.ErrNotLeader) {
		return decided(res, err)
	}
	b, err := proto.Marshal(cmd)
	if err != nil {
		return fmt.Errorf("encoding a command: %w", err)
	}
	err = consensus.ErrNotLeader // if no other controller is known
	for addr := range p.others() {
		var a *answer
		if a, err = p.ask(ctx, addr, http.MethodPost, peer.ProposePath, b); err != nil {
			continue
		}
		res := &dv1.CommandResult{}
		if a.code != http.StatusOK {
			err = fmt.Errorf("the controller at %s answers %d: %s", addr, a.code, a.body)
		} else if err = proto.Unmarshal(a.body, res); err == nil {
			return decided(res, nil)
		}
	}
	return err
}

func decided(r *dv1.CommandResult, err error) error {
	if err == nil && r.GetError() != nil {
		err = errors.New(r.Error.Message)
	}
	return err
}
