package fleetapi

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/fleet"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
)

func refuse(kind dv1.Error_Kind, format string, args ...any) error {
	return decided(&dv1.Error{Kind: kind, Message: fmt.Sprintf(format, args...)})
}

// decided converts a refusal for clients: its code, its message, and the original as
// a detail.
func decided(e *dv1.Error) *connect.Error {
	err := connect.NewError(wire.Code(e.Kind), errors.New(e.Message))
	if detail, derr := connect.NewErrorDetail(e); derr == nil {
		err.AddDetail(detail)
	}
	return err
}

// failed converts an error of the control plane, after which the caller may retry.
func failed(err error) error {
	if errors.Is(err, consensus.ErrKeyReused) {
		return refuse(dv1.Error_CONFLICT, "%v", err)
	}
	e := decided(&dv1.Error{Kind: dv1.Error_UNAVAILABLE, Message: err.Error()})
	if errors.Is(err, fleet.ErrNoLeader) {
		e.Meta().Set("Retry-After", "1")
		if errors.Is(err, fleet.ErrUndecided) {
			e.Meta().Set(wire.HeaderUndecided, "1")
		}
	}
	return e
}

// words returns a refusal's message, without its code.
func words(err error) string {
	var e *connect.Error
	if errors.As(err, &e) {
		return e.Message()
	}
	return err.Error()
}
