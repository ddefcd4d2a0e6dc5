package relay

import (
	"crypto/rand"
	"encoding/hex"
)

func newKey() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
