// Package relaysock is how an agent passes the connections of its host's socket
// to a controller: a line that says who connected, then the connection's bytes.
package relaysock

// ALPN is the protocol's name on a controller's port.
const ALPN = "drover-door/1"

// Hello is the first line, JSON.
type Hello struct{ UID int }
