package vault

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hpke"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"iter"
	"strings"

	"github.com/drover/drover/controller/command"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// DataKey seals every secret in raft, where it is itself stored, wrapped for each
// controller's HPKE key and for the operator's recovery key. Wrapping protects
// snapshots and logs that leave the hosts, not a stolen controller's disk.
type DataKey struct {
	ID  string
	key []byte // AES-256-GCM
}

// NewDataKey generates a data key.
func NewDataKey() (*DataKey, error) {
	id, err := identity.NewID()
	if err != nil {
		return nil, err
	}
	k := make([]byte, 32)
	if _, err := rand.Read(k); err != nil {
		return nil, fmt.Errorf("generating the data key: %w", err)
	}
	return &DataKey{ID: id, key: k}, nil
}

// Seal encrypts a secret bound to its name, so that secrets can't be swapped.
func (d *DataKey) Seal(name string, secret []byte) (*dv1.Sealed, error) {
	g, err := d.gcm()
	if err != nil {
		return nil, err
	}
	return &dv1.Sealed{Name: name, DataKey: d.ID, Blob: g.Seal(nil, nil, secret, []byte(name))}, nil
}

// Open decrypts what Seal made.
func (d *DataKey) Open(s *dv1.Sealed) ([]byte, error) {
	if s.GetDataKey() != d.ID {
		return nil, fmt.Errorf("%s is sealed with data key %s, not %s", s.GetName(), s.GetDataKey(), d.ID)
	}
	g, err := d.gcm()
	if err != nil {
		return nil, err
	}
	b, err := g.Open(nil, nil, s.GetBlob(), []byte(s.GetName()))
	if err != nil {
		return nil, fmt.Errorf("unsealing %s: %w", s.GetName(), err)
	}
	return b, nil
}

// WrapFor encrypts the data key itself for the holder of an HPKE key.
func (d *DataKey) WrapFor(name string, pk hpke.PublicKey) (*dv1.Sealed, error) {
	b, err := hpke.Seal(pk, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(name), d.key)
	if err != nil {
		return nil, fmt.Errorf("wrapping the data key as %s: %w", name, err)
	}
	return &dv1.Sealed{Name: name, DataKey: d.ID, Blob: b, Recipient: pk.Bytes()}, nil
}

// Rotate generates a new data key, seals with it everything that d sealed, and wraps
// it for the given controllers, by id with their HPKE public keys, and for the
// recovery key.
func (d *DataKey) Rotate(all iter.Seq[*dv1.Sealed], controllers map[string][]byte) (*dv1.RotateDataKey, error) {
	fresh, err := NewDataKey()
	if err != nil {
		return nil, err
	}
	out := &dv1.RotateDataKey{From: d.ID}
	wrap := func(name string, recipient []byte) error {
		pk, err := pki.SealingKEM().NewPublicKey(recipient)
		if err != nil {
			return fmt.Errorf("wrapping the data key as %s: %w", name, err)
		}
		s, err := fresh.WrapFor(name, pk)
		out.Sealed = append(out.Sealed, s)
		return err
	}
	for id, recipient := range controllers {
		if err := wrap(command.WrapName(fresh.ID, id), recipient); err != nil {
			return nil, err
		}
	}
	for old := range all {
		switch {
		case strings.HasPrefix(old.Name, command.WrapPrefix):
		case old.Name == command.RecoveryName:
			if len(old.Recipient) == 0 {
				continue // from before recipients were stored
			}
			if err := wrap(command.RecoveryName, old.Recipient); err != nil {
				return nil, err
			}
		default:
			secret, err := d.Open(old)
			if err != nil {
				return nil, err
			}
			s, err := fresh.Seal(old.Name, secret)
			if err != nil {
				return nil, err
			}
			out.Sealed = append(out.Sealed, s)
		}
	}
	return out, nil
}

// Unwrap decrypts a data key that WrapFor wrapped, with the raw HPKE private key.
func Unwrap(s *dv1.Sealed, rawKey []byte) (*DataKey, error) {
	sk, err := pki.SealingKEM().NewPrivateKey(rawKey)
	if err != nil {
		return nil, fmt.Errorf("reading the sealing key: %w", err)
	}
	k, err := hpke.Open(sk, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(s.GetName()), s.GetBlob())
	if err != nil {
		return nil, fmt.Errorf("unwrapping %s: %w", s.GetName(), err)
	}
	return &DataKey{ID: s.GetDataKey(), key: k}, nil
}

// NewRecoveryKey generates the operator's recovery key, commits the data key wrapped
// for it, and only then returns the key as text, to be shown once. A crash in
// between loses a key that nobody saw; calling it again replaces the wrapped copy.
func NewRecoveryKey(ctx context.Context, d *DataKey, propose func(context.Context, *dv1.Command) (*dv1.CommandResult, error)) (string, error) {
	sk, err := pki.SealingKEM().GenerateKey()
	if err != nil {
		return "", fmt.Errorf("generating the recovery key: %w", err)
	}
	s, err := d.WrapFor(command.RecoveryName, sk.PublicKey())
	if err != nil {
		return "", err
	}
	r, err := propose(ctx, &dv1.Command{Of: &dv1.Command_PutSealed{PutSealed: &dv1.PutSealed{Sealed: s}}})
	if err != nil {
		return "", fmt.Errorf("committing the data key wrapped for recovery: %w", err)
	}
	if e := r.GetError(); e != nil {
		return "", fmt.Errorf("committing the data key wrapped for recovery: %s", e.GetMessage())
	}
	raw, err := sk.Bytes()
	if err != nil {
		return "", fmt.Errorf("encoding the recovery key: %w", err)
	}
	return "DROVER-RECOVERY-" + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw), nil
}

func (d *DataKey) gcm() (cipher.AEAD, error) {
	b, err := aes.NewCipher(d.key)
	if err != nil {
		return nil, fmt.Errorf("using data key %s: %w", d.ID, err)
	}
	g, err := cipher.NewGCMWithRandomNonce(b)
	if err != nil {
		return nil, fmt.Errorf("using data key %s: %w", d.ID, err)
	}
	return g, nil
}
