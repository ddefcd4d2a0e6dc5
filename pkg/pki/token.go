package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Token is what a host joins with: the pin of the authority that it must meet, and a
// secret of which the fleet knows the hash.
type Token struct {
	Pin    string // of the authority's certificate
	ID     string
	Secret string
}

const tokenPrefix = "drover1"

var base = base32.StdEncoding.WithPadding(base32.NoPadding)

// Pin returns the SHA-256 of a certificate, as in tokens.
func Pin(der []byte) string {
	sum := sha256.Sum256(der)
	return strings.ToLower(base.EncodeToString(sum[:]))
}

// NewToken creates a token for the authority with pin.
func NewToken(pin string) (Token, error) {
	b := make([]byte, 24)
	if _, err := rand.Read(b); err != nil {
		return Token{}, fmt.Errorf("making a token: %w", err)
	}
	return Token{Pin: pin, ID: hex.EncodeToString(b[:4]), Secret: strings.ToLower(base.EncodeToString(b[4:]))}, nil
}

// String returns the token's text, which is printed once.
func (t Token) String() string {
	return strings.Join([]string{tokenPrefix, t.Pin, t.ID, t.Secret}, "-")
}

// Hash returns what the fleet keeps of the secret.
func (t Token) Hash() []byte {
	sum := sha256.Sum256([]byte(t.Secret))
	return sum[:]
}

// ParseToken parses what String returned.
func ParseToken(s string) (Token, error) {
	p := strings.Split(strings.TrimSpace(s), "-")
	if len(p) != 4 || p[0] != tokenPrefix || len(p[1]) != 52 || len(p[2]) != 8 || len(p[3]) != 32 {
		return Token{}, errors.New("this is no join token: drover token create prints one, beginning with " + tokenPrefix + "-")
	}
	return Token{Pin: p[1], ID: p[2], Secret: p[3]}, nil
}
