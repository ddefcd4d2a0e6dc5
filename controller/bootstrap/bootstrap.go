// Package bootstrap creates a cluster's first identities, such that a crash at any
// point loses nothing, and commits them once the log is open.
//
// The order: everything is created in a scratch folder and fsynced; a rename to
// "bootstrap" is what makes the cluster exist; the parts are copied to their final
// places, idempotently; the controller bootstraps raft and proposes Init, keyed by
// the cluster id; only then is the folder removed (Unseal).
package bootstrap

import (
	"crypto"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	"github.com/drover/drover/controller/vault"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/subnet"
	"github.com/drover/drover/pkg/timing"
)

// Options configures Up on the first host.
type Options struct {
	DataDir     string
	ClusterName string        // "" takes NodeName
	NodeName    string        // host name
	Hosts       []string      // IP addresses and DNS names that clients dial
	Controller  string        // host:port that agents dial
	Pool        string        // where nodes' /24 subnets are taken from
	NetworkPool string        // where networks' subnets are taken from, "" for the default
	Timing      timing.Timing // of raft; the zero value is timing.LAN
	Now         time.Time
}

// Files of an unfinished bootstrap, below DataDir, and in it.
const (
	staging  = "bootstrap.tmp" // also of one that ended
	initFile = "init.pb"
	hostFile = "identity.json"
)

// Up makes sure that this host has identities: it creates a new cluster if there is
// none, completes an interrupted Up, and otherwise does nothing.
func Up(o Options) (created bool, err error) {
	if err := os.MkdirAll(o.DataDir, 0o711); err != nil {
		return false, fmt.Errorf("creating the data folder: %w", err)
	}
	tmp, src := filepath.Join(o.DataDir, staging), identity.BootstrapDir(o.DataDir)
	if err := os.RemoveAll(tmp); err != nil {
		return false, fmt.Errorf("clearing an unfinished bootstrap: %w", err)
	}
	if !exists(src) {
		if identity.HasController(o.DataDir) {
			return false, nil
		}
		if err := generate(tmp, o); err != nil {
			return false, err
		}
		if err := os.Rename(tmp, src); err != nil {
			return false, fmt.Errorf("committing the bootstrap: %w", err)
		}
		if err := durable.SyncDir(o.DataDir); err != nil {
			return false, err
		}
		created = true
	}
	return created, install(src, o.DataDir)
}

// Pending returns the Init command of a cluster that is not committed yet, or nil.
func Pending(dataDir string) (*dv1.Command, error) {
	b, err := os.ReadFile(filepath.Join(identity.BootstrapDir(dataDir), initFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the bootstrap: %w", err)
	}
	c := new(dv1.Command)
	if err := proto.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("reading the bootstrap in %s: %w", dataDir, err)
	}
	return c, nil
}

// done removes the scratch folder after Init was committed: it is renamed first, so
// that a crash leaves no part of it for Up to install again.
func done(dataDir string) error {
	tmp := filepath.Join(dataDir, staging)
	if err := os.Rename(identity.BootstrapDir(dataDir), tmp); err != nil {
		return fmt.Errorf("ending the bootstrap: %w", err)
	}
	if err := durable.SyncDir(dataDir); err != nil {
		return err
	}
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("removing the bootstrap's scratch: %w", err)
	}
	return nil
}

