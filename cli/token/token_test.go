package token

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/drover/drover/cli/clitest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

type tokens struct {
	dv1connect.UnimplementedTokensHandler
	asked *dv1.CreateTokenRequest
}

func (k *tokens) Create(_ context.Context, r *connect.Request[dv1.CreateTokenRequest]) (*connect.Response[dv1.CreateTokenResponse], error) {
	k.asked = r.Msg
	if time.Duration(r.Msg.Ttl) > 8760*time.Hour {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a token's lifetime must be above zero and at most a year (8760h), not 9000h"))
	}
	return connect.NewResponse(&dv1.CreateTokenResponse{Text: "drover1-pin-id-secret", Token: &dv1.TokenInfo{Id: "42d6e40f", Role: r.Msg.Role, Created: 1, Expires: 1 + r.Msg.Ttl}}), nil
}

func (k *tokens) Revoke(context.Context, *connect.Request[dv1.RevokeTokenRequest]) (*connect.Response[dv1.RevokeTokenResponse], error) {
	return connect.NewResponse(&dv1.RevokeTokenResponse{}), nil
}

type listed struct{ *tokens }

func (l listed) List(_ context.Context, r *connect.Request[dv1.ListTokensRequest]) (*connect.Response[dv1.ListTokensResponse], error) {
	if r.Msg.PageToken == "" {
		return connect.NewResponse(&dv1.ListTokensResponse{NextPageToken: "more", Tokens: []*dv1.TokenInfo{
			{Id: "0a", Role: "agent", Created: clitest.At(25 * time.Hour), Expires: clitest.At(time.Hour), Used: 12},
			{Id: "0b", Role: "controller", Created: clitest.At(time.Hour), Expires: clitest.At(-23 * time.Hour), Used: 2},
		}}), nil
	}
	return connect.NewResponse(&dv1.ListTokensResponse{Tokens: []*dv1.TokenInfo{
		{Id: "0c", Role: "agent", Created: clitest.At(time.Minute), Expires: clitest.At(-time.Hour), Revoked: true},
		{Id: "0d", Role: "agent", Created: clitest.At(time.Second), Used: 1},
	}}), nil
}

type members struct {
	dv1connect.UnimplementedControllersHandler
}

func (members) List(context.Context, *connect.Request[dv1.ListControllersRequest]) (*connect.Response[dv1.ListControllersResponse], error) {
	return connect.NewResponse(&dv1.ListControllersResponse{Controllers: []*dv1.ControllerInfo{{Addr: "10.0.0.1:7443"}}}), nil
}

func TestWhatPeopleRead(t *testing.T) {
	for name, args := range map[string]string{
		"ls.txt": "ls", "create.txt": "create", "create-controller.txt": "create --role controller --ttl 90m", "create-quiet.txt": "create -q",
		"create-long.txt": "create --ttl 9000h", "create-alone.txt": "create --socket-role user", "revoke.txt": "revoke 0a 0b",
	} {
		mux := http.NewServeMux()
		k := &tokens{}
		mux.Handle(dv1connect.NewTokensHandler(listed{k}))
		if name != "create-alone.txt" {
			mux.Handle(dv1connect.NewControllersHandler(members{}))
		}
		s := clitest.Serve(t, mux)
		clitest.Golden(t, name, clitest.Run(t, s, Command(s), strings.Fields(args)...))
		if name == "create-alone.txt" && (k.asked.SocketRole != "user" || k.asked.Ttl != int64(24*time.Hour) || k.asked.Role != "agent") {
			t.Errorf("%s asks for %v", args, k.asked)
		}
	}
}
