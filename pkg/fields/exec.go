package fields

import "github.com/moby/moby/api/types/container"

// ExecCreate and ExecStart list the fields of POST /containers/{id}/exec and
// /exec/{id}/start.
var (
	ExecCreate = table([]Row[container.ExecCreateRequest]{
		{Path: "User", Class: Node},
		{Path: "Privileged", Class: Node},
		{Path: "Tty", Class: Node},
		{Path: "ConsoleSize", Class: Node},
		{Path: "AttachStdin", Class: Fleet},
		{Path: "AttachStderr", Class: Fleet},
		{Path: "AttachStdout", Class: Fleet},
		{Path: "DetachKeys", Class: Fleet},
		{Path: "Env", Class: Node},
		{Path: "WorkingDir", Class: Node},
		{Path: "Cmd", Class: Node},
	})
	ExecStart = table([]Row[container.ExecStartRequest]{
		{Path: "Detach", Class: Fleet},
		{Path: "Tty", Class: Inert, Why: "the exec's own Tty counts"},
		{Path: "ConsoleSize", Class: Node},
	})
)