func generate(dir string, o Options) error {
	if _, err := subnet.ParsePool(o.Pool); err != nil {
		return err
	}
	if o.NetworkPool == "" {
		o.NetworkPool = subnet.DefaultNetworkPool.String()
	}
	if _, err := subnet.ParseNetworkPool(o.NetworkPool); err != nil {
		return err
	}
	cluster, err := identity.NewID()
	if err != nil {
		return err
	}
	host, err := identity.NewID()
	if err != nil {
		return err
	}
	ca, err := pki.NewAuthority(cluster, o.Now)
	if err != nil {
		return err
	}
	seal, err := pki.SealingKEM().GenerateKey()
	if err != nil {
		return fmt.Errorf("generating the sealing key: %w", err)
	}
	sealRaw, err := seal.Bytes()
	if err != nil {
		return fmt.Errorf("encoding the sealing key: %w", err)
	}
	bundle := [][]byte{ca.Cert.Raw}
	leaf := func(sub, kind, id string, hosts []string, seal []byte) error {
		key, err := pki.NewKey()
		if err != nil {
			return err
		}
		der, err := ca.Issue(pki.URI(cluster, kind, id), key.Public(), hosts, o.Now)
		if err != nil {
			return err
		}
		return pki.WriteFiles(filepath.Join(dir, sub), bundle, der, key, seal)
	}
	hosts := o.Hosts
	if net.ParseIP(o.NodeName) == nil && o.NodeName != "" {
		hosts = append([]string{o.NodeName}, hosts...)
	}
	if err := errors.Join(
		leaf("controller", pki.KindController, host, hosts, sealRaw),
		leaf("agent", pki.KindNode, host, hosts, nil),
		leaf("admin", pki.KindUser, pki.AdminOf(host), nil, nil),
	); err != nil {
		return err
	}
	init, err := initCommand(cluster, host, ca, seal.PublicKey(), o)
	if err != nil {
		return err
	}
	b, err := proto.Marshal(init)
	if err != nil {
		return fmt.Errorf("encoding the bootstrap: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, initFile), b, 0o600); err != nil {
		return err
	}
	return identity.WriteFile(filepath.Join(dir, hostFile), identity.Host{Cluster: cluster, Node: host, Name: o.NodeName, Controllers: []string{o.Controller}})
}

func initCommand(cluster, host string, ca *pki.Authority, seal hpke.PublicKey, o Options) (*dv1.Command, error) {
	name := o.ClusterName
	if name == "" {
		name = o.NodeName
	}
	caKey, err := marshalKey(ca.Key)
	if err != nil {
		return nil, err
	}
	dk, err := vault.NewDataKey()
	if err != nil {
		return nil, err
	}
	sealedCA, err := dk.Seal(command.AuthorityName, caKey)
	if err != nil {
		return nil, err
	}
	wrapped, err := dk.WrapFor(command.WrapName(dk.ID, host), seal)
	if err != nil {
		return nil, err
	}
	if o.Timing == (timing.Timing{}) {
		o.Timing = timing.LAN
	}
	hash := sha256.Sum256([]byte(cluster))
	return &dv1.Command{
		Key: "init-" + cluster, Hash: hash[:], Principal: pki.URI(cluster, pki.KindController, host),
		Of: &dv1.Command_Init{Init: &dv1.Init{
			Cluster: &dv1.Cluster{Id: cluster, Name: name, Epoch: 1, Created: o.Now.UnixNano(), TrustBundle: [][]byte{ca.Cert.Raw}, Pool: o.Pool, NetworkPools: []string{o.NetworkPool}, FeatureLevel: state.FeatureLevel, Timing: o.Timing.Proto()},
			Identities: []*dv1.Identity{
				{Uri: pki.URI(cluster, pki.KindController, host), Roles: []string{pki.KindController}, SealPublic: seal.Bytes()},
				{Uri: pki.URI(cluster, pki.KindNode, host), Roles: []string{pki.KindNode}},
				{Uri: pki.URI(cluster, pki.KindUser, pki.AdminOf(host)), Roles: []string{pki.RoleAdmin}},
			},
			Sealed:     []*dv1.Sealed{sealedCA, wrapped},
			Controller: &dv1.Controller{Id: host, Name: o.NodeName, Addr: o.Controller, Joined: o.Now.UnixNano(), Level: state.FeatureLevel},
		}},
	}, nil
}

// install copies what was decided to its final place. In each folder the certificate
// is written last, so that its presence implies the other files'; and the agent's after
// the controller's, as a host that only has the agent's is a member without a controller.
func install(src, dataDir string) error {
	if !exists(src) {
		return nil
	}
	for _, part := range []struct{ sub, dst string }{{"controller", identity.ControllerPKI(dataDir)}, {"admin", identity.AdminPKI(dataDir)}, {"agent", identity.AgentPKI(dataDir)}} {
		if err := os.MkdirAll(part.dst, 0o700); err != nil {
			return fmt.Errorf("installing identities: %w", err)
		}
		for _, f := range []string{"seal.key", "key.pem", "bundle.pem", "ca.pem", "cert.pem"} {
			if err := copyFile(filepath.Join(src, part.sub, f), filepath.Join(part.dst, f)); err != nil {
				return err
			}
		}
	}
	return copyFile(filepath.Join(src, hostFile), identity.HostFile(dataDir))
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // only controllers have a sealing key
	}
	if err != nil {
		return fmt.Errorf("installing identities: %w", err)
	}
	return durable.WriteFile(to, b, 0o600)
}

func marshalKey(k crypto.Signer) ([]byte, error) {
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encoding the authority's key: %w", err)
	}
	return b, nil
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }
