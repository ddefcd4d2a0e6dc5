package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/timing"
)

// joinKeys holds a host's keys until its join is answered, so that a join that was
// interrupted is retried as the same join.
const joinKeys = "join.tmp"

// ErrMember reports that this host is already in a fleet.
var ErrMember = errors.New("this host is in a fleet already")

// JoinOptions are the options of Join.
type JoinOptions struct {
	DataDir    string
	Token      pki.Token
	Addr       string // of a controller of the fleet
	NodeName   string
	Hosts      []string
	Agent      string // host:port of its agent
	Controller string // host:port of its controller, "" for an agent only
	Labels     map[string]string
	Now        time.Time
}

// Join obtains this host's identities from a fleet. An interrupted join is retried with
// the same keys. It returns ErrMember if the host has an identity.
func Join(ctx context.Context, o JoinOptions) error {
	if IsMember(o.DataDir) || exists(BootstrapDir(o.DataDir)) {
		return ErrMember
	}
	dir := filepath.Join(o.DataDir, joinKeys)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	req := &join.Request{TokenID: o.Token.ID, Secret: o.Token.Secret, Name: o.NodeName, Hosts: o.Hosts, Agent: o.Agent,
		Controller: o.Controller, Labels: o.Labels, Now: o.Now}
	keys := map[string]*ecdsa.PrivateKey{}
	for name, pub := range map[string]*[]byte{"node": &req.NodeKey, "controller": &req.ControllerKey, "admin": &req.AdminKey} {
		k, err := keptKey(filepath.Join(dir, name+".pem"))
		if err != nil {
			return err
		}
		keys[name] = k
		if *pub, err = x509.MarshalPKIXPublicKey(k.Public()); err != nil {
			return fmt.Errorf("encoding a key: %w", err)
		}
	}
	seal, err := keptSeal(filepath.Join(dir, "seal"))
	if err != nil {
		return err
	}
	raw, err := seal.Bytes()
	if err != nil {
		return fmt.Errorf("encoding the sealing key: %w", err)
	}
	req.SealPublic = seal.PublicKey().Bytes()
	a, err := join.Ask(ctx, o.Addr, o.Token, req)
	if err != nil {
		return err
	}
	if err := whole(a, o.Controller != "", keys); err != nil {
		return fmt.Errorf("the answer of the controller at %s can't be used (it is safe to join again): %w", o.Addr, err)
	}
	if err := os.MkdirAll(filepath.Dir(HostFile(o.DataDir)), 0o700); err != nil {
		return fmt.Errorf("making the agent's folder: %w", err)
	}
	if err := WriteFile(HostFile(o.DataDir), Host{Cluster: a.Cluster, Node: a.Node, Name: o.NodeName, Controllers: a.Controllers}); err != nil {
		return err
	}
	if o.Controller != "" {
		t, err := timing.Parse(a.Timing)
		if err != nil {
			return fmt.Errorf("the answer of the controller at %s: %w", o.Addr, err)
		}
		if err := timing.Save(TimingFile(o.DataDir), t); err != nil {
			return err
		}
		if err := pki.WriteFiles(ControllerPKI(o.DataDir), a.Bundle, a.ControllerCert, keys["controller"], raw); err != nil {
			return err
		}
		if err := pki.WriteFiles(AdminPKI(o.DataDir), a.Bundle, a.AdminCert, keys["admin"], nil); err != nil {
			return err
		}
	}
	// The agent's certificate is written last: it marks the host as joined.
	if err := pki.WriteFiles(AgentPKI(o.DataDir), a.Bundle, a.NodeCert, keys["node"], nil); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the join's scratch: %w", err)
	}
	return nil
}

// whole checks that an answer holds every requested identity, each for the key that was
// sent: half of one would stay on disk for good.
func whole(a *join.Answer, controller bool, keys map[string]*ecdsa.PrivateKey) error {
	if a.Cluster == "" || a.Node == "" || len(a.Bundle) == 0 {
		return errors.New("it names no fleet, or no authority to trust")
	}
	if len(a.Controllers) == 0 {
		return errors.New("it names no controller")
	}
	type part struct {
		what, kind, key string
		cert            []byte
	}
	parts := []part{{"the agent's", pki.KindNode, "node", a.NodeCert}}
	if controller {
		parts = append(parts, part{"the controller's", pki.KindController, "controller", a.ControllerCert}, part{"the admin's", pki.KindUser, "admin", a.AdminCert})
	}
	for _, p := range parts {
		if len(p.cert) == 0 {
			return fmt.Errorf("it lacks %s certificate", p.what)
		}
		leaf, err := x509.ParseCertificate(p.cert)
		if err != nil {
			return fmt.Errorf("reading %s certificate: %w", p.what, err)
		}
		who, err := pki.FromCert(leaf)
		if err != nil {
			return err
		}
		if who.Kind != p.kind || who.Cluster != a.Cluster {
			return fmt.Errorf("%s certificate is of %s", p.what, who.URI)
		}
		if !keys[p.key].PublicKey.Equal(leaf.PublicKey) {
			return fmt.Errorf("%s certificate is for another key than this host's", p.what)
		}
	}
	return nil
}

func keptKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		if p, _ := pem.Decode(b); p != nil {
			if k, err := x509.ParseECPrivateKey(p.Bytes); err == nil {
				return k, nil
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading a key: %w", err)
	}
	k, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return k, durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func keptSeal(path string) (hpke.PrivateKey, error) {
	if b, err := os.ReadFile(path); err == nil {
		if k, err := pki.SealingKEM().NewPrivateKey(b); err == nil {
			return k, nil
		}
	}
	k, err := pki.SealingKEM().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("making the sealing key: %w", err)
	}
	b, err := k.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding the sealing key: %w", err)
	}
	return k, durable.WriteFile(path, b, 0o600)
}
