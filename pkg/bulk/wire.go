// Package bulk is the protocol between controllers and an agent's own port: streams,
// signals, pulls. It is HTTP/1.1 over yamux over mTLS (ALPN drover-bulk/1), one
// connection per pair, with a window for each stream, so that an unread stream blocks no
// other. Who may call, and what calls do, is up to the agent.
package bulk

import (
	"encoding/binary"
	"io"
	"time"
)

// Paths on the agent. {id} is a task id in hex.
//
//	POST   /v1/tasks/{id}/attach?stdin&stdout&stderr&logs&stream&from=P   101, frames both ways
//	GET    /v1/tasks/{id}/logs?stdout&stderr&follow&timestamps&since&until&tail&from=P   200, frames
//	GET    /v1/tasks/{id}/wait?attempt=N&restarts=M   200, JSON of dv1.Exit (protojson) when that life of attempt N has ended
//	POST   /v1/tasks/{id}/kill?signal=S&key=K   204; 409 when not running
//	POST   /v1/tasks/{id}/resize?w=&h=       204
//	GET    /v1/tasks/{id}/top?ps_args=A      200, JSON of container.TopResponse; 409 when not running
//	GET    /v1/tasks/{id}/stats?name=N&stream&previous   200, NDJSON of container.StatsResponse: one, or one a second until the task is removed
//	HEAD   /v1/tasks/{id}/archive?path       200, HeaderPathStat
//	GET    /v1/tasks/{id}/archive?path       200, HeaderPathStat and a tar archive
//	PUT    /v1/tasks/{id}/archive?path&nooverwrite&chown   body an archive; 204
//	GET    /v1/tasks/{id}/export             200, a tar archive
//	GET    /v1/tasks/{id}/changes            200, docker's JSON
//	POST   /v1/tasks/{id}/exec               body container.ExecCreateRequest; 201 {"Id"}
//	POST   /v1/exec/{eid}/start?attach&w&h   101 frames as attach, or 204 without attach
//	POST   /v1/exec/{eid}/resize?w=&h=       204
//	GET    /v1/exec/{eid}                    200, JSON of task.ExecState's fields
//	POST   /v1/images/pull                   body PullRequest; 200, NDJSON of PullLine
//	DELETE /v1/images/{digest}               204
//	GET    /v1/network/check                 200, JSON of NetworkCheck
//	GET    /v1/network/ways                  200, JSON list of Way; it takes a second where a node does not answer
//	GET    /v1/probe                         204
//
// An error is a status with {"message": …}; a stream's late error is a frame of
// FrameError. An archive that breaks off has no end. Of a task's files, 404 is a path that
// is missing and 410 the task. P is the payload of a FramePos in hex.
const (
	FrameStdin  byte = 0 // up: within the server's credit
	FrameStdout byte = 1
	FrameStderr byte = 2
	FrameError  byte = 3 // text; the last frame

	FrameExit   byte = 16 // protojson of dv1.Exit; the last frame
	FrameBegin  byte = 17 // controller to CLI: one byte of the flags below
	FrameWarn   byte = 18 // controller to CLI: a message for the user
	FramePos    byte = 19 // position in the output, at which it can be resumed after a break
	FrameCredit byte = 20 // four bytes: how much more stdin may be sent

	FrameStdinEnd byte = 32 // up: stdin's half-close
	FrameRead     byte = 33 // up: all frames were received
)

// HeaderPathStat describes what is at a path, as docker has it: JSON in base64.
const HeaderPathStat = "X-Docker-Container-Path-Stat"

// Linger is for how long a sender whose request is answered may go on sending it.
const Linger = time.Second

// Flags of a FrameBegin.
const (
	BeginWhole byte = 1 // the output starts with its first byte
	BeginRaw   byte = 2 // the output is a terminal's
)

// MaxFrame bounds a frame's payload.
const MaxFrame = 64 << 10

// PullRequest asks an agent for an image's content.
type PullRequest struct {
	Ref, Digest                                   string
	Username, Password, IdentityToken, AuthServer string `json:",omitempty"`

	Holders []string `json:",omitempty"` // addresses of nodes that hold it
	Grant   []byte   `json:",omitempty"` // the right to read it from them
	Public  bool     `json:",omitempty"` // anybody may pull it from its registry
}

// PullLine is progress, then once Image (protojson of dv1.Image) or Error.
type PullLine struct {
	ID, Status     string   `json:",omitempty"`
	Current, Total int64    `json:",omitempty"`
	Image          []byte   `json:",omitempty"`
	Manifests      [][]byte `json:",omitempty"` // with Image: raw, from the requested digest down to the platform's
	Error          string   `json:",omitempty"`
}

// VolumeFetch asks an agent for a copy of a volume whose data is on another node.
type VolumeFetch struct {
	ID    string // of the volume there, in hex
	Addr  string // of that node
	Grant []byte // the right to read it
}

// VolumeLine is progress in bytes, then once Done or Error.
type VolumeLine struct {
	Written, Total int64  `json:",omitempty"`
	Done           bool   `json:",omitempty"`
	Error          string `json:",omitempty"`
}

// GrantOfVolume is what a grant to read a volume is for.
func GrantOfVolume(id string) string { return "volume:" + id }

// Headers of a volume's files: the bytes that they take on the disk, and after them, as a
// trailer, the SHA-256 of the stream, in hex.
const (
	HeaderRoom = "Drover-Room"
	HeaderSum  = "Drover-Sum"
)

// WriteFrame writes p as one or more frames of kind: [kind 0 0 0 len32 payload],
// docker's stdcopy framing.
func WriteFrame(w io.Writer, kind byte, p []byte) error {
	for first := true; first || len(p) > 0; first = false {
		n := min(len(p), MaxFrame)
		b := make([]byte, 8+n)
		b[0] = kind
		binary.BigEndian.PutUint32(b[4:], uint32(n))
		copy(b[8:], p[:n])
		if _, err := w.Write(b); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}
