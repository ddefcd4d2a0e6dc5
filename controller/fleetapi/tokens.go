package fleetapi

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
)

// A token's lifetime: the default, and the maximum, since whoever finds one may
// join.
const (
	defaultTTL = 24 * time.Hour
	maxTTL     = 365 * 24 * time.Hour
)

// tokens implements dv1connect.TokensHandler.
type tokens struct{ *server }

func (s tokens) Create(ctx context.Context, r *connect.Request[dv1.CreateTokenRequest]) (*connect.Response[dv1.CreateTokenResponse], error) {
	ttl := time.Duration(r.Msg.Ttl)
	switch {
	case ttl == 0:
		ttl = defaultTTL
	case ttl < 0 || ttl > maxTTL:
		return nil, refuse(dv1.Error_INVALID, "a token's lifetime must be above zero and at most a year (%s), not %s", hours(maxTTL), hours(ttl))
	}
	t, err := pki.NewToken(s.Pin())
	if err != nil {
		return nil, refuse(dv1.Error_INTERNAL, "%v", err)
	}
	now := time.Now()
	m := &dv1.Token{Id: t.ID, Hash: t.Hash(), Role: r.Msg.Role, SocketRole: r.Msg.SocketRole, Created: now.UnixNano(), Expires: now.Add(ttl).UnixNano()}
	r.Header().Del(wire.HeaderKey) // a stored result could not return the text again
	res, err := s.propose(ctx, r, &dv1.Command{Of: &dv1.Command_PutToken{PutToken: &dv1.PutToken{Token: m}}})
	if err != nil {
		return nil, err
	}
	return done(res, &dv1.CreateTokenResponse{Token: info(m), Text: t.String()}), nil
}

// hours formats a duration without its zero parts.
func hours(d time.Duration) string {
	if d%time.Hour == 0 {
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return d.String()
}

func (s tokens) List(ctx context.Context, r *connect.Request[dv1.ListTokensRequest]) (*connect.Response[dv1.ListTokensResponse], error) {
	snap, err := s.state(ctx, r.Header())
	if err != nil {
		return nil, err
	}
	var all []*dv1.Token
	for t := range snap.Tokens() {
		all = append(all, t)
	}
	all, next, err := page(all, func(t *dv1.Token) string { return fmt.Sprintf("%020d %s", t.Created, t.Id) }, r.Msg.PageSize, r.Msg.PageToken)
	if err != nil {
		return nil, err
	}
	out := &dv1.ListTokensResponse{NextPageToken: next}
	for _, t := range all {
		out.Tokens = append(out.Tokens, info(t))
	}
	return reply(snap, out), nil
}

// info returns a token without its secret.
func info(t *dv1.Token) *dv1.TokenInfo {
	return &dv1.TokenInfo{Id: t.Id, Role: t.Role, SocketRole: t.SocketRole, Created: t.Created, Expires: t.Expires, Revoked: t.Revoked, Used: t.Used, Revision: t.Revision}
}

func (s tokens) Revoke(ctx context.Context, r *connect.Request[dv1.RevokeTokenRequest]) (*connect.Response[dv1.RevokeTokenResponse], error) {
	res, err := s.propose(ctx, r, &dv1.Command{Of: &dv1.Command_RevokeToken{RevokeToken: &dv1.RevokeToken{Id: r.Msg.Id}}})
	if err != nil {
		return nil, err
	}
	return done(res, &dv1.RevokeTokenResponse{Changed: res.Changed}), nil
}
