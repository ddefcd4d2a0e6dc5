// Package bootstrap makes a cluster's first identities, in an order in which a
// crash at any point loses nothing. Committing what it made is the controller's.
//
// The order: everything is made in a scratch folder and fsynced; one rename to
// "bootstrap" decides that this cluster exists; the parts are copied to where
// they live, repeatably; the controller bootstraps raft and proposes Init, keyed
// by the cluster id; only then the folder goes (Done).
package bootstrap

import (
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/command"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/subnet"
	"github.com/drover/drover/pkg/timing"
)

// Options of a first host.
type Options struct {
	DataDir     string
	ClusterName string        // "" takes NodeName
	NodeName    string        // host name
	Hosts       []string      // IP addresses and DNS names that clients dial
	Controller  string        // host:port that agents dial
	Pool        string        // where nodes' /24 come from
	Timing      timing.Timing // of raft; the zero value is timing.LAN
	Now         time.Time
}

// Identity is identity.json: who this host's agent is, and whom it dials.
type Identity struct {
	Version     int      `json:"version"`
	Cluster     string   `json:"cluster"`
	Node        string   `json:"node"`
	Name        string   `json:"name"`
	Controllers []string `json:"controllers"`
}

// Folders and files below DataDir.
const (
	staging  = "bootstrap.tmp"
	decided  = "bootstrap"
	initFile = "init.pb"
)

// ControllerPKI, AgentPKI and AdminPKI are where identities live.
func ControllerPKI(dataDir string) string { return filepath.Join(dataDir, "controller", "pki") }
func AgentPKI(dataDir string) string      { return filepath.Join(dataDir, "agent", "pki") }
func AdminPKI(dataDir string) string      { return filepath.Join(dataDir, "admin") }

// IdentityFile is where the agent's Identity lives.
func IdentityFile(dataDir string) string { return filepath.Join(dataDir, "agent", "identity.json") }

// TimingFile is where a controller keeps raft's timing for its next start.
func TimingFile(dataDir string) string { return filepath.Join(dataDir, "controller", "timing") }

// Up makes sure that this host has identities: it makes a new cluster where
// there is none, ends an Up that was cut short, and else does nothing.
func Up(o Options) (created bool, err error) {
	if err := os.MkdirAll(o.DataDir, 0o711); err != nil {
		return false, fmt.Errorf("making the data folder: %w", err)
	}
	src := filepath.Join(o.DataDir, decided)
	if !exists(src) {
		if exists(filepath.Join(ControllerPKI(o.DataDir), "cert.pem")) {
			return false, nil
		}
		tmp := filepath.Join(o.DataDir, staging)
		if err := os.RemoveAll(tmp); err != nil {
			return false, fmt.Errorf("clearing an unfinished bootstrap: %w", err)
		}
		if err := generate(tmp, o); err != nil {
			return false, err
		}
		if err := os.Rename(tmp, src); err != nil {
			return false, fmt.Errorf("deciding the bootstrap: %w", err)
		}
		if err := durable.SyncDir(o.DataDir); err != nil {
			return false, err
		}
		created = true
	}
	return created, install(src, o.DataDir)
}

// Pending is the Init command of a cluster that is not committed yet, nil if
// there is none.
func Pending(dataDir string) (*dv1.Command, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, decided, initFile))
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

// Done removes the scratch after Init was committed.
func Done(dataDir string) error {
	if err := os.RemoveAll(filepath.Join(dataDir, decided)); err != nil {
		return fmt.Errorf("removing the bootstrap's scratch: %w", err)
	}
	return durable.SyncDir(dataDir)
}

// LoadIdentity reads identity.json.
func LoadIdentity(path string) (*Identity, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading this host's identity: %w", err)
	}
	id := new(Identity)
	if err := json.Unmarshal(b, id); err != nil {
		return nil, fmt.Errorf("reading this host's identity in %s: %w", path, err)
	}
	if id.Version != 1 || id.Cluster == "" || id.Node == "" {
		return nil, fmt.Errorf("%s is not an identity of version 1", path)
	}
	return id, nil
}

func generate(dir string, o Options) error {
	if _, err := subnet.ParsePool(o.Pool); err != nil {
		return err
	}
	cluster, err := NewID()
	if err != nil {
		return err
	}
	host, err := NewID()
	if err != nil {
		return err
	}
	ca, err := pki.NewAuthority(cluster, o.Now)
	if err != nil {
		return err
	}
	seal, err := hpke.DHKEM(curve()).GenerateKey()
	if err != nil {
		return fmt.Errorf("making the sealing key: %w", err)
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
	id, err := json.MarshalIndent(Identity{Version: 1, Cluster: cluster, Node: host, Name: o.NodeName, Controllers: []string{o.Controller}}, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding this host's identity: %w", err)
	}
	return durable.WriteFile(filepath.Join(dir, "identity.json"), append(id, '\n'), 0o600)
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
	dk, err := NewDataKey()
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
			Cluster: &dv1.Cluster{Id: cluster, Name: name, Epoch: 1, Created: o.Now.UnixNano(), TrustBundle: [][]byte{ca.Cert.Raw}, Pool: o.Pool, FeatureLevel: 1, Timing: o.Timing.Proto()},
			Identities: []*dv1.Identity{
				{Uri: pki.URI(cluster, pki.KindController, host), Roles: []string{pki.KindController}, SealPublic: seal.Bytes()},
				{Uri: pki.URI(cluster, pki.KindNode, host), Roles: []string{pki.KindNode}},
				{Uri: pki.URI(cluster, pki.KindUser, pki.AdminOf(host)), Roles: []string{pki.RoleAdmin}},
			},
			Sealed:     []*dv1.Sealed{sealedCA, wrapped},
			Controller: &dv1.Controller{Id: host, Name: o.NodeName, Addr: o.Controller, Joined: o.Now.UnixNano()},
		}},
	}, nil
}

// install copies what was decided to where it lives. Certificates go last in
// each folder, so that their presence means that the rest is there.
func install(src, dataDir string) error {
	if !exists(src) {
		return nil
	}
	for sub, dst := range map[string]string{"controller": ControllerPKI(dataDir), "agent": AgentPKI(dataDir), "admin": AdminPKI(dataDir)} {
		if err := os.MkdirAll(dst, 0o700); err != nil {
			return fmt.Errorf("installing identities: %w", err)
		}
		for _, f := range []string{"seal.key", "key.pem", "bundle.pem", "ca.pem", "cert.pem"} {
			if err := copyFile(filepath.Join(src, sub, f), filepath.Join(dst, f)); err != nil {
				return err
			}
		}
	}
	return copyFile(filepath.Join(src, "identity.json"), IdentityFile(dataDir))
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

// NewID makes an id of a cluster or a host: 32 hex digits.
func NewID() (string, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("making an id: %w", err)
	}
	return hex.EncodeToString(b), nil
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }
