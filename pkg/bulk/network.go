package bulk

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
)

// NetworkCheck is a node's answer to whether its network is as it should be.
type NetworkCheck struct {
	Differences []string          // between its kernel and what it was told, a sentence each
	Peers       string            // Digest of the peers that it was told of
	Networks    map[string]string // Digest of what it was told of each network, by id in hex
}

// Way is how a node reaches another one.
type Way struct {
	Node   string        // its id
	Link   string        // by which packets leave; "" without a way
	Direct bool          // both nodes share that link; else it is the tunnel
	MTU    int           // of containers' packets, as measured; 0: no answer
	RTT    time.Duration // of the smallest packet that was answered
}

// Digest identifies a set of records, whatever their order.
func Digest(records iter.Seq[proto.Message]) (string, error) {
	var sums [][]byte
	for r := range records {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
		if err != nil {
			return "", fmt.Errorf("encoding a record of the topology: %w", err)
		}
		sum := sha256.Sum256(b)
		sums = append(sums, sum[:])
	}
	slices.SortFunc(sums, bytes.Compare)
	all := sha256.Sum256(bytes.Join(sums, nil))
	return hex.EncodeToString(all[:16]), nil
}
