// Package wire names what drover's processes use besides protobuf messages: ALPN
// protocols, headers, and the first line of a socket's connection. What is sent under
// these names is up to their users.
package wire

// Application protocols (ALPN) that tell connections apart on a controller's port and on
// an agent's.
const (
	ALPNJoin    = "drover-join/1"    // a host that joins with a token
	ALPNSession = "drover-session/1" // an agent's session
	ALPNSocket  = "drover-door/1"    // the socket of a host without a controller, proxied to one
	ALPNPeer    = "drover-peer/1"    // a controller's own requests to another
	ALPNRelay   = "drover-relay/1"   // requests and sessions that a controller relays for callers
	ALPNRaft    = "drover-raft/1"
	ALPNBulk    = "drover-bulk/1" // streams of an agent's port
)

// Headers of the Engine API and the fleet API beyond docker's.
const (
	HeaderIndex     = "Drover-Index"           // in: the lowest raft index to answer from; out: the index answered from
	HeaderMissing   = "Drover-Missing"         // out: nodes that did not take part
	HeaderStale     = "Drover-Stale"           // out: there is no leader; the answer is what this controller last knew
	HeaderKey       = "Drover-Idempotency-Key" // in: a retry with the same key has no second effect
	HeaderOn        = "Drover-On"              // in: placement constraints, comma separated
	HeaderTrace     = "Drover-Trace"           // out: the operation's trace id
	HeaderContact   = "Drover-Contact"         // in: id of the node whose host the client believes it talks to
	HeaderFrames    = "Drover-Frames"          // in: attached streams and logs come in frames, with their begin and end
	HeaderFrom      = "Drover-From"            // in: resume a stream of output at this position
	HeaderUndecided = "Drover-Undecided"       // out: the change may have been made; a retry with the same key tells, once there is a leader
	HeaderAfter     = "Drover-After"           // in: resume a wait that began at this raft index
	HeaderWarning   = "Drover-Warning"         // out: a warning for the user
)

// Headers among controllers.
const (
	HeaderPrincipal = "Drover-Principal" // in: URI of the caller on whose behalf a controller asks
	HeaderLeader    = "Drover-Leader"    // out: id of the leader, as far as this controller knows
	HeaderRemoved   = "Drover-Removed"   // out: "true" to a controller whose identity is revoked
)

// How many bytes one controller lets another have in flight to it. A request that is
// not read stops its sender after PeerRequestWindow and one frame, and does not hold up
// others on its connection until as many have stopped as fit into PeerConnWindow.
const (
	PeerFrame         = 64 << 10
	PeerRequestWindow = 512 << 10
	PeerConnWindow    = 64 << 20
)

// HeaderGrant carries a node's grant to read an image's content, or a volume, from another
// node, in base64.
const HeaderGrant = "Drover-Grant"

// SocketHello is the first line of a connection over ALPNSocket, in JSON: who connected
// to the host's socket. The socket's own bytes follow.
type SocketHello struct{ UID int }
