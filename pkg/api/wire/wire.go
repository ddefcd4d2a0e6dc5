// Package wire names what drover's processes say to each other beside messages:
// protocols of TLS connections, headers, and the routes of an agent's port. Each
// name has its only home here; what is said under it is its users'.
package wire

// Application protocols (ALPN) that tell connections apart on a controller's port,
// and on an agent's.
const (
	ALPNJoin    = "drover-join/1"    // a host that shows a token
	ALPNSession = "drover-session/1" // an agent's session
	ALPNSocket  = "drover-door/1"    // the socket of a host without a controller, passed through
	ALPNPeer    = "drover-peer/1"    // a controller's own questions to another
	ALPNRelay   = "drover-relay/1"   // what a controller passes on for callers
	ALPNRaft    = "drover-raft/1"
	ALPNBulk    = "drover-bulk/1" // streams of an agent's port
)

// Headers of the Engine API and the fleet API beyond docker's.
const (
	HeaderIndex     = "Drover-Index"           // in: the least raft index to answer from; out: the one answered from
	HeaderMissing   = "Drover-Missing"         // out: nodes that did not take part
	HeaderStale     = "Drover-Stale"           // out: no controller leads; this is what the one that answered knew last
	HeaderKey       = "Drover-Idempotency-Key" // in: asking again with it does nothing twice
	HeaderOn        = "Drover-On"              // in: placement constraints, comma separated
	HeaderTrace     = "Drover-Trace"           // out: the operation's trace id
	HeaderContact   = "Drover-Contact"         // in: id of the node whose host the client believes it talks to
	HeaderFrames    = "Drover-Frames"          // in: attached streams and logs come in frames, with their begin and end
	HeaderFrom      = "Drover-From"            // in: a stream of output is resumed at this position
	HeaderUndecided = "Drover-Undecided"       // out: the change may have been made; the same key tells, once there is a leader
	HeaderAfter     = "Drover-After"           // in: a wait is resumed that began at this raft index
	HeaderWarning   = "Drover-Warning"         // out: what the client should know
)

// Headers among controllers.
const (
	HeaderPrincipal = "Drover-Principal" // in: URI of the caller that a controller asks for
	HeaderLeader    = "Drover-Leader"    // out: id of the controller that leads, as far as this one knows
	HeaderRemoved   = "Drover-Removed"   // out: "true" to a controller whose identity is revoked
)

// HeaderGrant is a node's right to read an image's content from another, in base64.
const HeaderGrant = "Drover-Grant"

// SocketHello is the first line of a connection over ALPNSocket, in JSON: who
// connected to the host's socket. The socket's own bytes follow.
type SocketHello struct{ UID int }
