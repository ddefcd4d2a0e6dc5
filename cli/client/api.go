package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"connectrpc.com/connect"
	"github.com/moby/moby/client"

	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

// maxAnswer bounds a response of the fleet API, in bytes.
const maxAnswer = 16 << 20

// API is a client of the fleet API.
type API struct {
	Nodes       dv1connect.NodesClient
	Ports       dv1connect.PortsClient
	Runs        dv1connect.RunsClient
	Controllers dv1connect.ControllersClient
	Tokens      dv1connect.TokensClient
	Traces      dv1connect.TracesClient
	Volumes     dv1connect.VolumesClient
}

// API returns a client of the fleet API. A request left undecided by a broken connection
// is retried with its key, except one for a new token, whose text is returned only once.
func (s *Session) API() (*API, error) {
	h, err := s.HTTP()
	if err != nil {
		return nil, err
	}
	const base = "http://drover"
	o := connect.WithClientOptions(connect.WithReadMaxBytes(maxAnswer), connect.WithInterceptors(repeated()))
	return &API{
		dv1connect.NewNodesClient(h, base, o), dv1connect.NewPortsClient(h, base, o), dv1connect.NewRunsClient(h, base, o), dv1connect.NewControllersClient(h, base, o),
		dv1connect.NewTokensClient(h, base, o), dv1connect.NewTracesClient(h, base, o), dv1connect.NewVolumesClient(h, base, o),
	}, nil
}

func repeated() connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			if r.Spec().Procedure == dv1connect.TokensCreateProcedure {
				return next(ctx, r)
			}
			return againIf(ctx, cutOff, func(ctx context.Context) (connect.AnyResponse, error) { return next(ctx, r) })
		}
	}
}

// cutOff reports whether an established connection broke. Dialing was retried already.
func cutOff(err error) bool { return broken(err) && !Unreachable(err) }

// Pages calls list for each page up to the last one.
func Pages(list func(token string) (next string, err error)) error {
	for token := ""; ; {
		next, err := list(token)
		if err != nil || next == "" {
			return err
		}
		token = next
	}
}

// Unreachable reports whether an error means that no controller answers.
func Unreachable(err error) bool {
	var dial *net.OpError
	var refused *connect.Error
	switch {
	case client.IsErrConnectionFailed(err), strings.Contains(err.Error(), "annot connect to the Docker daemon"):
		return true
	case errors.As(err, &refused):
		return !connect.IsWireError(refused) && errors.As(err, &dial) && dial.Op == "dial"
	}
	return false
}

// Explain rewords an error for drover's users, "" for none.
func (s *Session) Explain(err error) string {
	var refused *connect.Error
	switch {
	case err == nil:
		return ""
	case Unreachable(err):
		return fmt.Sprintf("drover: nothing answers at %s: start it there (drover up), or name another host with -H or %s", s.Host, EnvHost)
	case errors.As(err, &refused):
		return "drover: " + refused.Message()
	}
	return rewording.Replace(err.Error())
}

// rewording replaces docker's terms in errors by drover's.
var rewording = strings.NewReplacer("docker: Error response from daemon: ", "drover: ", "docker: ", "drover: ", "'docker ", "'drover ", "Docker daemon", "drover", "Error response from daemon: ", "Error: ", "'docker login'", "'drover login'")
